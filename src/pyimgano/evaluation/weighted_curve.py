"""How scores of anomalies and of normal items interleave, exactly and in little memory.

Every threshold metric here changes only where an anomalous score is crossed: between two
neighbouring anomalous scores the true positives stand still. So it is enough to know, for
each distinct anomalous score t, the weight of anomalies at and above t and the number of
normal items above, and at or above, t. The normal scores are sorted once, by all cores, and
searched once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..threads import thread_count
from .undefined import UndefinedMetric

Floats = npt.NDArray[np.float64]

# From so many values on, several threads sort quicker than one.
_WORTH_THREADS = 1_000_000
# More parts gain nothing.
_MOST_PARTS = 64

_P = TypeVar("_P")


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
        alarms, hits = self._corners()
        most = limit * self.normal
        inside = int(np.searchsorted(alarms, most, side="right"))
        area = float(np.trapezoid(hits[:inside], alarms[:inside]))
        if inside < len(alarms):  # the segment that crosses the limit
            run, rise = alarms[inside] - alarms[inside - 1], hits[inside] - hits[inside - 1]
            width = most - alarms[inside - 1]
            area += width * (hits[inside - 1] + 0.5 * rise * width / run)
        return min(1.0, float(area / (most * self.hit[-1])))

    def points(self, limit: float, most: int) -> tuple[list[float], list[float]]:
        """Return `most` points of the curve that `area` is under, for drawing it.

        They go from a false-positive rate of 0 to one of `limit` and lie closer together near 0,
        where the curve is steep: the rates, and the shares hit at them. There must be normal items.
        """
        alarms, hits = self._corners()
        # where the curve is upright the highest point counts, as the lower ones do for the area
        last = np.append(np.diff(alarms) > 0, True)
        rates, shares = alarms[last] / self.normal, hits[last] / self.hit[-1]
        at = limit * np.linspace(0.0, 1.0, most) ** 3
        return at.tolist(), np.minimum(np.interp(at, rates, shares), 1.0).tolist()

    def _corners(self) -> tuple[Floats, Floats]:
        """Return the points (alarms, hits) that the curve goes through in straight lines."""
        # Two points for each threshold: just above it, and at it. Ties between anomalous
        # and normal scores thus become a slope, not a step.
        alarms = np.empty(2 * len(self.hit) + 2)
        hits = np.empty_like(alarms)
        alarms[0], hits[0] = 0.0, 0.0
        alarms[1:-1:2], alarms[2:-1:2] = self.alarms_above, self.alarms
        hits[1:-1:2], hits[2:-1:2] = np.concatenate([[0.0], self.hit[:-1]]), self.hit
        alarms[-1], hits[-1] = self.normal, self.hit[-1]
        return alarms, hits


@dataclass(frozen=True)
class NormalScores:
    """Scores of the normal items, sorted as far as a curve needs them.

    Attributes
    ----------
    parts
        Arrays that are each ascending. Scores below every anomalous one may be left out:
        no threshold is crossed there.
    count
        How many normal items there are, with those left out.
    """

    parts: list[npt.NDArray[np.floating]]
    count: int

    @classmethod
    def of(cls, scores: npt.NDArray[np.floating]) -> NormalScores:
        """Sort (Q,) normal scores."""
        return cls([np.sort(scores)], len(scores))

    @classmethod
    def of_all_but(
        cls,
        not_normal: npt.NDArray[np.bool_],
        scores: npt.NDArray[np.floating],
        least: float,
        hits: int,
    ) -> NormalScores:
        """Sort those of `scores` where `not_normal`, of the same shape, is false.

        `least` is the lowest score of an anomaly, and `hits` how many anomalies there are.
        Threads sort parts: the smaller a part the quicker, but each is searched for each
        anomaly.
        """
        flags, values = not_normal.reshape(-1), scores.reshape(-1)
        threads = thread_count() if len(values) >= _WORTH_THREADS else 1
        parts = 1
        if threads > 1:
            parts = max(threads, min(_MOST_PARTS, len(values) // (4 * max(1, hits))))

        def part(piece: tuple[npt.NDArray[np.bool_], npt.NDArray[np.floating]]) -> Any:
            flag, value = piece
            found = value[(value >= least) > flag]  # at least `least`, and not flagged
            found.sort()
            return found

        pieces = list(zip(np.array_split(flags, parts), np.array_split(values, parts)))
        return cls(in_threads(part, pieces, threads), len(values) - int(np.count_nonzero(flags)))

    def above_and_at(
        self, thresholds: npt.NDArray[np.floating]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return how many scores are > t_k, and >= t_k, for (K,) descending thresholds."""

        def part(scores: npt.NDArray[np.floating]) -> Any:
            below = np.searchsorted(scores, ascending, side="left")
            # only where a score equals the threshold is there more than one place for it
            at_hand = below < len(scores)
            tied = np.flatnonzero(scores[below[at_hand]] == ascending[at_hand])
            upto = below.copy()
            upto[tied] = np.searchsorted(scores, ascending[tied], side="right")
            return len(scores) - upto, len(scores) - below

        ascending = thresholds[::-1].copy()
        threads = thread_count() if len(self.parts) > 1 else 1
        above = np.zeros(len(thresholds), np.int64)
        at = np.zeros(len(thresholds), np.int64)
        for over, reached in in_threads(part, self.parts, threads):
            above += over
            at += reached
        return above[::-1], at[::-1]


def in_threads(work: Callable[[_P], Any], pieces: Sequence[_P], threads: int) -> list[Any]:
    """Do `work` on each piece, in order; numpy's loops let go of the interpreter meanwhile."""
    if threads == 1:
        return [work(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, pieces))


@dataclass(frozen=True)
class Interleaving:
    """Where anomalous and normal scores lie between each other, whatever they weigh.

    Attributes
    ----------
    order
        (P,) positions of the anomalous scores, from the highest to the lowest.
    last
        (K,) where in `order` each distinct score ends.
    above, at
        (K,) normal items with a score > t_k, and >= t_k.
    normal
        How many normal items there are.
    """

    order: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]
    above: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    normal: int

    @classmethod
    def of(cls, anomalous: npt.NDArray[np.floating], normal: NormalScores) -> Interleaving:
        """Sort (P,) anomalous scores.

        Raises
        ------
        UndefinedMetric
            No anomalous score.
        """
        if len(anomalous) == 0:
            raise UndefinedMetric("there is nothing anomalous to find")
        order = np.argsort(anomalous, kind="stable")[::-1]
        scores = anomalous[order]
        last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # last of each tie
        above, at = normal.above_and_at(scores[last])
        return cls(order, last, above, at, normal.count)

    def curve(self, weights: Floats | None = None) -> ThresholdCurve:
        """Return the curve with (P,) weights of the anomalies, or one for each."""
        if weights is None:
            hit = (self.last + 1).astype(np.float64)
        else:
            hit = np.cumsum(weights[self.order])[self.last]
        alarms = self.at.astype(np.float64)
        return ThresholdCurve(hit, self.above.astype(np.float64), alarms, self.normal)


def average_precision(curve: ThresholdCurve) -> float:
    """Sum over thresholds of (recall gained) times (precision there), as scikit-learn's.

    `curve` must have unit weights.
    """
    gained = np.diff(curve.hit, prepend=0.0)
    precision = curve.hit / (curve.hit + curve.alarms)
    return min(1.0, float(np.sum(gained * precision) / curve.hit[-1]))
