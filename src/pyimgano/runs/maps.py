"""Anomaly maps and masks as image files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
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
