"""What a running service has: its detectors, their queues, and its metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..threads import thread_count
from .batching import Queue, Workers
from .detectors import DetectorSource, LoadedDetector, NamedDetector, unknown_model
from .metrics import Metrics
from .refusals import Refusal
from .settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("pyimgano.service")


@dataclass(frozen=True)
class Served:
    """A detector that is served, and its queue."""

    named: NamedDetector
    queue: Queue

    @property
    def name(self) -> str:
        """Return what clients call it."""
        return self.named.source.name


class Service:
    """The detectors of a service; used in a `with` statement, within which they can be asked.

    Parameters
    ----------
    sources
        Where the detectors come from. None is loaded yet: `load_all` does that.
    settings
        Limits.

    Attributes
    ----------
    served
        By name.
    failure
        Why a detector could not be loaded at the start; None if nothing failed.
    """

    def __init__(self, sources: Sequence[DetectorSource], settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.failure: Exception | None = None
        self._workers = Workers(thread_count(), settings.decoded_bytes)
        self._open = ExitStack()
        self.served = {
            one.name: Served(
                NamedDetector(one, settings.batch_size),
                Queue(one.name, self._workers, settings, self.metrics),
            )
            for one in sources
        }

    def __enter__(self) -> Self:
        self._open.enter_context(self._workers)
        for one in self.served.values():
            self._open.enter_context(one.queue)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def ready(self) -> bool:
        """Return whether all detectors are loaded."""
        return all(one.named.current is not None for one in self.served.values())

    def find(self, name: str) -> Served:
        """Return the detector of that name.

        Raises
        ------
        Refusal
            404: there is none.
        """
        found = self.served.get(name)
        if found is None:
            raise Refusal(404, "unknown", unknown_model(name, list(self.served)))
        return found

    async def load(self, served: Served) -> tuple[LoadedDetector | None, LoadedDetector]:
        """Load a detector, or load it again, in a thread; as `NamedDetector.load`."""
        name = served.name
        try:
            earlier, fresh = await asyncio.to_thread(served.named.load)
        except Exception as error:
            self.metrics.reloads.labels(name, "failed").inc()
            _log.error("detector %s could not be loaded: %s", name, error)
            raise
        if earlier is not None:
            self.metrics.reloads.labels(name, "done").inc()
            if earlier.version != fresh.version:
                self.metrics.versions.remove(name, earlier.version)
        self.metrics.versions.labels(name, fresh.version).set(1)
        _log.info("detector %s: version %s decides", name, fresh.version)
        return earlier, fresh

    async def load_all(self) -> None:
        """Load all detectors one after another, again where they are loaded; what fails is logged,
        and the earlier detector stays. `failure` says if one has none.
        """
        for one in self.served.values():
            try:
                await self.load(one)
            except Exception as error:
                if one.named.current is None:
                    self.failure = error
