"""Heads by distances to neighbours: the k-th nearest, and the local outlier factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from ..detector import Detector
from ..parameters import Count
from ..registry import register_model
from .embedding import (
    LEFT_OUT,
    NEEDS_TRAINING,
    PRESETS,
    REFITTED,
    EmbeddingMethod,
    Head,
    NegativeScore,
    Rows,
    ScaledParams,
)

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

# Compares by differences, one query apart from the next; brute force expands the square, which
# leaves a distance of a row to itself.
_EXACT = "kd_tree"


class KNNParams(ScaledParams):
    """The keywords of KNN."""

    n_neighbors: Count = Field(
        1,
        description=(
            "k, the rank of the neighbour whose distance is the score; with fewer training "
            "images it is their number. With 1 a good image has to be like one other good "
            "image. Larger values hold up better where bad images are among the training "
            "images."
        ),
    )


@dataclass(frozen=True)
class Neighbours(Head):
    """The training rows, in a tree that finds the nearest ones."""

    tree: NearestNeighbors

    def score(self, row: Rows) -> float:
        return float(self.tree.kneighbors(row)[0][0, -1])


class KNN(EmbeddingMethod):
    """The distance to the k-th nearest row."""

    Params = KNNParams
    leaves_one_out = True

    def _k(self, n: int) -> int:
        return min(int(self.params.n_neighbors), n)

    def fit(self, rows: Rows) -> Neighbours:
        from sklearn.neighbors import NearestNeighbors

        k = self._k(len(rows))
        return Neighbours(NearestNeighbors(n_neighbors=k, algorithm=_EXACT).fit(rows))

    def score_left_out(self, others: Rows, row: Rows) -> float:
        squares = np.square(others - row).sum(axis=1)
        k = self._k(len(squares))
        return float(np.sqrt(np.partition(squares, k - 1)[k - 1]))


@register_model(
    "vision_knn",
    tags=("classical", "image-level", "deep-features", "neighbours"),
    metadata={
        "paper": "Ramaswamy, Rastogi & Shim, Efficient Algorithms for Mining Outliers from Large "
        "Data Sets, SIGMOD 2000",
        "year": 2000,
        "link": "https://doi.org/10.1145/342009.335437",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": LEFT_OUT,
    },
    presets=PRESETS,
)
class VisionKNN(Detector):
    """Distance of an image's embedding to its k-th nearest among those of good images.

    D^k of the paper, section 2, with the Euclidean distance; over scikit-learn's
    `NearestNeighbors`.
    """

    method = KNN


class LOFParams(ScaledParams):
    """The keywords of LOF."""

    n_neighbors: Count = Field(
        20,
        description=(
            "MinPts, how many neighbours an image is compared with; with fewer training images "
            "it is one less than their number."
        ),
    )


class LOF(EmbeddingMethod):
    """The local outlier factor."""

    Params = LOFParams

    def fit(self, rows: Rows) -> Head:
        from sklearn.neighbors import LocalOutlierFactor

        k = min(int(self.params.n_neighbors), len(rows) - 1)
        return NegativeScore(
            LocalOutlierFactor(n_neighbors=k, algorithm=_EXACT, novelty=True).fit(rows)
        )


@register_model(
    "vision_lof",
    tags=("classical", "image-level", "deep-features", "neighbours"),
    metadata={
        "paper": "Breunig, Kriegel, Ng & Sander, LOF: Identifying Density-Based Local Outliers, "
        "SIGMOD 2000",
        "year": 2000,
        "link": "https://doi.org/10.1145/342009.335388",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionLOF(Detector):
    """How much thinner good images lie around an image than around its neighbours.

    The local outlier factor of the paper, definition 7, of a new row against the training
    images; over scikit-learn's `LocalOutlierFactor`. About 1 for an image like the others.

    Notes
    -----
    Among training images that are copies of each other the density is limited to 1e10, and the
    factor of an image that differs from them is large accordingly.
    """

    method = LOF
