"""How the arrays of other programs hold an image, and the one way in which detectors take it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError


class ImageFormat(str, Enum):
    """The layouts of image arrays that can be converted; a plain string names one as well."""

    #: (H, W, 3) uint8, red first: what every detector takes.
    RGB_U8_HWC = "rgb_u8_hwc"
    #: (H, W, 3) uint8, blue first, as OpenCV reads images.
    BGR_U8_HWC = "bgr_u8_hwc"
    #: (3, H, W) floating, red first, 0 to 1, as torch programs hold images.
    RGB_F32_CHW = "rgb_f32_chw"


def parse_image_format(value: ImageFormat | str) -> ImageFormat:
    """Return the format that `value` is or names, in upper or lower case.

    Raises
    ------
    UsageError
        There is no such format.
    """
    try:
        return ImageFormat(value.lower() if isinstance(value, str) else value)
    except ValueError:
        names = ", ".join(repr(one.value) for one in ImageFormat)
        raise UsageError(f"input_format must be one of {names}, got {value!r}") from None


def to_rgb_u8(image: Any, input_format: ImageFormat | str, *, name: str = "image") -> Any:
    """Return an image array as (H, W, 3) uint8 RGB; a path is returned as it is.

    Parameters
    ----------
    image
        An array in `input_format`, or a path, whose file says itself how it is read.
    input_format
        An `ImageFormat`, or its name.
    name
        What an error calls the image.

    Raises
    ------
    UsageError
        The array has another shape or dtype than the format says, or values outside 0 to 1.
    """
    layout = parse_image_format(input_format)
    if not isinstance(image, np.ndarray):
        return image
    floats = layout is ImageFormat.RGB_F32_CHW
    channels = 0 if floats else 2
    kind_fits = image.dtype.kind == "f" if floats else image.dtype == np.uint8
    if image.ndim != 3 or image.shape[channels] != 3 or not kind_fits:
        wanted = "(3, H, W) floating" if floats else "(H, W, 3) uint8"
        raise UsageError(
            f"{name}: input_format {layout.value!r} wants a {wanted} array, "
            f"got shape {image.shape} of {image.dtype}"
        )
    if layout is ImageFormat.RGB_U8_HWC:
        return image
    if layout is ImageFormat.BGR_U8_HWC:
        return np.ascontiguousarray(image[:, :, ::-1])
    return _from_unit_floats(image, name)


def _from_unit_floats(image: npt.NDArray[np.floating], name: str) -> npt.NDArray[np.uint8]:
    # not (0 <= x <= 1), which a NaN fails too
    if image.size and not (image.min() >= 0 and image.max() <= 1):
        raise UsageError(
            f"{name}: input_format 'rgb_f32_chw' wants values from 0 to 1, "
            f"got {image.min():g} to {image.max():g}"
        )
    pixels = np.rint(image.astype(np.float64) * 255.0).astype(np.uint8)  # (3, H, W)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (H, W, 3)
