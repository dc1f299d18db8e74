"""What every detector is: an estimator that is fitted on good images and scores others.

As in scikit-learn, `__init__` only stores its keywords under their own names, everything
learned ends in an underscore, `fit` returns `self`, and values are checked in `fit`. A
method implements four short steps: `_start`, `_learn`, `_training_scores`, `_score_batch`;
and two to be saved: `_state`, `_restore`.
"""

from __future__ import annotations

import copy
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..calibration import (
    DEFAULT_TAIL,
    Calibration,
    MapStatistics,
    PixelCalibration,
    calibrate,
    choose_quantile,
)
from ..errors import (
    DataError,
    ImageReadError,
    NotEnoughMemoryError,
    NotFittedError,
    UsageError,
    during,
)
from ..images import (
    CopyGroups,
    ImageSource,
    LoadedImage,
    NetworkInput,
    Recall,
    RegionOfInterest,
    SampleRange,
    Signature,
    as_sources,
    closed_after,
    dim_note,
    read_roi,
    stream_images,
)
from ..memory import in_blocks, is_out_of_memory
from .operating_point import WithOperatingPoint
from .parameters import FullSignature, check_parameters, parameter_names, reject_unknown
from .seen_images import SeenImages, calibrate_apart, calibrate_on_distinct
from .sklearn_face import SklearnFace
from .suspects import (
    ExcludedImage,
    TrainingSuspect,
    image_names,
    name_suspects,
    refit_without_suspects,
)

if TYPE_CHECKING:
    from .saved_state import SavedState, State

OnError = Literal["raise", "skip"]
_Role = Literal["train", "calibration"]
#: Told what is going on: the stage's name, how much is done, how much there is.
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T", bound="Detector")


@dataclass(frozen=True)
class TrainingScores:
    """Scores of normal images, and how they were obtained.

    `unseen` says that no image was scored by a model that had seen it, or a copy of it; `maps`
    are the statistics of the images' maps, if the method has maps. `images` (n,) are the
    positions, among the images learned from in their order, of those that the scores belong to;
    None where every image has a score. Of held-out images they are positions among all of them,
    and `copies` are the positions of those that are copies of each other, a tuple for each
    distinct image that has copies.
    """

    scores: npt.NDArray[np.float64]
    method: str
    unseen: bool
    notes: tuple[str, ...] = ()
    maps: MapStatistics = field(default_factory=MapStatistics)
    images: npt.NDArray[np.int64] | None = None
    copies: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ImageScore:
    """One scored image.

    Attributes
    ----------
    index
        Position in the input.
    score
        Higher is more anomalous; None if `error` is set.
    anomaly_map
        (H, W) float32 at the detector's `resize`; None if `error` is set, if no map was
        asked for, or if the method has none.
    original_size
        (height, width) of the image before resizing; None if `error` is set.
    error
        Why the image could not be scored.
    remark
        What was left out of the image file, in words; None if nothing was.
    signature
        Of its pixels, to tell copies by (`pyimgano.images.Signature`); None if `error` is set.
    unlike_training
        How the image is of another kind than all training images, in words: in colour where
        they are grey, or of another shape. None if it is not.
    """

    index: int
    score: float | None
    anomaly_map: npt.NDArray[np.float32] | None
    original_size: tuple[int, int] | None
    error: ImageReadError | None = None
    remark: str | None = None
    signature: Signature | None = None
    unlike_training: str | None = None


@dataclass(frozen=True)
class SkippedImage:
    """A training or calibration image that was left out, or of which a part was."""

    index: int
    path: str
    reason: str
    role: _Role = "train"


@dataclass
class _Reading:
    """What became of the training images as they were read."""

    skipped: list[SkippedImage] = field(default_factory=list)
    remarked: list[SkippedImage] = field(default_factory=list)
    used: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)  # before resizing
    samples: list[SampleRange | None] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)  # of those that were used
    signatures: list[Signature] = field(default_factory=list)
    look_for_copies: bool = True
    _copies: CopyGroups | None = None

    def copies(self) -> CopyGroups:
        """Which of the images that were used are copies of each other, once all have come."""
        if self._copies is None:
            if self.look_for_copies and len(self.signatures) == self.used:
                self._copies = CopyGroups.of(self.signatures)
            else:  # or a cache knows no signatures
                self._copies = CopyGroups(np.arange(self.used))
        return self._copies

    def skip(self, index: int, error: ImageReadError, role: _Role = "train") -> None:
        self.skipped.append(SkippedImage(index, error.path, error.reason, role))

    def remark(
        self, index: int, source: ImageSource, remark: str | None, role: _Role = "train"
    ) -> None:
        if remark is not None:
            self.remarked.append(SkippedImage(index, str(source), remark, role))

    def nothing_used(self, role: _Role, count: int) -> DataError:
        """The error where every image was skipped."""
        first = next(one for one in self.skipped if one.role == role)
        what = "training" if role == "train" else role
        return DataError(
            f"none of {count} {what} images could be used; the first: {first.path}: {first.reason}"
        )


def require_apart(train: Sequence[ImageSource], held_out: Sequence[ImageSource]) -> None:
    """Raise `UsageError` where an image to calibrate on is one to learn from.

    Its score would promise nothing. Files are the same if their real paths are; arrays if they
    are the same object.
    """
    # what other sequences give may be made anew each time, and have the address of another
    lists = isinstance(train, (list, tuple)) and isinstance(held_out, (list, tuple))

    def identity(source: ImageSource) -> str | int | None:
        if isinstance(source, np.ndarray):
            return id(source) if lists else None
        return os.path.realpath(source)

    learned = {identity(one) for one in train} - {None}
    for index, one in enumerate(held_out):
        if identity(one) in learned:
            name = f"image {index}" if isinstance(one, np.ndarray) else str(one)
            raise UsageError(
                f"{name}: is learned from and to be calibrated on; images to calibrate on must be "
                "others, or the threshold promises nothing"
            )


class Detector(WithOperatingPoint, SklearnFace, ABC):
    """Base class of all detectors.

    Every subclass takes at least `resize`, `contamination`, `calibration`,
    `calibration_quantile`, `device`, `random_seed` and `roi`; one with `bit_depth` says how many
    bits count in images with 16 bits a sample.

    With a region of interest (`roi`, see `pyimgano.images.read_roi`) every image is filled with
    a constant outside it before the method sees it, maps are 0 there, and nothing there counts
    for any threshold.

    Attributes
    ----------
    decision_scores_
        (M,) float64 scores of the normal images that the threshold was calibrated on: the
        training images that were used, out-of-sample unless `calibration="in-sample"`; or
        the `calibration_images` of `fit`.
    decision_images_
        (M,) the images that these scores belong to: paths, or `image <index>` for arrays. None
        where the method calibrates on a part of the images and does not say which, and after
        loading a saved detector.
    threshold_
        `predict` calls an image defective if its score is greater than or equal to this. It may
        be set; `calibration_` then says so.
    params_
        The checked keywords of the fit; setting others has no effect until the next one.
    calibration_
        Where the threshold comes from (`pyimgano.calibration.Calibration`).
    pixel_calibration_
        A threshold for the pixels of maps (`PixelCalibration`); None without maps.
    skipped_
        Training and calibration images left out under `on_error="skip"` (`SkippedImage`).
    remarked_
        Those of which a part was left out, such as the further pages of a file.
    training_suspects_
        Images whose scores decide the threshold or stand apart (`TrainingSuspect`), highest
        first; see `pyimgano.calibration.suspects`.
    excluded_
        Those that `fit(exclude_suspects=True)` left out (`ExcludedImage`).
    n_train_
        How many training images were learned from.
    seen_
        What kind of images these were (`pyimgano.models.seen_images.SeenImages`), and how many
        of them are distinct; None of a detector that was saved before this was kept.
    copies_
        Positions in `X` of training images that are copies of each other, a tuple for each
        distinct image that has copies. Not saved.
    roi_
        The region of interest (`pyimgano.images.RegionOfInterest`); None without one.
    reading_notes_
        What a reader of a report should know of how the training images were read, in
        sentences; empty where that is as usual, and after loading a saved detector.
    """

    #: Whether the method gives anomaly maps.
    has_maps: ClassVar[bool] = True
    #: Images scored together.
    batch_size: ClassVar[int] = 8

    resize: Any
    contamination: float | None
    calibration: str
    calibration_quantile: float | None

    decision_scores_: npt.NDArray[np.float64]
    decision_images_: tuple[str, ...] | None = None
    params_: Any
    calibration_: Calibration
    pixel_calibration_: PixelCalibration | None
    skipped_: list[SkippedImage]
    remarked_: list[SkippedImage]
    training_suspects_: list[TrainingSuspect]
    excluded_: list[ExcludedImage]
    n_train_: int
    seen_: SeenImages | None = None
    copies_: tuple[tuple[int, ...], ...] = ()
    roi_: RegionOfInterest | None = None
    reading_notes_: tuple[str, ...] = ()
    #: What is being learned from, and what became of it; only while `_learn` runs.
    _read_from: tuple[Sequence[ImageSource], _Reading]
    #: Whether other images than those to learn from are there to calibrate on; set by `fit`.
    _calibrates_apart: bool = False
    #: Whether copies among the training images are looked for; not among tiles of images.
    _looks_for_copies: bool = True
    #: Signatures of the training images; only after a fit.
    _signatures: Sequence[Signature] = ()
    _reading: _Reading | None = None

    #: All keywords, also those that `__init__` hands on: what help() shows.
    __signature__: ClassVar[Any] = FullSignature()

    # ---- what a method implements

    @abstractmethod
    def _start(self, params: Any, n_images: int) -> None:
        """Get ready to learn from at most `n_images` images; `params` are checked values."""

    @abstractmethod
    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        """Learn from all batches: lists of (H, W, 3) uint8 images at `resize`.

        With a `_recall` they are `KeyedImage`s, which a backbone takes as they are.
        """

    @abstractmethod
    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Scores of the images learned from, by the cheapest honest way if `unseen`."""

    @abstractmethod
    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        """Scores (B,) and, if `maps` and the method has them, maps (B, H, W), 0 or more.

        With a `roi_` the scores come from the `counted_cells` alone; the caller sets the maps
        to 0 outside it. `params_` is there; `threshold_` is not while calibration images are
        scored.
        """

    def _recall(self) -> Recall | None:
        """The cache of features of what `_start` made ready, if there is one."""
        return None

    def _state(self) -> State:
        """What was learned: arrays, and facts that are plain JSON values.

        A method that implements this and `_restore` can be saved.
        """
        raise NotImplementedError

    def _restore(self, saved: SavedState) -> None:
        """Set all that `_state` was made of; `params_` and the public attributes are there.

        What is asked of `saved` is checked by kind and shape; the method checks the values,
        and raises `SavedModelError` or any `ValueError`.
        """
        raise NotImplementedError

    def _frozen_backbone(self) -> Any:
        """The `pyimgano.backbones.Backbone` in use, whose weights are not learned; or None."""
        return None

    def _finish(self) -> None:
        """Let go of what only `_training_scores` needs."""

    def prepare(self) -> Any:
        """Make sure that what fitting needs besides images is there: device, weights.

        Called by `run_benchmark` before anything is begun, so that a run of many categories
        does not fail in each.

        Returns
        -------
        pyimgano.backbones.Backbone or None
            The one that fitting will use, if the method has one.

        Raises
        ------
        UsageError, WeightsError
            As fitting would.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """What a report says of the fitted detector; plain JSON values."""
        return {}

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        """The fitted detector as one torch module on the CPU, for export.

        Parameters
        ----------
        original_size
            (height, width) of images before resizing: with a region of interest it depends on
            that which pixels count. None for images that come at `resize`.

        Returns
        -------
        torch.nn.Module
            Takes (N, H, W, 3) uint8 RGB at the fit's `resize`, and gives `score` (N,)
            float32, `anomaly_map` (N, H, W) float32 and `label` (N,) int64, in this order.

        Raises
        ------
        UsageError
            The method cannot be exported.
        NotFittedError
            Nothing was learned yet.
        """
        raise UsageError(f"{type(self).__name__} cannot be exported")

    # ---- estimator

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The keywords and their values."""
        return {name: getattr(self, name) for name in parameter_names(type(self))}

    def set_params(self: _T, **params: Any) -> _T:
        """Set keywords; an unknown one raises `UsageError`."""
        reject_unknown(type(self), type(self).__name__, params)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def validate_params(self) -> Any:
        """Check every keyword without reading an image.

        Returns
        -------
        object
            The checked values, one attribute a keyword.

        Raises
        ------
        UsageError
            Names the keyword, what it got and what it wants.
        """
        return check_parameters(type(self), self.get_params())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"

    # ---- how images are read

    def bits_read(self) -> int | None:
        """Return how many bits count in images with 16 bits a sample; None for what files declare.

        That of the fit, and before it the keyword `bit_depth`.
        """
        checked = getattr(self, "params_", self)
        bits: int | None = getattr(checked, "bit_depth", None)
        return bits

    def note_dim_images(self, samples: Sequence[SampleRange | None]) -> None:
        """Warn, and keep in `reading_notes_`, that training images use few of their 16 bits.

        `samples` tells how each training image was read.
        """
        note = dim_note(samples)
        if note is not None:
            self.reading_notes_ = (*self.reading_notes_, note)
            warnings.warn(note, stacklevel=3)

    # ---- region of interest

    def region_of_interest(self) -> RegionOfInterest | None:
        """The region that the keyword `roi` asks for, read; None without one.

        Raises
        ------
        UsageError
            A keyword out of range.
        DataError
            A file that cannot be used, or a region of which nothing is left at `resize`.
        """
        return _read_region(self.validate_params())

    def counted_pixels(self, original_size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """(H, W) bool: which pixels of the map of an image count; None if all do.

        `original_size` is the (height, width) of the image before resizing.
        """
        if self.roi_ is None:
            return None
        return self.roi_.counted(self._size(), original_size)

    def counted_cells(self, grid: tuple[int, int]) -> npt.NDArray[np.int64] | None:
        """(K,) ascending: the cells r w + c of a grid (h, w) over the frame that count.

        Those that a pixel which counts lies in; None if all do.
        """
        if self.roi_ is None:
            return None
        counted = self.roi_.counted(self._size())
        for axis, cells in enumerate(grid):
            pixels = counted.shape[axis]
            number = np.arange(cells)
            ranges = zip(number * pixels // cells, -(-(number + 1) * pixels // cells))
            parts = [counted.take(range(a, b), axis).any(axis) for a, b in ranges]
            counted = np.stack(parts, axis)
        return None if counted.all() else np.flatnonzero(counted)

    def above_outside(self, pixels: PixelCalibration | None) -> PixelCalibration | None:
        """The calibration with a threshold that the 0 outside the region stays below."""
        if self.roi_ is None or pixels is None or pixels.threshold > 0:
            return pixels
        return replace(pixels, threshold=float(np.finfo(np.float32).tiny))

    def _counted_in_training(self) -> npt.NDArray[np.bool_] | None:
        """As `counted_pixels`, of all training images; for `_training_scores`."""
        if self.roi_ is None:
            return None
        sizes = sorted(self._training_sizes)
        counted = np.logical_and.reduce([self.roi_.counted(self._size(), s) for s in sizes])
        if not counted.any():
            raise DataError(
                f"{self.roi_.origin}: the training images are of {len(sizes)} sizes, and no pixel "
                "counts in all of them"
            )
        return np.asarray(counted, dtype=np.bool_)

    def _copy_groups(self) -> npt.NDArray[np.int64]:
        """(n,) for each image learned from, the number of the first that it is a copy of.

        Its own number where it is a copy of none before it. For `_learn`, once all batches have
        come, and `_training_scores`: an image is scored as unseen only where all its copies are
        left out with it.
        """
        assert self._reading is not None
        return self._reading.copies().group

    def _source(self, number: int) -> ImageSource:
        """The training image that was read as the one with this number, from 0; for `_learn`.

        At the size that it has in its file, which batches no longer show.
        """
        sources, reading = self._read_from
        return sources[reading.indices[number]]

    def _settle(self, params: Any, sources: Sequence[ImageSource]) -> None:
        """Put what the training images decide for keywords that are None."""

    def _size(self) -> tuple[int, int]:
        height, width = self.params_.resize  # that of the fit, whatever was set since
        return height, width

    # ---- fit

    def fit(
        self: _T,
        X: Iterable[ImageSource],
        y: Any = None,
        *,
        calibration_images: Iterable[ImageSource] | None = None,
        on_error: OnError = "raise",
        exclude_suspects: bool = False,
        progress: Progress | None = None,
    ) -> _T:
        """Learn what good images look like, and calibrate the threshold on them.

        Parameters
        ----------
        X
            Good images: paths, (H, W, 3) uint8 RGB arrays, or uint16 arrays of shape (H, W), grey,
            or (H, W, 3), RGB.
        y
            Ignored; there for scikit-learn's convention.
        calibration_images
            Further good images, set aside for the threshold: they are scored as any other
            and not learned from. By default it is calibrated on the training images.
        on_error
            `raise`: an unreadable image is an error that names it. `skip`: it is left out,
            from the model and from the calibration, and listed in `skipped_`.
        exclude_suspects
            Whether to fit a second time without the images that became `training_suspects_`
            in the first. They are then listed in `excluded_`, and `calibration_.notes` says what
            this does to the promise.
        progress
            Called with (stage, done, total).

        Raises
        ------
        UsageError
            A keyword out of range, or `X` or `calibration_images` empty or of another kind.
        ImageReadError
            An unreadable image, unless `on_error="skip"`.
        DataError
            No image could be read, or the region of interest cannot be used.
        """
        params = self.validate_params()
        region = _read_region(params)
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        quantile = choose_quantile(params.calibration_quantile, params.contamination)
        sources = as_sources(X, learning=True)
        if len(sources) == 0:
            raise UsageError("X is empty: fit needs at least one good image")
        held_out = None
        if calibration_images is not None:
            held_out = as_sources(calibration_images, name="calibration_images", learning=True)
            if len(held_out) == 0:
                raise UsageError("calibration_images is empty: at least one good image is wanted")
            require_apart(sources, held_out)
        forget_the_fit(self)
        self._reading = reading = _Reading(look_for_copies=self._looks_for_copies)
        self._signatures = ()
        self._settle(params, sources)
        if region is not None:
            region.require_some(tuple(params.resize))
        self.params_, self.roi_ = params, region
        self._calibrates_apart = held_out is not None
        self._start(params, len(sources))
        self._read_from = sources, reading
        try:
            with stream_images(
                sources,
                params.resize,
                recall=self._recall(),
                roi=region,
                bit_depth=self.bits_read(),
            ) as stream:
                self._learn(
                    _training_batches(
                        stream, sources, self.batch_size, on_error, reading, progress
                    ),
                    progress,
                )
        finally:
            del self._read_from  # which may be all the images
        self._training_sizes = reading.sizes
        self.note_dim_images(reading.samples)
        copies = reading.copies()
        if reading.signatures:
            shapes = sorted(reading.sizes)
            self.seen_ = SeenImages.of(shapes, reading.signatures, copies.distinct)
        training = None
        with during("calibration"):
            try:
                if held_out is None:
                    training = self._training_scores(params.calibration != "in-sample")
            finally:
                self._finish()
            if held_out is not None:
                training = self._held_out_scores(held_out, on_error, reading, progress)
            assert training is not None
            if held_out is None:
                training = calibrate_on_distinct(training, copies)
            if not np.isfinite(training.scores).all():
                raise DataError("the images to calibrate on gave scores that are not finite")
        self.n_train_ = reading.used
        self.skipped_ = reading.skipped
        self.remarked_ = reading.remarked
        self.copies_ = copies.positions(reading.indices)
        self._signatures, self._reading = reading.signatures, None
        self.decision_scores_ = training.scores
        self.calibration_ = calibrate(
            training.scores,
            quantile,
            method=training.method,
            unseen=training.unseen,
            notes=training.notes,
            tail=getattr(params, "calibration_tail", DEFAULT_TAIL),
        )
        pixels = training.maps.calibrate(training.method, unseen=training.unseen)
        self.pixel_calibration_ = self.above_outside(pixels)
        self.training_suspects_ = []
        self.excluded_ = []
        self.threshold_ = self.calibration_.threshold  # now it is fitted
        self.training_suspects_ = self._suspects(sources, held_out, training, reading)
        if exclude_suspects and self.training_suspects_:
            together = {"train": self.copies_, "calibration": training.copies}
            refit_without_suspects(
                self, sources, held_out, together, on_error=on_error, progress=progress
            )
        return self

    def as_fitted(self: _T) -> _T:
        """Return the detector as it is now: a copy that shares what was learned.

        Whatever is fitted or calibrated afterwards, the copy keeps scoring with the state and
        the threshold of this moment. All scoring goes through such a copy, so that a thread
        that scores while another one fits the same detector uses the earlier state as a whole.

        Raises
        ------
        NotFittedError
            Nothing was learned yet, or the detector is being fitted at this moment.
        """
        fitted = copy.copy(self)  # in one step; `fit` removes `threshold_` first, sets it last
        fitted._check_fitted()
        return fitted

    def _suspects(
        self,
        sources: Sequence[ImageSource],
        held_out: Sequence[ImageSource] | None,
        training: TrainingScores,
        reading: _Reading,
    ) -> list[TrainingSuspect]:
        if held_out is not None:
            assert training.images is not None
            self.decision_images_ = image_names(held_out, training.images)
            return name_suspects(self, held_out, training.images, "calibration", training.copies)
        positions = np.asarray(reading.indices)
        if training.images is not None:
            positions = positions[training.images]
        if len(positions) != len(training.scores):
            # the method calibrates on a part of the images, and does not say which
            note = "only a part of the training images has scores: no suspects are named"
            now = self.calibration_
            self.calibration_ = replace(now, notes=(*now.notes, note))
            return []
        self.decision_images_ = image_names(sources, positions)
        return name_suspects(self, sources, positions, "train", self.copies_)

    # ---- score

    def score_images(
        self,
        X: Iterable[ImageSource],
        *,
        maps: bool = True,
        on_error: Literal["raise", "record"] = "raise",
    ) -> Iterator[ImageScore]:
        """Score images one after another: score and map of an image from one pass.

        Parameters
        ----------
        X
            Paths or arrays as `fit` takes them; consumed lazily.
        maps
            Whether anomaly maps are wanted.
        on_error
            `raise`, or `record`: an unreadable image is yielded with its error and without
            a score.

        Yields
        ------
        ImageScore
            One for each image, in order.

        Raises
        ------
        NotFittedError
            Nothing was learned yet, or the detector is being fitted by another thread.

        Notes
        -----
        All images are scored with what was learned when the first one was asked for, also if
        the detector is fitted anew meanwhile.
        """
        yield from self.as_fitted()._score_stream(X, maps, on_error)

    def _score_stream(
        self, X: Iterable[ImageSource], maps: bool, on_error: str
    ) -> Iterator[ImageScore]:
        waiting: list[LoadedImage] = []
        with stream_images(
            X, self._size(), recall=self._recall(), roi=self.roi_, bit_depth=self.bits_read()
        ) as stream:
            for loaded in stream:
                if loaded.error is not None and on_error == "raise":
                    raise loaded.error
                waiting.append(loaded)
                if len(waiting) == self.batch_size:
                    yield from self._score_loaded(waiting, maps, on_error)
                    waiting = []
            yield from self._score_loaded(waiting, maps, on_error)

    def _score_loaded(
        self, loaded: list[LoadedImage], maps: bool, on_error: str
    ) -> Iterator[ImageScore]:
        images = [item.pixels for item in loaded if item.pixels is not None]
        if images:
            scores, anomaly_maps = self._score_parts(images, maps and self.has_maps)
        position = 0
        for item in loaded:
            if item.pixels is None:
                yield ImageScore(item.index, None, None, None, item.error)
                continue
            score = float(scores[position])
            anomaly_map = None if anomaly_maps is None else anomaly_maps[position]
            position += 1
            if anomaly_map is not None and item.original_size is not None:
                counted = self.counted_pixels(item.original_size)
                if counted is not None:
                    anomaly_map = np.where(counted, anomaly_map, np.float32(0.0))
            finite = np.isfinite(score) and (anomaly_map is None or np.isfinite(anomaly_map).all())
            if finite:
                unlike = None
                if self.seen_ is not None and item.original_size is not None:
                    unlike = self.seen_.unlike(item.original_size, item.signature)
                yield ImageScore(
                    item.index,
                    score,
                    anomaly_map,
                    item.original_size,
                    remark=item.remark,
                    signature=item.signature,
                    unlike_training=unlike,
                )
                continue
            # comparing NaN with a threshold would call it good
            error = ImageReadError(item.name, "the score or the map is not finite")
            if on_error == "raise":
                raise error
            yield ImageScore(item.index, None, None, None, error)

    def _score_parts(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        """`_score_batch`, in halves of the batch where memory runs out, and so on."""
        try:
            parts = in_blocks(
                lambda i, j: self._score_batch(images[i:j], maps), len(images), len(images), 1
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            height, width = self._size()
            raise NotEnoughMemoryError(
                f"not enough memory to score one image of {height} x {width} pixels; lower resize"
            ) from None
        if len(parts) == 1:
            return parts[0]
        found = [some for _, some in parts if some is not None]
        return np.concatenate([scores for scores, _ in parts]), (
            np.concatenate(found) if found else None
        )

    def _held_out_scores(
        self,
        sources: Sequence[ImageSource],
        on_error: OnError,
        reading: _Reading,
        progress: Progress | None,
    ) -> TrainingScores:
        """Scores of good images that were not learned from."""
        scores: list[float] = []
        positions: list[int] = []  # in `sources`
        signatures: list[Signature | None] = []
        maps = MapStatistics()
        handling = "raise" if on_error == "raise" else "record"
        with closed_after(self._score_stream(sources, self.has_maps, handling)) as results:
            for result in results:
                if progress is not None:
                    progress("calibration images", result.index + 1, len(sources))
                if result.error is not None:
                    reading.skip(result.index, result.error, "calibration")
                    continue
                assert result.score is not None
                source = sources[result.index]
                reading.remark(result.index, source, result.remark, "calibration")
                scores.append(result.score)
                signatures.append(result.signature)
                positions.append(result.index)
                if result.anomaly_map is not None and result.original_size is not None:
                    counted = self.counted_pixels(result.original_size)
                    maps.add(
                        result.anomaly_map[None]
                        if counted is None
                        else result.anomaly_map[None, counted]
                    )
        if not scores:
            raise reading.nothing_used("calibration", len(sources))
        found = np.asarray(scores)
        kept, unseen, notes = calibrate_apart(found, signatures, reading.signatures)
        images = np.asarray(positions)[kept]
        known = [one for one in signatures if one is not None]
        copies = CopyGroups.of(known if len(known) == len(signatures) else [])
        return TrainingScores(
            found[kept], "held-out-images", unseen, notes, maps, images, copies.positions(positions)
        )

    def decision_function(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float64]:
        """Return the scores (N,) of N images; higher is more anomalous.

        `X` may be a path, a folder, an image, or several: see `pyimgano.images.as_sources`. Arrays
        have red first; that an array is blue first, as OpenCV gives it, cannot be seen.
        """
        scores = [result.score for result in self.score_images(as_sources(X), maps=False)]
        return np.asarray(scores, dtype=np.float64)

    def predict(self, X: Iterable[ImageSource]) -> npt.NDArray[np.int64]:
        """Return (N,) of 0 (good) and 1 (defective: score >= `threshold_`).

        `X` is what `decision_function` takes, such as a folder.
        """
        fitted = self.as_fitted()
        return (fitted.decision_function(X) >= fitted.threshold_).astype(np.int64)

    def fit_predict(self, X: Sequence[ImageSource], y: Any = None) -> npt.NDArray[np.int64]:
        """Fit, then the decision on each training image, (N,) of 0 and 1.

        By its `decision_scores_`, where every image has one; else, as the threshold was calibrated
        on a part of them, as `predict` decides.
        """
        self.fit(X)
        if len(self.decision_scores_) < self.n_train_:
            return self.predict(X)
        return (self.decision_scores_ >= self.threshold_).astype(np.int64)

    def predict_anomaly_map(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Anomaly maps (N, H, W) float32 at `resize`.

        Raises
        ------
        UsageError
            The method has no maps.
        """
        if not self.has_maps:
            raise UsageError(f"{type(self).__name__} scores whole images and has no anomaly maps")
        fitted = self.as_fitted()
        maps = [result.anomaly_map for result in fitted.score_images(as_sources(X))]
        if not maps:
            return np.zeros((0, *fitted.params_.resize), np.float32)
        return np.stack([m for m in maps if m is not None])

    def get_anomaly_map(self, item: ImageSource) -> npt.NDArray[np.float32]:
        """The anomaly map (H, W) float32 of one image."""
        anomaly_map: npt.NDArray[np.float32] = self.predict_anomaly_map([item])[0]
        return anomaly_map

    # ---- keep and copy

    def save(
        self, folder: str | Path, *, include_backbone: bool = False, overwrite: bool = False
    ) -> Path:
        """Save the fitted detector; `pyimgano.load_model` brings it back.

        Parameters
        ----------
        folder
            Made, with what is above it. It holds `detector.json` and `arrays.safetensors`
            (docs/saved-detectors.md); it appears whole or not at all.
        include_backbone
            Whether the weights of the backbone go with it, as `backbone.safetensors`. Without
            them they have to be found again where the detector is loaded, and be the same.
        overwrite
            Whether a saved detector that lies there may be replaced; nothing else ever is.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        NotFittedError
            There is nothing to save yet.
        UsageError
            `folder` exists, or the class is not registered or does not say how it is saved.
        DataError
            It cannot be written.
        """
        from .saving import save_detector

        return save_detector(self.as_fitted(), Path(folder), include_backbone, overwrite)

    def __deepcopy__(self: _T, memo: dict[int, Any]) -> _T:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __copy__(self: _T) -> _T:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def _to_save(self) -> tuple[Detector, None]:
        return self, None

    def _check_fitted(self) -> None:
        require_fitted(self)


def require_fitted(detector: Any) -> None:
    """Raise `NotFittedError` where a detector, tiled or not, has no threshold."""
    if hasattr(detector, "threshold_"):
        return
    name = type(detector).__name__
    if vars(detector).get("_fit_begun"):
        raise NotFittedError(
            f"this {name} is not fitted yet: it is being fitted at this moment, or its last fit "
            "failed"
        )
    raise NotFittedError(f"this {name} is not fitted yet; call fit first")


def forget_the_fit(detector: Any) -> None:
    """Remove what an earlier fit learned, so that it is gone also where the next one fails.

    `threshold_` goes first: a thread that scores takes the state with it as a whole, or finds
    the detector not fitted (`Detector.as_fitted`).
    """
    detector._fit_begun = True  # for the words of `require_fitted`
    vars(detector).pop("threshold_", None)
    for name in [name for name in vars(detector) if name.endswith("_")]:
        delattr(detector, name)


def _read_region(params: Any) -> RegionOfInterest | None:
    """The region of checked keywords, which then hold the region itself instead of a file."""
    value = getattr(params, "roi", None)
    if value is None:
        return None
    params.roi = region = read_roi(value)
    if params.resize is not None:  # or else it is once the images have said it
        region.require_some(tuple(params.resize))
    return region


def _training_batches(
    stream: Iterator[LoadedImage],
    sources: Sequence[ImageSource],
    batch_size: int,
    on_error: OnError,
    reading: _Reading,
    progress: Progress | None,
) -> Iterator[list[NetworkInput]]:
    """Batches of readable images; `reading` learns what became of each."""
    batch: list[NetworkInput] = []
    for loaded in stream:
        if loaded.pixels is None:
            assert loaded.error is not None
            if on_error == "raise":
                raise loaded.error
            reading.skip(loaded.index, loaded.error)
        else:
            batch.append(loaded.pixels)
            reading.used += 1
            assert loaded.original_size is not None
            reading.sizes.add(loaded.original_size)
            reading.samples.append(loaded.samples)
            reading.indices.append(loaded.index)
            if loaded.signature is not None:
                reading.signatures.append(loaded.signature)
            reading.remark(loaded.index, sources[loaded.index], loaded.remark)
        if progress is not None:
            progress("training images", loaded.index + 1, len(sources))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
    if not reading.used:
        raise reading.nothing_used("train", len(sources))
