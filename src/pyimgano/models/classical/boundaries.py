"""Heads that draw a boundary around good images, or try to cut an image off from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..parameters import Count, Ratio
from ..registry import register_model
from .embedding import NEEDS_TRAINING, PRESETS, REFITTED, EmbeddingDetector, ScaledDetector

_Rows = npt.NDArray[np.float64]


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
class VisionOCSVM(ScaledDetector):
    """How far outside the support of good images' embeddings a one-class SVM sees an image.

    rho - sum_i alpha_i k(x_i, x), the negative of equation 10 of the paper, with a Gaussian
    kernel; over scikit-learn's `OneClassSVM`.

    Parameters
    ----------
    nu
        Upper bound of the share of training images outside, lower bound of the share of support
        vectors, in (0, 1].
    shared
        The keywords of `ScaledDetector`. The kernel's width is 1 / (D times the variance of the
        scaled numbers).

    Notes
    -----
    The kernel measures all channels with one width, which is why they are standardised: else a
    few channels with large numbers decide what is near. The score of an image far from all good
    ones approaches rho and says no more how far it is.
    """

    def __init__(self, *, nu: Ratio = 0.1, **shared: Any) -> None:
        super().__init__(**shared)
        self.nu = nu

    def _fit_rows(self, rows: _Rows) -> Any:
        from sklearn.svm import OneClassSVM

        return OneClassSVM(kernel="rbf", gamma="scale", nu=self.params_.nu).fit(rows)

    def _score_rows(self, estimator: Any, row: _Rows) -> _Rows:
        outside: _Rows = -estimator.decision_function(row)
        return outside


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
class VisionIForest(EmbeddingDetector):
    """How few random cuts set an image's embedding apart from those of good images.

    2^(-E(h(x)) / c(psi)), equation 2 of the paper, in (0, 1]; over scikit-learn's
    `IsolationForest`.

    Parameters
    ----------
    n_estimators
        t, the number of trees.
    max_samples
        psi, training images that a tree is grown from; with fewer there are, all of them.
    shared
        The keywords of `EmbeddingDetector`. Cuts do not ask how large numbers are, so they are
        not scaled.
    """

    def __init__(
        self, *, n_estimators: Count = 100, max_samples: Count = 256, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.n_estimators = n_estimators
        self.max_samples = max_samples

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
