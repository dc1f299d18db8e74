"""A detector: an estimator that is fitted on good images and scores others.

As in scikit-learn, `__init__` only stores its keywords under their own names, everything
learned ends in an underscore, `fit` returns `self`, and values are checked in `fit`. How it
learns is the business of its method (`pyimgano.models.method`), which returns a value that scores
images. The detector reads the images, calibrates the threshold, and keeps and copies what was
learned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from ..calibration import (
    Calibration,
    PixelCalibration,
    above_disturbed,
    calibrate,
    choose_quantile,
)
from ..errors import (
    DataError,
    ImageReadError,
    NotEnoughMemoryError,
    NotFittedError,
    SavedModelError,
    UsageError,
    during,
)
from ..images import (
    ImageSource,
    LoadedImage,
    NetworkInput,
    RegionOfInterest,
    SampleRange,
    Signature,
    as_sources,
    dim_note,
    read_roi,
    stream_images,
)
from ..memory import in_blocks, is_out_of_memory
from .held_out import score_held_out
from .image_score import ImageScore
from .method import Learned, Method, TrainingScores
from .parameters import (
    check_parameters,
    documented,
    parameter_defaults,
    reject_unknown,
    signature_of,
)
from .region_cells import RegionCells
from .saved import TileFacts, require_place, write_folder
from .saving import require_saveable, saved_files
from .seen_images import SeenImages, calibrate_on_distinct
from .settable_threshold import SettableThreshold
from .sklearn_face import SklearnFace
from .suspects import (
    ExcludedImage,
    TrainingSuspect,
    image_names,
    name_suspects,
    refit_without_suspects,
)
from .training_images import (
    OnError,
    Progress,
    SkippedImage,
    TrainingImages,
    require_apart,
)
from .working_size import working_size

if TYPE_CHECKING:
    from ..backbones import Backbone

__all__ = ["Detector", "ImageScore", "OnError", "Progress", "SkippedImage", "TrainingScores"]

_T = TypeVar("_T", bound="Detector")


class Detector(SettableThreshold, SklearnFace):
    """A detector of defects in images. A public class of it says which method it has.

    Its keywords are the fields of the method's `Params`, and are stored as they are given.

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
    learned_
        What the method learned (`pyimgano.models.method.Learned`). Its attributes whose names end
        in an underscore are the detector's too.
    signatures_
        By what copies of the training images that were used are told
        (`pyimgano.images.Signature`). Not saved.
    reading_notes_
        What a reader of a report should know of how the training images were read, in
        sentences; empty where that is as usual, and after loading a saved detector.
    """

    #: How it learns; what a public class gives.
    method: ClassVar[type[Method]]
    #: Its keywords, those of the method.
    Params: ClassVar[type[BaseModel]]
    #: Whether the method gives anomaly maps.
    has_maps: ClassVar[bool] = True
    #: How many images are scored together.
    batch_size: ClassVar[int] = 8
    #: Whether what was learned can be exported as a graph.
    exports: ClassVar[bool] = False
    #: The name that a class is registered under, put there by `register_model`.
    registered_name: ClassVar[str]
    #: What help() shows.
    __signature__: ClassVar[Any]

    resize: Any
    contamination: float | None
    calibration: str
    calibration_quantile: float | None

    decision_scores_: npt.NDArray[np.float64]
    decision_images_: tuple[str, ...] | None = None
    params_: Any
    learned_: Learned
    calibration_: Calibration
    pixel_calibration_: PixelCalibration | None
    skipped_: list[SkippedImage]
    remarked_: list[SkippedImage]
    training_suspects_: list[TrainingSuspect]
    excluded_: list[ExcludedImage]
    n_train_: int
    seen_: SeenImages | None = None
    copies_: tuple[tuple[int, ...], ...] = ()
    signatures_: Sequence[Signature] = ()
    roi_: RegionOfInterest | None = None
    reading_notes_: tuple[str, ...] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "method" in vars(cls):
            method = cls.method
            cls.has_maps, cls.batch_size = method.has_maps, method.batch_size
            cls.exports, cls.Params = method.exports, method.Params
        if "Params" in vars(cls):
            cls.__signature__ = signature_of(cls.Params)
            cls.__doc__ = documented(cls.__doc__ or "", cls.Params)

    def __init__(self, **keywords: Any) -> None:
        defaults = parameter_defaults(self.Params)
        for name in keywords:
            if name not in defaults:
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}")
        vars(self).update({**defaults, **keywords})

    def __getattr__(self, name: str) -> Any:
        learned = vars(self).get("learned_")
        if name.endswith("_") and not name.startswith("_") and hasattr(learned, name):
            return getattr(learned, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ---- keywords

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the keywords and their values."""
        return {name: getattr(self, name) for name in parameter_defaults(self.Params)}

    def set_params(self: _T, **params: Any) -> _T:
        """Set keywords; an unknown one raises `UsageError`."""
        reject_unknown(self.get_params(), type(self).__name__, params)
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
        return check_parameters(self.Params, self.get_params())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"

    # ---- what a run asks before and after the fit

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
        method = self.method(self.validate_params())
        method.prepare()
        return method.backbone

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the fitted detector, as plain JSON values."""
        return self.learned_.describe()

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        """Return the fitted detector as one torch module on the CPU, for export.

        Parameters
        ----------
        original_size
            (height, width) of images before resizing: with a region of interest they say
            which pixels count. None for images that come at `resize`.

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
        if not self.exports:
            raise UsageError(f"{type(self).__name__} cannot be exported")
        self._check_fitted()
        return self.learned_.export_graph(self.threshold_, original_size)

    def _repr_html_(self) -> str:
        from .detector_face import detector_html

        return detector_html(self)

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

    def _round_size(self, params: Any, backbone: Backbone) -> None:
        """Resize images to the nearest size that the backbone takes; say so where it differs."""
        asked, size = tuple(params.resize), backbone.nearest_size(tuple(params.resize))
        if size == asked:
            return
        note = (
            f"{params.backbone} takes multiples of {backbone.network.multiple} pixels: images are "
            f"resized to {size[0]} x {size[1]} instead of {asked[0]} x {asked[1]}"
        )
        self.reading_notes_ = (*self.reading_notes_, note)
        warnings.warn(note, stacklevel=4)
        params.resize = size

    # ---- region of interest

    def region_of_interest(self) -> RegionOfInterest | None:
        """Read the region that the keyword `roi` asks for; None without one.

        Raises
        ------
        UsageError
            A keyword out of range.
        DataError
            A file that cannot be used, or a region of which nothing is left at `resize`.
        """
        return _read_region(self.validate_params())

    @property
    def backbone_(self) -> Backbone | None:
        """Return the frozen network that gives the features; None if the method has none."""
        return getattr(self.learned_, "backbone", None)

    @property
    def region_cells(self) -> RegionCells:
        """Return the size that images are resized to, and which of its pixels and cells count."""
        return RegionCells(tuple(self.params_.resize), self.roi_)  # those of the fit

    def counted_pixels(self, original_size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """Return which pixels of the map of an image count, (H, W) bool; None if all do.

        `original_size` is the (height, width) of the image before resizing.
        """
        return None if self.roi_ is None else self.region_cells.pixels(original_size)

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
                raise UsageError("calibration_images is empty; give at least one good image")
            require_apart(sources, held_out)
        forget_the_fit(self)
        if params.resize is None:
            params.resize = working_size(sources)
        if region is not None:
            region.require_some(tuple(params.resize))
        self.params_, self.roi_ = params, region
        method = self.method(params)
        if method.backbone is not None:
            self._round_size(params, method.backbone)
        images = TrainingImages(
            sources,
            self.region_cells,
            calibrate=params.calibration if held_out is None else "held-out-images",
            batch_size=self.batch_size,
            bit_depth=self.bits_read(),
            recall=None if method.backbone is None else method.backbone.cache,
            on_error=on_error,
            look_for_copies=getattr(sources, "may_hold_copies", True),
            progress=progress,
        )
        with images:
            learned, training = method.learn(images)
        self.learned_ = learned
        self.note_dim_images(images.samples)
        copies = images.copies()
        if images.signatures:
            shapes = sorted(images.sizes)
            self.seen_ = SeenImages.of(shapes, images.signatures, copies.distinct)
        with during("calibration"):
            if held_out is None:
                assert training is not None
                training = calibrate_on_distinct(training, copies)
            else:
                training = score_held_out(
                    self._score_stream(
                        held_out, self.has_maps, "raise" if on_error == "raise" else "record"
                    ),
                    held_out,
                    images.left_out,
                    counted=self.counted_pixels,
                    known=images.signatures,
                    progress=progress,
                )
            if not np.isfinite(training.scores).all():
                raise DataError("the images to calibrate on gave scores that are not finite")
        self.n_train_ = images.used
        self.skipped_, self.remarked_ = images.left_out.skipped, images.left_out.remarked
        self.copies_ = copies.positions(images.positions)
        self.signatures_ = images.signatures
        self.training_suspects_, self.excluded_ = [], []
        calibration = calibrate(
            training.scores,
            quantile,
            method=training.method,
            unseen=training.unseen,
            notes=training.notes,
            tail=params.calibration_tail,
        )
        chosen = params.calibration_quantile is not None or params.contamination is not None
        if training.disturbed is not None and not chosen:
            calibration = above_disturbed(calibration, training.disturbed)
        # from here on other threads find it fitted; what follows is about the training images
        self._take_calibration(calibration, training.scores, training.maps)
        self.training_suspects_ = self._name_suspects(sources, held_out, training, images.positions)
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
        fitted = copy.copy(
            self
        )  # in one step; `fit` removes `threshold_` first, and sets it once scoring works
        fitted._check_fitted()
        return fitted

    def _name_suspects(
        self,
        sources: Sequence[ImageSource],
        held_out: Sequence[ImageSource] | None,
        training: TrainingScores,
        used: Sequence[int],
    ) -> list[TrainingSuspect]:
        """Set `decision_images_`, and return the suspects among these images.

        Where the method does not say which images its scores belong to, a note of `calibration_`
        says so, and there are no suspects.
        """
        if held_out is not None:
            assert training.images is not None
            self.decision_images_ = image_names(held_out, training.images)
            return name_suspects(self, held_out, training.images, "calibration", training.copies)
        positions = np.asarray(used)
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
        backbone = self.backbone_
        with stream_images(
            X,
            self.region_cells.size,
            recall=None if backbone is None else backbone.cache,
            roi=self.roi_,
            bit_depth=self.bits_read(),
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
        """Return scores and maps, from halves of the batch where memory runs out, and so on."""
        try:
            parts = in_blocks(
                lambda i, j: self.learned_.score(images[i:j], maps), len(images), len(images), 1
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            height, width = self.region_cells.size
            raise NotEnoughMemoryError(
                f"not enough memory to score one image of {height} x {width} pixels; lower resize"
            ) from None
        if len(parts) == 1:
            return parts[0]
        found = [some for _, some in parts if some is not None]
        return np.concatenate([scores for scores, _ in parts]), (
            np.concatenate(found) if found else None
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
        """Return the anomaly map (H, W) float32 of one image."""
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
        fitted = self.as_fitted()
        require_saveable(fitted)
        place = require_place(Path(folder), overwrite)
        return write_folder(place, saved_files(fitted, include_backbone), overwrite)

    def __deepcopy__(self: _T, memo: dict[int, Any]) -> _T:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __copy__(self: _T) -> _T:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def _to_save(self) -> tuple[Detector, TileFacts | None]:
        return self, None

    def _take_restored(self, detector: Any, tiles: TileFacts | None) -> None:
        if type(detector) is not type(self) or tiles is not None:
            found = "TiledDetector" if tiles is not None else type(detector).__name__
            raise SavedModelError(
                f"the pickled detector: is a {found}, not a {type(self).__name__}"
            )
        self.__dict__.update(vars(detector))

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
    """Read the region of checked keywords, which then hold the region itself instead of a file."""
    value = getattr(params, "roi", None)
    if value is None:
        return None
    params.roi = region = read_roi(value)
    if params.resize is not None:  # or else it is once the images have said it
        region.require_some(tuple(params.resize))
    return region
