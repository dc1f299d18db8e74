"""What Prometheus reads at /metrics, counted in a registry of the service's own."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one service; label values are names that the service knows, never a client's."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.seconds = Histogram(
            "pyimgano_request_seconds",
            "Time from the acceptance of a request to its answer, of those with a decision.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.decisions = Counter(
            "pyimgano_decisions", "Decisions.", ("model", "decision"), registry=registry
        )
        self.errors = Counter(
            "pyimgano_errors",
            "Requests without a decision, by why there is none.",
            ("model", "kind"),
            registry=registry,
        )
        self.queue = Gauge(
            "pyimgano_queue_length",
            "Requests that are accepted and not yet answered.",
            ("model",),
            registry=registry,
        )
        self.batches = Histogram(
            "pyimgano_batch_images",
            "Images that were scored together.",
            ("model",),
            buckets=_SIZES,
            registry=registry,
        )
        self.reloads = Counter(
            "pyimgano_reloads",
            "Times that a detector was read again.",
            ("model", "outcome"),
            registry=registry,
        )
        self.versions = Gauge(
            "pyimgano_detector_info",
            "1 for the version of each detector that decides now.",
            ("model", "version"),
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
