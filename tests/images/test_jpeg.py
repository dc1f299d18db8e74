"""JPEG files with bytes that do not belong there: passed over and said, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyimgano.cli import datasets
from pyimgano.datasets import check_dataset
from pyimgano.errors import ImageReadError
from pyimgano.images import decode_image, read_header, read_image
from tests.conftest import MakeDataset, picture

END = b"\xff\xd9"


def jpeg(seed: int = 0, *, size: int = 48, grey: bool = False) -> bytes:
    image = Image.fromarray(picture(seed, size))
    buffer = io.BytesIO()
    image.convert("L" if grey else "RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def segments(data: bytes) -> list[int]:
    """Where the segments of the header begin, up to the one that pixels follow."""
    found, position = [], 2
    while True:
        found.append(position)
        if data[position + 1] == 0xDA:
            return found
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")


WHOLE = {grey: jpeg(grey=grey) for grey in (False, True)}
PIXELS = {grey: decode_image("a.jpg", data).pixels for grey, data in WHOLE.items()}


@pytest.mark.parametrize("grey", [False, True])
def test_one_stray_byte_before_any_segment(tmp_path: Path, grey: bool) -> None:
    whole = WHOLE[grey]
    for place in segments(whole)[1:]:  # right after its first two bytes it is no JPEG to anybody
        path = tmp_path / "a.jpg"
        path.write_bytes(whole[:place] + b"\x2a" + whole[place:])
        decoded = decode_image(path)
        np.testing.assert_array_equal(decoded.pixels, PIXELS[grey])
        said = "has 1 stray byte between the segments of its header, which were passed over"
        assert decoded.remark == said == read_header(path).remark


@settings(max_examples=60, deadline=None)
@given(data=st.data(), grey=st.booleans())
def test_any_stray_bytes_between_segments(data: st.DataObject, grey: bool) -> None:
    """But for a byte 255 with a marker's code after it, which would be a segment."""
    whole = WHOLE[grey]
    stray = st.binary(min_size=1, max_size=40).map(lambda one: one.replace(b"\xff", b"\xfe"))
    count = 0
    for place in reversed(segments(whole)[1:]):
        if data.draw(st.booleans()):
            inserted = data.draw(stray)
            whole = whole[:place] + inserted + whole[place:]
            count += len(inserted)
    decoded = decode_image("a.jpg", whole)
    np.testing.assert_array_equal(decoded.pixels, PIXELS[grey])
    assert (decoded.remark is None) == (count == 0)
    assert count == 0 or f"has {count} stray byte" in str(decoded.remark)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 5000])
def test_zeros_before_the_end(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(WHOLE[False][:-2] + bytes(count) + END)
    decoded = decode_image(path)
    np.testing.assert_array_equal(decoded.pixels, PIXELS[False])
    assert decoded.remark == read_header(path).remark
    assert (
        count < 8 or decoded.remark == f"has {count} zeros before its end, which were passed over"
    )


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.01, 0.995), zeros=st.integers(0, 300), ended=st.booleans())
def test_pixels_that_are_cut_stay_refused(share: float, zeros: int, ended: bool) -> None:
    """Zeros in the place of what is missing may spell valid code, which libjpeg cannot tell from a
    picture; that stray bytes are passed over must not let any more through.
    """
    whole = WHOLE[False]
    start = segments(whole)[-1] + 14
    kept = min(start + int(share * (len(whole) - 2 - start)), len(whole) - 40)
    data = whole[:kept] + bytes(zeros) + END * ended
    try:
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        with pytest.raises(ImageReadError):
            decode_image("a.jpg", data)
    else:
        assert zeros


def test_a_byte_lost_in_the_pixels_stays_refused(tmp_path: Path) -> None:
    whole = WHOLE[False]
    path = tmp_path / "a.jpg"
    start = segments(whole)[-1] + 14
    path.write_bytes(whole[: start + 30] + b"\xff\x2a" + whole[start + 32 :])
    with pytest.raises(ImageReadError):
        read_image(path)


def test_no_more_than_stray_bytes_are_passed_over() -> None:
    whole = WHOLE[False]
    place = segments(whole)[1]
    with pytest.raises(ImageReadError):
        decode_image("a.jpg", whole[:place] + bytes(70_000) + whole[place:])


def test_the_check_says_what_the_run_says(
    make_mvtec: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(suffix=".jpg", train=3, good=1, bad=1)
    folder = root / "nut/train/good"
    whole = (folder / "000.jpg").read_bytes()
    place = segments(whole)[2]
    (folder / "000.jpg").write_bytes(whole[:place] + b"\0\0" + whole[place:])
    whole = (folder / "001.jpg").read_bytes()
    (folder / "001.jpg").write_bytes(whole[:-2] + bytes(9) + END)
    for deep in (False, True):
        checked = check_dataset("mvtec", root, deep=deep)
        found = {Path(one.path).name: one for one in checked.categories[0].findings}
        assert checked.errors == 0 and set(found) == {"000.jpg", "001.jpg"}
        assert "2 stray bytes" in found["000.jpg"].message
        assert "9 zeros before its end" in found["001.jpg"].message
        assert {one.kind for one in found.values()} == {"odd_image"}
    (folder / "002.jpg").write_bytes(whole[:-300] + bytes(40) + END)
    arguments = ["check", "--dataset", "mvtec", "--root", str(root), "--json"]
    with pytest.raises(SystemExit) as done:
        datasets(arguments)
    assert done.value.code == 1
    said = json.loads(capsys.readouterr().out)
    (wrong,) = (one for one in said["categories"][0]["findings"] if one["error"])
    assert Path(wrong["path"]).name == "002.jpg" and wrong["kind"] == "image_unreadable"
