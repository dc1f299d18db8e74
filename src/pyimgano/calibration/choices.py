"""Thresholds that a user chooses: by the defects that may be missed, or by what errors cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError
from .threshold import CONFIDENCE


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold, and in words where it comes from."""

    threshold: float
    origin: str


def threshold_for_misses(
    defect_scores: Sequence[float] | npt.NDArray[np.floating],
    miss_rate: float,
    *,
    confidence: float | None = CONFIDENCE,
) -> ChosenThreshold:
    """Choose the largest threshold below which few enough defects score.

    With m scores of defects and the threshold at the r-th smallest of them, the share of defects
    that are missed is at most the `confidence` quantile of Beta(r, m + 1 - r), the exact
    distribution of an order statistic's coverage (Wilks, 1941). Without a confidence it is
    r / (m + 1) on average, the bound of conformal risk control (Angelopoulos, Bates, Fisch, Lei &
    Schuster, 2024).

    Parameters
    ----------
    defect_scores
        (m,) finite scores of defective images.
    miss_rate
        In (0, 1): the share of defects that may be missed.
    confidence
        In (0, 1); None for a bound on average.

    Raises
    ------
    UsageError
        A value out of range.
    DataError
        Too few scores for that; the line says how many are wanted.
    """
    from scipy.special import betaincinv

    ordered = _finite(defect_scores, "of defective images")
    if not 0 < miss_rate < 1:
        raise UsageError(f"miss_rate must lie in (0, 1), got {miss_rate!r}")
    if confidence is not None and not 0 < confidence < 1:
        raise UsageError(f"confidence must lie in (0, 1), got {confidence!r}")
    m = len(ordered)
    ranks = np.arange(1, m + 1)
    if confidence is None:
        bounds = ranks / (m + 1)
        needed = math.ceil(1 / miss_rate) - 1
        how = "on average"
    else:
        bounds = betaincinv(ranks, m + 1 - ranks, confidence)
        needed = math.ceil(math.log(1 - confidence) / math.log1p(-miss_rate))
        how = f"with {100 * confidence:g} % confidence"
    rank = int((bounds <= miss_rate * (1 + 1e-12)).sum())
    if rank == 0:
        raise DataError(
            f"{m} defective image{'s' * (m != 1)} cannot show that at most "
            f"{100 * miss_rate:g} % of defects are missed {how}: {needed} are needed; the lowest "
            f"rate they can show is {100 * float(bounds[0]):.2g} %"
        )
    return ChosenThreshold(
        float(ordered[rank - 1]),
        f"at most {100 * miss_rate:g} % of defects missed {how}, from {m} defective images",
    )


def threshold_for_costs(
    normal_scores: Sequence[float] | npt.NDArray[np.floating],
    defect_scores: Sequence[float] | npt.NDArray[np.floating],
    *,
    cost_miss: float,
    cost_false_alarm: float,
    defect_share: float = 0.5,
) -> ChosenThreshold:
    """Choose the threshold at which errors cost least.

    The cost of a part is `defect_share` times `cost_miss` times the share of defects below the
    threshold, plus `1 - defect_share` times `cost_false_alarm` times (1 + k) / (n + 1), where k of
    the n normal scores reach it. Of defects' scores that cost the same
    the largest is taken, and the threshold lies half way from it to the next score below.

    Raises
    ------
    UsageError
        A cost that is not positive and finite, a share outside (0, 1), or no scores.
    """
    good = _finite(normal_scores, "of normal images")
    bad = _finite(defect_scores, "of defective images")
    for name, value in (("cost_miss", cost_miss), ("cost_false_alarm", cost_false_alarm)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} must be a finite number above 0, got {value!r}")
    if not 0 < defect_share < 1:
        raise UsageError(f"defect_share must lie in (0, 1), got {defect_share!r}")
    # between scores of defects nothing is won by a lower threshold
    above = np.nextafter(max(good[-1], bad[-1]), np.inf)
    candidates = np.append(np.unique(bad), above)
    missed = np.searchsorted(bad, candidates, side="left") / len(bad)
    reached = len(good) - np.searchsorted(good, candidates, side="left")
    alarms = (1 + reached) / (len(good) + 1)
    cost = defect_share * cost_miss * missed + (1 - defect_share) * cost_false_alarm * alarms
    best = int(np.flatnonzero(cost <= cost.min() * (1 + 1e-12))[-1])
    threshold = float(candidates[best])
    lower = np.concatenate([good, bad])
    lower = lower[lower < threshold]
    if len(lower):  # half way to the next score, with the same errors on these images
        threshold = min(threshold, threshold / 2 + float(lower.max()) / 2)
        threshold = max(threshold, float(np.nextafter(lower.max(), np.inf)))
    return ChosenThreshold(
        threshold,
        f"a miss costs {cost_miss:g} and a false alarm {cost_false_alarm:g}, "
        f"{100 * defect_share:g} % of parts defective: at the least cost "
        f"{100 * missed[best]:.2g} % of {len(bad)} defective and {100 * alarms[best]:.2g} % of "
        f"{len(good)} good images are wrong",
    )


def _finite(
    scores: Sequence[float] | npt.NDArray[np.floating], what: str
) -> npt.NDArray[np.float64]:
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if len(values) == 0:
        raise UsageError(f"there is no score {what}; at least one is needed")
    if not np.isfinite(values).all():
        raise UsageError(f"scores {what} must be finite")
    return values
