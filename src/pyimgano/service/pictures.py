"""What the detector sees of an image, as PNG files: its map, and an overlay for people."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images.draw import draw_overlay
from ..inference import InferenceResult
from ..inference.outputs import caption_of, encode_png
from ..inference.regions import at_size, deciding_regions, region_of
from ..inference.scoring import OneProduct

_TOP = 2**16 - 1


@dataclass(frozen=True)
class WantedPictures:
    """Which pictures a request asks for; false where it asks for none."""

    anomaly_map: bool = False
    overlay: bool = False

    def __bool__(self) -> bool:
        return self.anomaly_map or self.overlay


@dataclass(frozen=True)
class MapPicture:
    """An anomaly map as a PNG of 16-bit grey.

    Attributes
    ----------
    png
        A pixel of value v stands for ``low + (high - low) * v / 65535``.
    low, high
        The least and the largest value of the map.
    normal, line
        The values that stand for 0 and for 1.0 times the threshold
        (`pyimgano.images.map_scale.MapScale`).
    """

    png: bytes
    low: float
    high: float
    normal: float
    line: float


@dataclass(frozen=True)
class Pictures:
    """The pictures of one image; None for those that were not wanted, or that a method without
    maps does not have.
    """

    anomaly_map: MapPicture | None = None
    overlay: bytes | None = None


def draw_pictures(
    detector: OneProduct,
    result: InferenceResult,
    pixels: npt.NDArray[np.uint8],
    wanted: WantedPictures,
) -> Pictures:
    """Draw what is wanted of an image.

    Parameters
    ----------
    detector
        That scored it.
    result
        With the map of the image, (h, w) float32, and its scale.
    pixels
        The image, (H, W, 3) uint8 RGB.
    wanted
        Which pictures.
    """
    working, scale = result.anomaly_map, result.map_scale
    assert working is not None and scale is not None and result.original_size is not None
    shown = overlay = None
    if wanted.anomaly_map:
        low, high = float(working.min()), float(working.max())
        steps = np.rint((working - low) * (_TOP / max(high - low, 1e-30)))  # (h, w)
        encoded, data = cv2.imencode(".png", np.clip(steps, 0, _TOP).astype(np.uint16))
        if not encoded:
            raise DataError("the map cannot be encoded as PNG")
        shown = MapPicture(data.tobytes(), low, high, scale.normal, scale.line)
    if wanted.overlay:
        roi = region_of(detector)
        full = at_size(working, result.original_size, roi)  # (H, W)
        _, mask = deciding_regions(full, scale, roi=roi)
        caption = caption_of(result, result.context_share)
        overlay = encode_png(draw_overlay(pixels, full, scale, outline=mask, caption=caption))
    return Pictures(shown, overlay)
