"""SoftPatch: a memory bank for training images of which some are bad.

Jiang, Liu, Wang, Nie, Wu, Liu, Wang, Zheng, "SoftPatch: Unsupervised Anomaly Detection with
Noisy Data", NeurIPS 2022, with the settings of the authors' reference program. Symbols follow
the paper: W the noise of a patch, its local outlier factor; tau the share of the patches that
are discarded as noise; m* the nearest memory feature.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError
from .detector import Detector
from .method import Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import Count
from .patchcore_paper import (
    CoresetParams,
    LearnedCoreset,
    restored_bank,
    restored_grid,
    score_training_images,
    select_coreset,
)
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .neighbors import DiscriminatedCoreset
    from .training_images import TrainingImages

# From so few scores nobody can tell what an outlier is.
_ENOUGH_IMAGES = 20
# A robust deviation of log scores is taken to be no less: a hundredth of the score.
_LEAST_DEVIATION = 0.01
# Of a normal distribution, the deviation over the median absolute one.
_DEVIATIONS = 1.4826
# Suspects named in a note.
_NAMED = 20


class SoftPatchParams(CoresetParams):
    """The keywords of SoftPatch."""

    noise_threshold: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        0.15,
        description=(
            "tau, in [0, 1): the share of the training patches that the bank never gets, "
            "those with the highest noise of all."
        ),
    )
    lof_neighbors: Count = Field(
        6,
        description=(
            "k of the local outlier factor of a patch among the patches at the same "
            "position of the other images."
        ),
    )
    soft_weights: Annotated[bool, Strict()] = Field(
        True,
        description=(
            "Whether a distance is multiplied by the noise of the memory feature that it is to."
        ),
    )
    outlier_cutoff: Annotated[float, Strict(), Field(gt=0)] | None = Field(
        5.0,
        description=(
            "A training image whose logarithmic score is more than this many robust "
            "deviations above the median is a suspect, and left out of the calibration; "
            "None calibrates on all. Needs 20 training images."
        ),
    )


class SoftPatch(Method):
    """A coreset without the noisiest patches, and the weighted distance to it."""

    Params = SoftPatchParams

    def __init__(self, params: SoftPatchParams) -> None:
        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, patches="fine")

    def learn(self, images: TrainingImages) -> tuple[LearnedSoftPatch, TrainingScores | None]:
        params = self.params
        # noise discrimination and the bank, section 3.2
        found = select_coreset(images, self.backbone, params, self._new_coreset)
        coreset: DiscriminatedCoreset = found.coreset  # type: ignore[assignment]
        learned = LearnedSoftPatch(
            self.backbone,
            found.grid,
            found.bank,
            found.grid.whole(found.picked),
            coreset.selections,
            weights=coreset.weights,  # (M,)
            soft=params.soft_weights,
            discarded=int(coreset.discarded.sum()),
        )

        def trusted(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
            suspects = _outliers(scores, params.outlier_cutoff)  # (n,)
            learned.suspects_ = found.numbers[suspects]
            return ~suspects

        training = score_training_images(learned, found, images, trusted)
        return learned, _noted(training, learned.suspects_)

    def _new_coreset(self, **facts: Any) -> DiscriminatedCoreset:
        from .neighbors import DiscriminatedCoreset

        params = self.params
        return DiscriminatedCoreset(
            neighbours=params.lof_neighbors, threshold=params.noise_threshold, **facts
        )

    def restore(self, saved: SavedState) -> LearnedSoftPatch:
        import torch

        grid = restored_grid(saved, self.backbone, self.region)
        bank = restored_bank(saved, self.backbone, grid, self.params.max_bank_size)
        weights = saved.array("weights", "float32", (len(bank[0]),))
        if weights.min() < 0:
            raise SavedModelError("the array 'weights' has negative numbers")
        suspects = saved.fact("suspects", list[Annotated[int, Field(ge=0, lt=saved.n_train)]])
        return LearnedSoftPatch(
            self.backbone,
            grid,
            *bank,
            weights=torch.from_numpy(weights).to(self.backbone.device),
            soft=self.params.soft_weights,
            discarded=saved.fact("discarded", Annotated[int, Field(ge=0)]),
            suspects_=np.asarray(suspects, np.int64),
        )


@dataclass(eq=False)
class LearnedSoftPatch(LearnedCoreset):
    """A memory bank of patches without much noise.

    Attributes
    ----------
    weights
        (M,) float32: the noise W of each memory feature.
    soft
        Whether distances are multiplied by it (section 3.3).
    discarded
        How many of the training patches were discarded as noise.
    suspects_
        (S,) int64: the training images that were left out of the calibration, numbered from 0
        among those that could be read.
    """

    soft: bool = True
    discarded: int = 0
    suspects_: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def weigh(self, distances: Tensor, rows: Tensor) -> Tensor:
        return super().weigh(distances, rows) if self.soft else distances

    def state(self) -> State:
        state = super().state()
        assert self.weights is not None
        return State(
            arrays={**state.arrays, "weights": self.weights.cpu().numpy()},
            facts={
                **state.facts,
                "discarded": self.discarded,
                "suspects": self.suspects_.tolist(),
            },
        )

    def describe(self) -> dict[str, Any]:
        found = super().describe()
        found["memory_bank"]["patches_discarded"] = self.discarded
        return {**found, "suspects": self.suspects_.tolist()}


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
class VisionSoftPatch(Detector):
    """SoftPatch on any backbone: a coreset without the noisiest patches, with soft weights.

    For training images of which some are bad and nobody knows which. The threshold is for them
    too: bad images among those that it is calibrated on would raise it above most defects.

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

    method = SoftPatch


def _noted(
    training: TrainingScores | None, suspects: npt.NDArray[np.int64]
) -> TrainingScores | None:
    """Return scores with a note that names the images that were left out of them."""
    count = len(suspects)
    if training is None or not count:
        return training
    named = ", ".join(str(number) for number in suspects[:_NAMED])
    note = (
        f"{count} training image{'s' * (count != 1)} left out of the calibration, with scores "
        f"like those of bad images (counted from 0: {named}{', ...' * (count > _NAMED)}); what "
        "is promised is for images like the others"
    )
    return replace(training, notes=(note, *training.notes))


def _outliers(scores: npt.NDArray[np.float64], cutoff: float | None) -> npt.NDArray[np.bool_]:
    """Return (n,) which scores lie so far above the others that they are those of bad images.

    Scores of good images are skewed to the right and their logarithms hardly. The median and
    the median absolute deviation hold out while less than half of the images are bad.
    """
    middle = float(np.median(scores))
    if cutoff is None or len(scores) < _ENOUGH_IMAGES or middle <= 0:
        return np.zeros(len(scores), np.bool_)
    logs = np.log(np.maximum(scores / middle, np.finfo(np.float64).tiny))
    deviation = _DEVIATIONS * float(np.median(np.abs(logs)))
    return np.asarray(logs > cutoff * max(deviation, _LEAST_DEVIATION), np.bool_)
