"""Metrics of images: one score and one label each."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .undefined import MetricTable, UndefinedMetric, value_or_none
from .weighted_curve import Interleaving, NormalScores, ThresholdCurve, average_precision

#: Metrics of decisions at a threshold.
DECISION_METRICS = ("precision", "recall", "f1", "specificity", "accuracy")


def compute_auroc(y_true: Any, scores: Any) -> float | None:
    """Area under the ROC curve; ties count half (Hanley & McNeil, Radiology 1982).

    Parameters
    ----------
    y_true
        (N,) labels, 0 good and 1 defective.
    scores
        (N,) finite scores, higher is more anomalous.

    Returns
    -------
    float or None
        In [0, 1]; None where one of the classes is missing.

    Raises
    ------
    UsageError
        Lengths differ, labels other than 0 and 1, or scores that are not finite.
    """
    labels, values = check_scores(y_true, scores)
    return value_or_none(lambda: auroc(labels, values))


def compute_average_precision(y_true: Any, scores: Any) -> float | None:
    """Average precision, the step-wise area under precision and recall.

    Parameters, returns and errors as `compute_auroc`; None where no image is defective.
    """
    labels, values = check_scores(y_true, scores)
    return value_or_none(lambda: ap(labels, values))


def compute_classification_metrics(y_true: Any, y_pred: Any) -> dict[str, Any]:
    """Precision, recall, F1, specificity, accuracy and the confusion counts.

    Parameters
    ----------
    y_true, y_pred
        (N,) of 0 and 1.

    Returns
    -------
    dict
        `precision, recall, f1, specificity, accuracy` in [0, 1], None where the
        denominator is 0; `tp, tn, fp, fn` as int.
    """
    metrics, _ = classification_metrics(y_true, y_pred)
    return metrics


def find_optimal_threshold(
    y_true: Any, scores: Any, metric: Literal["f1", "accuracy", "youden"] = "f1"
) -> tuple[float, float]:
    """The threshold on labelled scores that maximises a metric, and the value reached.

    It is tuned on the labels that it is given: for looking at data, never for reporting.
    No part of pyimgano decides with it.

    Parameters
    ----------
    y_true, scores
        As `compute_auroc`.
    metric
        `f1`, `accuracy`, or `youden` (recall + specificity - 1).

    Returns
    -------
    threshold, value
        `score >= threshold` decides; among equals the largest threshold.

    Raises
    ------
    UsageError
        An unknown metric, or one that needs a class that is missing.
    """
    labels, values = check_scores(y_true, scores)
    if metric not in ("f1", "accuracy", "youden"):
        raise UsageError(f"metric must be 'f1', 'accuracy' or 'youden', got {metric!r}")
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or (metric == "youden" and negatives == 0):
        raise UsageError(f"{metric} has no optimum: a class is missing in y_true")
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    tp = np.cumsum(labels[order])[last]
    fp = last + 1 - tp
    if metric == "f1":
        reached = 2 * tp / (tp + fp + positives)
    elif metric == "accuracy":
        reached = (tp + negatives - fp) / len(labels)
    else:
        reached = tp / positives - fp / negatives
    best = int(np.argmax(reached))
    return float(values[order][last[best]]), float(reached[best])


def check_scores(y_true: Any, scores: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Labels (N,) bool and scores (N,) float64, or a `UsageError`."""
    labels = check_labels(y_true, "y_true")
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != labels.shape:
        raise UsageError(
            f"y_true and scores must have the same length, got {labels.shape} and {values.shape}"
        )
    if not np.isfinite(values).all():
        raise UsageError("scores must be finite")
    return labels, values


def check_threshold(threshold: Any, name: str = "threshold") -> float:
    """A finite threshold: comparing with NaN would call everything good."""
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {threshold!r}")
    return value


def check_labels(labels: Any, name: str) -> npt.NDArray[np.bool_]:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise UsageError(f"{name} must have one dimension, got shape {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise UsageError(f"{name} must hold 0 (good) and 1 (defective) only")
    return array.astype(np.bool_)


def _curve(labels: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> ThresholdCurve:
    if not labels.any():
        raise UndefinedMetric("the test set has no defective image")
    return Interleaving.of(values[labels], NormalScores.of(values[~labels])).curve()


def auroc(labels: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> float:
    curve = _curve(labels, values)
    if curve.normal == 0:
        raise UndefinedMetric("the test set has no good image")
    return curve.area()


def ap(labels: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> float:
    return average_precision(_curve(labels, values))


def classification_metrics(y_true: Any, y_pred: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics, and the reasons of those that are undefined."""
    labels, predicted = check_labels(y_true, "y_true"), check_labels(y_pred, "y_pred")
    if labels.shape != predicted.shape:
        raise UsageError(
            f"y_true and y_pred must have the same length, got {labels.shape} and {predicted.shape}"
        )
    tp = int((labels & predicted).sum())
    tn = int((~labels & ~predicted).sum())
    fp = int((~labels & predicted).sum())
    fn = int((labels & ~predicted).sum())

    def ratio(part: int, whole: int, reason: str) -> float:
        if whole == 0:
            raise UndefinedMetric(reason)
        return part / whole

    table = MetricTable()
    table.add("precision", lambda: ratio(tp, tp + fp, "no image was called defective"))
    table.add("recall", lambda: ratio(tp, tp + fn, "the test set has no defective image"))
    table.add(
        "f1", lambda: ratio(2 * tp, 2 * tp + fp + fn, "no image is, or was called, defective")
    )
    table.add("specificity", lambda: ratio(tn, tn + fp, "the test set has no good image"))
    table.add("accuracy", lambda: ratio(tp + tn, len(labels), "the test set is empty"))
    return {**table.values, "tp": tp, "tn": tn, "fp": fp, "fn": fn}, table.reasons
