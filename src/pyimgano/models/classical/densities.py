"""Heads by the density of good images: Gaussian kernels, a mixture, principal components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, Strict

from ..detector import Detector
from ..parameters import Count, Ratio
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

_Bandwidth = Literal["scott", "silverman"] | Annotated[float, Strict(), Field(gt=0, le=1e6)]
_Variance = Annotated[float, Strict(), Field(gt=0, lt=1)]

# Training images for each component of a mixture, at least.
_ROWS_PER_COMPONENT = 8
# Of the mean variance of a channel: the least that a direction is taken to have.
_LEAST_VARIANCE = 1e-3


class KDEParams(ScaledParams):
    """The keywords of KDE."""

    bandwidth: _Bandwidth = Field(
        "scott",
        description=(
            "The deviation of the kernels, or the rule that sets it: `scott`, n^(-1 / (D + 4)), "
            "or `silverman`. Both rules are made for standardised channels."
        ),
    )


class KDE(EmbeddingMethod):
    """Gaussian kernels."""

    Params = KDEParams
    leaves_one_out = True

    def fit(self, rows: Rows) -> Head:
        from sklearn.neighbors import KernelDensity

        # In one leaf every kernel is summed. The tree's bounds cancel in so many dimensions: with
        # leaves of 40 rows log-densities are wrong by hundreds, whatever tolerance is asked for.
        kernels = KernelDensity(
            bandwidth=self.params.bandwidth,
            algorithm="kd_tree",
            leaf_size=2 * len(rows),
            rtol=0.0,
            atol=0.0,
        )
        return NegativeScore(kernels.fit(rows))

    def score_left_out(self, others: Rows, row: Rows) -> float:
        n, width = others.shape
        h = _bandwidth(self.params.bandwidth, max(n, 2), width)  # one row is shown twice
        exponents = -np.square(others - row).sum(axis=1) / (2.0 * h * h)
        largest = exponents.max()
        total = largest + math.log(np.exp(exponents - largest).sum())
        return float(math.log(n) + width * (math.log(h) + 0.5 * math.log(2.0 * math.pi)) - total)


@register_model(
    "vision_kde",
    tags=("classical", "image-level", "deep-features", "density"),
    metadata={
        "paper": "Parzen, On Estimation of a Probability Density Function and Mode, Annals of "
        "Mathematical Statistics 33, 1962",
        "year": 1962,
        "link": "https://doi.org/10.1214/aoms/1177704472",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": LEFT_OUT,
    },
    presets=PRESETS,
)
class VisionKDE(Detector):
    """Negative log-density of an embedding under Gaussian kernels on those of good images.

    Parzen's estimator with one bandwidth for all directions; over scikit-learn's
    `KernelDensity`.

    Notes
    -----
    An embedding has hundreds of dimensions. At the rules' bandwidths the nearest training image
    outweighs all others there, and images are ordered as `vision_knn` with one neighbour orders
    them; a bandwidth of a third of the typical distance between good images averages over more.
    """

    method = KDE


def _bandwidth(asked: str | float, n: int, width: int) -> float:
    if asked == "scott":
        return float(n ** (-1.0 / (width + 4)))
    if asked == "silverman":
        return float((n * (width + 2) / 4.0) ** (-1.0 / (width + 4)))
    return float(asked)


class GMMParams(ScaledParams):
    """The keywords of GMM."""

    n_components: Count = Field(
        5,
        description=(
            "How many Gaussians the mixture has; fewer where there are not 8 training images for "
            "each."
        ),
    )
    covariance_type: Literal["diag", "spherical", "tied", "full"] = Field(
        "diag",
        description=(
            "The kind of covariance that the Gaussians have: `diag`, `spherical`, `tied` or "
            "`full`. Those of the last two are D x D, and of any use only with several times D "
            "training images."
        ),
    )
    reg_covar: Ratio = Field(1e-3, description="What is added to each variance, in (0, 1].")


class GMM(EmbeddingMethod):
    """A mixture of Gaussians."""

    Params = GMMParams

    def fit(self, rows: Rows) -> Head:
        from sklearn.mixture import GaussianMixture

        params = self.params
        mixture = GaussianMixture(
            n_components=max(1, min(params.n_components, len(rows) // _ROWS_PER_COMPONENT)),
            covariance_type=params.covariance_type,
            reg_covar=params.reg_covar,
            random_state=params.random_seed % 2**32,
        )
        return NegativeScore(mixture.fit(rows))


@register_model(
    "vision_gmm",
    tags=("classical", "image-level", "deep-features", "density", "gaussian"),
    metadata={
        "paper": "McLachlan & Peel, Finite Mixture Models, Wiley 2000",
        "year": 2000,
        "link": "https://doi.org/10.1002/0471721182",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionGMM(Detector):
    """Negative log-likelihood of an embedding under a mixture of Gaussians.

    Fitted by EM from k-means, chapters 2 and 3 of the book; over scikit-learn's
    `GaussianMixture`.
    """

    method = GMM


@dataclass(frozen=True)
class Subspace(Head):
    """The principal components of the training rows, and the variance off them."""

    mean: Rows  # (D,)
    components: Rows  # (q, D), orthonormal
    variances: Rows  # (q,) along them
    noise: float  # along each other direction

    def score(self, row: Rows) -> float:
        centred = row - self.mean
        along = centred @ self.components.T  # (1, q)
        off = centred - along @ self.components
        major = (np.square(along) / self.variances).sum(axis=1)
        minor = np.square(off).sum(axis=1) / self.noise
        return float((major + minor)[0])


class PCAParams(ScaledParams):
    """The keywords of PCA."""

    explained_variance: _Variance = Field(
        0.97,
        description=(
            "The share of the variance that the major components explain at least, in (0, 1)."
        ),
    )


class PCA(EmbeddingMethod):
    """The principal components."""

    Params = PCAParams

    def fit(self, rows: Rows) -> Subspace:
        from sklearn.decomposition import PCA

        width = rows.shape[1]
        mean_variance = float(rows.var(axis=0, ddof=1).mean())
        if mean_variance == 0.0:  # equal rows have no directions
            return Subspace(rows[0].copy(), np.zeros((0, width)), np.zeros(0), 1.0)
        found = PCA(n_components=self.params.explained_variance, svd_solver="full").fit(rows)
        least = _LEAST_VARIANCE * mean_variance
        return Subspace(
            found.mean_,
            found.components_,
            np.maximum(found.explained_variance_, least),
            max(float(found.noise_variance_), least),
        )


@register_model(
    "vision_pca",
    tags=("classical", "image-level", "deep-features", "subspace"),
    metadata={
        "paper": "Shyu, Chen, Sarinnapakorn & Chang, A Novel Anomaly Detection Scheme Based on "
        "Principal Component Classifier, ICDM Foundations and New Directions of Data Mining "
        "Workshop 2003",
        "year": 2003,
        "link": "https://apps.dtic.mil/sti/citations/ADA465712",
        "needs_training": NEEDS_TRAINING,
        "calibration_method": REFITTED,
    },
    presets=PRESETS,
)
class VisionPCA(Detector):
    """How far an embedding lies along, and off, the principal components of good images.

    The sum over the major components of y_i^2 / lambda_i, and over the minor ones of the same,
    equations 3 and 4 of the paper; over scikit-learn's `PCA`.

    Notes
    -----
    Two things differ from the paper. Its classifier compares the two sums with a threshold
    each; a score is one number, so they are added. And with fewer images than dimensions most
    minor components have no variance of their own: all share the mean variance of those that
    have one, as in probabilistic PCA (Tipping & Bishop, "Probabilistic Principal Component
    Analysis", 1999), so that their sum is the squared residual over that. No variance counts as
    less than a thousandth of the mean channel's.
    """

    method = PCA
