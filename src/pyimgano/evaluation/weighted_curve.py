"""How scores of anomalies and of normal items interleave, exactly and in little memory.

Every threshold metric here changes only where an anomalous score is crossed: between two
neighbouring anomalous scores the true positives stand still. So it is enough to know, for
each distinct anomalous score t, the weight of anomalies at and above t and the number of
normal items above, and at or above, t. The normal scores are sorted once and searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..images import available_cores
from .undefined import UndefinedMetric

Floats = npt.NDArray[np.float64]

# From so many values on, several threads sort quicker than one.
_WORTH_THREADS = 1_000_000


@dataclass(frozen=True)
class ThresholdCurve:
    """Counts at each distinct anomalous score, from the highest to the lowest.

    Attributes
    ----------
    hit
        (K,) weight of the anomalies with a score >= t_k; the last is the whole weight.
        Without weights these are counts, and sums of them are exact.
    alarms_above, alarms
        (K,) normal items with a score > t_k, and >= t_k.
    normal
        How many normal items there are.
    """

    hit: Floats
    alarms_above: Floats
    alarms: Floats
    normal: int

    def area(self, limit: float = 1.0) -> float:
        """Area under (false-positive rate, share hit) from 0 to `limit`, divided by `limit`.

        Trapezoids between neighbouring points, with the last one cut at `limit` by linear
        interpolation. Without normal items there is no rate.
        """
        if self.normal == 0:
            raise UndefinedMetric("there is nothing normal to raise a false alarm on")
        # Two points for each threshold: just above it, and at it. Ties between anomalous
        # and normal scores thus become a slope, not a step.
        alarms = np.empty(2 * len(self.hit) + 2)
        hits = np.empty_like(alarms)
        alarms[0], hits[0] = 0.0, 0.0
        alarms[1:-1:2], alarms[2:-1:2] = self.alarms_above, self.alarms
        hits[1:-1:2], hits[2:-1:2] = np.concatenate([[0.0], self.hit[:-1]]), self.hit
        alarms[-1], hits[-1] = self.normal, self.hit[-1]
        most = limit * self.normal
        inside = int(np.searchsorted(alarms, most, side="right"))
        area = float(np.trapezoid(hits[:inside], alarms[:inside]))
        if inside < len(alarms):  # the segment that crosses the limit
            run, rise = alarms[inside] - alarms[inside - 1], hits[inside] - hits[inside - 1]
            width = most - alarms[inside - 1]
            area += width * (hits[inside - 1] + 0.5 * rise * width / run)
        return min(1.0, float(area / (most * self.hit[-1])))


def sort_in_parts(values: npt.NDArray[np.floating]) -> list[npt.NDArray[np.floating]]:
    """Sort (Q,) values, in place, in as many parts as there are cores, each by its thread."""
    parts = available_cores() if len(values) >= _WORTH_THREADS else 1
    pieces = np.array_split(values, parts)
    if parts == 1:
        values.sort()
        return [values]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(np.ndarray.sort, pieces))
    return pieces


def threshold_curve(
    anomalous: npt.NDArray[np.floating],
    weights: Floats | None,
    normal_sorted: Sequence[npt.NDArray[np.floating]],
) -> ThresholdCurve:
    """The curve of anomalous scores (P,) with weights (P,), against normal scores, which come
    in parts that are each sorted.

    Raises
    ------
    UndefinedMetric
        No anomalous score.
    """
    if len(anomalous) == 0:
        raise UndefinedMetric("there is nothing anomalous to find")
    order = np.argsort(anomalous, kind="stable")[::-1]
    scores = anomalous[order]
    weight = np.ones(len(scores)) if weights is None else weights[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # last of each tie
    hit = np.cumsum(weight)[last]
    distinct = scores[last]
    normal = sum(len(part) for part in normal_sorted)
    above = np.full(len(distinct), normal)
    at = above.copy()
    for part in normal_sorted:
        above -= np.searchsorted(part, distinct, side="right")
        at -= np.searchsorted(part, distinct, side="left")
    return ThresholdCurve(hit, above.astype(np.float64), at.astype(np.float64), normal)


def average_precision(curve: ThresholdCurve) -> float:
    """Sum over thresholds of (recall gained) times (precision there), as scikit-learn's.

    `curve` must have unit weights.
    """
    gained = np.diff(curve.hit, prepend=0.0)
    precision = curve.hit / (curve.hit + curve.alarms)
    return min(1.0, float(np.sum(gained * precision) / curve.hit[-1]))
