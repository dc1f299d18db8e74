"""A threshold that slightly disturbed good images stay below.

Where good images hardly differ from each other, their scores end close to the middle, and the
threshold with them. Then what nobody on the line would notice, such as a soft spot of light, is
enough for a false alarm. What slightly disturbed copies of good images score says how high the
threshold has to be; it is never lowered by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .threshold import Calibration


@dataclass(frozen=True)
class DisturbedScores:
    """Scores of disturbed copies of good images, of which the detector had seen neither.

    Attributes
    ----------
    scores
        (c,) float64 of the copies.
    own
        (c,) float64 of the images themselves.
    kinds
        (c,) what was done to each copy, in words.
    """

    scores: npt.NDArray[np.float64]
    own: npt.NDArray[np.float64]
    kinds: Sequence[str]


def above_disturbed(calibration: Calibration, disturbed: DisturbedScores) -> Calibration:
    """Return the calibration with its threshold above all copies, where it is not.

    Copies of images that would be false alarms as they are say nothing of the disturbance, and do
    not count. What is promised of images as they are stays, as a bound.
    """
    counted = np.flatnonzero(disturbed.own < calibration.threshold)
    if not len(counted):
        return calibration
    worst = int(counted[np.argmax(disturbed.scores[counted])])
    if disturbed.scores[worst] < calibration.threshold:
        return calibration
    raised = replace(
        calibration,
        disturbed_score=float(disturbed.scores[worst]),
        disturbance=str(disturbed.kinds[worst]),
    )
    return raise_again(raised)


def raise_again(calibration: Calibration) -> Calibration:
    """Raise the threshold above `disturbed_score` where it is not, and say so in a note."""
    score = calibration.disturbed_score
    if score is None or score < calibration.threshold:
        return calibration
    threshold = float(np.nextafter(score, np.inf))
    note = (
        f"the threshold is {threshold:.4g} instead of {calibration.threshold:.4g}: good images "
        "differ so little that a slightly disturbed one would be called defective (the highest "
        f"score has one with {calibration.disturbance}); recalibrate at a quantile of your own "
        "for the lower one"
    )
    return replace(calibration, threshold=threshold, notes=(*calibration.notes, note))
