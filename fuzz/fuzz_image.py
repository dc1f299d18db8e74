"""Any bytes are an image within the limits, or an `ImageReadError` of one line."""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyimgano", "PIL"]):
    from PIL import Image

    from pyimgano.errors import ImageReadError
    from pyimgano.images import read_header, read_image, read_mask
    from pyimgano.images.png import PNG_SIGNATURE

# Small, so that nothing that is within the limit takes long; files that declare more are refused
# on the same way as with the limit that users have.
Image.MAX_IMAGE_PIXELS = 2**19
_PATH = Path(tempfile.mkdtemp()) / "image"


def check(data: bytes) -> None:
    """Read it, and a PNG also with checksums that hold, without which it comes no further."""
    read(data)
    if data.startswith(PNG_SIGNATURE):
        read(mended(data))


def mended(data: bytes) -> bytes:
    """A PNG with its checksums made to hold, and its last chunk added if need be."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = min(struct.unpack_from(">I", data, position)[0], len(data) - position - 12)
        content = data[position + 4 : position + 8 + length]
        parts.append(struct.pack(">I", length) + content + struct.pack(">I", zlib.crc32(content)))
        position += 12 + length
    return b"".join([*parts, b"\0\0\0\0IEND", struct.pack(">I", zlib.crc32(b"IEND"))])


def read(data: bytes) -> None:
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
