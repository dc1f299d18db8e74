"""Heads that draw a boundary around good images, or try to cut an image off from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..detector import Detector
from ..parameters import Count, Ratio
from ..registry import register_model
from .embedding import (
    NEEDS_TRAINING,
    PRESETS,
    REFITTED,
    EmbeddingDetector,
    EmbeddingParams,
    ScaledDetector,
    ScaledParams,
)

_Rows = npt.NDArray[np.float64]


class OCSVMParams(ScaledParams):
    """The keywords of OCSVM."""

    nu: Ratio = Field(
        0.1,
        description=(
            "Upper bound of the share of training images outside, lower bound of the share "
            "of support vectors, in (0, 1]."
        ),
    )


class OCSVM(ScaledDetector):
    """The method of `VisionOCSVM`."""

    Params = OCSVMParams

    def _fit_rows(self, rows: _Rows) -> Any:
        from sklearn.svm import OneClassSVM

        return OneClassSVM(kernel="rbf", gamma="scale", nu=self.params_.nu).fit(rows)

    def _score_rows(self, estimator: Any, row: _Rows) -> _Rows:
        outside: _Rows = -estimator.decision_function(row)
        return outside


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

    n_estimators: Count = Field(100, description=("t, the number of trees."))
    max_samples: Count = Field(
        256,
        description=(
            "psi, training images that a tree is grown from; with fewer there are, all of them."
        ),
    )


class IForest(EmbeddingDetector):
    """The method of `VisionIForest`."""

    Params = IForestParams

    def _fit_rows(self, rows: _Rows) -> Any:
        from sklearn.ensemble import IsolationForest

        params = self.params_
        return IsolationForest(
            n_estimators=params.n_estimators,
            max_samples=min(params.max_samples, len(rows)),
            random_state=params.random_seed % 2**32,
        ).fit(rows)

    def _score_rows(self, estimator: Any, row: _Rows) -> _Rows:
        scores: _Rows = -estimator.score_samples(row)
        return scores


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
