"""PNG files: their parts held to their checksums, and their pixels inflated quickly.

OpenCV spends more than a third of its time on a PNG in inflating it. `quick_png` hands that
to ISA-L (the package `isal`), about 2.5 times as fast, and gives OpenCV the same file with
its pixels stored instead of compressed. What this does not take, Pillow decodes, which refuses
what is damaged; OpenCV does not always.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageReadError

igzip_lib: Any = None
isal_zlib: Any = None
with contextlib.suppress(ImportError):  # a machine that it is not built for
    from isal import igzip_lib, isal_zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: A PNG of more parts than this is refused; one of 179 million pixels in the usual parts of
#: 8,192 bytes has a tenth of them.
MAX_CHUNKS = 2**20
# Bytes that one stored block of a deflate stream holds at most (RFC 1951, section 3.2.4).
_BLOCK = 65_535
# What takes more is checked, and then decoded as it is: the copies would count.
_QUICK_BYTES = 2**26
# Filters of rows are numbered from 0.
_LAST_FILTER = 4
# Samples a pixel, by the colour type in the header chunk.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

_of_thread = threading.local()


@dataclass(frozen=True)
class PngParts:
    """Where things are in a PNG whose checksums hold.

    Attributes
    ----------
    header
        Content of the chunk IHDR.
    exif
        Content of the chunk eXIf; None without one.
    significant_bits
        Content of the chunk sBIT; None without one.
    pixels
        Start and end of the content of each chunk IDAT.
    plain
        Whether these chunks follow one another, as they have to, and there is one header and no
        animation.
    """

    header: bytes
    exif: bytes | None
    pixels: tuple[tuple[int, int], ...]
    plain: bool
    significant_bits: bytes | None = None

    @property
    def bits(self) -> int:
        """Bits of a sample, as the header chunk has them; 0 where it is cut."""
        return self.header[8] if len(self.header) > 8 else 0

    @property
    def colours_declared(self) -> int | None:
        """Most significant bits of the colours, without alpha, that the chunk sBIT declares."""
        alpha = len(self.header) > 9 and self.header[9] in (4, 6)
        declared = self.significant_bits or b""
        return max(declared[: len(declared) - alpha], default=None)


def check_png(path: str | Path, data: bytes) -> PngParts:
    """Refuse a PNG that ends early or whose checksums do not hold; says what is where.

    Raises
    ------
    ImageReadError
        It is truncated, has too many chunks, or the checksum of a chunk differs.
    """
    checksum = zlib.crc32 if isal_zlib is None else isal_zlib.crc32
    view = memoryview(data)
    header, exif, significant = b"", None, None
    pixels: list[tuple[int, int]] = []
    plain = True
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if checksum(view[position + 4 : end - 4]) != stored:
            name = kind.decode("ascii", "replace")
            raise ImageReadError(str(path), f"the PNG is damaged (checksum of chunk {name})")
        if kind == b"IHDR":
            plain &= not header
            header = data[position + 8 : end - 4]
        elif kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"sBIT":
            significant = data[position + 8 : end - 4]
        elif kind == b"IDAT":
            plain &= not pixels or pixels[-1][1] + 4 == position
            pixels.append((position + 8, end - 4))
        elif kind == b"acTL":
            plain = False
        elif kind == b"IEND":
            return PngParts(header, exif, tuple(pixels), plain, significant)
        position = end
    else:
        raise ImageReadError(str(path), f"the PNG has more than {MAX_CHUNKS} chunks")
    raise ImageReadError(str(path), "the PNG is truncated (no end chunk)")


def quick_png(data: bytes, parts: PngParts) -> bytes | memoryview | None:
    """Return the same PNG with its pixels stored: it decodes to the same pixels, and quicker.

    A large one is given back as it is, once it is known to inflate to what its header declares.
    None for what is damaged, interlaced or in any way odd, and without the package: OpenCV must
    not see it, since it gives whatever was in its memory for rows that it cannot decode. The
    result is good until the same thread calls this again.
    """
    if isal_zlib is None or len(parts.header) != 13 or not parts.pixels or not parts.plain:
        return None
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts.header)
    # each row of pixels, after a byte that names its filter (PNG specification, section 7.2)
    row = 1 + (width * bits * _CHANNELS.get(colour, 1) + 7) // 8
    expected = height * row
    if interlaced or not expected:
        return None
    stored = expected <= _QUICK_BYTES
    blocks = -(-expected // _BLOCK) if stored else 0
    before, after = data[: parts.pixels[0][0] - 8], data[parts.pixels[-1][1] + 4 :]
    # a zlib header (RFC 1950, section 2.2), the blocks with their headers, a checksum
    length = 2 + 5 * blocks + expected + 4
    buffer = _buffer(len(before) + 8 + length + 4 + len(after)) if stored else memoryview(b"")
    position = len(before) + 8
    if stored:
        buffer[: position + 2] = before + struct.pack(">I4s", length, b"IDAT") + b"\x78\x01"
    position += 2
    compressed = b"".join([data[start:end] for start, end in parts.pixels])
    inflater = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_ZLIB)
    sum_of_rows = 1  # where Adler-32 begins
    try:
        for start in range(0, expected, _BLOCK):
            size = min(_BLOCK, expected - start)
            rows = inflater.decompress(b"" if start else compressed, size)
            if len(rows) != size or max(rows[-start % row :: row], default=0) > _LAST_FILTER:
                return None
            sum_of_rows = isal_zlib.adler32(rows, sum_of_rows)
            if stored:
                struct.pack_into(
                    "<BHH", buffer, position, start + size == expected, size, ~size & 0xFFFF
                )
                buffer[position + 5 : position + 5 + size] = rows
                position += 5 + size
        if not inflater.eof and inflater.decompress(b"", 1):
            return None  # more rows than the header declares
    except (igzip_lib.error, EOFError):
        return None
    if not inflater.eof:
        return None
    if not stored:
        return data
    struct.pack_into(">I", buffer, position, sum_of_rows)
    position += 4
    checksum = isal_zlib.crc32(buffer[len(before) + 4 : position])
    end = struct.pack(">I", checksum) + after
    buffer[position : position + len(end)] = end
    return buffer[: position + len(end)]


def _buffer(size: int) -> memoryview:
    """Return at least `size` bytes, the same for each image of a thread: fresh memory is slow."""
    if len(getattr(_of_thread, "buffer", b"")) < size:
        _of_thread.buffer = bytearray(size)
    return memoryview(_of_thread.buffer)
