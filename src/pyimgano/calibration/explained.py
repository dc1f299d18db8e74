"""Scores and thresholds in plain numbers and words: a share, a p-value, a promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .threshold import Calibration


class ScoreScale:
    """Says what a score means, by the threshold and the normal scores of the calibration.

    Parameters
    ----------
    threshold
        Finite.
    normal_scores
        (n,) scores of normal images that the detector had not seen; None where it had seen
        them, of which no p-value can be had.
    """

    def __init__(
        self,
        threshold: float,
        normal_scores: Sequence[float] | npt.NDArray[np.floating] | None,
    ) -> None:
        self._threshold = threshold
        self._ordered = (
            None if normal_scores is None else np.sort(np.asarray(normal_scores, np.float64))
        )

    def ratio(self, score: float) -> float | None:
        """Return the score over the threshold; see `score_ratio`."""
        return score_ratio(score, self._threshold)

    def p_value(self, score: float) -> float | None:
        """Return (1 + k) / (n + 1), where k of the n normal scores are at least as large.

        In (0, 1]; None without scores. A new image like the normal ones has a p-value of at
        most p with a probability of at most p.
        """
        if self._ordered is None:
            return None
        n = len(self._ordered)
        k = n - int(np.searchsorted(self._ordered, score, side="left"))
        return (1 + k) / (n + 1)


def score_ratio(score: float, threshold: float) -> float | None:
    """Return the score as a multiple of the threshold: 1.0 and more is defective.

    It is score / threshold, written as 1 + (score - threshold) / |threshold|, so that it also
    grows with the score where the threshold is negative. None where the threshold is 0, or the
    ratio too large for a float.
    """
    if threshold == 0:
        return None
    with np.errstate(over="ignore"):
        ratio = score / threshold if threshold > 0 else 1 + (score - threshold) / abs(threshold)
    if not np.isfinite(ratio):
        return None
    # rounding must not decide otherwise than the threshold does
    if score < threshold:
        return float(min(ratio, np.nextafter(1.0, 0.0)))
    return float(max(ratio, 1.0))


def promise_of(calibration: Calibration, *, images: str = "good photos") -> str:
    """Return what the images behind a threshold allow it to promise, in two or three sentences.

    `images` is what they are called.
    """
    n = calibration.n_scores
    missed = (
        f"Which share of the defects is found, {images} alone cannot tell: that takes photos of "
        "bad parts."
    )
    promised, bound = calibration.promised_false_alarm_rate, calibration.false_alarm_rate_bound
    if promised is None or promised <= 0:
        return f"These {n} {images} allow no promise about false alarms. {missed}"
    said = (
        f"With {n} {images}, expect about one good part in {max(1, round(1 / promised))} to be "
        f"called defective ({_percent(promised)})"
    )
    if bound is not None:
        sure = _percent(calibration.confidence)
        said += f"; with {sure} confidence at most {_percent(bound)} of them"
    wanted = 1 - calibration.quantile_asked
    if promised > 1.5 * wanted:
        needed = math.ceil(calibration.quantile_asked / wanted - 1e-9)
        said += f". For the usual {_percent(wanted)}, give more of them: "
        said += f"{needed} good photos are always enough for that"
    return f"{said}. {missed}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %"
