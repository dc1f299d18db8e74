"""Training images that decide the threshold alone, or stand apart from all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .tail import fit_exponential_tail

#: A score stands apart if fewer than so many as high are expected in a whole set like this.
EXPECTED_IN_A_SET = 0.1
#: Without a believable tail: robust standard deviations above the median.
DEVIATIONS = 6.0
#: A score decides the threshold if that falls by this share of its distance from the median
#: once the score is left out.
INFLUENCE = 0.5
#: Among fewer scores none is named: of few, one always decides.
FEWEST_SCORES = 10
# Only so many of the largest scores are asked what they decide.
_LOOKED_AT = 10


@dataclass(frozen=True)
class Suspect:
    """A score that deserves a look at its image.

    Attributes
    ----------
    position
        In the scores.
    score
        Of the image.
    reasons
        One or two sentences.
    """

    position: int
    score: float
    reasons: tuple[str, ...]


def find_suspects(
    scores: Sequence[float] | npt.NDArray[np.floating],
    threshold_of: Callable[[npt.NDArray[np.float64]], float],
) -> list[Suspect]:
    """Name the scores that decide the threshold, or stand apart, highest first.

    A score decides it where leaving out this one image lowers the threshold by more than half
    of its distance from the median score. A score stands apart where the exponential tail,
    fitted without the largest scores, expects fewer than 0.1 as high in a whole set of this
    size; where no tail can be fitted or believed, where it lies more than 6 robust standard
    deviations (1.4826 times the median absolute deviation) above the median.

    Parameters
    ----------
    scores
        (n,) finite scores of normal images. Of fewer than ten none is named.
    threshold_of
        Gives the threshold that scores lead to.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n < FEWEST_SCORES:
        return []
    order = np.argsort(-values, kind="stable")
    median = float(np.median(values))
    whole = threshold_of(values)
    reasons: dict[int, list[str]] = {}
    for position in order[:_LOOKED_AT]:
        without = threshold_of(np.delete(values, position))
        if whole - without > INFLUENCE * (whole - median):
            reasons.setdefault(int(position), []).append(
                f"without it the threshold would be {without:.4g} instead of {whole:.4g}"
            )
    tail = fit_exponential_tail(np.sort(values))
    deviation = 1.4826 * float(np.median(np.abs(values - median)))
    for position in order:
        score = float(values[position])
        if isinstance(tail, str) or not tail.believed:
            if deviation <= 0 or score <= median + DEVIATIONS * deviation:
                break
            said = (
                f"it lies {(score - median) / deviation:.1f} robust standard deviations above "
                f"the median; more than {DEVIATIONS:g} stand apart"
            )
        else:
            expected = (n + 1) * tail.rate(score) if score > tail.begin else float(n)
            if expected >= EXPECTED_IN_A_SET:
                break
            said = (
                f"a score this high is expected {expected:.2g} times in a set of {n} images; "
                f"fewer than {EXPECTED_IN_A_SET:g} stand apart"
            )
        reasons.setdefault(int(position), []).append(said)
    return [
        Suspect(int(one), float(values[one]), tuple(reasons[int(one)]))
        for one in order
        if int(one) in reasons
    ]
