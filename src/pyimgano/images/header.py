"""What an image file says of itself, without decoding its pixels.

`read_header` also finds, from the file's structure alone, that a file ends too early. It
does not find damage inside: that takes `read_image`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..errors import ImageReadError
from ..untrusted_files import require_regular_file
from .jpeg import JPEG_END, JpegParts, find_jpeg_parts, stray_remark
from .limit import open_header
from .netpbm import find_wide_netpbm
from .png import MAX_CHUNKS, PNG_SIGNATURE
from .read import (
    UNKNOWN_RANGE,
    decode_image,
    orientation,
    orientation_in,
    page_count,
    read_tiff_header,
    reason_of,
    require_known_range,
)
from .tiff import end_of_tiff, is_decoded_here, is_tiff

# Of a JPEG, what is looked through for its end marker first: other bytes may follow it.
_JPEG_TAIL = 65_536
_NETPBM_START = 2**14


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
    remark
        What reading it would remark on besides its pages, in words; None if nothing.
    """

    size: tuple[int, int]
    mode: str
    file_format: str
    pages: int
    remark: str | None = None


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels as `read_image` gives them, read from the header alone.

    Raises
    ------
    ImageReadError
        The file cannot be opened, is empty, is no image, or declares more than `max_pixels`.
    """
    return _read(path)[0].size


def read_header(path: str | Path, *, bit_depth: int | None = None) -> ImageHeader:
    """Read the header of an image file that is as long as its structure says.

    `bit_depth` is what the image would be read with (`read_image`).

    Raises
    ------
    ImageReadError
        The file cannot be opened, is empty or no image, declares more than `max_pixels`, is of a
        kind that `read_image` refuses, or ends too early (PNG, JPEG, BMP, TIFF, WebP, binary
        PGM and PPM of 16 bits). A file that seems too short is decoded before it is refused.
    """
    header, complete = _read(path, bit_depth)
    if not complete:
        # structures are written wrongly more often than files are cut: decoding decides
        try:
            decoded = decode_image(path, bit_depth=bit_depth)
        except ImageReadError as error:
            reason = f"the {header.file_format} is truncated or damaged ({error.reason})"
            raise ImageReadError(str(path), reason) from error
        if header.file_format == "JPEG":
            header = replace(header, remark=decoded.remark)
    return header


def _read(path: str | Path, bit_depth: int | None = None) -> tuple[ImageHeader, bool]:
    """Return the header, and whether the file reaches its end in the usual way."""
    try:
        require_regular_file(path)
        with Path(path).open("rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            if not length:
                raise ValueError("the file is empty")
            start = file.read(4)
            file.seek(0)
            if is_tiff(start):
                return _read_tiff(path, file, length, bit_depth)
            with open_header(path, file) as header:
                width, height = header.size
                turn, complete, remark = 1, True, None
                if header.format == "PNG":
                    # Pillow would decode the image to find metadata behind the pixels
                    complete, metadata = _walk_png(file, length)
                    turn = orientation_in(metadata)
                else:
                    turn = orientation(header)
                    if header.format in ("JPEG", "MPO"):
                        parts = find_jpeg_parts(file)
                        complete = _jpeg_reaches_its_end(file, length, parts)
                        if header.format == "JPEG" and header.mode in ("L", "RGB"):
                            remark = stray_remark(parts.stray_bytes, 0)
                    else:
                        complete = _reaches_its_end(file, header, length)
                if header.mode == "F":
                    raise ImageReadError(str(path), UNKNOWN_RANGE)
                size = (width, height) if turn in (5, 6, 7, 8) else (height, width)
                return ImageHeader(
                    size, header.mode, header.format or "", page_count(header), remark
                ), complete
    except ImageReadError:
        raise
    except Exception as error:
        raise ImageReadError(str(path), reason_of(error)) from error


def _read_tiff(
    path: str | Path, file: BinaryIO, length: int, bit_depth: int | None
) -> tuple[ImageHeader, bool]:
    facts, header = read_tiff_header(path, file)
    if facts is None:
        assert header is not None
        turn = orientation(header)
        # some versions of Pillow have turned it already
        width, height = header.tag_v2[256], header.tag_v2[257]  # type: ignore[attr-defined]
        size = (width, height) if turn in (5, 6, 7, 8) else (height, width)
        return ImageHeader(size, header.mode, "TIFF", page_count(header)), True
    if is_decoded_here(facts, header is not None):
        require_known_range(path, facts, bit_depth)
    turned = facts.orientation in (5, 6, 7, 8)
    size = (facts.width, facts.height) if turned else (facts.height, facts.width)
    mode = facts.mode if header is None else header.mode
    return ImageHeader(size, mode, "TIFF", facts.pages), end_of_tiff(facts) <= length


def _reaches_its_end(file: BinaryIO, header: Image.Image, length: int) -> bool:
    """Return whether the file is as long as its structure says; True for other formats."""
    if header.format == "BMP":
        return _bmp_bytes(file) <= length
    if header.format == "WEBP":
        file.seek(4)
        (declared,) = struct.unpack("<I", file.read(4))
        return int(declared) + 8 <= length
    if header.format == "PPM":
        file.seek(0)
        wide = find_wide_netpbm(file.read(_NETPBM_START))
        return wide is None or wide.end <= length
    return True


def _jpeg_reaches_its_end(file: BinaryIO, length: int, parts: JpegParts) -> bool:
    """Return whether the end marker follows the pixels, and not only a thumbnail in the metadata.

    False also where zeros are before it: whether they are stray or damage takes decoding.
    """
    for start in (max(parts.scan, length - _JPEG_TAIL), parts.scan):
        file.seek(start)
        tail = file.read(length - start)
        end = tail.find(JPEG_END)
        if end >= 0:
            return not (end > 1 and tail[end - 1] == 0 and tail[end - 2] != 0xFF)
    return False


def _bmp_bytes(file: BinaryIO) -> int:
    """Return how long an uncompressed BMP must be; 0 for others. The length it states is often
    wrong.
    """
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


def _walk_png(file: BinaryIO, length: int) -> tuple[bool, bytes | None]:
    """Walk from chunk to chunk: is the end there, and the EXIF block if there is one."""
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
