"""TIFF files that Pillow does not read, or reads wrongly; tifffile says what stands in them.

Decoded here are grey, RGB, CMYK and palette images of 8, 16, 32 or 64 bits a sample, integers or
floats, chunky or planar, in strips or tiles, of either byte order, classic or BigTIFF. What
is compressed byte by byte (LZW, Deflate, PackBits, LZMA, Zstandard) is inflated by the libtiff in
Pillow, which is handed the compressed segments as a grey image of bytes. That refuses what is
damaged, and never takes more memory than the header has declared.
"""

from __future__ import annotations

import io
import logging
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ImageReadError

# tifffile logs what it thinks of a file, which without a handler would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_BYTEWISE = {1, 5, 8, 32773, 32946, 34925, 50000}
_COMPRESSIONS = {
    2: "CCITT",
    3: "Group 3",
    4: "Group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5
#: Channels of a picture, by photometric interpretation; one more, such as alpha, may follow.
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_KINDS = {1: "unsigned integer", 2: "signed integer", 3: "float", 4: "untyped"}
_CODES = {1: "u", 2: "i", 3: "f", 4: "u"}


@dataclass(frozen=True)
class TiffFacts:
    """The first page of a TIFF, as its tags have it.

    Attributes
    ----------
    width, height, samples
        Pixels, and samples a pixel.
    bits
        Of a sample; 0 where samples differ.
    sample_format
        1 unsigned, 2 signed, 3 float; 0 where samples differ.
    byte_order
        `<` or `>`.
    planar
        Whether each channel is stored apart.
    segment
        (height, width) of a tile; of strips the rows of one and the width of the image.
    tiled
        Whether segments are tiles.
    offsets, counts
        Where each segment lies in the file, in bytes.
    orientation
        As EXIF counts, 1 to 8.
    low, high
        The range that SMinSampleValue and SMaxSampleValue state; None each where missing.
    maximum
        MaxSampleValue; None where it is missing.
    pages
        Pictures in the file.
    """

    width: int
    height: int
    samples: int
    bits: int
    sample_format: int
    byte_order: str
    planar: bool
    photometric: int
    compression: int
    predictor: int
    fill_order: int
    depth: int
    segment: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    colour_map: tuple[int, ...]
    orientation: int
    low: float | None
    high: float | None
    maximum: float | None
    pages: int

    @property
    def kind(self) -> str:
        """Return what its samples are, in words."""
        return f"{self.bits}-bit {_KINDS.get(self.sample_format, 'unknown')}"

    @property
    def mode(self) -> str:
        """Return a name of the kind of pixels in the way of Pillow's, such as `RGB;16`."""
        names = {_RGB: "RGB", _PALETTE: "P", _CMYK: "CMYK"}
        base = names.get(self.photometric, "L")
        if base == "L" and (self.bits > 8 or self.sample_format != 1):
            base = "F" if self.sample_format == 3 else "I"
            return f"{base};{self.bits}{'S' if self.sample_format == 2 else ''}"
        return base if self.bits == 8 else f"{base};{self.bits}"

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Return the type of a sample in the file; None where there is none for it."""
        code = _CODES.get(self.sample_format)
        sizes = (16, 32, 64) if code == "f" else (8, 16, 32, 64)
        if code is None or self.bits not in sizes:
            return None
        return np.dtype(f"{self.byte_order}{code}{self.bits // 8}")

    @property
    def channels(self) -> int:
        """Channels of the picture, without what may follow; 0 where that is not known."""
        return _CHANNELS.get(self.photometric, 0)

    @property
    def segments_down_and_across(self) -> tuple[int, int]:
        """Return how many segments a plane has."""
        high, wide = self.segment
        return -(-self.height // high), -(-self.width // wide)


def is_tiff(start: bytes) -> bool:
    """Return whether a file that begins so is a TIFF."""
    return start[:4] in _MAGIC


def read_tiff_facts(file: BinaryIO) -> TiffFacts:
    """Read what the tags of the first page say; pixels are not touched.

    Raises
    ------
    Exception
        Whatever damaged tags lead to.
    """
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        tags = page.tags

        def value(code: int, default: Any = None) -> Any:
            return tags.valueof(code, default=default)

        def number(code: int, default: int) -> int:
            found = value(code, default)
            return int(found[0] if isinstance(found, (tuple, list)) else found)

        samples = number(277, 1)
        bits = set(_numbers(value(258, 1)))
        formats = set(_numbers(value(339, 1)))
        width, height = number(256, 0), number(257, 0)
        tiled = 324 in tags
        if tiled:
            segment = (number(323, 0), number(322, 0))
            offsets, counts = value(324), value(325)
        else:
            segment = (min(number(278, height), height), width)
            offsets, counts = value(273), value(279)
        if min(width, height, samples, *segment) < 1 or offsets is None:
            raise ValueError("the TIFF states no size, or not where its pixels are")
        try:
            pages = len(tiff.pages)
        except Exception:  # a damaged chain of pages: decoding the first has the last word
            pages = 1
        ordered = tiff.byteorder
        return TiffFacts(
            width=width,
            height=height,
            samples=samples,
            bits=bits.pop() if len(bits) == 1 else 0,
            sample_format=formats.pop() if len(formats) == 1 else 0,
            byte_order=str(ordered),
            planar=number(284, 1) == 2 and samples > 1,
            photometric=number(262, -1),
            compression=number(259, 1),
            predictor=number(317, 1),
            fill_order=number(266, 1),
            depth=number(32997, 1),
            segment=segment,
            tiled=tiled,
            offsets=tuple(_numbers(offsets)),
            counts=tuple(_numbers(counts if counts is not None else ())),
            colour_map=tuple(_numbers(value(320, ()))),
            orientation=number(274, 1),
            low=_stated(value(340)),
            high=_stated(value(341)),
            maximum=_stated(value(281)),
            pages=max(1, pages),
        )


def _numbers(found: Any) -> list[int]:
    return [int(one) for one in np.ravel(np.asarray(found))]


def _stated(found: Any) -> float | None:
    """Return a number that a tag states, of several samples the first."""
    if found is None:
        return None
    values = np.ravel(np.asarray(found))
    try:
        return float(values[0])
    except (IndexError, ValueError, TypeError):
        return None


def is_decoded_here(facts: TiffFacts, by_pillow: bool) -> bool:
    """Return whether `decode_tiff` is for this page; `by_pillow` tells whether Pillow opens it.

    Pillow keeps what it reads rightly and quickly: all chunky images of 8 bits and fewer.
    """
    if facts.dtype is None or facts.compression not in _BYTEWISE or not facts.channels:
        return False
    plain = facts.bits == 8 and facts.sample_format in (1, 4) and not facts.planar
    return not (plain and by_pillow)


def require_known_tiff(path: str | Path, facts: TiffFacts, by_pillow: bool) -> None:
    """Refuse, in words that are true, a page of a kind without a rule.

    Raises
    ------
    ImageReadError
        Says what the page is and what to do.
    """
    reason = _unknown_kind(facts, by_pillow)
    if reason is not None:
        raise ImageReadError(str(path), reason)


def _unknown_kind(facts: TiffFacts, by_pillow: bool) -> str | None:
    wanted = "convert it to grey or RGB of 8 or 16 bits"
    if facts.depth != 1:
        return f"is a TIFF volume of {facts.depth} planes in depth; {wanted}"
    if facts.channels and facts.samples > facts.channels + 1:
        names = {_RGB: "RGB", _CMYK: "CMYK", _PALETTE: "palette"}
        what = names.get(facts.photometric, "grey")
        return (
            f"has {facts.samples} channels and calls itself {what}, which has {facts.channels} and "
            f"may have one more; {wanted}"
        )
    if facts.channels > facts.samples:
        return f"has {facts.samples} channels, of {facts.channels} that it declares"
    if not is_decoded_here(facts, by_pillow):
        if by_pillow and facts.bits <= 16 and facts.sample_format in (1, 4) and facts.bits:
            return None  # Pillow's own rules
        packed = _COMPRESSIONS.get(facts.compression, f"method {facts.compression}")
        packing = "" if facts.compression == 1 else f" compressed with {packed}"
        pixels = f"{facts.kind} samples" if facts.bits else "samples of several sizes"
        return f"is a TIFF of {facts.samples} x {pixels}{packing}, which is not read; {wanted}"
    if facts.fill_order != 1:
        return f"is a TIFF with the bits of each byte in reverse order (FillOrder 2); {wanted}"
    if facts.predictor not in (1, 2, 3) or (facts.predictor == 3) != (
        facts.predictor != 1 and facts.sample_format == 3
    ):
        return f"is a TIFF with predictor {facts.predictor} for {facts.kind} samples; {wanted}"
    most = {_PALETTE: 8, _CMYK: 16}.get(facts.photometric)
    if most is not None and (facts.sample_format not in (1, 4) or facts.bits > most):
        return f"is a palette or CMYK TIFF of {facts.kind} samples; {wanted}"
    return None


def end_of_tiff(facts: TiffFacts) -> int:
    """Return how long the file must be for the first page.

    What a segment takes is counted if it is not compressed: the numbers that the file states for
    that are often wrong.
    """
    down, across = facts.segments_down_and_across
    if len(facts.offsets) < down * across:
        return sys.maxsize  # some are missing: what a list of all would take is not its word
    if facts.compression == 1 and facts.bits and facts.photometric != 6:
        sizes: Sequence[int] = _stored_sizes(facts)
    else:
        sizes = facts.counts
    return max((o + n for o, n in zip(facts.offsets, sizes, strict=False)), default=0)


def _stored_sizes(facts: TiffFacts) -> list[int]:
    """Bytes of each segment without compression."""
    high, wide = facts.segment
    row = (wide * (1 if facts.planar else facts.samples) * facts.bits + 7) // 8
    down, across = facts.segments_down_and_across
    rows = [high] * down
    if not facts.tiled:
        rows[-1] = facts.height - (down - 1) * high
    planes = facts.samples if facts.planar else 1
    return [row * one for one in rows for _ in range(across)] * planes


def decode_tiff(path: str | Path, data: bytes, facts: TiffFacts) -> npt.NDArray[Any]:
    """Decode the channels of the picture as they stand in the file.

    Returns
    -------
    numpy.ndarray
        (H, W) or (H, W, C) in the byte order of this machine, without what follows the picture's
        channels.

    Raises
    ------
    ImageReadError
        Segments are missing, cut or damaged.
    """
    dtype = facts.dtype
    assert dtype is not None
    down, across = facts.segments_down_and_across
    planes = facts.samples if facts.planar else 1
    wanted = down * across * planes
    high, wide = facts.segment
    if high > 2 * facts.height + 1024 or wide > 2 * facts.width + 1024:
        raise ImageReadError(
            str(path),
            f"declares tiles of {wide} x {high} for {facts.width} x {facts.height} pixels",
        )
    if len(facts.offsets) < wanted or (facts.compression != 1 and len(facts.counts) < wanted):
        raise ImageReadError(
            str(path), f"has {len(facts.offsets)} strips or tiles instead of {wanted}"
        )
    per_pixel = 1 if facts.planar else facts.samples
    sizes = _stored_sizes(facts)
    used = min(planes, facts.channels) if facts.planar else 1
    pixels = np.empty((facts.height, facts.width, used * per_pixel), dtype.newbyteorder("="))
    each = down * across
    for plane in range(used):
        numbers = range(plane * each, (plane + 1) * each)
        stored = _stored(path, data, facts, numbers, sizes, wide * per_pixel * dtype.itemsize)
        for number, segment in zip(numbers, stored, strict=True):
            block = _undo_prediction(segment, facts, dtype, per_pixel)  # (h, w, per_pixel)
            row, column = divmod(number - plane * each, across)
            y, x = row * high, column * wide
            part = pixels[y : y + high, x : x + wide, plane * per_pixel : (plane + 1) * per_pixel]
            part[...] = block[: part.shape[0], : part.shape[1]]
    picture = pixels[..., : facts.channels]
    if facts.channels == 1:
        return np.ascontiguousarray(picture[..., 0])
    return np.ascontiguousarray(picture)


def _stored(
    path: str | Path,
    data: bytes,
    facts: TiffFacts,
    numbers: range,
    sizes: Sequence[int],
    row: int,
) -> list[npt.NDArray[np.uint8]]:
    """Return the bytes of some segments without compression, each (rows, row)."""
    raw = []
    for number in numbers:
        start = facts.offsets[number]
        count = sizes[number] if facts.compression == 1 else facts.counts[number]
        if start < 0 or count < 1 or start + count > len(data):
            raise ImageReadError(str(path), "the TIFF is truncated (a strip or tile is missing)")
        raw.append(memoryview(data)[start : start + count])
    rows = [sizes[number] // row for number in numbers]
    if facts.compression == 1:
        return [np.frombuffer(one, np.uint8).reshape(-1, row) for one in raw]
    whole = _inflated(raw, facts.compression, row, sum(rows), rows[0])
    ends = np.cumsum(rows)
    return [whole[end - count : end] for end, count in zip(ends, rows, strict=True)]


def _inflated(
    raw: Sequence[memoryview], compression: int, row: int, height: int, strip: int
) -> npt.NDArray[np.uint8]:
    """Return (height, row) bytes that libtiff makes of compressed segments of `strip` rows each."""
    count = len(raw)
    start = 8
    offsets = []
    for one in raw:
        offsets.append(start)
        start += len(one)
    entries: list[tuple[int, int, int, int | Sequence[int]]] = [
        (256, 4, 1, row),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, count, offsets),
        (277, 3, 1, 1),
        (278, 4, 1, strip),
        (279, 4, count, [len(one) for one in raw]),
    ]
    arrays = start + 2 + 12 * len(entries) + 4
    table, behind = [], b""
    for tag, kind, number, value in entries:
        if isinstance(value, int):
            table.append(struct.pack("<HHII", tag, kind, number, value))
        elif number == 1:
            table.append(struct.pack("<HHII", tag, kind, 1, value[0]))
        else:
            table.append(struct.pack("<HHII", tag, kind, number, arrays + len(behind)))
            behind += struct.pack(f"<{number}I", *value)
    file = b"".join(
        [
            b"II*\x00",
            struct.pack("<I", start),
            *raw,
            struct.pack("<H", len(entries)),
            *table,
            bytes(4),
            behind,
        ]
    )
    # its size is that of a page whose pixels were counted before
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as image:
        image.load()
        return np.asarray(image, dtype=np.uint8)


def _undo_prediction(
    stored: npt.NDArray[np.uint8], facts: TiffFacts, dtype: np.dtype[Any], per_pixel: int
) -> npt.NDArray[Any]:
    """Return (h, w, per_pixel) of the stored bytes (h, row)."""
    shape = (len(stored), -1, per_pixel)
    if facts.predictor == 3:
        # bytes of equal weight lie together, the heaviest first, each the difference to the one
        # of the pixel before (Adobe Photoshop TIFF Technical Note 3)
        sums = np.cumsum(stored.reshape(len(stored), -1, per_pixel), axis=1, dtype=np.uint8)
        weights = sums.reshape(len(stored), dtype.itemsize, -1).transpose(0, 2, 1)
        floats = np.ascontiguousarray(weights).view(dtype.newbyteorder(">"))
        return floats.reshape(shape)
    values = np.ascontiguousarray(stored).view(dtype).reshape(shape)
    if facts.predictor == 2:
        unsigned = np.dtype(f"u{dtype.itemsize}")
        native = values.astype(dtype.newbyteorder("=")).view(unsigned)
        return np.cumsum(native, axis=1, dtype=unsigned).view(dtype.newbyteorder("="))
    return values


def palette_of(facts: TiffFacts) -> npt.NDArray[np.uint8]:
    """Return (256, 3) uint8 RGB of a palette image; raises `ValueError` where the map is
    damaged.
    """
    entries = 2**facts.bits
    if len(facts.colour_map) != 3 * entries:
        raise ValueError("the palette of the TIFF has the wrong length")
    colours = np.asarray(facts.colour_map, np.int64).reshape(3, entries).T
    return (np.clip(colours, 0, 65535) >> 8).astype(np.uint8)
