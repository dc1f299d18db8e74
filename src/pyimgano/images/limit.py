"""How many pixels an image file may declare, found out before memory is taken for them.

A file of a few bytes can declare billions of pixels. So the declared size of every image and
mask is compared with one limit of the process, `max_pixels`, when its header is read.

Pillow has a limit of its own, `PIL.Image.MAX_IMAGE_PIXELS`, above twice which (179 million
pixels) it refuses a header. Ours takes its place, in either direction.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..errors import ImageReadError, UsageError
from ..threads import ForkSafeLock

#: Formats that are read, by Pillow's names. The others that Pillow knows are no camera's: it would
#: hand EPS to Ghostscript, a program that runs what stands in the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
#: The limit unless another is set: a line-scan camera's 12,000 x 9,000 more than twice.
DEFAULT_MAX_PIXELS = 2**28

_limit = DEFAULT_MAX_PIXELS
_pillow = ForkSafeLock()


def max_pixels() -> int:
    """Return the limit in force: height times width that an image or mask file may declare."""
    return _limit


def set_max_pixels(count: int | None) -> None:
    """Set the limit from now on, for the whole process; None goes back to 2^28.

    Raises
    ------
    UsageError
        `count` is no whole number of at least 1.
    """
    global _limit
    if count is None:
        count = DEFAULT_MAX_PIXELS
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"max_pixels must be a whole number of at least 1, got {count!r}")
    _limit = count


@contextmanager
def limited_pixels(count: int | None) -> Iterator[None]:
    """Set the limit for a while, as `set_max_pixels` does; None changes nothing."""
    before = _limit
    if count is not None:
        set_max_pixels(count)
    try:
        yield
    finally:
        set_max_pixels(before)


def require_pixels(path: str | Path, width: int, height: int) -> None:
    """Raise `ImageReadError` where a file declares more pixels than the limit."""
    if width * height > _limit:
        _refuse(path, f"{width} x {height} pixels", width * height)


def open_header(path: str | Path, file: BinaryIO) -> Image.Image:
    """Pillow's reader of an image with no more pixels than the limit; nothing is decoded.

    Raises
    ------
    ImageReadError
        It declares more.
    Exception
        Whatever Pillow's plugins raise on damaged headers.
    """
    canvas = _webp_canvas(file)
    if canvas is not None:  # for which memory is taken as soon as it is opened
        require_pixels(path, *canvas)
    image: Image.Image
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        count = int(found[0]) if found else _limit + 1
        if count > _limit:
            _refuse(path, f"{count} pixels", count)
        image = _open_beyond(file)
    require_pixels(path, *image.size)
    return image


def _open_beyond(file: BinaryIO) -> Image.Image:
    """Open what is above Pillow's limit and not above ours."""
    with _pillow:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = _limit // 2 + 1  # it refuses more than twice as many
        try:
            file.seek(0)
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse(path: str | Path, declared: str, count: int) -> None:
    raise ImageReadError(
        str(path),
        f"declares {declared}, more than the {_limit} allowed; max_pixels={count} would allow it",
    )


def _webp_canvas(file: BinaryIO) -> tuple[int, int] | None:
    """Return (width, height) of a WebP (RFC 9649, sections 2.5 to 2.7); None of anything else."""
    start = file.read(30)
    file.seek(0)
    if len(start) < 30 or start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return None
    kind = start[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(start[24:27], "little"),
            1 + int.from_bytes(start[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def opened(path: str | Path, data: bytes) -> Image.Image:
    """Open the header of a file's content, as `open_header` does of a file."""
    return open_header(path, io.BytesIO(data))
