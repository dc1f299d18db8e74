"""Metrics of images: one score and one label each."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .undefined import MetricTable, UndefinedMetric, value_or_nan
from .weighted_curve import Interleaving, NormalScores, ThresholdCurve, average_precision

#: Metrics of decisions at a threshold.
DECISION_METRICS = ("precision", "recall", "f1", "specificity", "accuracy")


def compute_auroc(y_true: Any, scores: Any) -> float:
    """Return the area under the ROC curve; ties count half (Hanley & McNeil, Radiology 1982).

    Parameters
    ----------
    y_true
        (N,) labels, 0 good and 1 defective.
    scores
        (N,) finite scores, higher is more anomalous.

    Returns
    -------
    float
        In [0, 1]; nan where one of the classes is missing.

    Raises
    ------
    UsageError
        The arrays are empty or of different lengths, or hold labels other than 0 and 1 or
        scores that are not finite.
    """
    labels, values = check_some(y_true, scores)
    return value_or_nan(lambda: auroc(labels, values))


def compute_average_precision(y_true: Any, scores: Any) -> float:
    """Return the average precision, the step-wise area under precision and recall.

    Parameters, returns and errors are those of `compute_auroc`; nan where no image is defective.
    """
    labels, values = check_some(y_true, scores)
    return value_or_nan(lambda: ap(labels, values))


def compute_classification_metrics(y_true: Any, y_pred: Any) -> dict[str, Any]:
    """Return precision, recall, F1, specificity, accuracy and the confusion counts.

    Parameters
    ----------
    y_true, y_pred
        (N,) of 0 and 1, N >= 1.

    Returns
    -------
    dict
        `precision, recall, f1, specificity, accuracy` in [0, 1] and `tp, tn, fp, fn` as int.
        Precision, recall and F1 are 0 where nothing is predicted positive; any other metric
        whose denominator is 0 is nan. Reports say None there, with the reason.

    Raises
    ------
    UsageError
        The arrays are empty, their lengths differ, or they hold other values than 0 and 1.
    """
    metrics, _ = classification_metrics(y_true, y_pred)
    if sum(metrics[name] for name in ("tp", "tn", "fp", "fn")) == 0:
        raise UsageError("y_true is empty; give at least one label")
    nothing_found = metrics["tp"] + metrics["fp"] == 0
    for name in DECISION_METRICS:
        if nothing_found and name in ("precision", "recall", "f1"):
            metrics[name] = 0.0
        elif metrics[name] is None:
            metrics[name] = math.nan
    return metrics


#: What `find_optimal_threshold` can maximise.
OPTIMA = ("f1", "accuracy", "youden", "precision", "recall")


def find_optimal_threshold(
    y_true: Any,
    scores: Any,
    metric: Literal["f1", "accuracy", "youden", "precision", "recall"] = "f1",
) -> tuple[float, float]:
    """Find the threshold on labelled scores that maximises a metric, and the value it reaches.

    The threshold is tuned on the labels that it is given: it is for looking at data, never for
    reporting, and no command or report of pyimgano decides with it.

    Parameters
    ----------
    y_true, scores
        As for `compute_auroc`.
    metric
        `f1`, `accuracy`, `precision`, `recall`, or `youden` (recall + specificity - 1).

    Returns
    -------
    threshold, value
        `score >= threshold` decides; among equals the largest threshold is taken.

    Raises
    ------
    UsageError
        The metric is unknown, or needs a class that is missing.
    """
    labels, values = check_some(y_true, scores)
    if metric not in OPTIMA:
        raise UsageError(f"Unsupported metric {metric!r}: give one of {', '.join(OPTIMA)}")
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
    elif metric == "precision":
        reached = tp / (tp + fp)
    elif metric == "recall":
        reached = tp / positives
    else:
        reached = tp / positives - fp / negatives
    best = int(np.argmax(reached))
    return float(values[order][last[best]]), float(reached[best])


def check_some(y_true: Any, scores: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Check labels and scores as `check_scores` does, and that there is at least one."""
    labels, values = check_scores(y_true, scores)
    if len(labels) == 0:
        raise UsageError("y_true is empty; give at least one label")
    return labels, values


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
    """Return a finite threshold: comparing with NaN would call everything good."""
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
    """Return the metrics, and the reasons of those that are undefined."""
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
