"""All metrics of one test set together, with the reasons of those that are undefined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .image_level import (
    DECISION_METRICS,
    ap,
    auroc,
    check_scores,
    check_threshold,
    classification_metrics,
)
from .pixel_level import (
    AUPRO_LIMIT,
    NO_PIXEL_THRESHOLD,
    PIXEL_METRICS,
    Regions,
    pixel_metrics,
)
from .undefined import MetricTable

_NO_THRESHOLD = "no threshold was given"


def evaluate_scores(
    y_true: Any,
    scores: Any,
    *,
    threshold: float | None = None,
    pixel_masks: Any = None,
    pixel_scores: Any = None,
    pixel_threshold: float | None = None,
    regions: Sequence[Regions] | None = None,
    pixel_counted: Any = None,
    pro_integration_limit: float = AUPRO_LIMIT,
    no_pixel_reason: str = "no masks were given",
    no_regions_reason: str | None = None,
    pro_curve: list[list[float]] | None = None,
) -> dict[str, Any]:
    """Compute image-level and, where masks are given, pixel-level metrics.

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
    pixel_threshold
        Of SegF1: a pixel that scores at or above it is called defective.
    regions
        Of sPRO: as `compute_spro` takes them, each within what is counted.
    pixel_counted
        (N, H, W) bool: pixels that are False are in no pixel metric, neither as defect nor as
        good ones; None counts all.
    pro_integration_limit
        Of AUPRO and sPRO, in (0, 1].
    no_pixel_reason
        The reason given where there are no masks.
    no_regions_reason
        The reason given where sPRO is wanted and there are no regions.
    pro_curve
        A list that takes 200 points of the curve that AUPRO is the area under: a list of their
        false-positive rates, from 0 to the limit, and one of the overlaps. It stays empty where
        AUPRO is None.

    Returns
    -------
    dict
        `auroc`, `average_precision`, `threshold`, `metrics` (precision, recall, f1,
        specificity, accuracy, tp, tn, fp, fn), `pixel_threshold`, `pixel_metrics`
        (pixel_auroc, pixel_average_precision, aupro, segf1; spro where regions are given)
        and `undefined`, a reason for each metric that is None. Every number is finite or None.

    Raises
    ------
    UsageError
        Lengths or shapes differ, or values are not finite.
    """
    labels, values = check_scores(y_true, scores)
    limit = None if threshold is None else check_threshold(threshold)
    pixel_limit = None
    if pixel_threshold is not None:
        pixel_limit = check_threshold(pixel_threshold, "pixel_threshold")
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
    if pixel_limit is None:
        undefined["pixel_threshold"] = NO_PIXEL_THRESHOLD
    if pixel_masks is None or pixel_scores is None:
        pixels: dict[str, Any] = dict.fromkeys(PIXEL_METRICS)
        undefined.update(dict.fromkeys(PIXEL_METRICS, no_pixel_reason))
        no_spro_reason = no_pixel_reason
    else:
        pixel_table = pixel_metrics(
            pixel_masks,
            pixel_scores,
            integration_limit=pro_integration_limit,
            threshold=pixel_limit,
            regions=regions,
            counted=pixel_counted,
            pro_curve=pro_curve,
        )
        pixels = pixel_table.values
        undefined.update(pixel_table.reasons)
        no_spro_reason = no_regions_reason or ""
    spro_wanted = regions is not None or no_regions_reason is not None
    if spro_wanted and "spro" not in pixels:
        pixels["spro"] = None
        undefined["spro"] = no_spro_reason
    return {
        **table.values,
        "threshold": limit,
        "metrics": decisions,
        "pixel_threshold": pixel_limit,
        "pixel_metrics": pixels,
        "undefined": undefined,
    }


def evaluate_kinds(
    y_true: Any, scores: Any, kinds: Sequence[str], **keywords: Any
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of each kind of defect: its images with all the good ones.

    Parameters
    ----------
    y_true, scores
        As `evaluate_scores`.
    kinds
        (N,) the kind of defect of each image; of no account for good ones.
    keywords
        Of `evaluate_scores`. Masks, maps and regions are divided as the images are.

    Returns
    -------
    dict
        For each kind of defect, sorted by name, `count` and the results of
        `evaluate_scores`.

    Raises
    ------
    UsageError
        As `evaluate_scores`, or another number of kinds than of labels.
    """
    labels, values = check_scores(y_true, scores)
    if len(kinds) != len(labels):
        raise UsageError(f"{len(labels)} labels, but {len(kinds)} kinds of defect")
    found = {}
    for kind in sorted({kind for kind, label in zip(kinds, labels, strict=True) if label}):
        members = np.asarray([one == kind for one in kinds], dtype=np.bool_) & labels
        chosen = np.flatnonzero(members | ~labels)
        divided = {
            name: _take(keywords[name], chosen)
            for name in ("pixel_masks", "pixel_scores", "pixel_counted", "regions")
            if keywords.get(name) is not None
        }
        results = evaluate_scores(labels[chosen], values[chosen], **{**keywords, **divided})
        found[kind] = {"count": int(members.sum()), **results}
    return found


def _take(items: Any, chosen: Any) -> Any:
    return items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]
