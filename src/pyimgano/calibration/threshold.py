"""A threshold from normal scores, and how far it can be trusted.

The threshold is at most a conformal rank, and lower where an exponential tail says so (`tail`).
The rank: of n scores of normal images that the detector has not
seen, the k-th smallest with k = ceil((n + 1) q). If a new normal image is exchangeable with
those n, it scores above that value with probability at most 1 - k / (n + 1), whatever the
distribution (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005;
Laxhammar & Falkman, "Conformal prediction for distribution-independent anomaly detection",
2010). Over the calibrations that might have been, the rate above that value is distributed as
Beta(n + 1 - k, k) where scores are continuous (Vovk, "Conditional validity of inductive conformal
predictors", 2012), of which the upper bounds here are quantiles. Quantiles of scores of images
that the detector was fitted on promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .tail import CALIBRATION_TAILS, DEFAULT_TAIL, fit_exponential_tail

#: The quantile where neither `calibration_quantile` nor `contamination` says another.
DEFAULT_QUANTILE = 0.995
#: Of the bounds and intervals that stand in a calibration.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Calibration:
    """A threshold and where it comes from.

    Attributes
    ----------
    threshold
        An image is called defective if its score is greater than or equal to this. At a
        conformal rank it is the next larger float after the score there, so that an image which
        scores just what the normal ones did is not called defective.
    method
        How the normal scores were obtained, e.g. `leave-one-image-out` or `in-sample`.
    quantile_asked, quantile_reached
        The quantile wanted, and that which the threshold stands at: k / (n + 1) of a conformal
        rank, of which fewer than `q / (1 - q)` scores cannot reach q, or
        1 - `promised_false_alarm_rate`.
    n_scores
        How many normal scores there were.
    promised_false_alarm_rate
        Expected rate for images like the training images: of a conformal rank 1 - k / (n + 1),
        an upper bound whatever the distribution; of a modelled tail an estimate. None where the
        method cannot promise any (`in-sample`).
    notes
        What a user should know, one sentence each.
    tail
        What the threshold came from in the end: `conformal`, `exponential`, or `given` where
        somebody set it. The rank may have been the lower one beside a believable tail.
    tail_asked
        What was asked for.
    false_alarm_rate_bound
        With the probability `confidence`, over the calibrations that might have been, the rate
        is at most this; None where none is promised.
    confidence
        Of the bound and the interval.
    estimate_interval
        Where a tail was modelled and decided or might have: the interval of the rate, by
        parametric bootstrap; else None, and the promise holds whatever the distribution.
    tail_fit_p_value
        Of the test whether the tail is heavier than exponential; None if no tail was fitted.
    origin
        Where the operating point comes from: `fit`, or who or what chose it afterwards, in
        words.
    unseen
        Whether the detector had not seen the images behind the scores.
    score_notes
        Those of `notes` that are about the scores, and hold at any threshold.
    disturbed_score, disturbance
        The highest score of a slightly disturbed good image, which the threshold was raised above,
        and what was done to the image; None where it was not raised (`disturbed`).
    """

    threshold: float
    method: str
    quantile_asked: float
    quantile_reached: float
    n_scores: int
    promised_false_alarm_rate: float | None
    notes: tuple[str, ...] = ()
    tail: str = "conformal"
    tail_asked: str = "conformal"
    false_alarm_rate_bound: float | None = None
    confidence: float = CONFIDENCE
    estimate_interval: tuple[float, float] | None = None
    tail_fit_p_value: float | None = None
    origin: str = "fit"
    unseen: bool = True
    score_notes: tuple[str, ...] = ()
    disturbed_score: float | None = None
    disturbance: str | None = None


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
    """Choose the quantile to calibrate at: given, or `1 - contamination`, or 0.995.

    Raises
    ------
    UsageError
        A quantile outside (0, 1), or a contamination outside (0, 0.5].
    """
    if contamination is not None and not 0 < contamination <= 0.5:
        raise UsageError(f"contamination must lie in (0, 0.5], got {contamination!r}")
    if quantile is not None:
        check_quantile(quantile)
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
    tail: str = DEFAULT_TAIL,
    origin: str = "fit",
) -> Calibration:
    """Estimate the threshold at a quantile of `scores`.

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
    tail
        `conformal` takes the score at the conformal rank. `exponential` takes the lower of this
        and the quantile of an exponential tail (`pyimgano.calibration.tail`), where few scores
        lie above the rank, enough make a tail, and the test of fit believes in it.
    origin
        Passed on.

    Raises
    ------
    UsageError
        No scores, a score that is not finite, a quantile outside (0, 1), or an unknown tail.
    """
    values = _ordered(scores)
    n = len(values)
    check_quantile(quantile)
    check_tail(tail)
    # Exact arithmetic: (n + 1) * 0.995 in floating point can land a rank too high.
    exact = Fraction(repr(float(quantile)))
    rank = math.ceil((n + 1) * exact)
    missed = rank > n
    rank = min(rank, n)
    conformal = Calibration(
        threshold=float(np.nextafter(values[rank - 1], np.inf)),
        method=method,
        quantile_asked=float(quantile),
        quantile_reached=float(Fraction(rank, n + 1)),
        n_scores=n,
        promised_false_alarm_rate=float(1 - Fraction(rank, n + 1)),
        tail="conformal",
        tail_asked=tail,
        false_alarm_rate_bound=rank_bound(n, rank),
        origin=origin,
        unseen=unseen,
        score_notes=tuple(notes),
    )
    result = conformal
    said = list(notes)
    if tail == "exponential":
        result = _with_tail(conformal, values, float(1 - exact), rank)
    if missed:
        needed = math.ceil(exact / (1 - exact))
        what = "the largest score is the threshold"
        if result.tail == "exponential":
            what = "the promised rate is higher"
        said.append(
            f"the quantile {quantile:g} needs at least {needed} scores and there "
            f"{'is only' if n == 1 else 'are only'} {n}, so {what}"
        )
    if result.estimate_interval is not None:
        said.append(
            "the promised rate is an estimate: it holds if the scores of good images have an "
            f"exponential tail, of which a test of fit says p = {result.tail_fit_p_value:.2g}"
        )
    if not unseen:
        result = replace(
            result,
            promised_false_alarm_rate=None,
            false_alarm_rate_bound=None,
            estimate_interval=None,
        )
        said.append(
            "the detector had seen these images, or copies of them: no false-alarm rate is promised"
        )
    return replace(result, notes=tuple(said))


def _with_tail(
    conformal: Calibration, ordered: npt.NDArray[np.float64], rate: float, rank: int
) -> Calibration:
    """Return the calibration with an exponential tail, where that is believed and lower."""
    fitted = fit_exponential_tail(ordered)
    if isinstance(fitted, str):
        return conformal
    conformal = replace(conformal, tail_fit_p_value=fitted.fit_p_value)
    if not fitted.believed or rank <= len(ordered) - fitted.decides_among:
        return conformal
    # with this the threshold still grows with the quantile where the tail begins to decide
    least = float(np.nextafter(ordered[-fitted.decides_among - 1], np.inf))
    threshold = max(fitted.threshold(rate), least)
    rates = fitted.rates(rate, rank)
    edge = (1 - CONFIDENCE) / 2
    low, bound, high = (float(one) for one in np.quantile(rates, (edge, CONFIDENCE, 1 - edge)))
    promised = float(rates.mean())
    # that of the rule as a whole: it does not get better because the rank was the lower one
    found = replace(
        conformal,
        quantile_reached=1 - promised,
        promised_false_alarm_rate=promised,
        false_alarm_rate_bound=bound,
        estimate_interval=(low, high),
    )
    if threshold < conformal.threshold:
        return replace(found, threshold=threshold, tail="exponential")
    return found


def calibration_at(
    threshold: float,
    scores: Sequence[float] | npt.NDArray[np.floating],
    *,
    method: str,
    origin: str,
    unseen: bool = True,
    notes: Sequence[str] = (),
    tail_asked: str = DEFAULT_TAIL,
    more: Sequence[str] = (),
) -> Calibration:
    """Say what a threshold that somebody chose would do, by the normal scores.

    Its rate is taken as (1 + j) / (n + 1), where j of the n scores reach it; the bound is the
    exact binomial one. `notes` are about the scores, `more` about the threshold.

    Raises
    ------
    UsageError
        A threshold that is not finite, or `scores` as `calibrate` does not take them.
    """
    if not isinstance(threshold, (int, float, np.integer, np.floating)) or isinstance(
        threshold, bool
    ):
        raise UsageError(f"threshold must be a number, got {threshold!r}")
    if not math.isfinite(threshold):
        raise UsageError(f"threshold must be finite, got {threshold!r}")
    values = _ordered(scores)
    n = len(values)
    below = int(np.searchsorted(values, threshold, side="left"))
    rate = float(Fraction(n - below + 1, n + 1))
    return Calibration(
        threshold=float(threshold),
        method=method,
        quantile_asked=1 - rate,
        quantile_reached=1 - rate,
        n_scores=n,
        promised_false_alarm_rate=rate if unseen else None,
        notes=(*notes, *more),
        score_notes=tuple(notes),
        tail="given",
        tail_asked=tail_asked,
        false_alarm_rate_bound=rank_bound(n, below) if unseen else None,
        origin=origin,
        unseen=unseen,
    )


def rank_bound(n: int, rank: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of the rate above the score at `rank` of n, with `confidence`.

    It is that quantile of Beta(n + 1 - rank, rank); 1 for rank 0, below which nothing lies.
    """
    from scipy.special import betaincinv  # slow to import, and rarely needed

    return 1.0 if rank == 0 else float(betaincinv(n + 1 - rank, rank, confidence))


def check_quantile(quantile: float) -> None:
    """Raise `UsageError` for a quantile outside (0, 1)."""
    if not 0 < quantile < 1:
        raise UsageError(f"calibration_quantile must lie in (0, 1), got {quantile!r}")


def check_tail(tail: str) -> None:
    """Raise `UsageError` for an unknown tail."""
    if tail not in CALIBRATION_TAILS:
        raise UsageError(
            f"calibration_tail must be one of {', '.join(CALIBRATION_TAILS)}, got {tail!r}"
        )


def _ordered(scores: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if len(values) == 0:
        raise UsageError("calibration needs at least one score of a normal image, got none")
    if not np.isfinite(values).all():
        raise UsageError("calibration scores must be finite")
    return values


def float32_threshold(threshold: float) -> float:
    """Return the float32 t for which `score >= t` decides as `score >= threshold`.

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
