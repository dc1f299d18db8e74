"""JPEG files: where their segments lie, and stray bytes that some cameras leave between them.

libjpeg steps over bytes between two segments and only warns of them; so do Pillow and OpenCV. We
decode strictly, since a warning is also all that libjpeg has for damaged pixels. So such bytes
are taken out before decoding, and remarked on, and what is damaged stays an error.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import simplejpeg

from ..errors import ImageReadError

JPEG_END = b"\xff\xd9"
# Segments before the pixels that are stepped over; files have some dozens.
_SEGMENTS = 10_000
# More stray bytes than this are no camera's habit.
_STRAY_BYTES = 2**16
_PIECE = 4096
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a segment
_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class JpegParts:
    """Where things are in a JPEG.

    Attributes
    ----------
    stray
        Start and end of each run of bytes between two segments of the header.
    scan
        Where the marker lies that the first pixels follow, or where the header went astray.
    """

    stray: tuple[tuple[int, int], ...]
    scan: int

    @property
    def stray_bytes(self) -> int:
        """Return how many stray bytes there are."""
        return sum(end - start for start, end in self.stray)


def find_jpeg_parts(file: BinaryIO) -> JpegParts:
    """Step from segment to segment up to the pixels, over stray bytes as libjpeg does."""
    stray: list[tuple[int, int]] = []
    position = 2
    for _ in range(_SEGMENTS):
        marker = _next_marker(file, position)
        if marker is None or sum(end - start for start, end in stray) > _STRAY_BYTES:
            break
        at, after, code = marker
        if at > position:
            stray.append((position, at))
        position = at
        if code in (_SCAN, _END):
            break
        if code in _BARE:
            position = after
            continue
        file.seek(after)
        size = int.from_bytes(file.read(2), "big")
        if size < 2:
            break
        position = after + size
    return JpegParts(tuple(stray), position)


def _next_marker(file: BinaryIO, position: int) -> tuple[int, int, int] | None:
    """Return where the next marker begins, where it ends, and its code; None without one nearby."""
    file.seek(position)
    block = file.read(_PIECE)
    while len(block) <= _STRAY_BYTES:
        at = block.find(b"\xff")
        while at >= 0:
            after = at + 1
            while after < len(block) and block[after] == 0xFF:  # filling
                after += 1
            if after == len(block):
                break
            if block[after]:
                return position + at, position + after + 1, block[after]
            at = block.find(b"\xff", after)  # a byte 255 of something else
        more = file.read(_PIECE)
        if not more:
            return None
        block += more
    return None


def zeros_before_end(data: bytes, scan: int) -> tuple[int, int] | None:
    """Start and end of the zeros before the end marker; None without any.

    A zero after a byte 255 belongs to it.
    """
    end = data.find(JPEG_END, scan)
    if end < 1 or data[end - 1]:
        return None
    start = len(data[:end].rstrip(b"\0"))
    if start and data[start - 1] == 0xFF:
        start += 1
    return (start, end) if start < end else None


def stray_remark(header: int, end: int) -> str | None:
    """Describe stray bytes in the header and zeros before the end; None without any."""
    found = []
    if header:
        found.append(f"{header} stray byte{'s' * (header > 1)} between the segments of its header")
    if end:
        found.append(f"{end} zero{'s' * (end > 1)} before its end")
    return f"has {' and '.join(found)}, which were passed over" if found else None


def decode_jpeg(
    path: str | Path, data: bytes, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], str | None]:
    """Decode a grey or colour JPEG, strictly but for stray bytes.

    Parameters
    ----------
    path, data
        The file and its content.
    size
        (width, height) as Pillow found it, which was held to the limit.

    Returns
    -------
    tuple
        (H, W, 3) uint8 RGB, and a remark where bytes were passed over.

    Raises
    ------
    ImageReadError
        It is cut or damaged.
    """
    parts = find_jpeg_parts(io.BytesIO(data))
    clean, scan = data, parts.scan
    if parts.stray:
        starts = [0, *(end for _, end in parts.stray)]
        ends = [*(start for start, _ in parts.stray), len(data)]
        clean = b"".join(data[start:end] for start, end in zip(starts, ends))
        scan -= parts.stray_bytes
    try:
        return _strictly(clean, size), stray_remark(parts.stray_bytes, 0)
    except ValueError as error:
        zeros = zeros_before_end(clean, scan)
        if zeros is not None:
            start, end = zeros
            for kept in (0, 1):  # the last byte of the pixels may be a zero itself
                try:
                    image = _strictly(clean[: start + kept] + clean[end:], size)
                except ValueError:
                    continue
                return image, stray_remark(parts.stray_bytes, end - start - kept)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageReadError(str(path), reason) from error


def _strictly(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    if (width, height) != size:
        raise ValueError(f"states {size[0]} x {size[1]} pixels and {width} x {height}")
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True), dtype=np.uint8)
