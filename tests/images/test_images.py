"""Decoding: whole and right, or an error that says why not."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pyimgano.datasets.listing import image_files
from pyimgano.errors import ImageReadError
from pyimgano.images import (
    IMAGE_SUFFIXES,
    image_size,
    read_header,
    read_image,
    read_mask,
    resize_image,
    stream_images,
)
from tests.conftest import picture, save, spot_mask


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".PNG", ".webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, suffix: str) -> None:
    image = picture(1)
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a b ü'{suffix}", image, **options)
    np.testing.assert_array_equal(read_image(path), image)
    assert image_size(path) == (64, 64)


def test_jpeg_is_close_and_rgb_in_order(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200  # red
    path = save(tmp_path / "red.JPG", image, quality=95)
    mean = read_image(path).reshape(-1, 3).mean(0)
    assert mean[0] > 190 and mean[1] < 10 and mean[2] < 10


def test_grey_kinds_become_three_equal_channels(tmp_path: Path) -> None:
    grey = picture(2)[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", grey))[..., 1], grey)
    wide = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(save(tmp_path / "16.png", wide))[..., 2], grey)
    one = grey > 120
    np.testing.assert_array_equal(read_image(save(tmp_path / "1.png", one))[..., 0], one * 255)


def test_alpha_is_dropped_and_palette_looked_up(tmp_path: Path) -> None:
    image = picture(3)
    rgba = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), image)
    palette = Image.fromarray(image).quantize(16)
    palette.save(tmp_path / "p.png")
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_tiff_of_either_byte_order(tmp_path: Path, mode: str) -> None:
    grey = picture(2)[..., 0]
    order = "<u2" if mode == "I;16" else ">u2"
    wide = (grey.astype(np.uint16) * 257).astype(order)
    Image.frombytes(mode, grey.shape[::-1], wide.tobytes()).save(tmp_path / "16.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "16.tif")[..., 1], grey)


def test_cmyk_jpeg_is_converted(tmp_path: Path) -> None:
    ink = np.zeros((16, 64, 4), np.uint8)  # white paper
    ink[:, 16:32, 0] = ink[:, 32:48, 2] = ink[:, 48:, 3] = 255  # cyan, yellow, black
    Image.fromarray(ink, mode="CMYK").save(tmp_path / "print.jpg", quality=100)
    seen = read_image(tmp_path / "print.jpg")[8, 8::16].astype(int)
    wanted = [[255, 255, 255], [0, 255, 255], [255, 255, 0], [0, 0, 0]]
    assert np.abs(seen - wanted).max() <= 4
    assert read_header(tmp_path / "print.jpg").mode == "CMYK"


def test_16_bit_colour_keeps_the_upper_bits(tmp_path: Path) -> None:
    import cv2

    image = picture(7)
    wide = image.astype(np.uint16) * 256 + 77
    cv2.imwrite(str(tmp_path / "c.png"), wide[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "c.png"), image)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    path = save(tmp_path / f"turned{suffix}", image, exif=exif, quality=95)
    seen = read_image(path)
    assert seen.shape == (80, 40, 3)
    assert seen[:40].mean() > 250 and seen[41:].mean() < 5
    assert image_size(path) == (80, 40) == read_header(path).size


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", picture(1, 40)[:20], exif=exif)
    data = path.read_bytes()
    chunks, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big") + 12
        chunks.append(data[position : position + length])
        position += length
    block = next(chunk for chunk in chunks if chunk[4:8] == b"eXIf")
    chunks.remove(block)
    path.write_bytes(data[:8] + b"".join([*chunks[:-1], block, chunks[-1]]))
    assert read_image(path).shape == (40, 20, 3) and image_size(path) == (40, 20)


def test_float_pixels_need_a_stated_range(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, 64, dtype=np.float32).reshape(8, 8)
    path = save(tmp_path / "f.tiff", values)
    with pytest.raises(ImageReadError, match=r"f\.tiff: has float pixels of unknown range; state"):
        read_image(path)
    tags = {340: 0.0, 341: 2.0}
    save(path, values, tiffinfo=tags)
    expected = np.rint(np.clip(values.astype(float) / 2, 0, 1) * 255)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)
    whole = (values * 1000).astype(np.int32)
    save(path, whole, tiffinfo={340: 0.0, 341: 2000.0})
    assert np.abs(read_image(path)[..., 2].astype(int) - expected).max() <= 1
    values[3, 3] = np.nan
    save(path, values, tiffinfo=tags)
    with pytest.raises(ImageReadError, match="not finite"):
        read_image(path)
    save(path, values, tiffinfo={340: 2.0, 341: 2.0})
    with pytest.raises(ImageReadError, match="states the range 2 to 2"):
        read_image(path)


def test_32_bit_unsigned_tiff(tmp_path: Path) -> None:
    import tifffile

    values = (np.arange(10, dtype=np.uint32) * 429496729).reshape(2, 5)
    tags = [(340, "I", 1, 0, True), (341, "I", 1, 2**32 - 1, True)]
    tifffile.imwrite(tmp_path / "u32.tif", values, extratags=tags)
    expected = np.rint(values.astype(float) / (2**32 - 1) * 255)
    np.testing.assert_array_equal(read_image(tmp_path / "u32.tif")[..., 0], expected)


def test_grey_tiff_of_12_bits_or_with_white_as_zero(tmp_path: Path) -> None:
    import tifffile

    ramp = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    packed = np.unpackbits(ramp.astype(">u2").view(np.uint8).reshape(8, 8, 2), axis=2)
    rows = [np.packbits(row[:, 4:].ravel()).tobytes() for row in packed]
    header = [
        *[(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8)],
        (279, 96),
    ]
    table = struct.pack("<H", len(header))
    table += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in header)
    data = b"II*\x00" + struct.pack("<I", 8 + 96) + b"".join(rows) + table + bytes(4)
    (tmp_path / "u12.tif").write_bytes(data)
    np.testing.assert_array_equal(
        read_image(tmp_path / "u12.tif")[..., 0], np.rint(ramp / 4095 * 255)
    )
    wide = ramp * 16
    tifffile.imwrite(tmp_path / "w.tif", wide, photometric="miniswhite")
    np.testing.assert_array_equal(
        read_image(tmp_path / "w.tif")[..., 0], np.rint((65535 - wide.astype(float)) / 257)
    )


def test_a_damaged_second_page_does_not_change_the_first(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pages = [Image.fromarray(values), Image.fromarray(values)]
    path = tmp_path / "f.tif"
    tags = {340: 0.0, 341: 1.0}
    pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo=tags)
    whole = read_image(path)
    data = path.read_bytes()
    for cut in range(len(data) - 60, len(data), 7):
        path.write_bytes(data[:cut])
        np.testing.assert_array_equal(read_image(path), whole)


def test_orientation_of_a_png_is_that_of_its_exif_chunk_alone(tmp_path: Path) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    for mode in ("RGB", "L", "RGBA", "P"):
        image = Image.fromarray(picture(1, 40)[:20]).convert(mode)
        image.save(tmp_path / "a.png", pnginfo=info)
        assert read_image(tmp_path / "a.png").shape[:2] == (20, 40)
        assert image_size(tmp_path / "a.png") == (20, 40)


@pytest.mark.parametrize("suffix", [".tif", ".webp"])
def test_the_first_of_several_pages_is_read_and_that_is_said(tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(picture(i)) for i in (1, 2, 3)]
    path = tmp_path / f"pages{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], lossless=True)
    np.testing.assert_array_equal(read_image(path), picture(1))
    assert read_header(path).pages == 3
    (loaded,) = stream_images([path], (32, 32))
    assert loaded.remark == "has 3 pages, of which the first is used"
    (single,) = stream_images([save(tmp_path / "one.tif", picture(1))], (32, 32))
    assert single.remark is None


def test_one_pixel_and_a_hundred_million(tmp_path: Path) -> None:
    dot = save(tmp_path / "dot.png", np.full((1, 1, 3), 9, np.uint8))
    assert read_image(dot).shape == (1, 1, 3)
    (loaded,) = stream_images([dot], (16, 24))
    assert loaded.pixels is not None and loaded.pixels.shape == (16, 24, 3)
    assert (loaded.pixels == 9).all()
    large = np.zeros((9000, 12000), np.uint8)
    large[4000:5000, 6000:8000] = 200
    path = save(tmp_path / "large.png", large, compress_level=1)
    assert read_header(path).size == (9000, 12000)
    (loaded,) = stream_images([path], (90, 120))
    assert loaded.pixels is not None and loaded.original_size == (9000, 12000)
    assert loaded.pixels[45, 70, 1] == 200 and loaded.pixels[45, 90, 1] == 0


def test_links_to_images(tmp_path: Path) -> None:
    real = save(tmp_path / "store" / "a.png", picture(1))
    (tmp_path / "set").symlink_to(tmp_path / "store")
    (tmp_path / "b.png").symlink_to(real)
    for path in (tmp_path / "set" / "a.png", tmp_path / "b.png"):
        np.testing.assert_array_equal(read_image(path), picture(1))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(ImageReadError, match=r"loop\.png: Too many levels of symbolic links"):
        read_image(tmp_path / "loop.png")


_CUT = {
    "png": {},
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "bmp": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "gif": {},
}


@pytest.mark.parametrize("kind", _CUT)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = save(tmp_path / f"whole.{kind}", picture(4, 200), **_CUT[kind])
    read_image(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageReadError) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_png_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "damaged.png", picture(5, 100))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ImageReadError, match="checksum"):
        read_image(path)
    assert capfd.readouterr().err == ""  # no noise of a decoder beside our line


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA", "mask"])
def test_damaged_png_of_any_kind_is_refused(tmp_path: Path, mode: str) -> None:
    """Pillow passes over the checksums of pixels, and gives other pixels instead."""
    image = Image.fromarray(picture(5, 100))
    kept = Image.fromarray(spot_mask(100)) if mode == "mask" else image.convert(mode)
    kept.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT")
    for position in range(start + 4, len(data) - 16, max(1, (len(data) - start) // 40)):
        broken = bytearray(data)
        broken[position] ^= 4
        (tmp_path / "a.png").write_bytes(bytes(broken))
        with pytest.raises(ImageReadError, match=r"damaged|truncated"):
            (read_mask if mode == "mask" else read_image)(tmp_path / "a.png")


def test_damaged_jpeg_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "damaged.jpg", picture(5, 200), quality=95)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : 3 * len(data) // 4] = bytes(3 * len(data) // 4 - len(data) // 4)
    path.write_bytes(bytes(data))
    with pytest.raises(ImageReadError, match=r"damaged\.jpg: Corrupt JPEG data"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, read_mask, image_size, read_header):
        with pytest.raises(ImageReadError, match="is not a regular file"):
            read(tmp_path / "pipe.png")


def test_other_unreadable_things_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "text.png": "not an image in a known format",
        "empty.png": "the file is empty",
        "folder.png": "is a folder",
        "none.png": "no such file",
    }.items():
        with pytest.raises(ImageReadError, match=reason):
            read_image(tmp_path / name)


def test_a_declared_size_beyond_reason_is_refused_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.bmp", picture(6, 8))
    data = bytearray(path.read_bytes())
    data[18:26] = (60000).to_bytes(4, "little") * 2  # width and height in the header
    path.write_bytes(bytes(data))
    with pytest.raises(
        ImageReadError, match=r"declares 3600000000 pixels, more than the 268435456 allowed"
    ):
        read_image(path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), kind=st.sampled_from(["png", "jpeg", "bmp", "tiff", "gif"]))
def test_any_bytes_are_an_image_or_an_image_error(data: bytes, kind: str, fuzz_base: dict) -> None:
    path, whole = fuzz_base["path"], fuzz_base[kind]
    for candidate in (data, whole[: len(whole) // 2] + data, whole[:20] + data + whole[20:]):
        path.write_bytes(candidate)
        try:
            image = read_image(path)
        except ImageReadError as error:
            assert "\n" not in str(error)
        else:
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


@pytest.fixture(scope="module")
def fuzz_base(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("fuzz")
    base: dict = {"path": folder / "candidate"}
    for kind in ("png", "jpeg", "bmp", "tiff", "gif"):
        path = folder / kind
        Image.fromarray(picture(7, 24)).save(path, format=kind)
        base[kind] = path.read_bytes()
    return base


def test_masks_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [127, 128, 255]], np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", values)), values)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "c.png", np.dstack([values * 0, values, values * 0]))), values
    )
    assert read_mask(save(tmp_path / "b.png", values > 100)).max() == 255
    wide = read_mask(save(tmp_path / "w.png", values.astype(np.uint16) * 257))
    np.testing.assert_array_equal(wide > 127, values > 0)


def test_masks_of_other_kinds(tmp_path: Path) -> None:
    marked = np.zeros((20, 20), np.uint8)
    marked[3:6, 4:8] = 255
    # a palette that lists white first
    two = Image.fromarray(np.dstack([marked] * 3)).quantize(2)
    two.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png") > 127, marked > 0)
    # indices of kinds, shown in colours
    kinds = Image.fromarray((marked > 0).astype(np.uint8) * 2).convert("P")
    kinds.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    kinds.save(tmp_path / "k.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "k.png"), (marked > 0) * 2)
    # white everywhere, but seen only where it is not transparent
    rgba = np.full((20, 20, 4), 255, np.uint8)
    rgba[..., 3] = marked
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", rgba)), marked)
    with pytest.raises(ImageReadError, match="float pixels"):
        read_mask(save(tmp_path / "f.tiff", marked.astype(np.float32)))


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".tif")])
def test_masks_in_the_alpha_channel_alone(tmp_path: Path, mode: str, suffix: str) -> None:
    alpha = np.zeros((20, 20), np.uint8)
    alpha[3:6, 4:8] = 255
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[..., 3] = alpha
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rgba).convert(mode).save(path)
    np.testing.assert_array_equal(read_mask(path), alpha)
    # black and opaque everywhere, or equally transparent, is an empty mask
    for everywhere in (255, 90):
        rgba[..., 3] = everywhere
        assert not read_mask(save(tmp_path / "b.png", rgba)).any()


@pytest.mark.parametrize("suffix", [".jfif", ".pgm", ".ppm", ".pnm"])
def test_suffixes_of_cameras_and_browsers(tmp_path: Path, suffix: str) -> None:
    image = picture(4)
    if suffix == ".pgm":
        image = image[..., 0]
    path = tmp_path / "a.x"
    Image.fromarray(image).save(path, format="JPEG" if suffix == ".jfif" else "PPM")
    path = path.rename(tmp_path / f"a{suffix.upper()}")
    assert suffix in IMAGE_SUFFIXES and image_files(tmp_path) == [path]
    seen = read_image(path)
    assert read_header(path).size == seen.shape[:2]
    if suffix != ".jfif":
        np.testing.assert_array_equal(seen, image if image.ndim == 3 else np.dstack([image] * 3))


def test_resize_averages_when_shrinking_and_keeps_thin_lines() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    image[:, 201] = 255  # one pixel wide
    small = resize_image(image, (40, 40))
    assert small[:, 20].mean() == pytest.approx(25.5, abs=1)
    assert resize_image(image, None) is image
    assert resize_image(image, (400, 400)) is image
    assert resize_image(image, (40, 800)).shape == (40, 800, 3)


def test_stream_keeps_order_reports_errors_and_bounds_what_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(save(tmp_path / f"{i}.png", picture(i, 16 + i))) for i in range(20)]
    Path(paths[7]).write_bytes(b"broken")
    started: list[int] = []
    lock = threading.Lock()
    import pyimgano.images.stream as stream

    load = stream._load

    def slow_load(index, *arguments):  # type: ignore[no-untyped-def]
        with lock:
            started.append(index)
        time.sleep(0.002 * ((index * 7) % 5))
        return load(index, *arguments)

    monkeypatch.setattr(stream, "_load", slow_load)
    consumed = 0
    for item in stream_images(paths, (8, 8), threads=4, ahead=6):
        assert item.index == consumed
        assert (item.error is not None) == (item.index == 7)
        if item.pixels is not None:
            assert item.pixels.shape == (8, 8, 3)
            assert item.original_size == (16 + item.index, 16 + item.index)
        consumed += 1
        with lock:
            assert len(started) - consumed <= 6
    assert consumed == 20


def test_stream_takes_an_endless_input_and_stops_when_left() -> None:
    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield np.zeros((4, 4, 3), np.uint8)

    before = threading.active_count()
    with stream_images(endless(), None, threads=2) as stream:
        for _ in range(50):
            next(stream)
    assert threading.active_count() <= before
    with pytest.raises(StopIteration):
        next(stream)
