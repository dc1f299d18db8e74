"""What every detector is: an estimator that is fitted on good images and scores others.

As in scikit-learn, `__init__` only stores its keywords under their own names, everything
learned ends in an underscore, `fit` returns `self`, and values are checked in `fit`. A
method implements four short steps: `_start`, `_learn`, `_training_scores`, `_score_batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..calibration import (
    Calibration,
    MapStatistics,
    PixelCalibration,
    calibrate,
    choose_quantile,
)
from ..errors import DataError, ImageReadError, NotFittedError, UsageError
from ..images import (
    ImageSource,
    LoadedImage,
    NetworkInput,
    Recall,
    as_sources,
    stream_images,
)
from .parameters import check_parameters, parameter_names, reject_unknown

OnError = Literal["raise", "skip"]
_Role = Literal["train", "calibration"]
#: Told what is going on: the stage's name, how much is done, how much there is.
Progress = Callable[[str, int, int], None]
_T = TypeVar("_T", bound="Detector")


@dataclass(frozen=True)
class TrainingScores:
    """Scores of normal images, and how they were obtained.

    `unseen` says that no image was scored by a model that had seen it; `maps` are the
    statistics of the images' maps, if the method has maps.
    """

    scores: npt.NDArray[np.float64]
    method: str
    unseen: bool
    notes: tuple[str, ...] = ()
    maps: MapStatistics = field(default_factory=MapStatistics)


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
    """

    index: int
    score: float | None
    anomaly_map: npt.NDArray[np.float32] | None
    original_size: tuple[int, int] | None
    error: ImageReadError | None = None
    remark: str | None = None


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


class Detector(ABC):
    """Base class of all detectors.

    Every subclass takes at least `resize`, `contamination`, `calibration`,
    `calibration_quantile`, `device` and `random_seed`.

    Attributes
    ----------
    decision_scores_
        (M,) float64 scores of the normal images that the threshold was calibrated on: the
        training images that were used, out-of-sample unless `calibration="in-sample"`; or
        the `calibration_images` of `fit`.
    threshold_
        `predict` calls an image defective if its score is greater than or equal to this.
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
    n_train_
        How many training images were learned from.
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
    params_: Any
    threshold_: float
    calibration_: Calibration
    pixel_calibration_: PixelCalibration | None
    skipped_: list[SkippedImage]
    remarked_: list[SkippedImage]
    n_train_: int

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
        """Scores (B,) and, if `maps` and the method has them, maps (B, H, W).

        `params_` is there; `threshold_` is not while calibration images are scored.
        """

    def _recall(self) -> Recall | None:
        """The cache of features of what `_start` made ready, if there is one."""
        return None

    def _finish(self) -> None:  # noqa: B027 -- not every method keeps what it learned from
        """Let go of what only `_training_scores` needs."""

    def prepare(self) -> None:  # noqa: B027 -- not every method has something to get ready
        """Make sure that what fitting needs besides images is there: device, weights.

        Called by `run_benchmark` before anything is begun, so that a run of many categories
        does not fail in each.

        Raises
        ------
        UsageError, WeightsError
            As fitting would.
        """

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

    # ---- fit

    def fit(
        self: _T,
        X: Iterable[ImageSource],
        y: Any = None,
        *,
        calibration_images: Iterable[ImageSource] | None = None,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> _T:
        """Learn what good images look like, and calibrate the threshold on them.

        Parameters
        ----------
        X
            Good images: paths, or (H, W, 3) uint8 RGB arrays.
        y
            Ignored; there for scikit-learn's convention.
        calibration_images
            Further good images, set aside for the threshold: they are scored as any other
            and not learned from. By default it is calibrated on the training images.
        on_error
            `raise`: an unreadable image is an error that names it. `skip`: it is left out,
            from the model and from the calibration, and listed in `skipped_`.
        progress
            Called with (stage, done, total).

        Raises
        ------
        UsageError
            A keyword out of range, or `X` or `calibration_images` empty or of another kind.
        ImageReadError
            An unreadable image, unless `on_error="skip"`.
        DataError
            No image could be read.
        """
        params = self.validate_params()
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        quantile = choose_quantile(params.calibration_quantile, params.contamination)
        sources = as_sources(X)
        if len(sources) == 0:
            raise UsageError("X is empty: fit needs at least one good image")
        held_out = None
        if calibration_images is not None:
            held_out = as_sources(calibration_images, name="calibration_images")
            if len(held_out) == 0:
                raise UsageError("calibration_images is empty: at least one good image is wanted")
        # what was learned before is gone, also if this fit fails on the way
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        reading = _Reading()
        self._start(params, len(sources))
        self._learn(
            _training_batches(
                stream_images(sources, params.resize, recall=self._recall()),
                sources,
                self.batch_size,
                on_error,
                reading,
                progress,
            ),
            progress,
        )
        self.params_ = params
        training = None
        try:
            if held_out is None:
                training = self._training_scores(params.calibration != "in-sample")
        finally:
            self._finish()
        if held_out is not None:
            training = self._held_out_scores(held_out, on_error, reading, progress)
        assert training is not None
        if not np.isfinite(training.scores).all():
            raise DataError("the images to calibrate on gave scores that are not finite")
        self.n_train_ = reading.used
        self.skipped_ = reading.skipped
        self.remarked_ = reading.remarked
        self.decision_scores_ = training.scores
        self.calibration_ = calibrate(
            training.scores,
            quantile,
            method=training.method,
            unseen=training.unseen,
            notes=training.notes,
        )
        self.pixel_calibration_ = training.maps.calibrate(training.method, unseen=training.unseen)
        self.threshold_ = self.calibration_.threshold
        return self

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
            Paths or (H, W, 3) uint8 RGB arrays; consumed lazily.
        maps
            Whether anomaly maps are wanted.
        on_error
            `raise`, or `record`: an unreadable image is yielded with its error and without
            a score.

        Yields
        ------
        ImageScore
            One for each image, in order.
        """
        self._check_fitted()
        yield from self._score_stream(X, maps, on_error)

    def _score_stream(
        self, X: Iterable[ImageSource], maps: bool, on_error: str
    ) -> Iterator[ImageScore]:
        size = self.params_.resize  # that of the fit, whatever was set since
        waiting: list[LoadedImage] = []
        for loaded in stream_images(X, size, recall=self._recall()):
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
            scores, anomaly_maps = self._score_batch(images, maps and self.has_maps)
        position = 0
        for item in loaded:
            if item.pixels is None:
                yield ImageScore(item.index, None, None, None, item.error)
                continue
            score = float(scores[position])
            anomaly_map = None if anomaly_maps is None else anomaly_maps[position]
            position += 1
            finite = np.isfinite(score) and (anomaly_map is None or np.isfinite(anomaly_map).all())
            if finite:
                yield ImageScore(
                    item.index, score, anomaly_map, item.original_size, remark=item.remark
                )
                continue
            # comparing NaN with a threshold would call it good
            error = ImageReadError(item.name, "the score or the map is not finite")
            if on_error == "raise":
                raise error
            yield ImageScore(item.index, None, None, None, error)

    def _held_out_scores(
        self,
        sources: Sequence[ImageSource],
        on_error: OnError,
        reading: _Reading,
        progress: Progress | None,
    ) -> TrainingScores:
        """Scores of good images that were not learned from."""
        scores: list[float] = []
        maps = MapStatistics()
        handling = "raise" if on_error == "raise" else "record"
        for result in self._score_stream(sources, self.has_maps, handling):
            if progress is not None:
                progress("calibration images", result.index + 1, len(sources))
            if result.error is not None:
                reading.skip(result.index, result.error, "calibration")
                continue
            assert result.score is not None
            source = sources[result.index]
            reading.remark(result.index, source, result.remark, "calibration")
            scores.append(result.score)
            if result.anomaly_map is not None:
                maps.add(result.anomaly_map[None])
        if not scores:
            raise reading.nothing_used("calibration", len(sources))
        return TrainingScores(np.asarray(scores), "held-out-images", unseen=True, maps=maps)

    def decision_function(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float64]:
        """Scores (N,) of N images; higher is more anomalous."""
        scores = [result.score for result in self.score_images(as_sources(X), maps=False)]
        return np.asarray(scores, dtype=np.float64)

    def predict(self, X: Iterable[ImageSource]) -> npt.NDArray[np.int64]:
        """(N,) of 0 (good) and 1 (defective: score >= `threshold_`)."""
        return (self.decision_function(X) >= self.threshold_).astype(np.int64)

    def fit_predict(self, X: Sequence[ImageSource], y: Any = None) -> npt.NDArray[np.int64]:
        """Fit, then the decision on each training image by its `decision_scores_`.

        Raises
        ------
        UsageError
            There are so many images that only a part of them was scored.
        """
        self.fit(X)
        if len(self.decision_scores_) < self.n_train_:
            raise UsageError(
                f"fit_predict: {len(self.decision_scores_)} of {self.n_train_} training images "
                "were scored; use fit and predict"
            )
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
        maps = [result.anomaly_map for result in self.score_images(as_sources(X))]
        if not maps:
            return np.zeros((0, *self.params_.resize), np.float32)
        return np.stack([m for m in maps if m is not None])

    def get_anomaly_map(self, item: ImageSource) -> npt.NDArray[np.float32]:
        """The anomaly map (H, W) float32 of one image."""
        anomaly_map: npt.NDArray[np.float32] = self.predict_anomaly_map([item])[0]
        return anomaly_map

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")


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
