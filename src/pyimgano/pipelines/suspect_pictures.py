"""Pictures of suspects in the run directory, small enough to be looked at side by side."""

from __future__ import annotations

from pathlib import Path

import cv2

from ..errors import DataError, ImageReadError
from ..images import read_image
from ..runs import write_bytes

#: Longer side of a picture, in pixels.
_SIDE = 512
#: Most pictures of a category.
MOST_PICTURES = 50


def write_picture(folder: Path, number: int, path: str) -> Path | None:
    """Save a small JPEG of the image at `path`; None where it cannot be read again.

    Raises
    ------
    DataError
        It cannot be written.
    """
    try:
        image = read_image(path)
    except ImageReadError:
        return None
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    # a name of our own: names of files may be anything
    target = folder / f"{number:03d}.jpg"
    if not encoded:
        raise DataError(f"{target}: cannot be encoded as JPEG")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
    write_bytes(target, data.tobytes(), durable=False)
    return target
