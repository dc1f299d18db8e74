"""Classical outlier detectors on one embedding of an image: embed, fit a head, calibrate, save.

A method says how its head is fitted to the embeddings of good images (`EmbeddingMethod.fit`), and
the head scores one more (`Head.score`). What is the same for all heads stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ...errors import DataError, SavedModelError, during
from ...images import NetworkInput
from ..evenly_spread import EvenlySpread, spread_notes
from ..method import Learned, Method, TrainingScores
from ..on_backbone import features_of, open_backbone
from ..parameters import BackboneParams, DetectorParams, Flag
from ..region_cells import RegionCells
from ..saved_state import SavedState, State
from .other_libraries import quietly
from .pooling import Pooling, Scaling, pool, pooled_width

if TYPE_CHECKING:
    from ...backbones import Backbone
    from ..training_images import TrainingImages

Rows = npt.NDArray[np.float64]

#: The presets of every head: the size of the images decides time and accuracy.
PRESETS: dict[str, dict[str, Any]] = {
    "industrial-fast": {"resize": (224, 224)},
    "industrial-balanced": {},
    "industrial-accurate": {"resize": (320, 320)},
}
NEEDS_TRAINING = "one pass over the training images, and a fit to their embeddings"
REFITTED = "refitted folds: each image by a head fitted without its fold, ten folds at most"
LEFT_OUT = "leave-one-image-out: each image by the head of all others, scaled by them"

# Folds that a head is refitted on, at most; with as many images or fewer each is one.
_FOLDS = 10
# Training images that a threshold is calibrated on, at most, evenly spread.
_CALIBRATED = 512
# Training images whose scores tell, after loading, whether the head is the same.
_CHECKED = 64
# Relative difference of those scores that other processors may make.
_TOLERANCE = 1e-6


class EmbeddingParams(BackboneParams):
    """The keywords of every head."""

    embedding: Pooling = Field(
        "mean+max",
        description=(
            "How each layer is pooled over the image: `mean`, `max`, `std`, `gem` (the "
            "generalised mean with p = 3), or two of them side by side, `mean+max` or "
            "`mean+std`. The layers' parts are joined."
        ),
    )


class ScaledParams(EmbeddingParams):
    """The keywords of a head to which it matters how large a channel's numbers are."""

    standardize: Flag = Field(
        True,
        description=(
            "Whether each channel is brought to mean 0 and deviation 1 over the training "
            "images (`pyimgano.models.classical.pooling.Scaling`). Without it, the channels "
            "with the largest numbers decide alone."
        ),
    )


class Head(ABC):
    """What an outlier detector learned from the embeddings of good images."""

    @abstractmethod
    def score(self, row: Rows) -> float:
        """Return the score of one row (1, D); higher is more anomalous."""


@dataclass(frozen=True)
class NegativeScore(Head):
    """An estimator of scikit-learn whose `score_samples` is higher for what is more normal."""

    estimator: Any

    def score(self, row: Rows) -> float:
        return float(-self.estimator.score_samples(row)[0])


@dataclass(frozen=True)
class ScaledHead:
    """A head, and what brings embeddings to the scale that it was fitted on."""

    scaling: Scaling
    head: Head

    def scores(self, embeddings: npt.NDArray[np.float32]) -> Rows:
        """Return the scores (B,) of embeddings (B, D); NaN of one that is not finite.

        They are scored one by one: matrix products and empirical distributions of several images
        together give scores that depend on the others.
        """
        scores = np.full(len(embeddings), np.nan)
        for number, one in enumerate(embeddings):
            if np.isfinite(one).all():
                scores[number] = self.head.score(self.scaling(one.astype(np.float64)[None]))
        return scores


class EmbeddingMethod(Method):
    """A method that sees an image as one vector, and gives it a score and no map.

    A method implements `fit`, over the library `library`; where it is cheap to tell how an image
    would be scored without itself, it also implements `score_left_out` and sets `leaves_one_out`.

    Notes
    -----
    With a region of interest the cells of each layer that have a pixel in it are pooled.

    Memory grows by one embedding, D float32, for each training image, and by what the head
    keeps. One training image is shown to the head twice; it is then scored as one that the head
    has seen, and nothing is promised.
    """

    Params: ClassVar[type[DetectorParams]] = EmbeddingParams
    has_maps = False
    #: The distribution that the head is taken from.
    library: ClassVar[str] = "scikit-learn"
    #: The distributions that it was taken from in earlier versions, with the same scores.
    earlier_libraries: ClassVar[tuple[str, ...]] = ()
    #: Whether there is a `score_left_out`.
    leaves_one_out: ClassVar[bool] = False

    def __init__(self, params: Any) -> None:
        from ...backbones import LastOfStrides

        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, layers=LastOfStrides((8, 16, 32)))

    @abstractmethod
    def fit(self, rows: Rows) -> Head:
        """Return a head that is fitted to rows (n, D), n at least 2."""

    def score_left_out(self, others: Rows, row: Rows) -> float:
        """Return the score of a row (D,) by the head of the others (m, D), without fitting it."""
        raise NotImplementedError

    def learn(self, images: TrainingImages) -> tuple[LearnedEmbeddings, TrainingScores | None]:
        region, pooling = self.region, self.params.embedding
        embeddings = np.concatenate(
            [embed(self.backbone, batch, region, pooling) for batch in images.batches()]
        )  # (n, D)
        if not np.isfinite(embeddings).all():
            raise DataError("the backbone gave features of training images that are not finite")
        learned = self._learned(embeddings)
        if images.calibrate == "held-out-images":
            return learned, None
        with during("calibration"), quietly():
            return learned, self._score_training_images(learned, images)

    def restore(self, saved: SavedState) -> LearnedEmbeddings:
        channels = [shape[1] for shape in self.backbone.shapes(self.region.size)]
        width = pooled_width(self.params.embedding, channels)
        embeddings = saved.array("embeddings", "float32", (saved.n_train, width))
        wanted = saved.array("check_scores", "float64", (min(saved.n_train, _CHECKED),))
        library = saved.fact("library", str)
        if library not in (self.library, *self.earlier_libraries):
            raise SavedModelError(f"state.library: the head is {self.library}'s")
        then = saved.fact("library_version", str)[:40]
        learned = self._learned(embeddings)
        if not np.allclose(learned.check_scores(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise SavedModelError(
                f"the head, fitted again by {self.library} {_version_of(self.library)}, gives "
                f"other scores than it did when it was saved, with {library} {then}; install "
                "that, or fit the detector anew"
            )
        return learned

    def _learned(self, embeddings: npt.NDArray[np.float32]) -> LearnedEmbeddings:
        with quietly():
            head = self._fit_scaled(embeddings)
        pooling = self.params.embedding
        return LearnedEmbeddings(
            self.backbone, self.region, pooling, embeddings, head, self.library
        )

    def _fit_scaled(self, embeddings: npt.NDArray[np.float32]) -> ScaledHead:
        rows = embeddings.astype(np.float64)
        if len(rows) == 1:
            rows = rows.repeat(2, axis=0)
        scaling = self._scaling(rows)
        return ScaledHead(scaling, self.fit(scaling(rows)))

    def _scaling(self, rows: Rows) -> Scaling:
        scaled = isinstance(self.params, ScaledParams) and self.params.standardize
        return Scaling.of(rows) if scaled else Scaling.none(rows.shape[1])

    # ---- scores of the training images

    def _score_training_images(
        self, learned: LearnedEmbeddings, images: TrainingImages
    ) -> TrainingScores:
        """Return the score of each image by a head that was fitted without it and its copies.

        They are exact where the method says what the score would be (`score_left_out`). Other
        heads are refitted on folds drawn from `random_seed`, and score an image of the fold that
        they lack.
        """
        embeddings, n = learned.embeddings, len(learned.embeddings)
        chosen = _spread(n, _CALIBRATED)
        notes = spread_notes(len(chosen), n)
        group = images.copy_groups()  # (n,)
        if images.calibrate == "in-sample" or (group == group[0]).all():
            if images.calibrate != "in-sample":
                note = (
                    f"1 {'distinct ' * (n > 1)}training image: it is scored by the head that "
                    "was fitted on it, as there is no other"
                )
                notes = (*notes, note)
            scores = learned.head.scores(embeddings[chosen])
            return TrainingScores(scores, "in-sample", unseen=False, notes=notes)
        if self.leaves_one_out:
            scores = self._leave_one_out(embeddings, chosen, group)
            method = "leave-one-image-out"
        else:
            scores, folds = self._refit_folds(embeddings, chosen, group)
            every = folds == len(np.unique(group))
            method = "leave-one-image-out" if every else "refitted-folds"
        return TrainingScores(scores, method, unseen=True, notes=notes, images=chosen)

    def _leave_one_out(
        self,
        embeddings: npt.NDArray[np.float32],
        chosen: npt.NDArray[np.int64],
        group: npt.NDArray[np.int64],
    ) -> Rows:
        """Return the scores (m,) of the images `chosen` (m,), each without its group of copies."""
        rows = embeddings.astype(np.float64)
        scores = np.empty(len(chosen))
        for place, number in enumerate(chosen):
            others = rows[group != group[number]]
            scaling = self._scaling(others)
            scores[place] = self.score_left_out(scaling(others), scaling(rows[number]))
        return scores

    def _refit_folds(
        self,
        embeddings: npt.NDArray[np.float32],
        chosen: npt.NDArray[np.int64],
        group: npt.NDArray[np.int64],
    ) -> tuple[Rows, int]:
        """Return the scores (m,) of the images `chosen` (m,), and how many folds there were."""
        first = np.unique(group[chosen])  # an image and its copies are in one fold
        folds = min(len(first), _FOLDS)
        drawn = np.random.default_rng(self.params.random_seed).permutation(len(first))
        scores = np.empty(len(chosen))
        for fold in range(folds):
            out = np.isin(group, first[drawn[fold::folds]])
            held = np.flatnonzero(out[chosen])
            head = self._fit_scaled(embeddings[~out])
            scores[held] = head.scores(embeddings[chosen[held]])
        return scores, folds


@dataclass(eq=False)
class LearnedEmbeddings(Learned):
    """A head that is fitted to the embeddings of good images.

    Attributes
    ----------
    backbone, region, pooling
        Give the embedding of an image (`embed`).
    embeddings
        (n, D) float32, of the training images: loading fits the head to them again.
    head
        The head and its scale.
    library
        The distribution that the head is taken from.
    """

    backbone: Backbone
    region: RegionCells
    pooling: Pooling
    embeddings: npt.NDArray[np.float32]
    head: ScaledHead
    library: str

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        embeddings = embed(self.backbone, images, self.region, self.pooling)
        with quietly():
            return self.head.scores(embeddings), None

    def check_scores(self) -> Rows:
        """Return the scores of some training images, evenly spread, (at most 64,)."""
        with quietly():
            return self.head.scores(self.embeddings[_spread(len(self.embeddings), _CHECKED)])

    def state(self) -> State:
        return State(
            arrays={"embeddings": self.embeddings, "check_scores": self.check_scores()},
            facts={"library": self.library, "library_version": _version_of(self.library)},
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "embedding": {
                "pooling": self.pooling,
                "dimension": int(self.embeddings.shape[1]),
            },
            "library": f"{self.library} {_version_of(self.library)}",
        }


def embed(
    backbone: Backbone, images: list[NetworkInput], region: RegionCells, pooling: Pooling
) -> npt.NDArray[np.float32]:
    """Return the embeddings (B, D) float32 of B images: their layers, pooled where cells count."""
    each: list[list[npt.NDArray[np.float32]]] = [[] for _ in images]
    for layer in features_of(backbone, images):
        cells = region.cells((int(layer.shape[2]), int(layer.shape[3])))
        flat = layer.flatten(2).cpu().numpy()  # (B, C, h w)
        for parts, features in zip(each, flat, strict=True):
            counted = features if cells is None else features[:, cells]
            parts.extend(pool(counted, pooling))
    return np.stack([np.concatenate(parts) for parts in each])


def _version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # pyimgano itself, run from its source
        return "unknown"


def _spread(whole: int, part: int) -> npt.NDArray[np.int64]:
    """Return `part` of `whole` numbers, evenly spread; all if there are no more."""
    takes = EvenlySpread(whole, part).takes
    return np.array([number for number in range(whole) if takes(number)], dtype=np.int64)
