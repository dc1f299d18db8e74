"""Heads by the distribution of each channel alone: ECOD, COPOD and HBOS, from their papers.

A score is the same whether an image is scored alone or among others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..detector import Detector
from ..registry import register_model
from .embedding import (
    NEEDS_TRAINING,
    PRESETS,
    REFITTED,
    EmbeddingMethod,
    Head,
    Rows,
    ScaledParams,
)

_Bins = Annotated[int, Strict(), Field(ge=2, le=1000)]
_Share = Annotated[float, Strict(), Field(gt=0, lt=1)]


@dataclass(frozen=True)
class _Columns:
    """The columns of training rows, sorted, and their moments."""

    rows: Rows  # (n, D), each column ascending
    mean: Rows  # (D,)
    second: Rows  # (D,) sums of squared differences from the mean
    third: Rows  # (D,) sums of their cubes

    @classmethod
    def of(cls, rows: Rows) -> _Columns:
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(
            np.sort(rows, axis=0), mean, np.square(centred).sum(axis=0), (centred**3).sum(axis=0)
        )

    def tails(self, x: Rows) -> tuple[Rows, Rows, Rows]:
        """Return how rare the values x (D,) are to the left, to the right and by skewness.

        Each is (D,): the negative logarithm of the share of values that are not above (left) or
        not below (right) x, among the training rows and x itself; the third takes the left tail
        where the column is skewed to the left, the right one where it is skewed to the right,
        and both where it is not skewed.
        """
        count = len(self.rows) + 1
        left = -np.log((self._lower(x, or_equal=True) + 1) / count)
        right = -np.log((count - self._lower(x, or_equal=False)) / count)
        skewness = self._sign_of_skewness(x)
        by_skewness = np.where(skewness <= 0, left, 0.0) + np.where(skewness >= 0, right, 0.0)
        return left, right, by_skewness

    def _lower(self, x: Rows, *, or_equal: bool) -> npt.NDArray[np.int64]:
        """Return how many values of each column are lower than x (D,), or equal to it too.

        A binary search in all columns at once.
        """
        columns = np.arange(len(x))
        least = np.zeros(len(x), np.int64)
        most = np.full(len(x), len(self.rows))
        while (least < most).any():
            middle = (least + most) // 2
            found = self.rows[np.minimum(middle, len(self.rows) - 1), columns]
            lower = (found <= x) if or_equal else (found < x)
            lower &= least < most
            least = np.where(lower, middle + 1, least)
            most = np.where(lower, most, middle)
        return least

    def _sign_of_skewness(self, x: Rows) -> Rows:
        """Return that of each column with x as one more row; 0 where its values are equal but for
        rounding.
        """
        n = len(self.rows)
        step = x - self.mean
        # the moments of n + 1 values from those of n: Pebay, "Formulas for Robust, One-Pass
        # Parallel Computation of Covariances and Arbitrary-Order Statistical Moments", 2008
        mean = self.mean + step / (n + 1)
        second = self.second + step**2 * n / (n + 1)
        third = self.third + step**3 * n * (n - 1) / (n + 1) ** 2 - 3 * step * self.second / (n + 1)
        flat = second / (n + 1) <= np.square(np.finfo(np.float64).eps * mean)
        signs: Rows = np.where(flat, 0.0, np.sign(third))
        return signs


@dataclass(frozen=True)
class Tails(Head):
    """How rare a value is in the tails of its channel, added up over the channels.

    Attributes
    ----------
    columns
        The training rows.
    rarity
        Makes one number for each channel, (D,), of what `_Columns.tails` gives.
    """

    columns: _Columns
    rarity: Callable[[Rows, Rows, Rows], Rows]

    def score(self, row: Rows) -> float:
        return float(self.rarity(*self.columns.tails(row[0])).sum())


class ECOD(EmbeddingMethod):
    """Empirical tails of each channel."""

    library = "pyimgano"
    earlier_libraries = ("pyod",)  # with equal scores

    def fit(self, rows: Rows) -> Tails:
        return Tails(_Columns.of(rows), _largest)


def _largest(left: Rows, right: Rows, by_skewness: Rows) -> Rows:
    largest: Rows = np.maximum(np.maximum(left, right), by_skewness)
    return largest


@register_model(
    "vision_ecod",
    tags=("classical", "image-level", "deep-features", "distribution"),
    metadata={
        "paper": "Li, Zhao, Hu, Botta, Ionescu & Chen, ECOD: Unsupervised Outlier Detection Using "
        "Empirical Cumulative Distribution Functions, TKDE 2022",
        "year": 2022,
        "link": "https://arxiv.org/abs/2201.00382",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionECOD(Detector):
    """How rare a value each channel has among good images, summed over the channels.

    For each channel the largest of the -log tail probabilities to the left, to the right and on
    the side of the skewness; section 3 of the paper.

    Notes
    -----
    Algorithm 1 of the paper takes the largest of the three sums over all channels. As in PyOD,
    which is by the same authors, the largest is taken in each channel before they are summed.

    An image is ranked among the training images and itself. PyOD ranks new rows among each
    other too; here the score does not depend on what else is scored, and is that of PyOD for one
    row alone. A value beyond those of all training images counts alike however far it is.
    """

    method = ECOD


class COPOD(EmbeddingMethod):
    """The empirical copula."""

    library = "pyimgano"
    earlier_libraries = ("pyod",)  # with equal scores

    def fit(self, rows: Rows) -> Tails:
        return Tails(_Columns.of(rows), _mean_or_by_skewness)


def _mean_or_by_skewness(left: Rows, right: Rows, by_skewness: Rows) -> Rows:
    larger: Rows = np.maximum(by_skewness, (left + right) / 2)
    return larger


@register_model(
    "vision_copod",
    tags=("classical", "image-level", "deep-features", "distribution"),
    metadata={
        "paper": "Li, Zhao, Botta, Ionescu & Hu, COPOD: Copula-Based Outlier Detection, ICDM 2020",
        "year": 2020,
        "link": "https://arxiv.org/abs/2009.09463",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionCOPOD(Detector):
    """How rare a value each channel has under the empirical copula of good images.

    For each channel the larger of the mean of both -log tail probabilities and that on the side
    of the skewness; algorithm 1 of the paper.

    Notes
    -----
    As for `vision_ecod`, the same authors' later account of nearly the same method: as in PyOD
    the larger is taken in each channel, and an image is ranked among the training images and
    itself.
    """

    method = COPOD


@dataclass(frozen=True)
class Histograms(Head):
    """One histogram for each of D channels, with B bins of one width."""

    edges: Rows  # (B + 1, D), ascending
    rarity: Rows  # (B, D): -log2 (height + alpha)
    tolerance: float

    def score(self, row: Rows) -> float:
        return float(self._rarity_of(row[0]).sum())

    def _rarity_of(self, x: Rows) -> Rows:
        """Return the rarity (D,) of the values x (D,).

        A bin holds its upper edge and not its lower one. What lies outside, by up to `tolerance`
        widths of a bin, counts as the outermost bin, and beyond that as the rarest.
        """
        bins = len(self.rarity)
        place = np.count_nonzero(self.edges < x, axis=0) - 1  # -1: below; `bins`: above
        nearest = np.clip(place, 0, bins - 1)
        inside = np.take_along_axis(self.rarity, nearest[None], axis=0)[0]
        width = self.edges[1] - self.edges[0]
        top = self.edges[-1] - self.edges[-2]
        too_low = (place < 0) & (self.edges[0] - x > self.tolerance * width)
        too_high = (place == bins) & (x - self.edges[-1] > self.tolerance * top)
        found: Rows = np.where(too_low | too_high, self.rarity.max(axis=0), inside)
        return found


class HBOSParams(ScaledParams):
    """The keywords of HBOS."""

    n_bins: _Bins = Field(10, description="How many bins each channel's histogram has, 2 to 1000.")
    alpha: _Share = Field(0.1, description="What is added to each height, in (0, 1).")
    tolerance: _Share = Field(
        0.5,
        description=(
            "How far outside the outermost bin a value still belongs to it, in widths of a "
            "bin, in (0, 1); beyond, it counts as the channel's lowest bin."
        ),
    )


class HBOS(EmbeddingMethod):
    """Histograms of each channel."""

    Params = HBOSParams
    library = "pyimgano"
    earlier_libraries = ("pyod",)  # with equal scores

    def fit(self, rows: Rows) -> Histograms:
        params = self.params
        found = [np.histogram(column, bins=params.n_bins, density=True) for column in rows.T]
        heights = np.stack([height for height, _ in found], axis=1)
        edges = np.stack([edges for _, edges in found], axis=1)
        return Histograms(edges, -np.log2(heights + params.alpha), params.tolerance)


@register_model(
    "vision_hbos",
    tags=("classical", "image-level", "deep-features", "distribution"),
    metadata={
        "paper": "Goldstein & Dengel, Histogram-Based Outlier Score (HBOS): A Fast Unsupervised "
        "Anomaly Detection Algorithm, KI 2012",
        "year": 2012,
        "link": "https://www.dfki.de/fileadmin/user_upload/import/6431_HBOS-poster.pdf",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionHBOS(Detector):
    """How low the histograms of good images are where an image's channels lie, summed.

    The sum over the channels of -log2 (height + alpha), with bins of one width, section 3 of the
    paper; `alpha` and `tolerance` are PyOD's, and so are the scores.

    Notes
    -----
    Heights are densities, where the paper brings each histogram's largest to 1: channels are
    standardised, so that alpha means the same for all. A channel in which all training images
    are equal scores the same whatever an image has there.
    """

    method = HBOS
