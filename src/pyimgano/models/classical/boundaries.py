"""Heads that draw a boundary around good images, or try to cut an image off from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from ..detector import Detector
from ..parameters import Count, Ratio
from ..registry import register_model
from .embedding import (
    NEEDS_TRAINING,
    PRESETS,
    REFITTED,
    EmbeddingMethod,
    EmbeddingParams,
    Head,
    NegativeScore,
    Rows,
    ScaledParams,
)

if TYPE_CHECKING:
    from sklearn.svm import OneClassSVM


class OCSVMParams(ScaledParams):
    """The keywords of OCSVM."""

    nu: Ratio = Field(
        0.1,
        description=(
            "At most this share of the training images lies outside the boundary, and at least "
            "this share of them are support vectors, in (0, 1]."
        ),
    )


@dataclass(frozen=True)
class Boundary(Head):
    """The boundary around the training rows; scores are above 0 outside it."""

    svm: OneClassSVM

    def score(self, row: Rows) -> float:
        return float(-self.svm.decision_function(row)[0])


class OCSVM(EmbeddingMethod):
    """The one-class support vector machine."""

    Params = OCSVMParams

    def fit(self, rows: Rows) -> Boundary:
        from sklearn.svm import OneClassSVM

        return Boundary(OneClassSVM(kernel="rbf", gamma="scale", nu=self.params.nu).fit(rows))


@register_model(
    "vision_ocsvm",
    tags=("classical", "image-level", "deep-features", "boundary"),
    metadata={
        "paper": "Schoelkopf, Platt, Shawe-Taylor, Smola & Williamson, Estimating the Support of "
        "a High-Dimensional Distribution, Neural Computation 13, 2001",
        "year": 2001,
        "link": "https://doi.org/10.1162/089976601750264965",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionOCSVM(Detector):
    """How far outside the support of good images' embeddings a one-class SVM sees an image.

    rho - sum_i alpha_i k(x_i, x), the negative of equation 10 of the paper, with a Gaussian
    kernel; over scikit-learn's `OneClassSVM`.

    Notes
    -----
    The kernel measures all channels with one width, which is why they are standardised: else a
    few channels with large numbers decide what is near. The score of an image far from all good
    ones approaches rho and says no more how far it is.
    """

    method = OCSVM


class IForestParams(EmbeddingParams):
    """The keywords of IForest."""

    n_estimators: Count = Field(100, description="t, how many trees are grown.")
    max_samples: Count = Field(
        256,
        description=(
            "psi, how many training images a tree is grown from; all of them where there are fewer."
        ),
    )


class IForest(EmbeddingMethod):
    """The isolation forest."""

    Params = IForestParams

    def fit(self, rows: Rows) -> Head:
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(
            n_estimators=self.params.n_estimators,
            max_samples=min(self.params.max_samples, len(rows)),
            random_state=self.params.random_seed % 2**32,
        )
        return NegativeScore(forest.fit(rows))


@register_model(
    "vision_iforest",
    tags=("classical", "image-level", "deep-features", "trees"),
    metadata={
        "paper": "Liu, Ting & Zhou, Isolation Forest, ICDM 2008",
        "year": 2008,
        "link": "https://doi.org/10.1109/ICDM.2008.17",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionIForest(Detector):
    """How few random cuts set an image's embedding apart from those of good images.

    2^(-E(h(x)) / c(psi)), equation 2 of the paper, in (0, 1]; over scikit-learn's
    `IsolationForest`.
    """

    method = IForest
