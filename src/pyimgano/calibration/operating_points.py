"""What a user decides by: each promise with its threshold, false alarms and recall; and whether
the good test images are like those that the promise is made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .threshold import BinomialInterval, Calibration, calibrate, clopper_pearson

Scores = npt.NDArray[np.float64]
#: Promised false-alarm rates of the table.
PROMISES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
#: The good test images count as unlike the training images below this p-value.
UNLIKE = 0.01
# A recall is called low below this where the scores separate well, by this AUROC, and another
# promise of the table would find so much more.
_LOW_RECALL = 0.7
_HIGH_AUROC = 0.9
_MUCH_MORE = 0.2


@dataclass(frozen=True)
class OperatingPoint:
    """One line of the table.

    Attributes
    ----------
    asked
        The false-alarm rate that the quantile stands for.
    calibration
        What it comes to; its promise may be another, where there are few scores.
    false_alarms, recall
        Measured on the test images, with exact intervals.
    """

    asked: float
    calibration: Calibration
    false_alarms: BinomialInterval
    recall: BinomialInterval


@dataclass(frozen=True)
class Likeness:
    """Whether good test images score as the images of the calibration do.

    Attributes
    ----------
    false_alarm_p_value
        Probability of as many false alarms or more, if the promise holds; None where nothing is
        promised.
    rank_p_value
        Of the one-sided Mann-Whitney test that good test images do not score higher; None where
        the detector had seen the images of the calibration.
    p_value
        Of both together: twice the smaller (Bonferroni), at most 1; None if there is neither.
    """

    good_images: int
    false_alarm_p_value: float | None
    rank_p_value: float | None

    @property
    def p_value(self) -> float | None:
        known = [p for p in (self.false_alarm_p_value, self.rank_p_value) if p is not None]
        return min(1.0, len(known) * min(known)) if known else None

    @property
    def unlike(self) -> bool:
        """Return whether the promise cannot be counted on."""
        return self.p_value is not None and self.p_value < UNLIKE


def operating_points(
    now: Calibration,
    normal_scores: Scores,
    good: Sequence[float],
    defective: Sequence[float],
) -> list[OperatingPoint]:
    """Return the table, from the scores of good and of defective test images.

    `now` is the calibration of the detector, and `normal_scores` (n,) are what it comes from.
    """
    found = []
    for rate in PROMISES:
        point = calibrate(
            normal_scores,
            round(1 - rate, 6),
            method=now.method,
            unseen=now.unseen,
            tail=now.tail_asked,
        )
        found.append(
            OperatingPoint(
                rate,
                point,
                _share_at(good, point.threshold),
                _share_at(defective, point.threshold),
            )
        )
    return found


def likeness(now: Calibration, normal_scores: Scores, good: Sequence[float]) -> Likeness | None:
    """Return the tests of good test scores against the calibration; None without such scores."""
    if not good:
        return None
    from scipy.stats import betabinom, mannwhitneyu

    alarms = _share_at(good, now.threshold).events
    false_alarms = rank = None
    promised = now.promised_false_alarm_rate
    if promised is not None and 0 < promised < 1:
        # the promise is itself known from n scores: Beta distributed, and of a conformal rank
        # just so
        weight = now.n_scores + 1
        count = betabinom(len(good), promised * weight, (1 - promised) * weight)
        false_alarms = min(1.0, max(0.0, float(count.sf(alarms - 1))))
    if now.unseen:
        rank = float(mannwhitneyu(good, normal_scores, alternative="greater").pvalue)
    return Likeness(len(good), false_alarms, rank)


def unlike_note(found: Likeness | None, alarms: BinomialInterval) -> str | None:
    """Return the warning where the good test images are not like those of the calibration."""
    if found is None or not found.unlike:
        return None
    return (
        "the good test images are not like the images that the threshold was calibrated on "
        f"(p = {found.p_value:.2g}): {alarms.events} of {alarms.trials} are false alarms, and the "
        "promised rate does not hold for them; calibrate on good images like these"
    )


def low_recall_note(
    points: Sequence[OperatingPoint],
    recall: float | None,
    auroc: float | None,
    threshold: float,
) -> str | None:
    """Return the sentence where another promise would find many more defects.

    It names the first line of the table below the threshold that finds at least three quarters
    of what the most generous line would find more.
    """
    if recall is None or auroc is None or recall >= _LOW_RECALL or auroc < _HIGH_AUROC:
        return None
    below = [p for p in points if p.calibration.threshold < threshold and p.recall.rate is not None]
    if not below:
        return None
    most = max(p.recall.rate or 0.0 for p in below)
    if most - recall < _MUCH_MORE:
        return None
    chosen = next(p for p in below if (p.recall.rate or 0.0) - recall >= 0.75 * (most - recall))
    measured = chosen.false_alarms.rate
    said = "" if measured is None else f" (measured: {100 * measured:.1f} %)"
    return (
        f"only {100 * recall:.0f} % of the defective test images are found although the scores "
        f"separate well (AUROC {100 * auroc:.1f} %). At {100 * chosen.asked:g} % false "
        f"alarms{said} it would find {100 * (chosen.recall.rate or 0.0):.0f} % instead of "
        f"{100 * recall:.0f} %: see pyimgano threshold --quantile {1 - chosen.asked:g}"
    )


def _share_at(scores: Sequence[float], threshold: float) -> BinomialInterval:
    values: npt.NDArray[np.float64] = np.asarray(scores, np.float64)
    return clopper_pearson(int((values >= threshold).sum()), len(values))
