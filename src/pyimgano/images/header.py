"""What an image file says of itself, without decoding its pixels.

`read_header` also finds, from the file's structure alone, that a file ends too early. It
does not find damage inside: that takes `read_image`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import ImageReadError
from ..foreign import require_regular_file
from .limit import open_header
from .png import MAX_CHUNKS, PNG_SIGNATURE
from .read import (
    orientation,
    orientation_in,
    page_count,
    read_image,
    reason_of,
)

_JPEG_END = b"\xff\xd9"
# Segments before the pixels of a JPEG that are stepped over; files have some dozens.
_JPEG_SEGMENTS = 10_000


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes
    ----------
    size
        (height, width) in pixels, as `read_image` gives them.
    mode
        Pillow's name for the kind of pixels, such as `L`, `RGB`, `I;16`.
    file_format
        Pillow's name for the format, such as `PNG`.
    pages
        Pictures in the file.
    """

    size: tuple[int, int]
    mode: str
    file_format: str
    pages: int


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` gives them, read from the header alone.

    Raises
    ------
    ImageReadError
        The file cannot be opened, is empty, is no image, or declares more than `max_pixels`.
    """
    return _read(path)[0].size


def read_header(path: str | Path) -> ImageHeader:
    """The header of an image file that is as long as its structure says.

    Raises
    ------
    ImageReadError
        The file cannot be opened, is empty or no image, declares more than `max_pixels`, or
        ends too early (PNG, JPEG, BMP, TIFF, WebP). A file that seems too short is decoded
        before it is refused.
    """
    header, complete = _read(path)
    if not complete:
        # structures are written wrongly more often than files are cut: decoding decides
        try:
            read_image(path)
        except ImageReadError as error:
            reason = f"the {header.file_format} is truncated ({error.reason})"
            raise ImageReadError(str(path), reason) from error
    return header


def _read(path: str | Path) -> tuple[ImageHeader, bool]:
    """The header, and whether the file reaches its end."""
    try:
        require_regular_file(path)
        with Path(path).open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            if not length:
                raise ValueError("the file is empty")
            with open_header(path, file) as header:
                width, height = header.size
                turn, complete = 1, True
                if header.format == "PNG":
                    # Pillow would decode the image to find metadata behind the pixels
                    complete, metadata = _walk_png(file, length)
                    turn = orientation_in(metadata)
                else:
                    turn = orientation(header)
                    complete = _reaches_its_end(file, header, length)
                if header.format == "TIFF":  # some versions of Pillow have turned it already
                    width, height = header.tag_v2[256], header.tag_v2[257]  # type: ignore[attr-defined]
                size = (width, height) if turn in (5, 6, 7, 8) else (height, width)
                return ImageHeader(
                    size, header.mode, header.format or "", page_count(header)
                ), complete
    except ImageReadError:
        raise
    except Exception as error:
        raise ImageReadError(str(path), reason_of(error)) from error


def _reaches_its_end(file: BinaryIO, header: Image.Image, length: int) -> bool:
    """Whether the file is as long as its structure says; True for other formats."""
    if header.format in ("JPEG", "MPO"):
        return _jpeg_reaches_its_end(file, length)
    if header.format == "BMP":
        return _bmp_bytes(file) <= length
    if header.format == "WEBP":
        file.seek(4)
        (declared,) = struct.unpack("<I", file.read(4))
        return int(declared) + 8 <= length
    if header.format == "TIFF":
        return _tiff_bytes(header) <= length
    return True


def _jpeg_reaches_its_end(file: BinaryIO, length: int) -> bool:
    """Whether the end marker follows the pixels, and not only a thumbnail in the metadata."""
    position = 2
    for _ in range(_JPEG_SEGMENTS):  # from segment to segment, up to the pixels
        if position + 4 > length:
            break
        file.seek(position)
        mark, kind, size = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or kind == 0xDA:
            break
        if kind == 0xFF or 0xD0 <= kind <= 0xD8 or kind == 0x01:  # filling, and bare markers
            position += 1 if kind == 0xFF else 2
            continue
        position += 2 + size
    for start in (max(position, length - 65536), position):  # other bytes may follow the end
        file.seek(start)
        if _JPEG_END in file.read(length - start):
            return True
    return False


def _bmp_bytes(file: BinaryIO) -> int:
    """How long an uncompressed BMP must be; 0 for others. The length it states is often wrong."""
    file.seek(0)
    start = file.read(34)
    offset, kind = struct.unpack_from("<II", start, 10)
    if kind == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", start, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", start, 18)
    if compression not in (0, 3):
        return 0
    return int(offset) + int((width * bits + 31) // 32 * 4 * abs(height))


def _tiff_bytes(header: Image.Image) -> int:
    """How long the file must be for its first page.

    What a strip or tile takes is counted if it is not compressed: the numbers that the file
    states for that are often wrong.
    """
    tags = getattr(header, "tag_v2", {})
    width, height = int(tags[256]), int(tags[257])
    bits = [int(one) for one in np.ravel(tags.get(258, 1))]
    if len(bits) == 1:
        bits = bits * int(tags.get(277, 1))
    planes = len(bits) if tags.get(284, 1) == 2 else 1
    sample_bits = sum(bits) if planes == 1 else bits[0]
    uncompressed = int(tags.get(259, 1)) == 1 and int(tags.get(262, 1)) != 6
    if 324 in tags:
        offsets, counts = tags[324], tags.get(325, ())
        sizes = [(int(tags[322]) * sample_bits + 7) // 8 * int(tags[323])] * len(offsets)
    else:
        offsets, counts = tags.get(273, ()), tags.get(279, ())
        rows = min(int(tags.get(278, height)), height) or height
        row = (width * sample_bits + 7) // 8
        strips = max(1, len(offsets) // planes)
        sizes = [row * min(rows, height - i % strips * rows) for i in range(len(offsets))]
    taken = sizes if uncompressed else list(counts)
    return max((int(o) + int(n) for o, n in zip(offsets, taken, strict=False)), default=0)


def _walk_png(file: BinaryIO, length: int) -> tuple[bool, bytes | None]:
    """From chunk to chunk: whether the end is there, and the EXIF block if there is one."""
    metadata = None
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > length:
            break
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        position += 12 + size
        if position > length:
            break
        if kind == b"eXIf":
            metadata = file.read(size)
        if kind == b"IEND":
            return True, metadata
    return False, metadata
