"""The adapter of classical outlier detectors: embed, fit, score, save.

What makes a head is small (`_fit_rows`, `_score_rows`); what is the same for all stands here:
embeddings of images, their scale, scores of images that the head has not seen, saving.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ...errors import DataError, SavedModelError
from ...images import NetworkInput
from ..hooks import BackboneDetector
from ..method import TrainingScores
from ..parameters import BackboneParams, DetectorParams, Flag
from ..saved_state import SavedState, State
from ..spread import Spread, spread_notes
from ..training_images import Progress
from .pooling import Pooling, Scaling, pool, pooled_width
from .quiet import quietly

if TYPE_CHECKING:
    from ...backbones import LayerChoice

_Rows = npt.NDArray[np.float64]

#: Of every head: what images are resized to is what time and accuracy turn on.
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


@dataclass(frozen=True)
class _Head:
    scaling: Scaling
    estimator: Any


class EmbeddingParams(BackboneParams):
    """The keywords of EmbeddingDetector."""

    embedding: Pooling = Field(
        "mean+max",
        description=(
            "How each layer is pooled over the image: `mean`, `max`, `std`, `gem` (the "
            "generalised mean with p = 3), or two of them side by side, `mean+max` or "
            "`mean+std`. The layers' parts are joined."
        ),
    )


class EmbeddingDetector(BackboneDetector):
    """Base class of detectors that see an image as one vector.

    A head implements `_fit_rows` and `_score_rows`, over the library `library`; where leaving
    one image out is cheap, also `_score_left_out`.

    Notes
    -----
    An image has a score and no map. With a region of interest the cells of each layer that have
    a pixel in it are pooled.

    Memory grows by one embedding, D float32, for each training image, and by what the head
    keeps. One training image is shown to the head twice; it is then scored as one that the head
    has seen, and nothing is promised.
    """

    Params: ClassVar[type[DetectorParams]] = EmbeddingParams

    has_maps: ClassVar[bool] = False
    #: The distribution that the head is taken from.
    library: ClassVar[str] = "scikit-learn"
    #: Those that it was taken from in earlier versions, with the same scores.
    earlier_libraries: ClassVar[tuple[str, ...]] = ()

    # ---- what a head implements

    @abstractmethod
    def _fit_rows(self, rows: _Rows) -> Any:
        """Fit to rows (n, D), n at least 2; the keywords are those of `params_`."""

    @abstractmethod
    def _score_rows(self, estimator: Any, row: _Rows) -> _Rows:
        """The score (1,) of one row (1, D); higher is more anomalous."""

    def _score_left_out(self, others: _Rows, row: _Rows) -> float:
        """The score of a row (D,) by the head of the others (n - 1, D), without fitting it."""
        raise NotImplementedError

    def _scaling(self, rows: _Rows) -> Scaling:
        return Scaling.none(rows.shape[1])

    # ---- embeddings

    def _layer_choice(self) -> LayerChoice | None:
        from ...backbones import LastOfStrides

        return LastOfStrides((8, 16, 32))

    def _embed(self, images: list[NetworkInput]) -> npt.NDArray[np.float32]:
        """Of B images (B, D) float32."""
        each: list[list[npt.NDArray[np.float32]]] = [[] for _ in images]
        for layer in self._features(images):
            cells = self.counted_cells((int(layer.shape[2]), int(layer.shape[3])))
            flat = layer.flatten(2).cpu().numpy()  # (B, C, h w)
            for parts, features in zip(each, flat, strict=True):
                counted = features if cells is None else features[:, cells]
                parts.extend(pool(counted, self._pooling()))
        return np.stack([np.concatenate(parts) for parts in each])

    def _pooling(self) -> Pooling:
        pooling: Pooling = self.params_.embedding
        return pooling

    # ---- fit

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        self._embeddings = np.concatenate([self._embed(images) for images in batches])  # (n, D)
        if not np.isfinite(self._embeddings).all():
            raise DataError("the backbone gave features of training images that are not finite")
        with quietly():
            self._head = self._fit(self._embeddings)

    def _fit(self, embeddings: npt.NDArray[np.float32]) -> _Head:
        rows = embeddings.astype(np.float64)
        if len(rows) == 1:
            rows = rows.repeat(2, axis=0)
        scaling = self._scaling(rows)
        return _Head(scaling, self._fit_rows(scaling(rows)))

    def _scores(self, head: _Head, embeddings: npt.NDArray[np.float32]) -> _Rows:
        """Scores (B,) of embeddings (B, D); NaN of one that is not finite.

        One by one: matrix products and empirical distributions of several images together give
        scores that depend on the others.
        """
        scores = np.full(len(embeddings), np.nan)
        for number, one in enumerate(embeddings):
            if np.isfinite(one).all():
                row = head.scaling(one.astype(np.float64)[None])
                scores[number] = self._score_rows(head.estimator, row)[0]
        return scores

    # ---- score

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], None]:
        embeddings = self._embed(images)
        with quietly():
            return self._scores(self._head, embeddings), None

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Each image by a head that was fitted without it, and without its copies.

        Exactly so where the head says what it would be (`_score_left_out`), else by refitting
        on folds drawn from `random_seed`: each image by a head that lacks its fold.
        """
        rows, n = self._embeddings, len(self._embeddings)
        chosen = _spread(n, _CALIBRATED)
        notes = spread_notes(len(chosen), n)
        group = self._copy_groups()
        one = bool((group == group[0]).all())
        with quietly():
            if not unseen or one:
                if unseen:
                    note = (
                        f"1 {'distinct ' * (n > 1)}training image: it is scored by the head that "
                        "was fitted on it, as there is no other"
                    )
                    notes = (*notes, note)
                scores = self._scores(self._head, rows[chosen])
                return TrainingScores(scores, "in-sample", unseen=False, notes=notes)
            if type(self)._score_left_out is not EmbeddingDetector._score_left_out:
                scores = np.array([self._left_out(int(i), group) for i in chosen])
                return TrainingScores(
                    scores, "leave-one-image-out", unseen=True, notes=notes, images=chosen
                )
            return self._refitted(chosen, group, notes)

    def _left_out(self, number: int, group: npt.NDArray[np.int64]) -> float:
        rows = self._embeddings.astype(np.float64)
        others = rows[group != group[number]]
        scaling = self._scaling(others)
        return self._score_left_out(scaling(others), scaling(rows[number]))

    def _refitted(
        self,
        chosen: npt.NDArray[np.int64],
        group: npt.NDArray[np.int64],
        notes: tuple[str, ...],
    ) -> TrainingScores:
        first = np.unique(group[chosen])  # an image and its copies are in one fold
        folds = min(len(first), _FOLDS)
        drawn = np.random.default_rng(self.params_.random_seed).permutation(len(first))
        scores = np.empty(len(chosen))
        for fold in range(folds):
            out = np.isin(group, first[drawn[fold::folds]])
            held = np.flatnonzero(out[chosen])
            rest = self._embeddings[~out]
            scores[held] = self._scores(self._fit(rest), self._embeddings[chosen[held]])
        method = "leave-one-image-out" if folds == len(np.unique(group)) else "refitted-folds"
        return TrainingScores(scores, method, unseen=True, notes=notes, images=chosen)

    # ---- saving

    def _state(self) -> State:
        """The embeddings, from which loading fits the head again, and some of their scores."""
        return State(
            arrays={"embeddings": self._embeddings, "check_scores": self._check_scores()},
            facts={"library": self.library, "library_version": self._library_version()},
        )

    def _check_scores(self) -> _Rows:
        with quietly():
            chosen = _spread(len(self._embeddings), _CHECKED)
            return self._scores(self._head, self._embeddings[chosen])

    def _restore(self, saved: SavedState) -> None:
        channels = [shape[1] for shape in self._backbone.shapes(self._size())]
        width = pooled_width(self._pooling(), channels)
        embeddings = saved.array("embeddings", "float32", (self.n_train_, width))
        wanted = saved.array("check_scores", "float64", (min(self.n_train_, _CHECKED),))
        library = saved.fact("library", str)
        if library not in (self.library, *self.earlier_libraries):
            raise SavedModelError(f"state.library: the head is {self.library}'s")
        then = saved.fact("library_version", str)[:40]
        self._embeddings = embeddings
        with quietly():
            self._head = self._fit(embeddings)
        if not np.allclose(self._check_scores(), wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise SavedModelError(
                f"the head, fitted again by {self.library} {self._library_version()}, gives other "
                f"scores than it did when it was saved, with {library} {then}; install that, "
                "or fit the detector anew"
            )

    def _library_version(self) -> str:
        try:
            return version(self.library)
        except PackageNotFoundError:  # pyimgano itself, run from its source
            return "unknown"

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "embedding": {
                "pooling": self._pooling(),
                "dimension": int(self._embeddings.shape[1]),
            },
            "library": f"{self.library} {self._library_version()}",
        }


class ScaledParams(EmbeddingParams):
    """The keywords of ScaledDetector."""

    standardize: Flag = Field(
        True,
        description=(
            "Whether each channel is brought to mean 0 and deviation 1 over the training "
            "images (`pyimgano.models.classical.pooling.Scaling`). Without, the channels "
            "with the largest numbers decide alone."
        ),
    )


class ScaledDetector(EmbeddingDetector):
    """Base class of heads to which it matters how large a channel's numbers are."""

    Params: ClassVar[type[DetectorParams]] = ScaledParams

    def _scaling(self, rows: _Rows) -> Scaling:
        return Scaling.of(rows) if self.params_.standardize else super()._scaling(rows)


def _spread(whole: int, part: int) -> npt.NDArray[np.int64]:
    """`part` of `whole` numbers, evenly spread; all if there are no more."""
    takes = Spread(whole, part).takes
    return np.array([number for number in range(whole) if takes(number)], dtype=np.int64)
