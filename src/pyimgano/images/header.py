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

from PIL import Image

from ..errors import ImageReadError
from .read import (
    EXIF_ORIENTATION,
    PNG_SIGNATURE,
    orientation,
    page_count,
    reason_of,
    require_regular_file,
)

_TIFF_CHUNKS = ((273, 279), (324, 325))  # offsets and byte counts of strips, and of tiles
_JPEG_END = b"\xff\xd9"


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
        The file cannot be opened, is empty, or is no image.
    """
    return _read(path)[0].size


def read_header(path: str | Path) -> ImageHeader:
    """The header of an image file that is as long as its structure says.

    Raises
    ------
    ImageReadError
        The file cannot be opened, is empty or no image, or ends too early (PNG, JPEG, BMP,
        TIFF, WebP).
    """
    header, complete = _read(path)
    if not complete:
        raise ImageReadError(str(path), f"the {header.file_format} is truncated")
    return header


def _read(path: str | Path) -> tuple[ImageHeader, bool]:
    """The header, and whether the file reaches its end."""
    try:
        require_regular_file(path)
        with Path(path).open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            if not length:
                raise ValueError("the file is empty")
            with Image.open(file) as header:
                width, height = header.size
                turn, complete = 1, True
                if header.format == "PNG":
                    # Pillow would decode the image to find metadata behind the pixels
                    complete, metadata = _walk_png(file, length)
                    turn = _orientation_in(metadata)
                else:
                    turn = orientation(header)
                    complete = _reaches_its_end(file, header, length)
                if header.format == "TIFF":  # some versions of Pillow have turned it already
                    width, height = header.tag_v2[256], header.tag_v2[257]  # type: ignore[attr-defined]
                size = (width, height) if turn in (5, 6, 7, 8) else (height, width)
                return ImageHeader(
                    size, header.mode, header.format or "", page_count(header)
                ), complete
    except Exception as error:
        raise ImageReadError(str(path), reason_of(error)) from error


def _orientation_in(metadata: bytes | None) -> int:
    """The orientation in the EXIF block of a PNG; 1 without one, and where it is damaged."""
    if metadata is None:
        return 1
    try:
        block = Image.Exif()
        block.load(b"Exif\x00\x00" + metadata)
        found = block.get(EXIF_ORIENTATION, 1)
    except Exception:  # metadata of a picture that is otherwise whole
        return 1
    return found if isinstance(found, int) else 1


def _reaches_its_end(file: BinaryIO, header: Image.Image, length: int) -> bool:
    """Whether the file is as long as its structure says; True for other formats."""
    if header.format in ("JPEG", "MPO"):
        file.seek(max(0, length - 65536))
        end: bytes = file.read()
        return _JPEG_END in end
    if header.format == "BMP":
        file.seek(2)
        (declared,) = struct.unpack("<I", file.read(4))  # some writers leave it 0
        return int(declared) <= length
    if header.format == "WEBP":
        file.seek(4)
        (declared,) = struct.unpack("<I", file.read(4))
        return int(declared) + 8 <= length
    if header.format == "TIFF":
        tags = getattr(header, "tag_v2", {})
        for offsets, counts in _TIFF_CHUNKS:
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
                if offset + count > length:
                    return False
    return True


def _walk_png(file: BinaryIO, length: int) -> tuple[bool, bytes | None]:
    """From chunk to chunk: whether the end is there, and the EXIF block if there is one."""
    metadata = None
    position = len(PNG_SIGNATURE)
    while position + 12 <= length:
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
