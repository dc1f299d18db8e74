"""Metrics of scores in a notebook: one call, numpy's conventions, and a summary to print."""

from __future__ import annotations

import math
import sys
from typing import Any

from ..errors import UsageError
from .evaluate import evaluate_scores
from .image_level import check_some, compute_classification_metrics, find_optimal_threshold
from .pixel_level import AUPRO_LIMIT, compute_bg_fpr, compute_pixel_segf1


def evaluate_detector(
    y_true: Any,
    scores: Any,
    threshold: float | None = None,
    find_best_threshold: bool = True,
    *,
    pixel_labels: Any = None,
    pixel_masks: Any = None,
    pixel_scores: Any = None,
    pixel_threshold: float | None = None,
    pro_integration_limit: float = AUPRO_LIMIT,
    pro_num_thresholds: int | None = None,
    **keywords: Any,
) -> dict[str, Any]:
    """Measure scores against labels, and maps against masks where they are given.

    Parameters
    ----------
    y_true
        (N,) labels, 0 good and 1 defective, N >= 1.
    scores
        (N,) finite scores, higher is more anomalous.
    threshold
        `score >= threshold` calls an image defective.
    find_best_threshold
        Whether, without a `threshold`, the one with the best F1 on these very labels is taken.
        Such a decision flatters: `threshold_tuned_on_labels` then says so, and no report or
        command of pyimgano does it.
    pixel_labels, pixel_masks
        (N, H, W) masks, 0 normal; two names of one argument.
    pixel_scores
        (N, H, W) maps.
    pixel_threshold
        Pixels strictly above it count as found in `segf1`, `pixel_segf1` and `bg_fpr`.
    pro_integration_limit
        The false-positive rate in (0, 1] to which AUPRO is integrated.
    pro_num_thresholds
        Ignored: AUPRO is exact.
    keywords
        Further keywords of `pyimgano.evaluation.evaluate_scores`.

    Returns
    -------
    dict
        `auroc`, `average_precision`, `threshold`, `threshold_tuned_on_labels`, `metrics`
        (precision, recall, f1, specificity, accuracy, tp, tn, fp, fn) and `undefined`, which
        holds the reason for each metric that is nan. With maps and masks also `pixel_metrics`:
        `pixel_auroc`, `pixel_average_precision`, `aupro`, and with a pixel threshold
        `pixel_threshold`, `segf1` (the same as `pixel_segf1`) and `bg_fpr`.

    Raises
    ------
    UsageError
        Arrays are empty, lengths or shapes differ, or values are not finite.
    """
    if pixel_labels is not None and pixel_masks is not None:
        raise UsageError("pixel_labels and pixel_masks are two names of one argument; give one")
    masks = pixel_masks if pixel_labels is None else pixel_labels
    if (masks is None) != (pixel_scores is None):
        given, missing = ("masks", "pixel_scores") if pixel_scores is None else ("maps", "masks")
        raise UsageError(f"pixel metrics need masks and maps: {given} were given, no {missing}")
    labels, values = check_some(y_true, scores)
    tuned = threshold is None and find_best_threshold and bool(labels.any())
    if tuned:
        threshold, _ = find_optimal_threshold(labels, values)
    found = evaluate_scores(
        labels,
        values,
        threshold=threshold,
        pixel_masks=masks,
        pixel_scores=pixel_scores,
        pixel_threshold=pixel_threshold,
        pro_integration_limit=pro_integration_limit,
        **keywords,
    )
    pixels = found.pop("pixel_metrics")
    del found["pixel_threshold"]
    results: dict[str, Any] = {name: _nan_for_none(value) for name, value in found.items()}
    results["threshold"] = found["threshold"]
    results["threshold_tuned_on_labels"] = tuned
    if threshold is not None:
        results["metrics"] = compute_classification_metrics(labels, values >= float(threshold))
    if masks is not None:
        del pixels["segf1"]
        if pixel_threshold is not None:
            segf1 = compute_pixel_segf1(masks, pixel_scores, threshold=pixel_threshold)
            pixels |= {"pixel_threshold": float(pixel_threshold), "segf1": segf1}
            pixels["pixel_segf1"] = segf1
            pixels["bg_fpr"] = compute_bg_fpr(masks, pixel_scores, threshold=pixel_threshold)
        results["pixel_metrics"] = _nan_for_none(pixels)
    return results


def print_evaluation_summary(results: dict[str, Any]) -> None:
    """Print what `evaluate_detector` returned, one metric a line, to stdout.

    Parameters
    ----------
    results
        The dictionary that `evaluate_detector` returned; metrics that it lacks are left out.
    """
    lines = ["Evaluation"]
    lines += _lines(results, ("auroc", "average_precision", "threshold"))
    lines += _lines(results.get("metrics") or {}, None)
    lines += _lines(results.get("pixel_metrics") or {}, None)
    if results.get("threshold_tuned_on_labels"):
        lines.append("  The threshold was tuned on these labels, so its metrics flatter.")
    sys.stdout.write("\n".join(lines) + "\n")


def _lines(values: dict[str, Any], names: tuple[str, ...] | None) -> list[str]:
    chosen = values if names is None else [name for name in names if name in values]
    lines = []
    for name in chosen:
        value = values[name]
        undefined = value is None or (isinstance(value, float) and math.isnan(value))
        shown = "undefined" if undefined else f"{value:.4f}" if isinstance(value, float) else value
        lines.append(f"  {name:<24} {shown}")
    return lines


def _nan_for_none(value: Any) -> Any:
    """Return the value with nan in the place of None, within dictionaries too."""
    if isinstance(value, dict):
        return {name: _nan_for_none(one) for name, one in value.items()}
    return math.nan if value is None else value
