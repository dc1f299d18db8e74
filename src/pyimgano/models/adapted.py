"""A detector of somebody else's, brought to the contract of ours.

Whatever has `fit` and `decision_function`, and perhaps `predict_anomaly_map` or `get_anomaly_map`,
can be measured and can decide on images. It is asked as little as possible: neither for keywords
nor for a threshold, and what it is given is what it can take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..calibration import Calibration, calibrate, choose_quantile
from ..errors import DataError, ImageReadError, UsageError
from ..images import ImageSource, as_sources
from ..images.read import read_image_and_remark
from ..memory import is_out_of_memory
from .detector import Detector
from .held_out import score_held_out
from .image_score import ImageScore
from .method import TrainingScores
from .parameters import (
    CalibrationSource,
    Contamination,
    Quantile,
    Seed,
    Size,
)
from .plain_detector import as_batch, gives_maps, read_batch
from .training_images import LeftOut, OnError, Progress

#: What a detector is given: images as they come, arrays alone, or paths alone.
InputMode = Literal["given", "numpy", "paths"]


@dataclass(frozen=True)
class _Looked:
    """An image with its (height, width), and what was left out of its file; or its error."""

    source: ImageSource
    name: str
    size: tuple[int, int] | None = None
    remark: str | None = None
    error: ImageReadError | None = None


# Images as they come (as one array where they are arrays of one size), and what is tried where a
# detector cannot take them: one array, and a list of arrays.
_Form = Literal["given", "batch", "list"]


def adapt(detector: Any, *, fitted: bool = False, **settings: Any) -> Any:
    """Bring any detector to the contract of ours; our own are given back as they are.

    Parameters
    ----------
    detector
        Has `decision_function`, and `fit` where it is to be fitted.
    fitted
        Whether it was fitted before, and is to be taken as it is: with its own threshold, or with
        none. It may be fitted all the same.
    settings
        Keywords of `AdaptedDetector`.

    Raises
    ------
    UsageError
        It has no `decision_function`.
    """
    from .many_products import ManyProducts
    from .tiled import TiledDetector

    if isinstance(detector, (Detector, TiledDetector, ManyProducts)):
        return detector
    adapted = AdaptedDetector(detector, **settings)
    if fitted:
        adapted.take_as_fitted()
    return adapted


class AdaptedParams(BaseModel):
    """The keywords of `AdaptedDetector`."""

    model_config = ConfigDict(extra="forbid")

    detector: Any = Field(
        description=(
            "An object with fit(X) and decision_function(X) -> (N,). Maps come from "
            "predict_anomaly_map(X) -> (N, H, W), or from get_anomaly_map(item) -> (H, W)."
        )
    )
    input_mode: InputMode = Field(
        "given",
        description=(
            "What the detector is given. `given`: a list of paths, or arrays, in the forms that "
            "are described above. `numpy`: one array, of images at `resize`. `paths`: a list of "
            "paths; arrays are written to temporary PNG files."
        ),
    )
    calibrates: bool = Field(
        True,
        description=(
            "Whether a detector without a `threshold_` gets one from its scores of the training "
            "images. It has seen these images, so that the threshold promises nothing."
        ),
    )
    own_paths: bool = Field(
        False,
        description=(
            "Whether a path that is not a file is the detector's affair. Otherwise it is an image "
            "that cannot be read."
        ),
    )
    resize: Size = Field(
        (256, 256),
        description=(
            "Height and width of the images of one array where they are of several sizes."
        ),
    )
    contamination: Contamination | None = Field(
        None,
        description=(
            "The expected share of the training images whose scores lie above the threshold, in "
            "(0, 0.5]."
        ),
    )
    calibration: CalibrationSource = Field(
        "in-sample", description="Its training images are always scored as it has seen them."
    )
    calibration_quantile: Quantile | None = Field(
        None,
        description=(
            "The quantile of the scores of good images that the threshold lies at, in (0, 1). It "
            "takes precedence over `contamination`, and over the detector's own threshold."
        ),
    )
    device: str = Field("cpu", description="Not used: the detector decides where it computes.")
    random_seed: Seed = Field(0, description="Not used: the detector has its own.")


class AdaptedDetector(Detector):
    """Any detector with `fit` and `decision_function`, under the contract of `Detector`.

    It is given a list of paths, and if it cannot take that one (N, H, W, 3) uint8 array, and if it
    cannot take that either a list of arrays; arrays are given to it as such an array first where
    they are of one size. Image files are also decoded here,
    so that one that cannot be read has an error and no score, whatever the detector makes of it.
    """

    Params = AdaptedParams

    def __init__(self, detector: Any, **settings: Any) -> None:
        _require_method(detector, "decision_function")
        super().__init__(detector=detector, **settings)
        self._form: _Form = "given"
        vars(self)["has_maps"] = gives_maps(detector)

    def take_as_fitted(self) -> None:
        """Take the detector as it is, with its own threshold or with none."""
        self.params_ = self.validate_params()
        self.n_train_, self.skipped_, self.remarked_ = 0, [], []
        self.training_suspects_, self.excluded_ = [], []
        self._take_own_threshold(None)

    def prepare(self) -> None:
        """Check the keywords; what fitting needs besides images is the detector's affair."""
        self.validate_params()

    def describe(self) -> dict[str, Any]:
        return {"adapted": f"{type(self.detector).__module__}.{type(self.detector).__qualname__}"}

    # ---- fit

    def fit(
        self,
        X: Iterable[ImageSource],
        y: Any = None,
        *,
        calibration_images: Iterable[ImageSource] | None = None,
        on_error: OnError = "raise",
        exclude_suspects: bool = False,
        progress: Progress | None = None,
    ) -> AdaptedDetector:
        """Fit the detector; arguments and errors are those of `Detector.fit`.

        Suspects are not named, and so cannot be excluded, because its scores of training images
        are those of images that it has seen.

        The threshold is taken from `calibration_images` where there are any; else it is the
        detector's own `threshold_`, unless `calibration_quantile` asks for another; else the
        quantile of its scores of the training images.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        _require_method(self.detector, "fit")
        if exclude_suspects:
            name = type(self.detector).__name__
            raise UsageError(f"exclude_suspects does not apply to {name}, which names none")
        sources = as_sources(X, learning=True)
        if len(sources) == 0:
            raise UsageError("X is empty: fit needs at least one good image")
        held_out = None
        if calibration_images is not None:
            held_out = as_sources(calibration_images, name="calibration_images", learning=True)
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        self.params_ = self.validate_params()
        reading = LeftOut()
        readable = []
        for index, source in enumerate(sources):
            one = self._look(index, source)
            if one.error is None:
                reading.remark(index, source, one.remark)
                readable.append(source)
            elif on_error == "raise":
                raise one.error
            else:
                reading.skip(index, one.error)
            if progress is not None:
                progress("training images", index + 1, len(sources))
        if not readable:
            raise reading.nothing_used("train", len(sources))
        self._ask(self.detector.fit, readable)
        self.n_train_ = len(readable)
        self.skipped_, self.remarked_ = reading.skipped, reading.remarked
        self.training_suspects_, self.excluded_ = [], []
        self.pixel_calibration_ = None
        if held_out is not None:
            handling = "raise" if on_error == "raise" else "record"
            results = self._score_stream(held_out, self.has_maps, handling)
            self._calibrate(score_held_out(results, held_out, reading, progress=progress))
        elif _own_threshold(self.detector) is not None and self.calibration_quantile is None:
            self._take_own_threshold(readable if self.calibrates else None)
        elif self.calibrates:
            scores = self._scores(readable)
            note = "scores of the images that the detector was fitted on"
            self._calibrate(TrainingScores(scores, "in-sample", unseen=False, notes=(note,)))
        else:
            self._take_own_threshold(None)
        return self

    def _calibrate(self, found: TrainingScores) -> None:
        quantile = choose_quantile(self.calibration_quantile, self.contamination)
        calibration = calibrate(
            found.scores, quantile, method=found.method, unseen=found.unseen, notes=found.notes
        )
        self._take_calibration(calibration, found.scores, found.maps)

    def _take_own_threshold(self, train: Sequence[ImageSource] | None) -> None:
        """Take the detector's own threshold, or None, and find the quantile that it lies at.

        Without `train` it is not found out which one that is.
        """
        own = _own_threshold(self.detector)
        scores = np.zeros(0) if train is None else self._scores(train)
        self.decision_scores_ = scores
        quantile = float((scores < own).mean()) if own is not None and len(scores) else None
        note = "the threshold is the detector's own: no false-alarm rate is promised"
        self.calibration_ = Calibration(
            threshold=float("nan") if own is None else own,
            method="none" if own is None else "own-threshold",
            quantile_asked=0.0 if quantile is None else quantile,
            quantile_reached=float("nan") if quantile is None else quantile,
            n_scores=len(scores),
            promised_false_alarm_rate=None,
            unseen=False,  # as far as anyone knows
            notes=() if own is None else (note,),
        )
        self.pixel_calibration_ = None
        vars(self)["threshold_"] = own

    # ---- score

    def _score_stream(
        self, X: Iterable[ImageSource], maps: bool, on_error: str
    ) -> Iterator[ImageScore]:
        size = self.batch_size
        if isinstance(X, (list, tuple)) and not any(isinstance(one, np.ndarray) for one in X):
            size = max(1, len(X))  # paths take no room, and the detector may batch them itself
        remaining = iter(X)
        start = 0
        while chunk := list(islice(remaining, size)):
            looked = [self._look(start + offset, one) for offset, one in enumerate(chunk)]
            readable = [one.source for one in looked if one.error is None]
            scores = self._scores(readable) if readable else np.zeros(0)
            found = self._maps(readable) if maps and self.has_maps and readable else []
            position = -1  # among the readable ones
            for index, one in enumerate(looked, start):
                error = one.error
                if error is None:
                    position += 1
                    score = float(scores[position])
                    anomaly_map = found[position] if found else None
                    finite = anomaly_map is None or np.isfinite(anomaly_map).all()
                    if finite and np.isfinite(score):
                        yield ImageScore(index, score, anomaly_map, one.size, remark=one.remark)
                        continue
                    error = ImageReadError(one.name, "the score or the map is not finite")
                if on_error == "raise":
                    raise error
                yield ImageScore(index, None, None, None, error)
            start += len(chunk)

    def _scores(self, sources: Sequence[ImageSource]) -> npt.NDArray[np.float64]:
        found = np.asarray(self._ask(self.detector.decision_function, sources), np.float64)
        found = found.reshape(-1)
        if len(found) != len(sources):
            raise DataError(
                f"{type(self.detector).__name__}.decision_function gave {len(found)} scores of "
                f"{len(sources)} images"
            )
        return found

    def _maps(self, sources: Sequence[ImageSource]) -> list[npt.NDArray[np.float32]]:
        name = type(self.detector).__name__
        if callable(getattr(self.detector, "predict_anomaly_map", None)):
            given = list(self._ask(self.detector.predict_anomaly_map, sources))
        else:
            given = [self._ask_one(self.detector.get_anomaly_map, one) for one in sources]
        maps = [_as_map(name, one) for one in given]
        if len(maps) != len(sources):
            raise DataError(f"{name} gave {len(maps)} anomaly maps of {len(sources)} images")
        return maps

    # ---- what it is given

    def _ask(self, method: Callable[[Any], Any], sources: Sequence[ImageSource]) -> Any:
        """Call a method with images in a form that the detector can take."""
        if self.input_mode == "paths":
            with _as_paths(sources) as paths:
                return method(paths)
        errors: dict[_Form, Exception] = {}
        for form in self._forms(sources):
            try:
                given = method(self._in_form(form, sources))
            except Exception as error:  # whatever it says of a form that it cannot take
                if is_out_of_memory(error):
                    raise
                errors[form] = error
            else:
                self._form = form
                return given
        # that of one array is about what the detector does, and not about how it is asked
        raise errors.get("batch") or errors["given"]

    def _forms(self, sources: Sequence[ImageSource]) -> list[_Form]:
        """Return what to try, first what the detector took before."""
        forms: list[_Form] = ["batch", "list"]
        if self.input_mode == "given":
            if not all(isinstance(one, np.ndarray) or Path(one).exists() for one in sources):
                return ["given"]  # names, of which no array can be made
            arrays = all(isinstance(one, np.ndarray) for one in sources)
            forms = forms if arrays else ["given", *forms]
        return sorted(forms, key=lambda one: one != self._form)

    def _in_form(self, form: _Form, sources: Sequence[ImageSource]) -> Any:
        if form == "given":
            return as_batch([str(one) if isinstance(one, Path) else one for one in sources])
        size = self.resize if self.input_mode == "numpy" else None
        images = read_batch(sources, size)
        if form == "list":
            return list(images)
        # one (N, H, W, 3) array: at `resize` where the images are of several sizes
        return images if isinstance(images, np.ndarray) else read_batch(images, self.resize)

    def _ask_one(self, method: Callable[[Any], Any], source: ImageSource) -> Any:
        """Ask a method that takes one image in the same way."""
        return self._ask(lambda images: method(images[0]), [source])

    def _look(self, index: int, source: ImageSource) -> _Looked:
        """Find out by decoding what an image is."""
        if isinstance(source, np.ndarray):
            return _Looked(source, f"image {index}", (source.shape[0], source.shape[1]))
        if self.own_paths and not Path(source).exists():
            return _Looked(source, str(source))
        try:
            image, remark = read_image_and_remark(source)
        except ImageReadError as error:
            return _Looked(source, str(source), error=error)
        return _Looked(source, str(source), (image.shape[0], image.shape[1]), remark)


def _require_method(detector: Any, method: str) -> None:
    if not callable(getattr(detector, method, None)):
        raise UsageError(f"a {type(detector).__name__} is no detector: it has no method {method}")


def _own_threshold(detector: Any) -> float | None:
    """Return the detector's `threshold_`, if it has a finite one."""
    try:
        value = float(detector.threshold_)
    except (AttributeError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _as_map(name: str, given: Any) -> npt.NDArray[np.float32]:
    found = np.asarray(given, np.float32)
    if found.ndim == 3 and 1 in (found.shape[0], found.shape[2]):  # of one channel
        found = found[0] if found.shape[0] == 1 else found[..., 0]
    if found.ndim != 2 or 0 in found.shape:
        raise DataError(f"{name} gave an anomaly map of shape {found.shape}, wanted (H, W)")
    return found


@contextmanager
def _as_paths(sources: Sequence[ImageSource]) -> Iterator[list[str]]:
    """Paths of the images; arrays are files for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="pyimgano-") as folder:
        paths = []
        for index, one in enumerate(sources):
            path = str(one)
            if isinstance(one, np.ndarray):
                path = str(Path(folder) / f"{index}.png")
                cv2.imwrite(path, cv2.cvtColor(one, cv2.COLOR_RGB2BGR))
            paths.append(path)
        yield paths
