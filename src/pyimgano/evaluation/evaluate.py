"""All metrics of one test set together, with the reasons of those that are undefined."""

from __future__ import annotations

from typing import Any

from .image_level import (
    DECISION_METRICS,
    ap,
    auroc,
    check_scores,
    check_threshold,
    classification_metrics,
)
from .pixel_level import AUPRO_LIMIT, PIXEL_METRICS, pixel_metrics
from .undefined import MetricTable

_NO_THRESHOLD = "no threshold was given"


def evaluate_detector(
    y_true: Any,
    scores: Any,
    *,
    threshold: float | None = None,
    pixel_masks: Any = None,
    pixel_scores: Any = None,
    pro_integration_limit: float = AUPRO_LIMIT,
    no_pixel_reason: str = "no masks were given",
) -> dict[str, Any]:
    """Image-level and, where masks are given, pixel-level metrics.

    Parameters
    ----------
    y_true
        (N,) labels, 0 good and 1 defective.
    scores
        (N,) finite scores.
    threshold
        `score >= threshold` decides. It is never looked for here: without one, the metrics
        of decisions are None.
    pixel_masks, pixel_scores
        (N, H, W) masks and maps, or None.
    pro_integration_limit
        Of AUPRO, in (0, 1].
    no_pixel_reason
        The reason given where there are no masks.

    Returns
    -------
    dict
        `auroc`, `average_precision`, `threshold`, `metrics` (precision, recall, f1,
        specificity, accuracy, tp, tn, fp, fn), `pixel_metrics` (pixel_auroc,
        pixel_average_precision, aupro) and `undefined`, a reason for each metric that is
        None. Every number is finite or None.

    Raises
    ------
    UsageError
        Lengths or shapes differ, or values are not finite.
    """
    labels, values = check_scores(y_true, scores)
    limit = None if threshold is None else check_threshold(threshold)
    table = MetricTable()
    table.add("auroc", lambda: auroc(labels, values))
    table.add("average_precision", lambda: ap(labels, values))
    undefined = dict(table.reasons)
    if limit is None:
        decisions: dict[str, Any] = dict.fromkeys((*DECISION_METRICS, "tp", "tn", "fp", "fn"))
        undefined.update(dict.fromkeys(decisions, _NO_THRESHOLD))
    else:
        decisions, reasons = classification_metrics(labels, values >= limit)
        undefined.update(reasons)
    if pixel_masks is None or pixel_scores is None:
        pixels: dict[str, Any] = dict.fromkeys(PIXEL_METRICS)
        undefined.update(dict.fromkeys(PIXEL_METRICS, no_pixel_reason))
    else:
        pixel_table = pixel_metrics(
            pixel_masks, pixel_scores, integration_limit=pro_integration_limit
        )
        pixels = pixel_table.values
        undefined.update(pixel_table.reasons)
    return {
        **table.values,
        "threshold": limit,
        "metrics": decisions,
        "pixel_metrics": pixels,
        "undefined": undefined,
    }
