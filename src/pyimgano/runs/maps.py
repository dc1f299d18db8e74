"""Anomaly maps and masks as image files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..untrusted_files import read_regular
from .directory import write_bytes

_LARGEST = float(np.finfo(np.float16).max)


def write_map(path: Path, scores: npt.NDArray[np.float32]) -> None:
    """Write a map (H, W) as a 16-bit float TIFF, uncompressed.

    Scores beyond what 16 bits hold, 65504, are cut there; of the digits three remain.

    Raises
    ------
    DataError
        It cannot be written.
    """
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.clip(scores, -_LARGEST, _LARGEST).astype(np.float16))
    _write(path, buffer.getvalue())


def read_map(path: Path) -> npt.NDArray[np.float32]:
    """Read a map (H, W) that `write_map` has written, as float32.

    Raises
    ------
    DataError
        It cannot be read, or is something else.
    """
    import tifffile

    try:
        scores = tifffile.imread(io.BytesIO(read_regular(path)))
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: cannot be read as a map ({error})") from error
    if scores.ndim != 2 or scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise DataError(f"{path}: is not a map, which is (H, W) of finite floats")
    return np.asarray(scores, np.float32)


def write_mask(path: Path, mask: npt.NDArray[np.bool_]) -> None:
    """Write a mask (H, W) as a PNG of 0 and 255; errors as `write_map`."""
    encoded, data = cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))
    if not encoded:
        raise DataError(f"{path}: cannot be encoded as PNG")
    _write(path, data.tobytes())


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made ({error.strerror})") from error
    write_bytes(path, data, durable=False)
