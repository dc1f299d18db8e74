"""A threshold from normal scores, and how far it can be trusted.

The threshold is a conformal rank: of n scores of normal images that the detector has not
seen, the k-th smallest with k = ceil((n + 1) q). If a new normal image is exchangeable with
those n, it scores above that value with probability at most 1 - k / (n + 1), whatever the
distribution (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005;
Laxhammar & Falkman, "Conformal prediction for distribution-independent anomaly detection",
2010). Quantiles of scores of images that the detector was fitted on promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

#: The quantile where neither `calibration_quantile` nor `contamination` says another.
DEFAULT_QUANTILE = 0.995


@dataclass(frozen=True)
class Calibration:
    """A threshold and where it comes from.

    Attributes
    ----------
    threshold
        An image is called defective if its score is greater than or equal to this. It is
        the next larger float after the score at the conformal rank, so that an image which
        scores just what the normal ones did is not called defective.
    method
        How the normal scores were obtained, e.g. `leave-one-image-out` or `in-sample`.
    quantile_asked, quantile_reached
        The quantile wanted, and k / (n + 1) of the rank taken. Fewer than
        `q / (1 - q)` scores cannot reach q: then the largest score is taken.
    n_scores
        How many normal scores there were.
    promised_false_alarm_rate
        1 - k / (n + 1), an upper bound in expectation for images like the training images;
        None where the method cannot promise any (`in-sample`).
    notes
        What a user should know, one sentence each.
    """

    threshold: float
    method: str
    quantile_asked: float
    quantile_reached: float
    n_scores: int
    promised_false_alarm_rate: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BinomialInterval:
    """A measured rate with its exact confidence interval."""

    events: int
    trials: int
    rate: float | None
    low: float | None
    high: float | None
    confidence: float


def choose_quantile(quantile: float | None, contamination: float | None) -> float:
    """The quantile to calibrate at: given, or `1 - contamination`, or 0.995.

    Raises
    ------
    UsageError
        A quantile outside (0, 1), or a contamination outside (0, 0.5].
    """
    if contamination is not None and not 0 < contamination <= 0.5:
        raise UsageError(f"contamination must lie in (0, 0.5], got {contamination!r}")
    if quantile is not None:
        if not 0 < quantile < 1:
            raise UsageError(f"calibration_quantile must lie in (0, 1), got {quantile!r}")
        return quantile
    if contamination is not None:
        # 1 - 0.1 in decimal, as it was written, not 0.90000000000000002
        return float(1 - Fraction(repr(float(contamination))))
    return DEFAULT_QUANTILE


def calibrate(
    scores: Sequence[float] | npt.NDArray[np.floating],
    quantile: float,
    *,
    method: str,
    unseen: bool = True,
    notes: Sequence[str] = (),
) -> Calibration:
    """Threshold at the conformal rank of `scores`.

    Parameters
    ----------
    scores
        (n,) finite scores of normal images, n >= 1, higher is more anomalous.
    quantile
        In (0, 1).
    method
        Named in the report.
    unseen
        Whether the detector had not seen the images that it scored. If it had, no false
        alarm rate is promised.
    notes
        Passed on, before the notes that are added here.

    Raises
    ------
    UsageError
        No scores, a score that is not finite, or a quantile outside (0, 1).
    """
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    n = len(values)
    if n == 0:
        raise UsageError("calibration needs at least one score of a normal image, got none")
    if not np.isfinite(values).all():
        raise UsageError("calibration scores must be finite")
    if not 0 < quantile < 1:
        raise UsageError(f"calibration_quantile must lie in (0, 1), got {quantile!r}")
    # Exact arithmetic: (n + 1) * 0.995 in floating point can land a rank too high.
    rank = math.ceil((n + 1) * Fraction(repr(float(quantile))))
    said = list(notes)
    if rank > n:
        needed = math.ceil(Fraction(repr(float(quantile))) / (1 - Fraction(repr(float(quantile)))))
        said.append(
            f"{n} score{'s' * (n != 1)} cannot reach the quantile {quantile:g}, which needs "
            f"{needed}: the largest score is the threshold"
        )
        rank = n
    promised: float | None = float(1 - Fraction(rank, n + 1))
    if not unseen:
        promised = None
        said.append("the detector had seen these images: no false-alarm rate is promised")
    return Calibration(
        threshold=float(np.nextafter(values[rank - 1], np.inf)),
        method=method,
        quantile_asked=float(quantile),
        quantile_reached=float(Fraction(rank, n + 1)),
        n_scores=n,
        promised_false_alarm_rate=promised,
        notes=tuple(said),
    )


def float32_threshold(threshold: float) -> float:
    """The float32 t for which `score >= t` decides as `score >= threshold`.

    It is the least float32 that is not below `threshold`, so the two agree on every float32
    score. For a positive threshold it is at least the least normal number: engines take
    smaller ones for 0, which would call a score of 0 defective.
    """
    nearest = np.float32(threshold)
    if float(nearest) < threshold:  # compared as float64
        nearest = np.nextafter(nearest, np.float32(np.inf))
    if threshold > 0:
        nearest = max(nearest, np.finfo(np.float32).tiny)
    return float(nearest)


def clopper_pearson(events: int, trials: int, confidence: float = 0.95) -> BinomialInterval:
    """Exact two-sided interval of a binomial rate (Clopper & Pearson, Biometrika 1934).

    Raises
    ------
    UsageError
        Not 0 <= events <= trials, or a confidence outside (0, 1).
    """
    from scipy.special import betaincinv  # slow to import, and rarely needed

    if not 0 <= events <= trials:
        raise UsageError(f"events must lie in 0..{trials}, got {events}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie in (0, 1), got {confidence!r}")
    if trials == 0:
        return BinomialInterval(0, 0, None, None, None, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else float(betaincinv(events, trials - events + 1, tail))
    high = 1.0 if events == trials else float(betaincinv(events + 1, trials - events, 1 - tail))
    return BinomialInterval(events, trials, events / trials, low, high, confidence)
