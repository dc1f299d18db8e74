"""The tail of the normal scores: a threshold between, and beyond, the largest of them.

A conformal rank takes one of the scores as the threshold. Where the quantile asked for needs
more scores than there are, that is the largest, and one odd training image decides. Here the
largest scores are described by an exponential distribution above a high quantile instead (the
peaks-over-threshold method: Pickands, "Statistical inference using extreme order statistics",
1975; Davison & Smith, 1990), fitted without the very largest of them.

Let u be the score with k of the n scores above it, and e_1 <= ... <= e_k their excesses over
u. The largest m = k - r of them are left out: only that they are no smaller than e_r is used,
which for exponential excesses is the censored likelihood (Epstein & Sobel, "Life testing",
1953). Their total time on test

    S = e_1 + ... + e_r + m e_r

is then Gamma distributed with r degrees of freedom, and a new score lies above u with
probability (k + 1) / (n + 1) on average. So at the threshold u + c S the expected rate is exactly

    (k + 1) / (n + 1) * (1 + c)^-r

including that u and S are themselves estimates, which `c` makes up for. The normalised spacings
between the e_i say whether an exponential tail is believable: their running sums over S are
uniform order statistics if it is (Barlow, Bartholomew, Bremner & Brunk, 1972), and lie below
them if the tail is heavier. No distribution has to be simulated for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

#: How the threshold is estimated from the normal scores.
CalibrationTail = Literal["exponential", "conformal"]
CALIBRATION_TAILS: tuple[str, ...] = get_args(CalibrationTail)
#: The one that keeps the promise with the largest recall; see docs/threshold.md.
DEFAULT_TAIL: CalibrationTail = "exponential"

#: Share of the scores that make the tail, and how many of them at most.
TAIL_SHARE = 0.25
MOST_EXCESSES = 100
#: Share of the tail's excesses that is left out, and at least how many.
LEFT_OUT_SHARE = 0.05
LEFT_OUT_AT_LEAST = 1
#: Fewer excesses than these describe no tail: the conformal rank decides.
FEWEST_EXCESSES = 10
#: The tail is not believed where its test of fit has a smaller p-value.
SIGNIFICANCE = 0.05
# The tail decides among so many of the largest scores, and at most this share of its excesses.
# Where more lie above the conformal rank, that is known well, and better than by any model.
_DECIDES_AMONG = 10
_DECIDES_SHARE = 0.2
_DRAWS = 10_000


@dataclass(frozen=True)
class ExponentialTail:
    """An exponential distribution of the scores above `begin`.

    Attributes
    ----------
    begin
        The score that the tail begins above.
    n_scores, n_excesses, n_used
        All scores; those above `begin`; and those of them that were used.
    total
        S, the total time on test: `n_used` times the mean excess.
    fit_p_value
        Of the test of fit against a heavier tail.
    """

    begin: float
    n_scores: int
    n_excesses: int
    n_used: int
    total: float
    fit_p_value: float

    @property
    def share(self) -> float:
        """Expected share of new normal scores above `begin`."""
        return (self.n_excesses + 1) / (self.n_scores + 1)

    @property
    def decides_among(self) -> int:
        """Return how many of the largest scores the tail is better than."""
        return min(_DECIDES_AMONG, int(_DECIDES_SHARE * self.n_excesses))

    @property
    def believed(self) -> bool:
        """Return whether the test of fit does not speak against the tail."""
        return self.fit_p_value >= SIGNIFICANCE

    def threshold(self, rate: float) -> float:
        """Return the score that new normal scores exceed at the expected `rate`, at most
        `share`.
        """
        factor = float((self.share / rate) ** (1 / self.n_used)) - 1
        return self.begin + self.total * factor

    def rate(self, threshold: float) -> float:
        """Return the expected rate of new normal scores above a threshold of at least `begin`."""
        return float(self.share * (1 + (threshold - self.begin) / self.total) ** -self.n_used)

    def rates(self, rate: float, rank: int) -> npt.NDArray[np.float64]:
        """Draws (m,) of what the false-alarm rate of the rule in `calibrate` could be.

        The rule takes the lower of `threshold(rate)` and the score at the conformal `rank`, but no
        lower one than that with `decides_among` scores above it. The lower of two thresholds has
        the higher of their rates, so that its rate is not that of either.

        It is a parametric bootstrap of pivots, which do not depend on the scores: the share above
        `begin` is Beta(k + 1, n - k), and the normalised spacings over the true mean excess are
        independent standard exponentials. The seed is fixed. `rank` must be one of the highest
        `decides_among`.
        """
        shares, totals, highest = _pivots(
            self.n_scores, self.n_excesses, self.n_used, self.decides_among
        )
        factor = (self.threshold(rate) - self.begin) / self.total
        at_rank = highest[:, rank - 1 - (self.n_scores - self.decides_among - 1)]
        excess = np.minimum(at_rank, np.maximum(factor * totals, highest[:, 0]))
        return np.asarray(shares * np.exp(-excess))


@lru_cache(maxsize=16)  # of 1 MB each
def _pivots(n: int, k: int, r: int, among: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Shares and totals (m,), and the highest `among` + 1 excesses (m, among + 1), ascending."""
    random = np.random.default_rng(0)
    shares = random.beta(k + 1, n - k, _DRAWS)
    spacings = random.exponential(size=(_DRAWS, k))
    totals = spacings[:, :r].sum(axis=1)
    spacings /= k - np.arange(k)
    return shares, totals, np.cumsum(spacings, axis=1)[:, k - among - 1 :].copy()


def fit_exponential_tail(ordered: npt.NDArray[np.float64]) -> ExponentialTail | str:
    """Fit the tail of scores (n,) in ascending order; or the reason why there is none.

    Where the test of fit speaks against it, the upper half of it is looked at: the higher a tail
    begins, the better it is described (Pickands 1975). If that is not believed either, or has too
    few scores, the whole is given. The largest scores that are left out have no influence.
    """
    n = len(ordered)
    k = min(math.ceil(TAIL_SHARE * n), MOST_EXCESSES)
    whole = _fitted(ordered, k)
    if isinstance(whole, str) or whole.believed:
        return whole
    half = _fitted(ordered, k // 2)
    return whole if isinstance(half, str) or not half.believed else half


def _fitted(ordered: npt.NDArray[np.float64], k: int) -> ExponentialTail | str:
    """Fit to the k largest of scores (n,)."""
    n = len(ordered)
    left_out = max(LEFT_OUT_AT_LEAST, round(LEFT_OUT_SHARE * k))
    r = k - left_out
    if r < FEWEST_EXCESSES:
        return f"{n} scores are too few to describe their tail"
    begin = float(ordered[n - k - 1])
    excesses = ordered[n - k : n - left_out] - begin
    spacings = np.diff(excesses, prepend=0.0) * (k - np.arange(r))
    total = float(spacings.sum())
    scale = max(abs(begin), float(np.abs(ordered[n - left_out - 1])))
    if not math.isfinite(total) or total <= 1e-9 * scale:
        return "the largest scores are all alike"
    p_value = _heavier_than_exponential(np.cumsum(spacings)[:-1] / total)
    return ExponentialTail(begin, n, k, r, total, p_value)


def _heavier_than_exponential(sums: npt.NDArray[np.float64]) -> float:
    """p-value of running sums (r - 1,) in [0, 1] against uniform ones that lie lower.

    The mean of uniform order statistics is that of as many uniform numbers, and normal from a
    few of them on (the Laplace test for trend; Cox & Lewis, 1966).
    """
    z = (float(sums.mean()) - 0.5) * math.sqrt(12 * len(sums))
    return 0.5 * math.erfc(-z / math.sqrt(2))
