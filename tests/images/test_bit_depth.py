"""Cameras of 10 and 12 bits in files of 16: what files declare, what users say, what is noted."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.cli import datasets
from pyimgano.cli import infer as infer_command
from pyimgano.datasets import check_dataset, load_dataset
from pyimgano.errors import ImageReadError, UsageError
from pyimgano.images import (
    decode_image,
    read_header,
    read_image,
    read_mask,
    stream_images,
)
from pyimgano.models import Detector, create_model, load_model
from pyimgano.models.tiled import TiledDetector
from pyimgano.pipelines import run_benchmark, run_robust_benchmark
from tests.conftest import MakeDataset, picture

CHEAP = {"backbone": "resnet18", "pretrained": False, "engine": "torch", "device": "cpu"}


def grey(bits: int = 12, seed: int = 0) -> np.ndarray:
    """(24, 30) uint16 that makes use of all values of `bits` bits."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (24, 30)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    return values


def colour(bits: int = 12) -> np.ndarray:
    return np.stack([grey(bits, seed) for seed in range(3)], axis=2)


def wanted(values: np.ndarray, top: float) -> np.ndarray:
    """(H, W, 3): grey rounded, colour rounded down."""
    exact = 255 * values.astype(np.float64) / top
    if values.ndim == 3:
        return np.floor(exact + 1e-9)
    return np.repeat(np.rint(exact)[:, :, None], 3, axis=2)


def write_png(path: Path, values: np.ndarray, significant: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = values if values.ndim == 2 else np.ascontiguousarray(values[..., ::-1])
    done, data = cv2.imencode(".png", stored)
    assert done
    text = data.tobytes()
    if significant is not None:
        chunk = b"sBIT" + significant
        checked = struct.pack(">I", len(significant)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        text = text[:33] + checked + text[33:]
    path.write_bytes(text)
    return path


def write_pgm(path: Path, values: np.ndarray, maxval: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = b"P5" if values.ndim == 2 else b"P6"
    head = b"%s # by a camera\n%d %d\n# and more\n%d\n"
    size = (values.shape[1], values.shape[0])
    path.write_bytes(head % (kind, *size, maxval) + values.astype(">u2").tobytes())
    return path


def same(path: Path, expected: np.ndarray, **keywords: Any) -> None:
    np.testing.assert_array_equal(read_image(path, **keywords), expected)


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_what_files_declare_is_obeyed(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    for values in (grey(bits), colour(bits)):
        channels = 1 if values.ndim == 2 else 3
        expected = wanted(values, top)
        same(write_png(tmp_path / "a.png", values, bytes([bits] * channels)), expected)
        same(write_pgm(tmp_path / "a.pgm", values, top), expected)
        photometric = "minisblack" if channels == 1 else "rgb"
        for tag, kind in ((281, "H"), (341, "d")):
            tags = [(tag, kind, channels, (top,) * channels if channels > 1 else top, True)]
            tifffile.imwrite(
                tmp_path / "a.tif", values, photometric=photometric, extratags=tags, metadata=None
            )
            same(tmp_path / "a.tif", expected)
        decoded = decode_image(tmp_path / "a.tif")
        assert decoded.samples == (top, top, True) and decoded.remark is None


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_what_the_user_says(tmp_path: Path, suffix: str) -> None:
    for values in (grey(), colour()):
        path = tmp_path / f"a{suffix}"
        if suffix == ".png":
            write_png(path, values)
        elif suffix == ".pgm":
            write_pgm(path, values, 65535)
        else:
            tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
        same(path, wanted(values, 4095), bit_depth=12)
        same(path, wanted(values, 16383), bit_depth=14)
        if values.ndim == 2:
            same(path, wanted(values, 65535))
        assert decode_image(path).samples == (4095, 65535, False)
        with pytest.raises(ImageReadError, match="holds the value 4095, and bit_depth=10 means"):
            read_image(path, bit_depth=10)
    for wrong in (8, 17, 12.5, True, "12"):
        with pytest.raises(UsageError, match="bit_depth must be a whole number from 9 to 16"):
            read_image(path, bit_depth=wrong)  # type: ignore[arg-type]


def test_contradictions_are_said_or_refused(tmp_path: Path) -> None:
    values = grey(10)
    path = write_png(tmp_path / "a.png", values, b"\x0a")
    decoded = decode_image(path, bit_depth=12)
    np.testing.assert_array_equal(decoded.pixels, wanted(values, 4095))
    assert decoded.remark == "declares 1023 as its largest value, and was read with 4095"
    tifffile.imwrite(tmp_path / "a.tif", grey(), extratags=[(281, "H", 1, 1023, True)])
    with pytest.raises(ImageReadError, match="declares 1023 as its largest value and holds 4095;"):
        read_image(tmp_path / "a.tif")
    same(tmp_path / "a.tif", wanted(grey(), 4095), bit_depth=12)
    with pytest.raises(ImageReadError, match=r"as its largest value and holds 4095$"):
        read_image(write_pgm(tmp_path / "a.pgm", grey(), 1023))
    tifffile.imwrite(tmp_path / "s.tif", -grey().astype(np.int16))
    with pytest.raises(ImageReadError, match="negative values, and bit_depth=12"):
        read_image(tmp_path / "s.tif", bit_depth=12)
    tifffile.imwrite(tmp_path / "s.tif", grey().astype(np.int16))
    same(tmp_path / "s.tif", wanted(grey(), 4095), bit_depth=12)


def test_png_scaled_up_as_its_specification_wants(tmp_path: Path) -> None:
    """A chunk sBIT then says what to scale down to; the picture is that of all 16 bits."""
    values = grey()
    shifted = values << 4
    for scaled in (shifted, shifted | values >> 8):
        path = write_png(tmp_path / "a.png", scaled, b"\x0c")
        same(path, wanted(scaled, 65535))
        same(path, wanted(scaled, 65535), bit_depth=12)
        assert decode_image(path).samples.stated  # type: ignore[union-attr]
    dark = (values >> 4) << 4
    decoded = decode_image(write_png(tmp_path / "d.png", dark, b"\x0c"))
    np.testing.assert_array_equal(decoded.pixels, wanted(dark, 4095))
    assert "holds only multiples of 16 up to" in str(decoded.remark)
    same(tmp_path / "d.png", wanted(dark, 65535), bit_depth=16)


def test_white_as_zero_and_text(tmp_path: Path) -> None:
    values = grey()
    tifffile.imwrite(tmp_path / "w.tif", values, photometric="miniswhite")
    same(tmp_path / "w.tif", 255 - wanted(values, 4095), bit_depth=12)
    path = tmp_path / "t.pgm"
    path.write_text("P2\n30 24\n4095\n" + " ".join(map(str, values.ravel().tolist())))
    same(path, wanted(values, 4095))
    with pytest.raises(ImageReadError, match="truncated"):
        whole = write_pgm(tmp_path / "c.pgm", values, 4095).read_bytes()
        (tmp_path / "c.pgm").write_bytes(whole[:-1])
        read_header(tmp_path / "c.pgm")


def test_float_pixels_of_a_pfm_are_refused_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.pnm"
    path.write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes())
    for read in (read_image, read_header):
        with pytest.raises(ImageReadError, match="pnm: has 32-bit integer or float pixels of unk"):
            read(path)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    maxval=st.integers(256, 65535),
    colours=st.booleans(),
    comment=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    cut=st.integers(0, 4),
)
def test_netpbm_of_any_size(
    height: int, width: int, maxval: int, colours: bool, comment: str, cut: int
) -> None:
    shape = (height, width, 3) if colours else (height, width)
    values = np.random.default_rng(maxval).integers(0, maxval, shape, endpoint=True)
    kind = b"P6" if colours else b"P5"
    head = kind + b"\n#" + comment.encode() + b"\n%d\t%d\n%d\n" % (width, height, maxval)
    data = head + values.astype(">u2").tobytes()
    if cut:
        with pytest.raises(ImageReadError):
            decode_image("a.pnm", data[:-cut])
        return
    np.testing.assert_array_equal(decode_image("a.pnm", data).pixels, wanted(values, maxval))


def test_masks_in_pgm_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [3, 0, 1]])
    path = tmp_path / "m.pgm"
    path.write_bytes(b"P5 3 2 3\n" + values.astype(np.uint8).tobytes())
    np.testing.assert_array_equal(read_mask(path), values)
    np.testing.assert_array_equal(
        read_mask(write_pgm(path, values * 1000, 4095)), np.minimum(values * 1000, 255)
    )


def test_arrays_of_16_bits() -> None:
    images = [grey(), colour(), picture(0)]
    seen = [one.pixels for one in stream_images(images, None, bit_depth=12)]
    for image, pixels in zip(images, seen):
        expected = image if image.dtype == np.uint8 else wanted(image, 4095)
        np.testing.assert_array_equal(pixels, expected)
    wide = [one.pixels for one in stream_images(images[:2], None)]
    np.testing.assert_array_equal(wide[0], wanted(images[0], 65535))
    np.testing.assert_array_equal(wide[1], images[1] // 257)
    (refused,) = stream_images([images[0]], None, bit_depth=10)
    assert refused.error is not None and "image 0: holds the value 4095" in str(refused.error)


def twelve(seed: int, *, spot: bool = False) -> np.ndarray:
    """(64, 64) uint16 of 0 to 4095."""
    return np.rint(picture(seed, spot=spot)[..., 0] * (4095 / 255.0)).astype(np.uint16)


def make(**keywords: Any) -> Detector:
    return create_model("vision_patchcore", **{"resize": (48, 48), **CHEAP, **keywords})


def test_a_detector_keeps_its_bit_depth(tmp_path: Path) -> None:
    paths = [str(write_png(tmp_path / f"{i}.png", twelve(i))) for i in range(4)]
    arrays = [twelve(i) for i in range(4)]
    narrow = [np.rint(one / 4095 * 255).astype(np.uint8)[..., None].repeat(3, 2) for one in arrays]
    detector = make(bit_depth=12).fit(paths)
    plain = make().fit(narrow)
    assert detector.threshold_ == plain.threshold_ and detector.reading_notes_ == ()
    expected = plain.decision_function(narrow)
    np.testing.assert_array_equal(detector.decision_function(arrays), expected)
    loaded = load_model(detector.save(tmp_path / "model"))
    assert loaded.get_params()["bit_depth"] == 12
    np.testing.assert_array_equal(loaded.decision_function(paths), expected)
    brighter = write_png(tmp_path / "b.png", np.full((64, 64), 4096, np.uint16))
    with pytest.raises(ImageReadError, match="holds the value 4096, and bit_depth=12"):
        loaded.decision_function([str(brighter)])
    with pytest.raises(UsageError, match="bit_depth"):
        make(bit_depth=8).fit(paths)


def test_a_detector_of_an_earlier_version_reads_as_it_did(tmp_path: Path) -> None:
    paths = [str(write_png(tmp_path / f"{i}.png", twelve(i), b"\x0c")) for i in range(3)]
    detector = make(bit_depth=16).fit(paths)
    folder = detector.save(tmp_path / "model")
    document = json.loads((folder / "detector.json").read_text())
    del document["parameters"]["bit_depth"]
    (folder / "detector.json").write_text(json.dumps(document))
    loaded = load_model(folder)
    assert loaded.get_params()["bit_depth"] == 16
    np.testing.assert_array_equal(
        loaded.decision_function(paths), detector.decision_function(paths)
    )
    assert (make().fit(paths).decision_function(paths) != loaded.decision_function(paths)).any()


def test_a_cache_knows_the_bit_depth_and_what_was_read(tmp_path: Path) -> None:
    paths = [str(write_png(tmp_path / f"{i}.png", twelve(i))) for i in range(3)]
    cache = str(tmp_path / "cache")
    for bits in (None, 12, 13, 12, None):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            cached = make(bit_depth=bits, cache_dir=cache).fit(paths)
        said = [str(one.message) for one in told if "bit_depth" in str(one.message)]
        assert len(said) == (bits is None) == len(cached.reading_notes_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cached.threshold_ == make(bit_depth=bits).fit(paths).threshold_


def test_dim_training_images_are_noted() -> None:
    arrays = [twelve(i) for i in range(3)]
    with pytest.warns(UserWarning, match=r"no training image has a value above \d+ of the 65535"):
        detector = make().fit(arrays)
    (note,) = detector.reading_notes_
    assert "bit_depth=12 (--bit-depth 12)" in note and "levels of grey" in note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for others in ([*arrays, twelve(4) * 2 + 8000], [*arrays, picture(3)]):
            assert make().fit(others).reading_notes_ == ()
    tiled = TiledDetector(make(), tile_size=32)
    with pytest.warns(UserWarning, match="bit_depth=12"):
        tiled.fit(arrays)
    assert tiled.decision_function(arrays[:1]).shape == (1,)


def test_tiles_are_read_with_the_bit_depth() -> None:
    arrays = [twelve(i) for i in range(4)]
    narrow = [np.rint(one / 4095 * 255).astype(np.uint8)[..., None].repeat(3, 2) for one in arrays]
    wide = TiledDetector(make(bit_depth=12), tile_size=32).fit(arrays)
    plain = TiledDetector(make(), tile_size=32).fit(narrow)
    np.testing.assert_array_equal(wide.decision_function(arrays), plain.decision_function(narrow))


@pytest.fixture
def twelve_bit_dataset(make_mvtec: MakeDataset) -> Path:
    """A dataset in MVTec layout whose images are PNG of 12 bits in 16."""
    root = make_mvtec(train=4, good=2, bad=2)
    for number, path in enumerate(sorted((root / "nut").glob("t*/*/*.png"))):
        write_png(path, twelve(number, spot="spot" in path.parts))
    return root


def test_runs_have_the_bit_depth(twelve_bit_dataset: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {
        "dataset": "mvtec",
        "root": twelve_bit_dataset,
        "category": "nut",
        "resize": (48, 48),
        "pretrained": False,
        "model_kwargs": {"backbone": "resnet18", "engine": "torch"},
    }
    report = run_benchmark(**run, bit_depth=12, output_dir=tmp_path / "runs", save_model=True)
    assert report["detector"]["parameters"]["bit_depth"] == 12
    assert not any("bit_depth" in note for note in report["notes"])
    with pytest.warns(UserWarning, match="bit_depth=12"):
        dim = run_benchmark(**run, save_run=False)
    assert any("--bit-depth 12" in note for note in dim["notes"])
    assert dim["threshold"] != report["threshold"]
    robust = run_robust_benchmark(
        **run, bit_depth=12, corruptions="blur", severities=[1], save_run=False
    )
    assert robust["threshold"] == report["threshold"]
    assert robust["clean"]["metrics"] is not None
    with pytest.raises(UsageError, match="bit_depth stands in model_kwargs too"):
        run_benchmark(**{**run, "model_kwargs": {"bit_depth": 12}}, bit_depth=12)
    with pytest.raises(UsageError, match="bit_depth"):
        run_benchmark(**run, bit_depth=7)


def test_the_command_keeps_to_what_was_fitted(
    twelve_bit_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = str(twelve_bit_dataset / "nut/train/good")
    image = str(next((twelve_bit_dataset / "nut/test/good").iterdir()))
    model = str(tmp_path / "model")
    keywords = json.dumps({"backbone": "resnet18", "pretrained": False, "engine": "torch"})

    def call(*arguments: str) -> tuple[Any, list[dict[str, Any]], str]:
        with pytest.raises(SystemExit) as done:
            infer_command([*arguments, "--input", image])
        said = capsys.readouterr()
        return done.value.code, [json.loads(one) for one in said.out.splitlines()], said.err

    fit = ("--train-dir", train, "--model-kwargs", keywords, "--resize", "48", "48")
    code, fitted, err = call(*fit, "--bit-depth", "12", "--save-model", model)
    assert code == 0 and "bit_depth" not in err
    code, again, err = call("--model-dir", model, "--save-overlays", str(tmp_path / "o"))
    assert code == 0 and again[0]["score"] == fitted[0]["score"] and again[0]["overlay"]
    drawn = read_image(again[0]["overlay"])
    assert np.abs(drawn[:20, -20:].astype(float) - read_image(image)[:20, -20:]).mean() > 20
    code, same_depth, _ = call("--model-dir", model, "--bit-depth", "12")
    assert code == 0 and same_depth[0]["score"] == fitted[0]["score"]
    code, nothing, err = call("--model-dir", model, "--bit-depth", "10")
    assert code == 2 and not nothing
    assert "bit_depth 10 contradicts the detector, which was fitted with 12" in err


def test_the_check_and_the_dataset_read_with_it(
    twelve_bit_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def notes(**keywords: Any) -> list[str]:
        checked = check_dataset("mvtec", twelve_bit_dataset, **keywords)
        return [one.message for one in checked.categories[0].findings]

    assert notes() == [] == notes(deep=True, bit_depth=12)
    assert any("--bit-depth 12" in one for one in notes(deep=True))
    assert all("bit_depth=10" in one for one in notes(deep=True, bit_depth=10))
    with pytest.raises(SystemExit) as done:
        datasets(
            ["check", "--dataset", "mvtec", "--root", str(twelve_bit_dataset), "--deep"]
            + ["--bit-depth", "10"]
        )
    assert done.value.code == 1 and "bit_depth=10" in capsys.readouterr().out
    data = load_dataset("mvtec", twelve_bit_dataset, "nut", bit_depth=12, resize=(64, 64))
    assert data.get_train_data().max() > 150
