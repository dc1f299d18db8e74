"""PNG with its pixels stored decodes to what the compressed one does, and damage is left alone."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyimgano.errors import ImageReadError
from pyimgano.images import png, read_image


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I4s", len(content), kind)
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def written(size: tuple[int, int], stream: bytes, *, interlaced: int = 0, cuts: int = 1) -> bytes:
    """A grey 8-bit PNG of a width and height with this compressed stream, in `cuts` chunks."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, interlaced)
    parts = [stream[i * len(stream) // cuts : (i + 1) * len(stream) // cuts] for i in range(cuts)]
    body = b"".join(chunk(b"IDAT", part) for part in parts)
    return png.PNG_SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def decoded(data: bytes | memoryview) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300), width=st.integers(1, 300), colour=st.booleans(), wide=st.booleans()
)
def test_stored_pixels_are_the_same_pixels(
    height: int, width: int, colour: bool, wide: bool
) -> None:
    pytest.importorskip("isal")
    rng = np.random.default_rng(height * 1000 + width)
    shape = (height, width, 3) if colour else (height, width)
    smooth = np.cumsum(rng.integers(-2, 3, shape), axis=0).astype(np.uint8)  # all five filters
    data = encoded(smooth.astype(np.uint16) * 257 if wide and not colour else smooth)
    quick = png.quick_png(data, png.check_png("x.png", data))
    assert quick is not data
    png.check_png("x.png", bytes(quick))  # its checksums hold
    np.testing.assert_array_equal(decoded(quick), decoded(data))


def test_pixels_in_many_chunks() -> None:
    pytest.importorskip("isal")
    rows = b"".join(b"\0" + bytes([row]) * 700 for row in range(200))
    data = written((700, 200), zlib.compress(rows), cuts=7)
    quick = png.quick_png(data, png.check_png("x.png", data))
    assert quick is not data
    np.testing.assert_array_equal(decoded(quick)[:, 0, 0], np.arange(200))


ROWS = b"".join(b"\0" + bytes(30) for _ in range(20))


@pytest.mark.parametrize(
    "data",
    [
        written((30, 20), zlib.compress(ROWS)[:-4] + b"\1\2\3\4"),  # a wrong sum of rows
        written((30, 20), zlib.compress(ROWS)[:-9]),  # cut short
        written((30, 20), zlib.compress(ROWS + b"\0" * 31)),  # rows too many
        written((30, 20), zlib.compress(ROWS[:-31])),  # and too few
        written((30, 20), zlib.compress(ROWS), interlaced=1),
        written((30, 20), b"no stream at all"),
        written((0, 20), zlib.compress(ROWS)),
        written((30, 20), zlib.compress(ROWS[:-31] + b"\5" + ROWS[-30:])),  # a filter that is none
        png.PNG_SIGNATURE + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_what_is_odd_is_left_to_pillow(
    data: bytes, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV gives whatever was in its memory for rows that it cannot decode."""
    if large:
        monkeypatch.setattr(png, "_QUICK_BYTES", 10)
    assert png.quick_png(data, png.check_png("x.png", data)) is None
    monkeypatch.setattr(cv2, "imdecode", lambda *given: pytest.fail("OpenCV saw it"))
    path = tmp_path / "x.png"
    path.write_bytes(data)
    try:
        image = read_image(path)
    except ImageReadError:
        return
    np.testing.assert_array_equal(image, 0)  # as Pillow has it: whole in spite of all


def test_headers_and_animations_are_left_to_pillow() -> None:
    data = written((30, 20), zlib.compress(ROWS))
    head, body = data[:33], data[33:]
    for odd in (head + chunk(b"acTL", bytes(8)) + body, head + head[8:] + body):
        assert png.quick_png(odd, png.check_png("x.png", odd)) is None


def test_a_large_one_is_checked_and_decoded_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("isal")
    monkeypatch.setattr(png, "_QUICK_BYTES", 10)
    data = written((30, 20), zlib.compress(ROWS))
    assert png.quick_png(data, png.check_png("x.png", data)) is data


def test_without_the_package_pillow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "isal_zlib", None)
    data = encoded(np.arange(60, dtype=np.uint8).reshape(6, 10))
    assert png.quick_png(data, png.check_png("x.png", data)) is None
