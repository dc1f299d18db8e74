"""TIFF files of all kinds against arrays of known content."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pyimgano.errors import ImageReadError
from pyimgano.images import decode_image, read_header, read_image, read_mask

HEIGHT, WIDTH = 11, 19
SHAPES = {"minisblack": 1, "miniswhite": 1, "grey and alpha": 2, "rgb": 3, "rgba": 4}
PHOTOMETRIC = {"grey and alpha": "minisblack", "rgba": "rgb"}
KINDS = ("u1", "u2", "i1", "i2", "u4", "f2", "f4", "f8")


def content(kind: str, channels: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(H, W, C) of random values, and the range that they are from."""
    rng = np.random.default_rng(5)
    dtype = np.dtype(kind)
    shape = (HEIGHT, WIDTH, channels)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype), (0.0, 1.0)
    facts = np.iinfo(dtype)
    values = rng.integers(facts.min, facts.max, shape, dtype, endpoint=True)
    return values, (float(facts.min), float(facts.max))


def wanted_of(values: np.ndarray, limits: tuple[float, float], white_is_zero: bool) -> np.ndarray:
    """(H, W, 3) by the table in the documentation, written again."""
    exact = 255 * (values.astype(np.float64) - limits[0]) / (limits[1] - limits[0])
    seen = exact[..., :3] if values.shape[2] > 2 else exact[..., [0, 0, 0]]
    if values.dtype == np.uint16 and values.shape[2] > 2:
        seen = values[..., :3] // 257
    rounded = np.rint(seen)
    return 255 - rounded if white_is_zero else rounded


def ranges(limits: tuple[float, float]) -> list[Any]:
    return [(340, "d", 1, limits[0], True), (341, "d", 1, limits[1], True)]


@pytest.mark.parametrize("picture", SHAPES)
def test_every_layout_gives_the_very_pixels(tmp_path: Path, picture: str) -> None:
    channels = SHAPES[picture]
    layouts = ("contig",) if channels == 1 else ("contig", "separate")
    product = itertools.product(
        layouts, KINDS, "<>", (None, "zlib"), (None, (16, 16)), (False, True)
    )
    path = tmp_path / "a.tif"
    for number, (planar, kind, order, compression, tile, big) in enumerate(product):
        values, limits = content(kind, channels)
        stored = values[..., 0] if channels == 1 else values
        more: dict[str, Any] = {} if channels == 1 else {"planarconfig": planar}
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            np.moveaxis(stored, -1, 0) if planar == "separate" else stored,
            photometric=PHOTOMETRIC.get(picture, picture),
            byteorder=order,
            compression=compression,
            tile=tile,
            bigtiff=big,
            metadata=None,
            extratags=ranges(limits) if kind not in ("u1", "u2") else (),
            **more,
        )
        said = f"{planar} {kind} {order} {compression} {tile} big {big}"
        decoded = decode_image("a.tif", buffer.getvalue())
        expected = wanted_of(values, limits, picture == "miniswhite")
        np.testing.assert_array_equal(decoded.pixels, expected, err_msg=said)
        assert decoded.remark is None, said
        if number % 8 == 0:
            path.write_bytes(buffer.getvalue())
            assert read_header(path).size == (HEIGHT, WIDTH), said


def difference(values: np.ndarray) -> np.ndarray:
    """(H, W, C), each less the one before in its row."""
    before = np.zeros_like(values)
    before[:, 1:] = values[:, :-1]
    return values - before


def packed(
    planes: list[np.ndarray], method: str, order: str, predictor: int, photometric: int
) -> bytes:
    """A TIFF of one strip a plane, (H, W, C) each, compressed by libtiff."""
    strips = []
    code = 1
    for plane in planes:
        rows = plane.astype(plane.dtype.newbyteorder(order)).reshape(len(plane), -1)
        if predictor == 2:
            unsigned = plane.view(f"u{plane.dtype.itemsize}")
            rows = difference(unsigned).astype(f"{order}u{plane.dtype.itemsize}")
        elif predictor == 3:  # bytes of equal weight together, the heaviest first
            heavy = plane.astype(plane.dtype.newbyteorder(">")).reshape(len(plane), -1, 1)
            weights = heavy.view(np.uint8).transpose(0, 2, 1)
            rows = difference(weights.reshape(len(plane), -1, plane.shape[2]))
        raw = np.ascontiguousarray(rows.reshape(len(plane), -1)).view(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(raw).save(buffer, "TIFF", compression=method, tiffinfo={278: len(plane)})
        with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
            page = file.pages[0]
            code = int(page.compression)
            assert len(page.dataoffsets) == 1
            start = page.dataoffsets[0]
            strips.append(buffer.getvalue()[start : start + page.databytecounts[0]])
    channels = sum(plane.shape[2] for plane in planes)
    count = len(strips)
    start = 8
    offsets = [start + sum(map(len, strips[:i])) for i in range(count)]
    end = start + sum(map(len, strips))
    bits = planes[0].dtype.itemsize * 8
    entries = [
        (256, [WIDTH]),
        (257, [HEIGHT]),
        (258, [bits] * channels),
        (259, [code]),
        (262, [photometric]),
        (273, offsets),
        (277, [channels]),
        (278, [HEIGHT]),
        (279, [len(one) for one in strips]),
        (284, [2 if count > 1 else 1]),
        (317, [predictor]),
    ]
    if planes[0].dtype.kind == "f":
        entries += [(339, [3]), (340, [0]), (341, [1])]
    table, behind = b"", b""
    arrays = end + 2 + 12 * len(entries) + 4
    for tag, numbers in entries:
        text = struct.pack(f"{order}{len(numbers)}I", *numbers)
        where = text
        if len(numbers) > 1:
            where = struct.pack(f"{order}I", arrays + len(behind))
            behind += text
        table += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + where
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}I", end)
    body = struct.pack(f"{order}H", len(entries)) + table + bytes(4)
    return head + b"".join(strips) + body + behind


@pytest.mark.parametrize("method", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_compressions_that_tifffile_has_no_codec_for(tmp_path: Path, method: str) -> None:
    path = tmp_path / "a.tif"
    product = itertools.product(("u1", "u2"), (1, 3), (False, True), "<>", (1, 2))
    for kind, channels, planar, order, predictor in product:
        if (planar and channels == 1) or (method == "packbits" and predictor == 2):
            continue
        values, limits = content(kind, channels)
        planes = [values[..., i : i + 1] for i in range(channels)] if planar else [values]
        path.write_bytes(packed(planes, method, order, predictor, 1 if channels == 1 else 2))
        said = f"{kind} {channels} {planar} {order} {predictor}"
        expected = wanted_of(values, limits, False)
        np.testing.assert_array_equal(read_image(path), expected, err_msg=said)
        whole = path.read_bytes()
        damaged = whole[:8] + bytes([255] * 12) + whole[20:]
        path.write_bytes(damaged)
        if kind == "u2" and method != "packbits":
            with pytest.raises(ImageReadError):
                read_image(path)


def test_floating_point_predictor(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    product = itertools.product(("f2", "f4", "f8"), "<>", (1, 3), (1, 3))
    for kind, order, channels, predictor in product:
        values, limits = content(kind, channels)
        photometric = 1 if channels == 1 else 2
        path.write_bytes(packed([values], "tiff_adobe_deflate", order, predictor, photometric))
        said = f"{kind} {order} {channels} {predictor}"
        expected = wanted_of(values, limits, False)
        np.testing.assert_array_equal(read_image(path), expected, err_msg=said)


def test_the_program_of_the_report(tmp_path: Path) -> None:
    a = np.random.default_rng(0).integers(0, 65535, (3, 60, 80), np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", a, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif"), np.moveaxis(a // 257, 0, -1))


@pytest.mark.parametrize("order", "<>")
def test_palette_and_cmyk(tmp_path: Path, order: str) -> None:
    rng = np.random.default_rng(1)
    ink = rng.integers(0, 255, (HEIGHT, WIDTH, 4)).astype(np.uint8)
    shown = np.asarray(Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes()).convert("RGB"))
    path = tmp_path / "a.tif"
    for planar in ("contig", "separate"):
        stored = np.moveaxis(ink, 2, 0) if planar == "separate" else ink
        tifffile.imwrite(
            path,
            stored,
            photometric="separated",
            planarconfig=planar,
            byteorder=order,
            bigtiff=True,
        )
        np.testing.assert_array_equal(read_image(path), shown)
    colours = rng.integers(0, 65535, (3, 256)).astype(np.uint16)
    indices = rng.integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
    tifffile.imwrite(
        path, indices, photometric="palette", colormap=colours, byteorder=order, bigtiff=True
    )
    np.testing.assert_array_equal(read_image(path), np.moveaxis(colours >> 8, 0, 1)[indices])


@pytest.mark.parametrize(
    ("kind", "channels", "said"),
    [
        ("i1", 1, "has 8-bit signed integer pixels of unknown range; state it in the TIFF tags"),
        ("i2", 1, "has 16-bit signed integer pixels of unknown range.* or bit_depth"),
        ("u4", 1, "has 32-bit unsigned integer pixels of unknown range"),
        ("f2", 3, "has float pixels of unknown range"),
        ("f8", 1, "has float pixels of unknown range"),
        ("u1", 5, "has 5 channels and calls itself RGB, which has 3 and may have one more"),
        ("u2", 5, "has 5 channels and calls itself RGB"),
    ],
)
def test_refusals_say_what_is_true_and_the_header_says_the_same(
    tmp_path: Path, kind: str, channels: int, said: str
) -> None:
    values, _ = content(kind, channels)
    path = tmp_path / "a.tif"
    for order, big in itertools.product("<>", (False, True)):
        tifffile.imwrite(
            path,
            values[..., 0] if channels == 1 else values,
            photometric="minisblack" if channels == 1 else "rgb",
            byteorder=order,
            bigtiff=big,
        )
        for read in (read_image, read_header):
            with pytest.raises(ImageReadError, match=said):
                read(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_what_is_cut_is_refused(tmp_path: Path, compression: str | None, tile: Any) -> None:
    values, _ = content("u2", 3)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.moveaxis(values, 2, 0),
        photometric="rgb",
        compression=compression,
        tile=tile,
        metadata=None,
    )
    whole = buffer.getvalue()
    path = tmp_path / "a.tif"
    for kept in (len(whole) - 1, len(whole) * 3 // 4, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ImageReadError):
            read_image(path)
        with pytest.raises(ImageReadError):
            read_header(path)


def test_orientation_of_what_is_decoded_here(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    grey = np.rint(values / 257.0)
    turns = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: np.rot90(grey, -1),
        7: grey[::-1, ::-1].T,
        8: np.rot90(grey),
    }
    for orientation, expected in turns.items():
        path = tmp_path / f"{orientation}.tif"
        tifffile.imwrite(path, values, extratags=[(274, "H", 1, orientation, True)])
        np.testing.assert_array_equal(read_image(path)[..., 1], expected)
        assert read_header(path).size == expected.shape


def test_masks_in_tiff_keep_their_values(tmp_path: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint16)
    values[2:4, 3:5], values[6, 6] = 3, 4000
    for order, big in itertools.product("<>", (False, True)):
        path = tmp_path / "m.tif"
        tifffile.imwrite(path, values, byteorder=order, bigtiff=big)
        np.testing.assert_array_equal(read_mask(path), np.minimum(values, 255))
        tifffile.imwrite(path, values.astype(np.int16), byteorder=order, bigtiff=big)
        np.testing.assert_array_equal(read_mask(path), np.minimum(values, 255))
    tifffile.imwrite(path, -values.astype(np.int16))
    with pytest.raises(ImageReadError, match="negative"):
        read_mask(path)


def test_further_pages_are_remarked_on(tmp_path: Path) -> None:
    values, _ = content("u2", 3)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=">", bigtiff=True) as file:
        for _ in range(3):
            file.write(np.moveaxis(values, 2, 0), photometric="rgb")
    decoded = decode_image(path)
    assert decoded.remark == "has 3 pages, of which the first is used"
    assert read_header(path).pages == 3
    np.testing.assert_array_equal(decoded.pixels, values // 257)


def test_a_tiff_may_not_declare_more_than_it_has(tmp_path: Path) -> None:
    """Tiles far larger than the image, and deflate that unpacks to more than was declared."""
    values = np.zeros((3, HEIGHT, WIDTH), np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, values, photometric="rgb", tile=(16, 16), compression="zlib", metadata=None
    )
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        where = file.pages[0].tags[322].valueoffset
    struct.pack_into("<H", data, where, 65520)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(ImageReadError, match="tiles of 65520 x 16"):
        read_image(path)


def retagged(data: bytes, changes: dict[int, int]) -> bytes:
    """A little-endian TIFF whose tags, of one number each, state others."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for tag in file.pages[0].tags.values():
            if tag.code in changes:
                kind = {3: "<H", 4: "<I", 16: "<Q"}[int(tag.dtype)]
                struct.pack_into(kind, changed, tag.valueoffset, changes[tag.code])
    return bytes(changed)


def test_what_a_header_declares_takes_no_memory(tmp_path: Path) -> None:
    """Neither pixels above the limit, nor tiles beyond number, nor strips that are not there."""
    path = tmp_path / "a.tif"
    values = np.zeros((3, HEIGHT, WIDTH), np.uint16)
    tiled, stripped = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(tiled, values, photometric="rgb", tile=(16, 16), metadata=None)
    tifffile.imwrite(stripped, values, photometric="rgb", metadata=None)
    cases = [
        (tiled, {256: 60000, 257: 60000}, "declares 60000 x 60000 pixels, more than the"),
        (tiled, {256: 16000, 257: 16000, 322: 1, 323: 1}, "tiles|strips or tiles|truncated"),
        (stripped, {256: 16000, 257: 16000}, "truncated|strips or tiles"),
        (stripped, {257: 0}, "states no size|known format"),
        (stripped, {258: 4}, "not read|channels|damaged|truncated|several"),
    ]
    for base, changes, said in cases:
        path.write_bytes(retagged(base.getvalue(), changes))
        tracemalloc.start()
        for read in (read_image, read_header, read_mask):
            with pytest.raises(ImageReadError, match=said):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.stop()


def test_nothing_is_said_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((3, 8, 8), np.uint16), photometric="rgb")
    whole = buffer.getvalue()
    path = tmp_path / "a.tif"
    for kept in range(1, len(whole), 37):
        path.write_bytes(whole[:kept])
        with pytest.raises(ImageReadError):
            read_image(path)
    said = capfd.readouterr()
    assert said.err == "" == said.out
