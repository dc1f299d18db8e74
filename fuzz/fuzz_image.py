"""Any bytes are an image within the limits, or an `ImageReadError` of one line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyimgano", "PIL"]):
    from PIL import Image

    from pyimgano.errors import ImageReadError
    from pyimgano.images import read_header, read_image, read_mask

# Small, so that nothing that is within the limit takes long; files that declare more are refused
# on the same way as with the limit that users have.
Image.MAX_IMAGE_PIXELS = 2**19
_PATH = Path(tempfile.mkdtemp()) / "image"


def check(data: bytes) -> None:
    """Read it in all ways; anything but an image or the documented error is raised."""
    _PATH.write_bytes(data)
    try:
        image = read_image(_PATH)
    except ImageReadError as error:
        assert "\n" not in str(error)
        image = None
    else:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype.name == "uint8"
        assert 0 < image.shape[0] * image.shape[1] <= 2 * Image.MAX_IMAGE_PIXELS
    try:
        mask = read_mask(_PATH)
    except ImageReadError as error:
        assert "\n" not in str(error)
    else:
        assert mask.ndim == 2 and mask.dtype.name == "uint8"
    try:
        header = read_header(_PATH)
    except ImageReadError as error:
        assert "\n" not in str(error)
    else:
        assert image is None or header.size == image.shape[:2]


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
