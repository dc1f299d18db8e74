"""Large images by tiles: cut, score, blend.

A detector looks at an image resized to a few hundred pixels, in which a defect of ten pixels
on a picture of 12,000 is gone. Here the picture is cut into overlapping tiles, each is scored
as an image of its own, the tiles' maps are blended, and the picture's score is the largest of
its tiles' scores.

The maximum over n tiles exceeds a threshold for one tile about n times as often, so a tiled
detector has a threshold of its own, calibrated on whole good pictures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..calibration import (
    DEFAULT_QUANTILE,
    DEFAULT_TAIL,
    Calibration,
    PixelCalibration,
    calibrate,
    choose_quantile,
)
from ..errors import ImageReadError, SavedModelError, UsageError, unknown_name
from ..images import ImageSource, Signature, as_sources, closed_after, stream_images
from .detector import Detector, forget_the_fit, require_fitted
from .held_out import calibrate_on_held_out, score_held_out
from .image_score import ImageScore
from .parameters import reject_unknown
from .saved import (
    CalibrationFacts,
    ImageFacts,
    PixelCalibrationFacts,
    TileFacts,
    require_place,
    write_folder,
)
from .saving import require_saveable, saved_files
from .settable_threshold import SettableThreshold
from .sklearn_face import SklearnFace
from .tiles import (
    MAP_RULES,
    SCORE_RULES,
    Sides,
    TrainingTiles,
    blend_weights,
    default_stride,
    reduce_scores,
    sides,
    tile_starts,
)
from .training_images import LeftOut, OnError, Progress, SkippedImage, require_apart

#: Of the images that `fit` is given, one in so many is set aside to calibrate on.
HELD_OUT_ONE_IN = 4
# Ends the name of a calibration on untiled images.
_UNTILED = ", untiled"


class TiledDetector(SettableThreshold, SklearnFace):
    """A detector that scores images tile by tile, with a detector's contract.

    Parameters
    ----------
    detector
        Scores the tiles, each resized to its `resize`. If it is fitted already, its threshold
        serves until `calibrate`, without a promise: see `calibrated_on_tiles_`.
    tile_size
        Pixels of a tile: one number, or (height, width).
    tile_stride
        Pixels from one tile to the next, at most `tile_size`; by default three quarters of it.
        A defect no larger than the overlap lies whole in some tile.
    score_reduce, score_topk
        How the tiles' scores become the image's: `max`, `mean`, or `topk_mean`, the mean of the
        highest of them, a share `score_topk` in (0, 1], at least one. A small defect lies in few
        tiles, and shows in the largest score alone.
    map_reduce
        How maps are blended where tiles overlap: weighted by a `triangle`, `hann` or `gaussian`
        window, by `mean`, or their `max`.

    Attributes
    ----------
    decision_scores_, threshold_, calibration_, pixel_calibration_, skipped_, remarked_
        As `Detector`, of whole images.
    n_train_
        Training images whose tiles were learned from.
    calibrated_on_tiles_
        False while the threshold is one for untiled images.

    Notes
    -----
    Along an axis where an image is shorter than a tile, the tile is as long as the image; an
    image smaller than a tile is scored whole, resized as by the untiled detector.

    Maps have the image's own size. They are summed in place, (H, W) float32, with weights that
    are a product of one vector for each axis; an image is decoded once and its tiles are
    scored `batch_size` at a time, so that besides map and image little memory is taken.
    """

    decision_scores_: npt.NDArray[np.float64]
    calibration_: Calibration
    pixel_calibration_: PixelCalibration | None
    skipped_: list[SkippedImage]
    remarked_: list[SkippedImage]
    n_train_: int
    signatures_: Sequence[Signature] = ()

    def __init__(
        self,
        detector: Detector,
        *,
        tile_size: Sides,
        tile_stride: Sides | None = None,
        score_reduce: str = "max",
        score_topk: float = 0.1,
        map_reduce: str = "triangle",
    ) -> None:
        self.detector = detector
        self.tile_size = sides(tile_size, "tile_size")
        self.tile_stride = (
            default_stride(self.tile_size)
            if tile_stride is None
            else sides(tile_stride, "tile_stride")
        )
        if any(step > side for step, side in zip(self.tile_stride, self.tile_size)):
            raise UsageError(
                f"tile_stride must not be larger than tile_size, or pixels are left out; got "
                f"{self.tile_stride} for tiles of {self.tile_size}"
            )
        for name, value, known in (
            ("score_reduce", score_reduce, SCORE_RULES),
            ("map_reduce", map_reduce, MAP_RULES),
        ):
            if value not in known:
                raise UsageError(unknown_name(name, str(value), known))
        if isinstance(score_topk, bool) or not isinstance(score_topk, (int, float, np.number)):
            raise UsageError(f"score_topk must be a number in (0, 1], got {score_topk!r}")
        if not 0 < score_topk <= 1:
            raise UsageError(f"score_topk must lie in (0, 1], got {score_topk!r}")
        self.score_reduce, self.map_reduce = score_reduce, map_reduce
        self.score_topk = float(score_topk)
        if detector.get_params().get("roi") is not None:
            raise UsageError("roi means a part of the whole image; it cannot be used with tiles")
        if hasattr(detector, "threshold_"):
            self._take_over()

    def _take_over(self) -> None:
        """Take the threshold of a detector that was fitted on untiled images, without its
        promise.
        """
        inner = self.detector
        note = (
            "the threshold was calibrated on untiled images: the largest of many tiles' scores "
            "exceeds it more often, and no false-alarm rate is promised; calibrate on good "
            "full-size images"
        )
        self.decision_scores_ = inner.decision_scores_
        self.calibration_ = replace(
            inner.calibration_,
            method=f"{inner.calibration_.method}{_UNTILED}",
            promised_false_alarm_rate=None,
            false_alarm_rate_bound=None,
            estimate_interval=None,
            unseen=False,
            notes=(*inner.calibration_.notes, note),
            score_notes=(*inner.calibration_.score_notes, note),
        )
        vars(self)["threshold_"] = inner.threshold_  # None of another program's without one
        self.pixel_calibration_ = inner.pixel_calibration_
        self.skipped_, self.remarked_ = inner.skipped_, inner.remarked_
        self.n_train_ = inner.n_train_

    # ---- estimator

    @property
    def calibrated_on_tiles_(self) -> bool:
        """Return whether the threshold was calibrated on whole images by their tiles."""
        return not self.calibration_.method.endswith(_UNTILED)

    def counted_pixels(self, original_size: tuple[int, int]) -> None:
        """Return None: all pixels count, since tiles have no region of interest."""

    @property
    def has_maps(self) -> bool:
        """Return whether the detector of the tiles gives maps."""
        return self.detector.has_maps

    @property
    def batch_size(self) -> int:
        """Tiles scored together."""
        return self.detector.batch_size

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the keywords of `__init__`, and if `deep` the detector's own."""
        inner = {f"detector__{k}": v for k, v in self.detector.get_params().items()}
        return {
            "detector": self.detector,
            "tile_size": self.tile_size,
            "tile_stride": self.tile_stride,
            "score_reduce": self.score_reduce,
            "score_topk": self.score_topk,
            "map_reduce": self.map_reduce,
            **(inner if deep else {}),
        }

    def set_params(self, **params: Any) -> TiledDetector:
        """Set tile settings, or keywords of the detector as `detector__<keyword>`.

        Raises
        ------
        UsageError
            An unknown keyword.
        """
        prefix = "detector__"
        inner = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        own = {k: v for k, v in params.items() if not k.startswith(prefix)}
        reject_unknown(self.get_params(deep=False), type(self).__name__, own)
        now = {**self.get_params(deep=False), **own}
        changed = copy.copy(now["detector"]).set_params(**inner)
        checked = TiledDetector(**{**now, "detector": changed})  # before anything is changed here
        was = self.get_params(deep=False)
        self.detector = now["detector"].set_params(**inner)
        for name in was.keys() - {"detector"}:
            setattr(self, name, getattr(checked, name))
        changes = any(was[name] != getattr(self, name) for name in was.keys() - {"detector"})
        if hasattr(self.detector, "threshold_") and changes:
            self._take_over()  # a threshold for other tiles promises nothing
        return self

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it; plain JSON values."""
        return {
            **self.detector.describe(),
            "tile_size": list(self.tile_size),
            "tile_stride": list(self.tile_stride),
            "score_reduce": self.score_reduce,
            "score_topk": self.score_topk,
            "map_reduce": self.map_reduce,
        }

    # ---- fit

    def fit(
        self,
        X: Iterable[ImageSource],
        y: Any = None,
        *,
        calibration_images: Iterable[ImageSource] | None = None,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> TiledDetector:
        """Learn from tiles of good images, and calibrate on other whole ones.

        Tiles to learn from do not overlap. Calibrated is on `calibration_images`, or else on
        every fourth image of `X`, which is then not learned from (`calibration_.notes` says
        how many). Arguments and errors are those of `Detector.fit`.

        Raises
        ------
        UsageError
            Fewer than two images and no `calibration_images`.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        sources = as_sources(X, learning=True)
        params = self.detector.validate_params()
        quantile = choose_quantile(params.calibration_quantile, params.contamination)
        forget_the_fit(self)
        chosen = list(range(len(sources)))
        held: Sequence[ImageSource]
        if calibration_images is not None:
            held, held_index = (
                as_sources(calibration_images, name="calibration_images", learning=True),
                None,
            )
            if len(held) == 0:
                raise UsageError("calibration_images is empty; give at least one good image")
            require_apart(sources, held)
        else:
            if len(sources) < 2:
                raise UsageError(
                    f"{len(sources)} good image{'s' * (len(sources) != 1)}: with tiles at least "
                    "two are needed, one to learn from and one to calibrate on"
                )
            held_index = list(range(HELD_OUT_ONE_IN - 1, len(sources), HELD_OUT_ONE_IN)) or [
                len(sources) - 1
            ]
            held = [sources[i] for i in held_index]
            chosen = sorted(set(chosen) - set(held_index))
        bits = getattr(params, "bit_depth", None)
        tiles = TrainingTiles(sources, chosen, self.tile_size, on_error, bits)
        self.detector.fit(tiles, progress=progress)
        self.detector.note_dim_images(tiles.samples)
        left_out = LeftOut()
        found = score_held_out(
            self.score_images(
                held, maps=self.has_maps, on_error="raise" if on_error == "raise" else "record"
            ),
            held,
            left_out,
            known=tiles.signatures,
            progress=progress,
        )
        notes = found.notes
        if held_index is not None:
            note = (
                f"of {len(sources)} images {len(tiles.images)} were learned from and "
                f"{len(held) - len(left_out.skipped)} set aside to calibrate on"
            )
            notes = (note, *notes)
            for some in (left_out.skipped, left_out.remarked):
                some[:] = [replace(one, index=held_index[one.index]) for one in some]
        self.n_train_ = len(tiles.images)
        self.signatures_ = tiles.signatures
        self.skipped_ = tiles.skipped + left_out.skipped
        self.remarked_ = tiles.remarked + left_out.remarked
        calibration = calibrate(
            found.scores,
            quantile,
            method=found.method,
            unseen=found.unseen,
            notes=notes,
            tail=getattr(params, "calibration_tail", DEFAULT_TAIL),
        )
        self._take_calibration(calibration, found.scores, found.maps)
        return self

    def calibrate(self, X: Iterable[ImageSource], *, quantile: float = DEFAULT_QUANTILE) -> float:
        """Calibrate on good full-size images; returns the threshold, which is also set.

        Raises
        ------
        UsageError, ImageReadError
            No images, a quantile outside (0, 1), or an image that cannot be read.
        """
        self._check_fitted()
        calibrate_on_held_out(self, as_sources(X), quantile)
        return self.threshold_

    def _repr_html_(self) -> str:
        from .detector_face import detector_html

        return detector_html(self)

    def as_fitted(self) -> TiledDetector:
        """Return the detector as it is now, as `Detector.as_fitted` does."""
        while True:
            fitted = copy.copy(self)
            fitted._check_fitted()
            inner = self.detector.as_fitted()
            # `fit` removes the threshold, fits the detector of the tiles, and calibrates
            if vars(self).get("calibration_") is fitted.calibration_:
                fitted.detector = inner
                return fitted

    # ---- score

    def score_images(
        self,
        X: Iterable[ImageSource],
        *,
        maps: bool = True,
        on_error: Literal["raise", "record"] = "raise",
    ) -> Iterator[ImageScore]:
        """Score images as `Detector` does; maps are (H, W) float32 at each image's own size.

        One image is held at a time, none is read ahead.
        """
        if not self.__sklearn_is_fitted__() and hasattr(self.detector, "threshold_"):
            fitted = copy.copy(self)  # calibration of `fit` itself, before there is a threshold
            fitted.detector = self.detector.as_fitted()
        else:
            fitted = self.as_fitted()
        bits = fitted.detector.bits_read()
        with stream_images(X, None, threads=1, ahead=1, bit_depth=bits) as stream:
            for loaded in stream:
                if loaded.pixels is None:
                    assert loaded.error is not None
                    if on_error == "raise":
                        raise loaded.error
                    yield ImageScore(loaded.index, None, None, None, loaded.error)
                    continue
                assert isinstance(loaded.pixels, np.ndarray)
                try:
                    score, blended = fitted._score_tiles(loaded.name, loaded.pixels, maps)
                except ImageReadError as error:
                    if on_error == "raise":
                        raise
                    yield ImageScore(loaded.index, None, None, None, error)
                    continue
                result = ImageScore(
                    loaded.index,
                    score,
                    blended,
                    loaded.original_size,
                    remark=loaded.remark,
                    signature=loaded.signature,
                )
                del loaded, blended  # a large image is let go of before the caller looks at its map
                yield result
                del result

    def _score_tiles(
        self, name: str, image: npt.NDArray[np.uint8], maps: bool
    ) -> tuple[float, npt.NDArray[np.float32] | None]:
        height, width = image.shape[:2]
        tile_h, tile_w = min(self.tile_size[0], height), min(self.tile_size[1], width)
        largest = self.map_reduce == "max"
        window = "mean" if largest else self.map_reduce  # of the largest no weights are needed
        rows, columns = (
            list(
                zip(
                    tile_starts(length, self.tile_size[axis], self.tile_stride[axis]),
                    blend_weights(length, self.tile_size[axis], self.tile_stride[axis], window),
                )
            )
            for axis, length in enumerate((height, width))
        )
        places = [(row, column) for row in rows for column in columns]
        tiles = (
            np.ascontiguousarray(image[y : y + tile_h, x : x + tile_w]) for (y, _), (x, _) in places
        )
        maps = maps and self.has_maps
        try:
            fill = -math.inf if largest else 0.0
            blended = np.full((height, width), fill, np.float32) if maps else None
            # what a row of tiles adds, so that few numbers are rounded to float32 on each other
            band = np.zeros((tile_h, width))
        except MemoryError as error:
            raise ImageReadError(name, "not enough memory for its map") from error
        scores: list[float] = []
        scored = self.detector.score_images(tiles, maps=maps, on_error="record")
        with closed_after(scored):
            for ((y, down), (x, across)), tile in zip(places, scored, strict=True):
                if tile.error is not None:
                    raise ImageReadError(name, f"the tile at x {x}, y {y}: {tile.error.reason}")
                assert tile.score is not None
                scores.append(tile.score)
                if blended is not None:
                    assert tile.anomaly_map is not None
                    part = tile.anomaly_map
                    if part.shape != (tile_h, tile_w):
                        wanted = (tile_w, tile_h)
                        part = np.asarray(
                            cv2.resize(part, wanted, interpolation=cv2.INTER_LINEAR), np.float32
                        )
                    if largest:
                        place = blended[y : y + tile_h, x : x + tile_w]
                        np.maximum(place, part, out=place)
                        continue
                    band[:, x : x + tile_w] += part * across
                    if x == columns[-1][0]:
                        blended[y : y + tile_h] += down[:, None] * band  # (tile_h, W)
                        band.fill(0.0)
        return reduce_scores(scores, self.score_reduce, self.score_topk), blended

    def decision_function(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float64]:
        """Return scores (N,) of N images, from their tiles' scores as `score_reduce` says."""
        scores = [result.score for result in self.score_images(as_sources(X), maps=False)]
        return np.asarray(scores, dtype=np.float64)

    def predict(self, X: Iterable[ImageSource]) -> npt.NDArray[np.int64]:
        """Decide on N images: (N,) of 0 (good) and 1 (defective: score >= `threshold_`)."""
        fitted = self.as_fitted()
        return (fitted.decision_function(X) >= fitted.threshold_).astype(np.int64)

    def predict_anomaly_map(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Anomaly maps (N, H, W) float32 at the images' own size, which must be the same.

        Raises
        ------
        UsageError
            The method has no maps, or the images are of several sizes.
        """
        if not self.has_maps:
            name = type(self.detector).__name__
            raise UsageError(f"{name} scores whole images and has no anomaly maps")
        maps = [result.anomaly_map for result in self.score_images(as_sources(X))]
        found = [one for one in maps if one is not None]
        if len({one.shape for one in found}) > 1:
            raise UsageError(
                "the images are of several sizes, so their maps are too; take them one by one "
                "with score_images"
            )
        return np.stack(found) if found else np.zeros((0, *self.tile_size), np.float32)

    def get_anomaly_map(self, item: ImageSource) -> npt.NDArray[np.float32]:
        """Return the anomaly map (H, W) float32 of one image."""
        found: npt.NDArray[np.float32] = self.predict_anomaly_map([item])[0]
        return found

    def save(
        self, folder: str | Path, *, include_backbone: bool = False, overwrite: bool = False
    ) -> Path:
        """Save as `Detector.save` does, with how it is tiled and what it was calibrated on."""
        fitted = self.as_fitted()
        require_saveable(fitted.detector)
        place = require_place(Path(folder), overwrite)
        files = saved_files(fitted.detector, include_backbone, fitted._tile_facts())
        return write_folder(place, files, overwrite)

    def _tile_facts(self) -> TileFacts:
        """Return what a saved detector says of the tiles."""
        pixels = self.pixel_calibration_
        return TileFacts(
            tile_size=list(self.tile_size),
            tile_stride=list(self.tile_stride),
            score_reduce=self.score_reduce,
            score_topk=self.score_topk,
            map_reduce=self.map_reduce,
            calibrated_on_tiles=self.calibrated_on_tiles_,
            n_train=self.n_train_,
            decision_scores=[float(score) for score in self.decision_scores_],
            calibration=CalibrationFacts.of(self.calibration_),
            pixel_calibration=None if pixels is None else PixelCalibrationFacts(**asdict(pixels)),
            skipped=[ImageFacts.of(one) for one in self.skipped_],
            remarked=[ImageFacts.of(one) for one in self.remarked_],
        )

    @classmethod
    def restored(cls, detector: Detector, facts: TileFacts, origin: str) -> TiledDetector:
        """Return the detector of the tiles, tiled as it was.

        Raises
        ------
        SavedModelError
            The facts contradict one another; it begins with `origin`.
        """
        height, width = facts.tile_size
        down, across = facts.tile_stride
        try:
            tiled = cls(
                detector,
                tile_size=(height, width),
                tile_stride=(down, across),
                score_reduce=facts.score_reduce,
                score_topk=facts.score_topk,
                map_reduce=facts.map_reduce,
            )
        except UsageError as error:
            raise SavedModelError(f"{origin}: tiles: {error}") from None
        scores = np.asarray(facts.decision_scores, np.float64)
        if not len(scores) or not math.isfinite(facts.calibration.threshold):
            raise SavedModelError(f"{origin}: tiles: a calibration without scores or threshold")
        tiled.decision_scores_ = scores
        try:
            tiled.calibration_ = facts.calibration.restored()
        except ValueError as error:
            raise SavedModelError(f"{origin}: tiles: {error}") from None
        tiled.threshold_ = tiled.calibration_.threshold
        pixels = facts.pixel_calibration
        tiled.pixel_calibration_ = (
            None if pixels is None else PixelCalibration(**pixels.model_dump())
        )
        tiled.n_train_ = facts.n_train
        tiled.skipped_ = [SkippedImage(**one.model_dump()) for one in facts.skipped]
        tiled.remarked_ = [SkippedImage(**one.model_dump()) for one in facts.remarked]
        return tiled

    def _to_save(self) -> tuple[Detector, TileFacts]:
        return self.detector, self._tile_facts()

    def _take_restored(self, detector: Any, tiles: TileFacts | None) -> None:
        if tiles is None:
            raise SavedModelError("the pickled detector: is not a TiledDetector")
        self.__dict__.update(vars(self.restored(detector, tiles, "the pickled detector")))

    def __deepcopy__(self, memo: dict[int, Any]) -> TiledDetector:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __copy__(self) -> TiledDetector:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        """Raises `UsageError`: an exported program looks at one image of one size."""
        raise UsageError("a detector that works by tiles cannot be exported")

    def _check_fitted(self) -> None:
        require_fitted(self)
