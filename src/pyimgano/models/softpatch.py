"""SoftPatch: a memory bank for training images of which some are bad.

Jiang, Liu, Wang, Nie, Wu, Liu, Wang, Zheng, "SoftPatch: Unsupervised Anomaly Detection with
Noisy Data", NeurIPS 2022, with the settings of the authors' reference program. Symbols follow
the paper: W the noise of a patch, its local outlier factor; tau the share of the patches that
are discarded as noise; m* the nearest memory feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError
from ..images import NetworkInput
from .coreset_detector import CoresetDetector
from .detector import Progress, TrainingScores
from .parameters import Count
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from .neighbors import DiscriminatedCoreset, StreamedCoreset

# From so few scores nobody can tell what an outlier is.
_ENOUGH_IMAGES = 20
# A robust deviation of log scores is taken to be no less: a hundredth of the score.
_LEAST_DEVIATION = 0.01
# Of a normal distribution, the deviation over the median absolute one.
_DEVIATIONS = 1.4826
# Suspects named in a note.
_NAMED = 20


@register_model(
    "vision_softpatch",
    tags=("memory-bank", "pixel-map", "deep-features", "noisy-training"),
    metadata={
        "paper": (
            "Jiang et al., SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022"
        ),
        "year": 2022,
        "link": "https://arxiv.org/abs/2403.14233",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": (
            "leave-one-image-out: an image's own patches masked in the bank; images whose score "
            "is an outlier are left out"
        ),
    },
    presets={
        "industrial-fast": {"resize": (224, 224), "coreset_sampling_ratio": 0.02},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (320, 320)},
    },
)
class VisionSoftPatch(CoresetDetector):
    """SoftPatch on any backbone: a coreset without the noisiest patches, with soft weights.

    For training images of which some are bad and nobody knows which. The threshold is for them
    too: bad images among those that it is calibrated on would raise it above most defects.

    Parameters
    ----------
    noise_threshold
        tau, in [0, 1): the share of the training patches that the bank never gets, those with
        the highest noise of all.
    lof_neighbors
        k of the local outlier factor of a patch among the patches at the same position of the
        other images.
    soft_weights
        Whether a distance is multiplied by the noise of the memory feature that it is to.
    outlier_cutoff
        A training image whose logarithmic score is more than this many robust deviations above
        the median is a suspect, and left out of the calibration; None calibrates on all.
        Needs 20 training images.
    shared
        The keywords of `CoresetDetector` and `BackboneDetector`.

    Attributes
    ----------
    suspects_
        (S,) int64: the training images that were left out of the calibration, numbered from 0
        among those that could be read. Worth a look: they are probably bad.

    Notes
    -----
    From the paper are the noise (section 3.2: the local outlier factor with k = 6, of features
    in a random projection), what is discarded (tau = 0.15), the soft weights (section 3.3) and
    the score of an image, the largest weighted distance of its patches: without PatchCore's
    re-weighting. Like there the coreset has its share of all patches, those discarded included.

    What differs, besides what differs in `vision_patchcore`: densities have a thousandth of the
    mean distance as a floor, where the reference program has 1e-10, or a patch among copies of
    another would have a noise without bounds; noise is measured in the projection that
    the coreset is selected in, instead of one of its own; above half a million training patches
    it is measured, and its quantile taken, block by block, each of whole images; and distances
    are Euclidean ones, where the reference program's are squared.

    The calibration is not the paper's, which has none. Every image is scored against the bank
    without its own patches, and so a bad one gets its own high score. How the rest behaves is
    known exactly as well as with `vision_patchcore`: for images like those that were not left
    out. If an unusual good image is left out, more false alarms are raised than promised, and
    `outlier_cutoff=None` is the remedy where the training images are known to be good.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_softpatch").fit(train_paths)  # doctest: +SKIP
    >>> [train_paths[i] for i in detector.suspects_]  # doctest: +SKIP
    """

    suspects_: npt.NDArray[np.int64]

    def __init__(
        self,
        *,
        noise_threshold: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.15,
        lof_neighbors: Count = 6,
        soft_weights: Annotated[bool, Strict()] = True,
        outlier_cutoff: Annotated[float, Strict(), Field(gt=0)] | None = 5.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.noise_threshold = noise_threshold
        self.lof_neighbors = lof_neighbors
        self.soft_weights = soft_weights
        self.outlier_cutoff = outlier_cutoff

    # ---- noise discrimination and the bank, section 3.2

    def _new_coreset(self, **facts: Any) -> StreamedCoreset:
        from .neighbors import DiscriminatedCoreset

        self._coreset: DiscriminatedCoreset = DiscriminatedCoreset(
            cells=self._n_cells(),
            neighbours=self.params_.lof_neighbors,
            threshold=self.params_.noise_threshold,
            **facts,
        )
        return self._coreset

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        super()._learn(batches, progress)
        self._weights: Tensor = self._coreset.weights
        self._n_discarded = int(self._coreset.discarded.sum())
        self.suspects_ = np.zeros(0, np.int64)
        del self._coreset  # it holds all patches

    # ---- scores, section 3.3

    def _weigh(self, distances: Tensor, rows: Tensor) -> Tensor:
        return distances * self._weights[rows] if self.params_.soft_weights else distances

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        found = super()._training_scores(unseen)
        count = len(self.suspects_)
        if not count:
            return found
        named = ", ".join(str(number) for number in self.suspects_[:_NAMED])
        note = (
            f"{count} training image{'s' * (count != 1)} left out of the calibration, with scores "
            f"like those of bad images (counted from 0: {named}{', ...' * (count > _NAMED)}); what "
            "is promised is for images like the others"
        )
        return replace(found, notes=(note, *found.notes))

    def _trusted(
        self, scores: npt.NDArray[np.float64], images: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        trusted = ~_outliers(scores, self.params_.outlier_cutoff)
        self.suspects_ = images[~trusted]
        return trusted

    # ---- saving

    def _state(self) -> State:
        state = super()._state()
        return State(
            arrays={**state.arrays, "weights": self._weights.cpu().numpy()},
            facts={
                **state.facts,
                "discarded": self._n_discarded,
                "suspects": self.suspects_.tolist(),
            },
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        super()._restore(saved)
        weights = saved.array("weights", "float32", (len(self._bank),))
        if weights.min() < 0:
            raise SavedModelError("the array 'weights' has negative numbers")
        self._weights = torch.from_numpy(weights).to(self._backbone.device)
        self._n_discarded = saved.fact("discarded", Annotated[int, Field(ge=0)])
        suspects = saved.fact("suspects", list[Annotated[int, Field(ge=0, lt=self.n_train_)]])
        self.suspects_ = np.asarray(suspects, np.int64)

    def describe(self) -> dict[str, Any]:
        found = super().describe()
        found["memory_bank"]["patches_discarded"] = self._n_discarded
        return {**found, "suspects": self.suspects_.tolist()}


def _outliers(scores: npt.NDArray[np.float64], cutoff: float | None) -> npt.NDArray[np.bool_]:
    """(n,) which scores lie so far above the others that they are those of bad images.

    Scores of good images are skewed to the right and their logarithms hardly. The median and
    the median absolute deviation hold out while less than half of the images are bad.
    """
    middle = float(np.median(scores))
    if cutoff is None or len(scores) < _ENOUGH_IMAGES or middle <= 0:
        return np.zeros(len(scores), np.bool_)
    logs = np.log(np.maximum(scores / middle, np.finfo(np.float64).tiny))
    deviation = _DEVIATIONS * float(np.median(np.abs(logs)))
    return np.asarray(logs > cutoff * max(deviation, _LEAST_DEVIATION), np.bool_)
