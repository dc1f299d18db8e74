"""Heads by the distribution of each channel alone, over PyOD: the extra `pyimgano[classical]`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..built_in import PYOD
from ..registry import register_model, registered_name
from ..saved_state import SavedState
from .embedding import NEEDS_TRAINING, PRESETS, REFITTED, EmbeddingDetector, ScaledDetector

if TYPE_CHECKING:
    from ...backbones import Backbone

_Rows = npt.NDArray[np.float64]
_Bins = Annotated[int, Strict(), Field(ge=2, le=1000)]
_Share = Annotated[float, Strict(), Field(gt=0, lt=1)]


class _OverPyOD(EmbeddingDetector):
    """An estimator of PyOD's, which has `decision_function`."""

    library = "pyod"

    def _require_library(self) -> None:
        PYOD.require(registered_name(type(self)) or type(self).__name__)

    def prepare(self) -> Backbone:
        self._require_library()
        return super().prepare()

    def _start(self, params: Any, n_images: int) -> None:
        self._require_library()  # before any image is read
        super()._start(params, n_images)

    def _restore(self, saved: SavedState) -> None:
        self._require_library()
        super()._restore(saved)

    def _score_rows(self, estimator: Any, row: _Rows) -> _Rows:
        # a copy: some note what they compute in themselves, and threads may share a detector
        scores: _Rows = copy.copy(estimator).decision_function(row)
        return scores


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
class VisionECOD(_OverPyOD):
    """How rare a value each channel has among good images, summed over the channels.

    The largest of the sums of -log tail probabilities, left, right and by skewness, algorithm 1
    of the paper; over PyOD's `ECOD`.

    Parameters
    ----------
    shared
        The keywords of `EmbeddingDetector`. Ranks do not ask how large numbers are, so they are
        not scaled.

    Notes
    -----
    PyOD ranks new rows among the training rows and each other. Here each image is given alone,
    so that its score does not depend on what else is scored; time to score one grows with the
    number of training images, 15 to 50 ms at 200. A value beyond all of the training images'
    counts alike however far it is.
    """

    def _fit_rows(self, rows: _Rows) -> Any:
        from pyod.models.ecod import ECOD

        return ECOD().fit(rows)


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
class VisionCOPOD(_OverPyOD):
    """How rare a value each channel has under the empirical copula of good images.

    Algorithm 1 of the paper, with the mean of both tails as PyOD has it; over PyOD's `COPOD`.

    Parameters
    ----------
    shared
        The keywords of `EmbeddingDetector`. Ranks do not ask how large numbers are, so they are
        not scaled.

    Notes
    -----
    As `vision_ecod`, which is the same authors' later account of nearly the same method.
    """

    def _fit_rows(self, rows: _Rows) -> Any:
        from pyod.models.copod import COPOD

        return COPOD().fit(rows)


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
class VisionHBOS(_OverPyOD, ScaledDetector):
    """How low the histograms of good images are where an image's channels lie, summed.

    The sum over the channels of -log2 (height + alpha), with static bins, section 3 of the
    paper; over PyOD's `HBOS`.

    Parameters
    ----------
    n_bins
        Bins of each channel's histogram, 2 to 1000.
    alpha
        Added to each height, in (0, 1).
    tolerance
        How far outside the outermost bin a value still belongs to it, in widths of a bin, in
        (0, 1); beyond, it counts as the channel's lowest bin.
    shared
        The keywords of `ScaledDetector`.

    Notes
    -----
    Heights are densities, where the paper brings each histogram's largest to 1: channels are
    standardised, so that alpha means the same for all. A channel in which all training images
    are equal scores the same whatever an image has there. PyOD compiles the scoring once a
    process, which takes some seconds.
    """

    def __init__(
        self,
        *,
        n_bins: _Bins = 10,
        alpha: _Share = 0.1,
        tolerance: _Share = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.n_bins = n_bins
        self.alpha = alpha
        self.tolerance = tolerance

    def _fit_rows(self, rows: _Rows) -> Any:
        from pyod.models.hbos import HBOS

        params = self.params_
        return HBOS(n_bins=params.n_bins, alpha=params.alpha, tol=params.tolerance).fit(rows)
