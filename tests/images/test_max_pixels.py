"""Files that declare more pixels than they may: refused by their header, nothing is allocated."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyimgano.cli import benchmark as benchmark_command
from pyimgano.cli import datasets as datasets_command
from pyimgano.cli import infer as infer_command
from pyimgano.cli import main
from pyimgano.cli import robust_benchmark as robust_command
from pyimgano.errors import ImageReadError, UsageError
from pyimgano.images import (
    DEFAULT_MAX_PIXELS,
    image_size,
    limited_pixels,
    max_pixels,
    read_header,
    read_image,
    read_mask,
    set_max_pixels,
    stream_images,
)
from pyimgano.models import register_model
from pyimgano.pipelines import run_benchmark
from tests.conftest import MakeDataset, copy_registry, picture, save
from tests.faults.faults import watchdog
from tests.pixel_detector import Darkness


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    with watchdog():
        yield
    assert max_pixels() == DEFAULT_MAX_PIXELS


def declaring(kind: str, width: int, height: int) -> bytes:
    """A file of a few bytes whose header declares so many pixels."""
    buffer = io.BytesIO()
    Image.fromarray(picture(1, 8)).save(buffer, format=kind.partition("-")[0])
    data = bytearray(buffer.getvalue())
    if kind == "png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "jpeg":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "tiff":
        (start,) = struct.unpack_from("<I", data, 4)
        for entry in range(start + 2, start + 2 + 12 * data[start], 12):
            (tag,) = struct.unpack_from("<H", data, entry)
            if tag in (256, 257):
                struct.pack_into("<HII", data, entry + 2, 4, 1, width if tag == 256 else height)
    elif kind == "webp":
        data[26:30] = struct.pack("<HH", width, height)
    elif kind == "webp-lossless":
        buffer = io.BytesIO()
        Image.fromarray(picture(1, 8)).save(buffer, format="webp", lossless=True)
        data = bytearray(buffer.getvalue())
        data[21:25] = struct.pack("<I", width - 1 | height - 1 << 14)
    elif kind == "webp-extended":
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 1
        Image.fromarray(picture(1, 8)).save(buffer, format="webp", exif=exif)
        data = bytearray(buffer.getvalue())
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


KINDS = ["png", "jpeg", "bmp", "tiff", "webp", "webp-lossless", "webp-extended", "gif"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beyond_pillow", [True, False])
def test_refused_by_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, beyond_pillow: bool
) -> None:
    """Above Pillow's own limit and below it."""
    side = 60_000 if beyond_pillow and not kind.startswith("webp") else 9_000
    path = tmp_path / f"bomb.{kind.partition('-')[0]}"
    path.write_bytes(declaring(kind, side, side))
    Image.init()  # some plug-ins load a picture of their own when they are imported
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    with limited_pixels(side * side - 1):
        for read in (read_image, read_mask, read_header, image_size):
            with pytest.raises(ImageReadError) as refused:
                read(path)
            said = str(refused.value)
            assert said.startswith(f"{path}: declares ") and "\n" not in said
            assert f"more than the {side * side - 1} allowed" in said
            assert said.endswith(f"max_pixels={side * side} would allow it")
        (loaded,) = stream_images([path], (8, 8))
        assert loaded.pixels is None and str(loaded.error) == said


def test_no_memory_is_taken_for_what_is_refused(tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in KINDS:
        side = 16_383 if kind.startswith("webp") else 65_000
        path = tmp_path / kind
        path.write_bytes(declaring(kind, side, side))
        with limited_pixels(10**8), pytest.raises(ImageReadError, match="declares"):
            read_image(path)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 100_000  # kilobytes; the least of them would take 800,000


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif"])
def test_the_very_limit_is_read(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", picture(3, 40)[:30])
    with limited_pixels(1200):
        assert read_image(path).shape == (30, 40, 3)
    with limited_pixels(1199), pytest.raises(ImageReadError, match=r"declares (40 x 30|1200) "):
        read_image(path)


def test_line_scan_images_pass_and_those_above_pillows_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max_pixels() > 12_000 * 9_000
    path = save(tmp_path / "a.png", picture(3, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (40, 40, 3)
    assert read_header(path).size == (40, 40)
    assert Image.MAX_IMAGE_PIXELS == 100  # the process's own is as it was
    with limited_pixels(1599), pytest.raises(ImageReadError, match="declares 1600 pixels"):
        read_image(path)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "9"])
def test_limits_that_are_none(count: object) -> None:
    with pytest.raises(UsageError, match="max_pixels must be a whole number of at least 1, got"):
        set_max_pixels(count)  # type: ignore[arg-type]
    with limited_pixels(5):
        set_max_pixels(None)
        assert max_pixels() == DEFAULT_MAX_PIXELS


def test_a_run_says_its_limit_and_keeps_to_it(
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_registry(monkeypatch)
    register_model("darkness")(Darkness)
    root = make_mvtec(("nut",))
    large = save(root / "nut/test/good/large.png", picture(5, 80))
    mask = save(root / "nut/ground_truth/spot/001_mask.png", np.zeros((80, 80), np.uint8))
    common = ["--dataset", "mvtec", "--root", str(root), "--max-pixels", "5000"]
    fitted = ["--model", "darkness", "--resize", "64", "64", "--runs-dir", str(tmp_path / "r")]
    said = "declares 80 x 80 pixels, more than the 5000 allowed; max_pixels=6400 would allow it"
    more = ["--corruptions", "lighting", "--severities", "1"]
    for command, further in ((benchmark_command, []), (robust_command, more)):
        with pytest.raises(SystemExit) as left:
            command([*common, "--category", "nut", *fitted, *further])
        captured = capsys.readouterr()
        assert left.value.code == 1
        assert f"nut: unreadable_test_image: {large}: {said}" in captured.err
        assert f"{mask}: {said}" in captured.err
        report = json.loads(captured.out)
        config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
        assert config["max_pixels"] == 5000
    with pytest.raises(SystemExit) as left:
        datasets_command(["check", *common])
    assert left.value.code == 1 and f"{large}: {said}" in capsys.readouterr().out
    train = str(root / "nut/train/good")
    with pytest.raises(SystemExit) as left:
        infer_command(
            [
                *["--model", "darkness", "--resize", "64", "64", "--train-dir", train],
                *["--input", str(large), "--max-pixels", "5000"],
            ]
        )
    captured = capsys.readouterr()
    (record,) = map(json.loads, captured.out.splitlines())
    assert left.value.code == 1 and (record["error"], record["pred"]) == (said, None)
    with pytest.raises(SystemExit) as left:
        benchmark_command([*common[:-1], "0", *fitted])
    captured = capsys.readouterr()
    assert left.value.code == 2 and captured.err.count("\n") == 1 and "max_pixels" in captured.err

    report = run_benchmark(
        dataset="mvtec",
        root=root,
        category="nut",
        model="darkness",
        resize=(64, 64),
        runs_dir=tmp_path / "r",
    )
    config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
    assert config["max_pixels"] == 2**28 and report["counts"]["test_unreadable"] == 0


def test_a_cache_does_not_lift_the_limit(tmp_path: Path) -> None:
    from pyimgano.images import Recalled

    class Knows:
        def lookup(self, key: str) -> Recalled:
            return Recalled(["features"], (40, 40), None)

    path = save(tmp_path / "a.png", picture(3, 40))
    (known,) = stream_images([path], (8, 8), recall=Knows())
    assert known.error is None
    with limited_pixels(1599):
        (refused,) = stream_images([path], (8, 8), recall=Knows())
    assert refused.error is not None and "declares 40 x 40 pixels" in str(refused.error)


def test_a_teacher_is_not_distilled_from_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "large.png", picture(0, 80))
    target = tmp_path / "t.safetensors"
    words = ["distill-teacher", "--input", tmp_path, "--output", target]
    assert main([*map(str, words), "--max-pixels", "5000", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "declares 80 x 80 pixels, more than the 5000 allowed" in said
