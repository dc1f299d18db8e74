"""What is taken for images from Python, and what is refused with a line that says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyimgano.errors import DataError, UsageError
from pyimgano.images import as_sources, comes_one_by_one, read_image
from tests.conftest import picture, save
from tests.pixel_detector import Darkness

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (7, 9, 3), np.uint8)
GREY = RNG.integers(0, 256, (7, 9), np.uint8)
WIDE = RNG.integers(0, 65536, (7, 9), np.uint16)
IN_THREE = np.repeat(GREY[:, :, None], 3, axis=2)
ALPHA = np.concatenate([COLOUR, GREY[:, :, None]], axis=2)
FIRST = COLOUR.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("given_X", "expected"),
    [
        (COLOUR, [COLOUR]),
        (GREY, [IN_THREE]),
        (GREY[:, :, None], [IN_THREE]),
        (GREY[None], [IN_THREE]),
        (ALPHA, [COLOUR]),
        (WIDE, [WIDE]),
        (np.stack([COLOUR, COLOUR]), [COLOUR, COLOUR]),
        (np.stack([GREY] * 2), [IN_THREE] * 2),
        (np.stack([GREY] * 5), [IN_THREE] * 5),
        (np.stack([WIDE] * 5), [WIDE] * 5),
        (np.stack([ALPHA, ALPHA]), [COLOUR, COLOUR]),
        (np.stack([FIRST, FIRST]), [COLOUR, COLOUR]),
        ([FIRST, GREY, COLOUR], [COLOUR, IN_THREE, COLOUR]),
        ((one for one in (GREY, COLOUR)), [IN_THREE, COLOUR]),
        (Image.fromarray(COLOUR), [COLOUR]),
        ([Image.fromarray(GREY), Image.fromarray(ALPHA)], [IN_THREE, COLOUR]),
        (Image.fromarray(GREY > 127), [np.repeat((GREY > 127)[:, :, None], 3, 2) * np.uint8(255)]),
        (Image.fromarray(WIDE), [WIDE]),
        (torch.from_numpy(COLOUR), [COLOUR]),
        (torch.from_numpy(FIRST.copy()), [COLOUR]),
        (torch.from_numpy(np.stack([FIRST, FIRST])), [COLOUR, COLOUR]),
        ([torch.from_numpy(GREY)], [IN_THREE]),
        (np.array([COLOUR, GREY[:5], None], dtype=object)[:2], [COLOUR, IN_THREE[:5]]),
        ([], []),
    ],
)
def test_what_is_clear_is_taken(given_X: Any, expected: list[np.ndarray]) -> None:
    found = as_sources(given_X)
    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, wanted)
        assert isinstance(one, np.ndarray) and one.dtype == wanted.dtype


def test_paths_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a/2.JPG", "a/1.bmp", ".hidden/x.png", "@eaDir/y.png"):
        save(tmp_path / name, picture(1))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    expected = [str(tmp_path / name) for name in ("a/1.bmp", "a/2.JPG", "b.png")]
    assert list(as_sources(tmp_path)) == list(as_sources(str(tmp_path))) == expected
    assert as_sources("x.png") == ["x.png"] and as_sources(Path("x.png")) == [Path("x.png")]
    paths = ["a.png", Path("b.png")]
    assert as_sources(paths) is paths
    assert len(as_sources(np.array(["a.png", "b.png"]))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images"):
        as_sources(tmp_path / "empty")


def test_a_pil_image_is_read_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.png", {}), ("b.jpg", {"exif": exif, "quality": 95})):
        path = save(tmp_path / name, COLOUR, **options)
        with Image.open(path) as image:
            np.testing.assert_array_equal(as_sources([image])[0], read_image(path))
    palette = Image.fromarray(COLOUR).convert("P")
    np.testing.assert_array_equal(as_sources(palette)[0], np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("given_X", "said"),
    [
        (5, "X must be a sequence of paths or images, got int"),
        (b"a.png", "got one path"),
        ([3], r"X\[0\] must be a path or .* got int"),
        (np.zeros((3, 7, 9), np.uint8), "may be 3 grey images or one image with its channels"),
        (COLOUR / 255, r"X must be .* from 0 to 1, of .* \(255 \* image\)\.round\(\)"),
        (COLOUR.astype(np.float32), r"float32 with values .* if it is 0 to 255, image\.round\(\)"),
        (["a.png", COLOUR.astype(np.float32) - 9], r"X\[1\] .* bring them to 0 to 255"),
        (COLOUR.astype(np.int64), r"int64 .*; image\.astype\('uint8'\) keeps them"),
        ([GREY > 127], r"X\[0\] .* of bool .* a mask becomes an image"),
        (torch.rand(3, 7, 9), r"float32 .* \(255 \* image\)\.round"),
        (torch.rand(2, 3, 7, 9, dtype=torch.bfloat16), r"X\[0\] .* of which the range is not"),
        (np.zeros((2, 0, 9, 3), np.uint8), r"X\[0\] must be .* got shape \(0, 9, 3\)"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), r"got one array of shape \(1, 2, 3, 4, 5\)"),
        ([np.zeros((7, 9, 2), np.uint8)], r"got shape \(7, 9, 2\)"),
        ([np.zeros((7, 9, 4), np.uint16)], r"got shape \(7, 9, 4\)"),
        (Image.fromarray(GREY.astype(np.float32)), "mode 'F', of which the range is not known"),
        (np.zeros((), np.uint8), r"got one array of shape \(\)"),
    ],
)
def test_what_is_not_clear_is_refused_with_a_way_out(given_X: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        as_sources(given_X)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("one", ["folder", Path("a.png"), COLOUR, Image.fromarray(COLOUR)])
def test_a_detector_learns_from_a_list(one: Any) -> None:
    with pytest.raises(UsageError, match="X must be a sequence of paths or images, got one"):
        Darkness().fit(one)
    with pytest.raises(UsageError, match="calibration_images must be a sequence"):
        Darkness().fit([COLOUR], calibration_images=one)


def test_what_comes_one_by_one() -> None:
    for one in ([], "a", Path("a"), COLOUR, Image.fromarray(COLOUR), torch.zeros(1), 5):
        assert not comes_one_by_one(one)
    assert comes_one_by_one(iter([])) and comes_one_by_one({"a.png": 1}.keys())


@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from(["uint8", "uint16", "int8", "float32", "bool", "U3", "complex64"]),
    st.booleans(),
)
def test_any_array_is_taken_or_refused_in_one_line(
    shape: list[int], dtype: str, as_list: bool
) -> None:
    array = np.zeros(shape, dtype)
    try:
        found = as_sources([array] if as_list else array)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    for one in found:
        if isinstance(one, np.ndarray):
            assert one.dtype in (np.uint8, np.uint16) and 0 not in one.shape
            assert one.ndim == 2 or one.shape[2] == 3
