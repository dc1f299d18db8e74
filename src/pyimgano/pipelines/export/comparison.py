"""The exported model against the detector, image by image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...images import ImageSource, resize_image, stream_images
from ...models import Detector
from ...runs.schema import Number, Text
from .formats import Program

#: Largest relative difference at which an export is kept.
TOLERANCE = 1e-3
#: Labels may differ where the detector's score is this close to the threshold, relative to it:
#: engines sum in different orders.
BORDERLINE = 1e-5


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Difference(_Model):
    """The largest difference over the images, and where it was."""

    absolute: Number
    relative: Number = Field(
        description="to the larger of the detector's value (of a map: its largest) and its "
        "threshold (of a map: the pixel threshold)"
    )
    image: Text = Field(description="where the relative difference is largest")


class Comparison(_Model):
    """What running both on the same images gave."""

    images: int
    score: Difference
    anomaly_map: Difference
    labels_differ: int = Field(description="images within rounding of the threshold")
    tolerance: Number
    engine: str = Field(description="what ran the exported model")
    detector_ms: Number = Field(
        description="median of an image, with resizing and without reading it"
    )
    export_ms: Number


class _Largest:
    """Keeps the largest absolute and relative difference."""

    def __init__(self) -> None:
        self.absolute, self.relative, self.image = 0.0, 0.0, ""

    def add(
        self, found: npt.ArrayLike, wanted: npt.ArrayLike, least_scale: float, image: str
    ) -> None:
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        absolute = float(np.abs(found - wanted).max())
        scale = max(float(np.abs(wanted).max()), abs(least_scale))
        relative = absolute / scale if absolute > 0 else 0.0  # inf where the scale is 0
        self.absolute = max(self.absolute, absolute)
        if relative > self.relative or not self.image:
            self.relative, self.image = relative, image

    def done(self) -> Difference:
        return Difference(absolute=self.absolute, relative=self.relative, image=self.image)


def compare(
    detector: Detector,
    program: Program,
    engine: str,
    images: Sequence[ImageSource],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Run both on `images`, and refuse an export that does not do as the detector does.

    Parameters
    ----------
    detector
        A fitted one.
    program
        The exported model; `engine` says what runs it.
    images
        Paths or (H, W, 3) uint8 RGB arrays, at least one.

    Raises
    ------
    ImageReadError
        An image cannot be read.
    DataError
        The score or the map of an image differs by more than `TOLERANCE`, relative to its
        scale as `Difference` has it; the label is another, though the score is not within
        `BORDERLINE` of the threshold; or the outputs are of another shape, or not finite.
    """
    size = detector.params_.resize
    pixel = detector.pixel_calibration_
    pixel_scale = 0.0 if pixel is None else pixel.threshold
    score, anomaly_map = _Largest(), _Largest()
    differ = 0
    times: tuple[list[float], list[float]] = ([], [])
    with stream_images(images, None, bit_depth=detector.bits_read()) as stream:
        for loaded in stream:
            if loaded.error is not None:
                raise loaded.error
            assert isinstance(loaded.pixels, np.ndarray)
            name = loaded.name
            started = time.perf_counter()
            (original,) = detector.score_images([loaded.pixels])
            between = time.perf_counter()
            outputs = program(resize_image(loaded.pixels, size)[None])
            times[0].append(between - started)
            times[1].append(time.perf_counter() - between)
            assert original.score is not None and original.anomaly_map is not None
            _check_outputs(outputs, size, name)
            score.add(outputs[0][0], original.score, detector.threshold_, name)
            anomaly_map.add(outputs[1][0], original.anomaly_map, pixel_scale, name)
            differ += _other_label(int(outputs[2][0]), original.score, detector.threshold_, name)
            if progress is not None:
                progress("checking the export", loaded.index + 1, len(images))
    for what, largest in (("score", score), ("anomaly map", anomaly_map)):
        if not largest.relative <= TOLERANCE:
            raise DataError(
                f"the exported model differs from the detector: {what} by "
                f"{largest.absolute:.3g}, relatively {largest.relative:.3g} ({largest.image}); "
                f"at most {TOLERANCE:g} is accepted; nothing was kept"
            )
    return Comparison(
        images=len(images),
        score=score.done(),
        anomaly_map=anomaly_map.done(),
        labels_differ=differ,
        tolerance=TOLERANCE,
        engine=engine,
        detector_ms=1e3 * statistics.median(times[0]),
        export_ms=1e3 * statistics.median(times[1]),
    )


def _check_outputs(outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int], name: str) -> None:
    shapes = [output.shape for output in outputs]
    if shapes != [(1,), (1, *size), (1,)]:
        raise DataError(
            f"the exported model gives outputs of shapes {shapes} ({name}); nothing was kept"
        )
    if not (np.isfinite(outputs[0]).all() and np.isfinite(outputs[1]).all()):
        raise DataError(
            f"the exported model gives values that are not finite ({name}); nothing was kept"
        )


def _other_label(label: int, score: float, threshold: float, name: str) -> bool:
    """Return whether the labels differ, for rounding alone."""
    if label == int(score >= threshold):
        return False
    if abs(score - threshold) > BORDERLINE * abs(threshold):
        raise DataError(
            f"the exported model gives label {label} to {name}, whose score {score:.6g} is on the "
            f"other side of the threshold {threshold:.6g}; nothing was kept"
        )
    return True
