"""`pyimgano.inference`, and the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import pyimgano.models
import pyimgano.runs
from pyimgano.cli import infer as command
from pyimgano.errors import DataError, ImageReadError, NotFittedError, UsageError
from pyimgano.images import read_image
from pyimgano.inference import calibrate_threshold, infer, iter_infer
from pyimgano.models import register_model, registry
from pyimgano.models.loading import load_model
from pyimgano.models.tiled import TiledDetector
from tests.conftest import copy_registry, picture, save
from tests.pixel_detector import Darkness, fitted, plain
from tests.stubs import SavedDarkness

Call = Callable[..., tuple[int, list[dict[str, Any]], str]]


def spotted(value: int = 220, size: int = 64) -> np.ndarray:
    image = plain(value, size, size)
    image[10:20, 30:50] = 5
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images, one defective, in `parts`; four good ones in `train`."""
    for i, value in enumerate((200, 205, 210, 215)):
        save(tmp_path / "train" / f"{i}.png", plain(value))
    save(tmp_path / "parts" / "a" / "0.png", plain(220, 96, 128))
    save(tmp_path / "parts" / "a" / "1.png", spotted())
    save(tmp_path / "parts" / "b" / "0.png", plain(222))
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `pyimgano-infer` here, where `darkness` is a model and `load_model` gives one."""
    monkeypatch.setitem(
        registry._entries, "darkness", registry.ModelEntry("darkness", Darkness, ())
    )
    monkeypatch.setattr(
        pyimgano.models, "load_model", lambda folder, **options: fitted(), raising=False
    )

    def run(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
        with pytest.raises(SystemExit) as left:
            command([str(one) for one in arguments])
        captured = capsys.readouterr()
        code = left.value.code
        records = [json.loads(line) for line in captured.out.splitlines()]
        return (code if isinstance(code, int) else 0), records, captured.err

    return run


def fit_on(folder: Path) -> list[object]:
    return ["--model", "darkness", "--train-dir", folder / "train", "--resize", 64, 64]


# ---- from Python


def test_results_hold_scores_labels_and_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = save(tmp_path / "good.png", plain(220, 50, 70))
    found = infer(fitted(), [str(good), spotted(), bad])
    assert [one.index for one in found] == [0, 1, 2]
    assert [one.label for one in found] == [0, 1, None]
    assert [one.score for one in found] == [35.0, 250.0, None]
    assert [one.input for one in found] == [str(good), "image 1", str(bad)]
    assert found[0].original_size == (50, 70) and found[0].anomaly_map is None
    assert found[2].error == "not an image in a known format" and found[0].error is None
    assert {one.threshold for one in found} == {fitted().threshold_}
    mapped = infer(fitted(), [spotted()], include_maps=True, regions=True, min_area=3)
    assert mapped[0].anomaly_map is not None and mapped[0].anomaly_map.shape == (64, 64)
    assert mapped[0].regions is not None and mapped[0].regions[0].box == (30, 10, 20, 10)
    assert infer(fitted(), []) == []
    assert infer(fitted(), np.stack([plain(), spotted()]))[1].label == 1


def test_a_result_comes_before_the_next_input_is_asked_for() -> None:
    asked: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        while True:
            asked.append(len(asked))
            yield spotted() if len(asked) % 5 == 0 else plain()

    results = iter_infer(fitted(), camera(), batch_size=1)
    for expected in range(12):
        result = next(results)
        assert result.index == expected and len(asked) == expected + 1
        assert result.label == (1 if (expected + 1) % 5 == 0 else 0)
    asked.clear()
    batched = iter_infer(fitted(), camera(), batch_size=3)
    seen = []
    for _ in range(7):
        next(batched)
        seen.append(len(asked))
    assert seen == [3, 3, 3, 6, 6, 6, 9]


def test_reading_ahead_is_bounded_and_gives_the_same() -> None:
    asked = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield plain(asked % 250)

    ahead = iter_infer(fitted(), camera(), read_ahead=True)
    first = [next(ahead).score for _ in range(20)]
    assert 20 < asked <= 20 + 256 + Darkness.batch_size
    ahead.close()  # type: ignore[attr-defined]
    frames = [plain(i % 250) for i in range(1, 21)]
    assert first == [one.score for one in infer(fitted(), frames)]


def test_batches_are_of_the_size_asked_for_and_the_detector_is_left_alone() -> None:
    detector = fitted()
    batches = detector.learned_.batches  # type: ignore[attr-defined]
    batches.clear()
    frames = [plain(i) for i in range(100, 111)]
    one = infer(detector, frames, batch_size=5)
    assert batches == [5, 5, 1] and detector.batch_size == 4
    batches.clear()
    other = list(iter_infer(detector, iter(frames), batch_size=6))
    assert batches == [6, 5]
    assert [r.score for r in one] == [r.score for r in other]
    assert [r.index for r in other] == list(range(11))
    batches.clear()
    tiled = TiledDetector(detector, tile_size=64, tile_stride=64)
    list(iter_infer(tiled, [plain(3, 192, 192)], batch_size=9))
    assert batches == [9]


def test_what_an_iterator_gave_before_it_failed_is_scored() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield plain()
        yield spotted()
        raise OSError("the camera is gone")

    for ahead in (None, True):
        results = iter_infer(fitted(), failing(), read_ahead=ahead)
        assert [next(results).label, next(results).label] == [0, 1]
        with pytest.raises(OSError, match="the camera is gone"):
            next(results)
    wrong = iter_infer(fitted(), iter([plain(), plain() / 255]))
    assert next(wrong).label == 0
    with pytest.raises(UsageError, match=r"inputs\[1\] must be an \(H, W, 3\) uint8"):
        next(wrong)


def test_usage_is_checked_at_once() -> None:
    with pytest.raises(NotFittedError):
        iter_infer(Darkness(), [])
    for name, value in (("batch_size", 0), ("min_area", 1.5)):
        with pytest.raises(UsageError, match=name):
            iter_infer(fitted(), [], **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pixel_threshold"):
        iter_infer(fitted(), [], regions=True, pixel_threshold=float("nan"))
    with pytest.raises(UsageError, match="got int"):
        infer(fitted(), 3)  # type: ignore[arg-type]
    detector = fitted()
    detector.pixel_calibration_ = None
    assert infer(detector, [spotted()], regions=True)[0].regions  # the decision explains itself
    vars(detector)["threshold_"] = None  # as of another program's detector
    with pytest.raises(UsageError, match="no threshold for pixels"):
        infer(detector, [], regions=True)


def test_maps_explain_the_decision() -> None:
    """Whatever the threshold is moved to: no region where good, the strongest place where not."""
    faint = plain(220)
    faint[10:12, 10:12] = 190  # 65 against 35 around
    detector = fitted()
    for threshold in (30.0, 64.0, 65.0, 66.0, 300.0):
        detector.set_threshold(threshold)
        for result in infer(
            detector, [plain(220), faint, spotted()], include_maps=True, regions=True
        ):
            assert bool(result.regions) == (result.label == 1)
            assert result.anomaly_map is not None and result.map_scale is not None
            multiples = result.map_scale.multiples(result.anomaly_map)
            assert (multiples.max() >= 1) == (result.label == 1)
            if result.score != 35.0:  # all over as a normal image, a map has nothing to say
                assert multiples.max() == pytest.approx(result.score_ratio, rel=1e-5)
    plainly = infer(detector, [faint])[0]
    assert plainly.map_scale is None and plainly.context_share is None


def test_a_threshold_from_held_out_images(tmp_path: Path) -> None:
    detector = fitted()
    # others than the two that were learned from, which would not count
    good = [plain(v) for v in range(90, 190)]
    found = calibrate_threshold(detector, good, quantile=0.9)
    assert found == detector.threshold_ == np.nextafter(255.0 - 99, np.inf)  # rank 91 of 100
    assert detector.calibration_.method == "held-out-images"
    assert detector.calibration_.quantile_asked == 0.9
    assert len(detector.decision_scores_) == 100
    assert detector.pixel_calibration_ is not None and detector.pixel_calibration_.n_images == 100
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ImageReadError):
        calibrate_threshold(detector, [plain(), tmp_path / "bad.png"])
    assert detector.threshold_ == found  # a failure changes nothing
    calibrate_threshold(detector, [plain(), tmp_path / "bad.png"], on_error="skip")
    unread = "1 of the images to calibrate on could not be read"
    assert any(unread in note for note in detector.calibration_.notes)
    with pytest.raises(DataError, match="none of 1"):
        calibrate_threshold(detector, [tmp_path / "bad.png"], on_error="skip")
    for inputs, quantile in (([], 0.5), ([plain()], 1.0)):
        with pytest.raises(UsageError):
            calibrate_threshold(detector, inputs, quantile=quantile)


# ---- the command


def test_a_record_for_each_image(call: Call, folder: Path) -> None:
    jsonl = folder / "out.jsonl"
    code, records, err = call(*fit_on(folder), "--input", folder / "parts", "--save-jsonl", jsonl)
    assert code == 0
    assert [r["index"] for r in records] == [0, 1, 2]
    assert [Path(r["input"]).parent.name for r in records] == ["a", "a", "b"]
    assert [r["pred"] for r in records] == [0, 1, 0]
    assert records[0]["original_size"] == [96, 128] and records[0]["error"] is None
    assert set(records[0]) == {
        "index", "input", "score", "threshold", "calibration", "pred", "label", "score_ratio",
        "p_value", "error", "remark", "original_size",
    }  # fmt: skip
    assert [json.loads(line) for line in jsonl.read_text().splitlines()] == records
    assert "threshold 55" in err and "3 images: 1 defective, 2 good, 0 unreadable" in err
    code, records, _ = call(
        *fit_on(folder), "--quiet", folder / "parts" / "a" / "1.png", "--save-jsonl", jsonl
    )
    assert code == 0 and records == [] and len(jsonl.read_text().splitlines()) == 1


def test_what_cannot_be_read_or_found_is_exit_1(call: Call, folder: Path) -> None:
    bad = folder / "parts" / "b" / "1.png"
    bad.write_bytes(b"no")
    code, records, err = call(*fit_on(folder), "--input", folder / "parts")
    assert code == 1 and len(records) == 4
    assert records[-1]["score"] is None and records[-1]["pred"] is None
    assert records[-1]["error"] == "not an image in a known format" and str(bad) in err
    bad.unlink()
    code, records, err = call(
        *fit_on(folder), "--input", folder / "*.gif", "--input", folder / "parts"
    )
    assert code == 1 and len(records) == 3 and "matches no image" in err
    code, records, err = call(*fit_on(folder), "--input", folder / "none.png")
    assert code == 1 and records == [] and "no such file or folder" in err
    (folder / "list.txt").write_text("parts/a/0.png\nmissing.png\n")
    code, records, _ = call(*fit_on(folder), "--input", f"@{folder}/list.txt")
    assert code == 1 and [r["error"] for r in records] == [None, "no such file"]


def test_files_beside_the_records(call: Call, folder: Path) -> None:
    out = folder / "out"
    code, records, _ = call(
        *fit_on(folder), "--input", folder / "parts", "--regions", "--include-maps",
        "--save-maps", out, "--save-overlays", out, "--save-masks", out,
    )  # fmt: skip
    assert code == 0
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    kinds = ("map.tiff", "overlay.png", "mask.png")
    assert names == {f"{n}.png.{k}" for n in ("a/0", "a/1", "b/0") for k in kinds}
    mask = read_image(records[1]["mask"])[:, :, 0]
    assert set(np.unique(mask)) == {0, 255} and (mask[10:20, 30:50] == 255).all()
    region = records[1]["regions"][0]
    assert region["box"] == [30, 10, 20, 10] and region["area"] == 200 == (mask > 0).sum()
    assert region["peak"] == 250.0 and records[0]["regions"] == []
    assert region["peak_ratio"] == pytest.approx(records[1]["score_ratio"])
    assert "context_share" not in records[1]  # the score is the peak of the map
    assert not read_image(records[0]["mask"]).any() and not read_image(records[2]["mask"]).any()
    saved = tifffile.imread(records[0]["map"]["path"])
    assert saved.shape == (96, 128) == tuple(records[0]["map"]["shape"])
    assert saved.dtype == np.float16 and records[0]["map"]["peak"] == 35.0
    overlay = read_image(records[0]["overlay"])
    np.testing.assert_array_equal(overlay[:96], plain(220, 96, 128))  # calm where it is good
    assert (read_image(records[1]["overlay"])[12, 40] != 5).any()


def test_maps_at_the_models_size_and_as_npy(call: Call, folder: Path) -> None:
    code, records, _ = call(
        *fit_on(folder), "--input", folder / "parts" / "a" / "0.png", "--save-maps",
        folder / "m", "--map-format", "npy", "--map-size", "working", "--save-masks", folder / "k",
        "--pixel-threshold", 30, "--min-area", 5,
    )  # fmt: skip
    found = np.load(records[0]["map"]["path"], allow_pickle=False)
    assert code == 0 and found.shape == (64, 64) and found.dtype == np.float32
    assert records[0]["pixel_threshold"] == 30 and "regions" not in records[0]
    assert (cv2.imread(records[0]["mask"], 0) == 255).all()  # 35 everywhere, over 30
    _, records, _ = call(*fit_on(folder), folder / "parts" / "a" / "0.png", "--include-maps")
    assert records[0]["map"] == {"path": None, "shape": [96, 128], "peak": 35.0, "mean": 35.0}


def test_outputs_of_several_inputs_do_not_meet(call: Call, folder: Path) -> None:
    out = folder / "masks"
    code, records, _ = call(
        *fit_on(folder), folder / "parts" / "a", folder / "parts" / "b", "--save-masks", out
    )
    assert code == 0 and len({r["mask"] for r in records}) == 3
    assert (out / "a" / "0.png.mask.png").is_file() and (out / "b" / "0.png.mask.png").is_file()
    save(folder / "parts" / "a" / "0.jpg", plain(210))
    code, records, _ = call(*fit_on(folder), folder / "parts" / "a", "--save-masks", out)
    assert len({r["mask"] for r in records}) == 3
    before = {p: p.read_bytes() for p in (folder / "parts").rglob("*.*")}
    for target in (folder / "parts", folder, folder / "train"):
        code, _, err = call(*fit_on(folder), folder / "parts", "--save-masks", target)
        assert code == 2 and "give a folder of its own" in err
    assert before == {p: p.read_bytes() for p in (folder / "parts").rglob("*.*")}
    inside = folder / "parts" / "found"
    for _ in range(2):  # the second time its own masks are no input
        code, records, _ = call(*fit_on(folder), folder / "parts", "--save-masks", inside)
        assert code == 0 and len(records) == 4


def test_outputs_are_tried_before_anything_is_fitted(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Darkness, "fit", lambda *a, **k: pytest.fail("it was fitted"))
    (folder / "file").write_text("x\n")
    code, _, err = call(*fit_on(folder), folder / "parts", "--save-maps", folder / "file" / "m")
    assert code == 1 and "file/m: cannot be made" in err
    jsonl = folder / "file"
    code, _, err = call(*fit_on(folder), "--watch", folder / "parts", "--save-jsonl", jsonl)
    assert code == 1 and "line 1 is not a record" in err and jsonl.read_text() == "x\n"


def test_an_overlay_of_an_image_that_changed_says_so(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str, **keywords: Any) -> None:
        raise ImageReadError(path, "no such file")

    monkeypatch.setattr("pyimgano.inference.outputs.read_image", gone)
    code, records, _ = call(
        *fit_on(folder), folder / "parts" / "b", "--save-overlays", folder / "o"
    )
    assert code == 0 and records[0]["pred"] == 0 and "overlay" not in records[0]
    assert "no overlay" in records[0]["remark"]


def test_loading_paths(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def find(run: Path, category: str | None = None) -> Path:
        asked.append((run, category))
        return Path(run) / "models" / "nut"

    def load(path: Path, *, device: str, allow_outside: bool) -> Darkness:
        asked.append((path, device))
        return fitted()

    monkeypatch.setattr(pyimgano.runs, "find_model", find, raising=False)
    monkeypatch.setattr(pyimgano.models, "load_model", load, raising=False)
    code, records, _ = call("--from-run", "r", "--category", "nut", folder / "parts" / "a")
    assert code == 0 and [r["pred"] for r in records] == [0, 1]
    assert records[0]["calibration"] == "all-images"
    assert asked == [(Path("r"), "nut"), (Path("r/models/nut"), "cpu")]
    asked.clear()
    code, _, _ = call("--model-dir", folder / "m", "--device", "cuda:1", folder / "parts" / "a")
    assert code == 0 and asked == [(folder / "m", "cuda:1")]
    good = save(folder / "good" / "0.png", plain(120)).parent
    code, records, err = call("--model-dir", "m", "--calibrate-on", good, folder / "parts")
    assert code == 0 and records[0]["calibration"] == "held-out-images"
    assert records[0]["threshold"] == pytest.approx(135) and "threshold 135 from 1 good" in err


def test_another_threshold_and_a_calibration_that_is_kept(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kept(SavedDarkness):
        """Under a name of its own."""

    copy_registry(monkeypatch)
    register_model("kept")(Kept)
    # a detector without a network takes no device
    monkeypatch.setattr(pyimgano.models, "load_model", lambda path, **_: load_model(path))
    good = [save(folder / "good" / f"{i}.png", plain(120 + i)) for i in range(4)]
    model = Kept().fit([plain(200), plain(210)]).save(folder / "m")
    parts = folder / "parts" / "a"
    code, records, _ = call("--model-dir", model, "--threshold", 35.0, parts)
    assert code == 0 and [r["pred"] for r in records] == [1, 1]  # scores 35 and 250
    assert records[0]["threshold"] == 35.0 and records[0]["score_ratio"] == 1.0
    assert load_model(model).threshold_ != 35.0
    for value in ("nan", "inf"):
        code, _, err = call("--model-dir", model, "--threshold", value, parts)
        assert code == 2 and "--threshold must be finite" in err

    new = folder / "new"
    code, records, _ = call(
        "--model-dir", model, "--calibrate-on", good[0].parent, "--save-model", new, parts
    )
    assert code == 0 and records[0]["p_value"] == 1.0
    loaded = load_model(new)
    assert loaded.threshold_ == records[0]["threshold"] == pytest.approx(135)
    assert loaded.calibration_.n_scores == 4 and loaded.calibration_.origin != "fit"
    for options, said in (
        (("--save-model", folder / "n"), "--save-model has no effect"),
        (("--calibration-tail", "conformal"), "--calibration-tail has no effect"),
    ):
        code, _, err = call("--model-dir", model, *options, parts)
        assert code == 2 and said in err


def test_saving_what_was_fitted(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*fit_on(folder), folder / "parts", "--save-model", folder / "m"]
    code, _, err = call(*arguments)
    assert code == 2 and "Darkness cannot be saved" in err and not (folder / "m").exists()
    monkeypatch.setattr(pyimgano.models, "load_model", load_model)
    fit = ["--model", "vision_patchcore", "--train-dir", folder / "train", "--resize", 64, 64]
    arguments = [*fit, folder / "parts", "--save-model"]
    code, records, _ = call(*arguments, folder / "m")
    assert code == 0 and len(records) == 3
    code, again, _ = call("--model-dir", folder / "m", folder / "parts")
    assert code == 0 and again == records
    code, _, err = call(*arguments, folder / "m")
    assert code == 2 and "exists already" in err
    code, records, _ = call(*arguments, folder / "t", "--tile-size", "64")
    code, again, err = call("--model-dir", folder / "t", folder / "parts")
    assert code == 0 and again == records and "untiled" not in err
    code, again, _ = call("--model-dir", folder / "t", "--tile-size", 64, folder / "parts")
    assert code == 0 and again == records
    code, _, err = call("--model-dir", folder / "t", "--tile-size", 80, folder / "parts")
    assert code == 2 and "was saved with tiles of (64, 64)" in err


def test_a_model_of_a_run(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyimgano.models, "load_model", load_model)
    for i in range(3):
        save(folder / "set" / "nut" / "train" / "good" / f"{i}.png", plain(200 + i))
        save(folder / "set" / "nut" / "test" / "good" / f"{i}.png", plain(204 + i))
    keywords = {"dataset": "mvtec", "root": folder / "set", "runs_dir": folder / "runs"}
    report = pyimgano.run_benchmark(**keywords, save_model=True)
    code, records, _ = call("--from-run", report["run_dir"], folder / "set" / "nut" / "test")
    assert code == 0 and len(records) == 3
    lines = Path(report["run_dir"], "categories", "nut", "per_image.jsonl").read_text()
    scores = [json.loads(line)["score"] for line in lines.splitlines()]
    assert [one["score"] for one in records] == scores
    code, _, err = call("--from-run", report["run_dir"], "--category", "bolt", folder)
    assert code in (1, 2) and "bolt" in err


def test_tiles(call: Call, folder: Path) -> None:
    large = plain(220, 200, 300)
    large[100:104, 200:204] = 0
    save(folder / "large" / "0.png", large)
    code, records, err = call(
        *fit_on(folder), "--input", folder / "large", "--regions", "--tile-size", 64, 80,
        "--tile-stride", 40,
    )  # fmt: skip
    assert code == 0 and records[0]["score"] > 200  # whole, it would be lost in 64 pixels
    assert "of 4 images 3 were learned from and 1 set aside to calibrate on" in err
    x, y, width, height = records[0]["regions"][0]["box"]
    assert x <= 200 and y <= 100 and x + width >= 204 and y + height >= 104
    code, records, err = call("--model-dir", "m", "--tile-size", 64, folder / "large")
    assert code == 0 and "calibrated on untiled images" in err
    assert records[0]["calibration"] == "all-images, untiled"
    code, records, err = call(
        "--model-dir", "m", "--tile-size", "64x64", "--calibrate-on", folder / "train",
        folder / "large",
    )  # fmt: skip
    assert records[0]["calibration"] == "held-out-images" and "untiled" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "x"], "exactly one of --from-run, --model-dir and --train-dir"),
        (["--model-dir", "m", "--from-run", "r", "--input", "x"], "--from-run and --model-dir"),
        (["--model-dir", "m"], "give --input at least once, or --watch"),
        (["--model-dir", "m", "--input", "x", "--watch", "w"], "give --input"),
        (["--model-dir", "m", "--model", "darkness", "x"], "--model has no effect"),
        (["--model-dir", "m", "--category", "c", "x"], "--category has no effect"),
        (["--model-dir", "m", "--only-new", "x"], "--only-new has no effect"),
        (["--model-dir", "m", "--tile-stride", "4", "x"], "--tile-stride has no effect"),
        (["--model-dir", "m", "--tile-size", "big", "x"], "a number of pixels"),
        (["--model-dir", "m", "--tile-size", "0", "x"], "tile_size must be"),
        (["--model-dir", "m", "--calibration-quantile", "0.9", "x"], "saved model"),
        (["--train-dir", "t", "--calibration-quantile", "1", "x"], "must lie in (0, 1)"),
        (["--model-dir", "m", "--pixel-threshold", "nan", "--regions", "x"], "finite"),
        (["--model-dir", "m", "--pixel-threshold", "1", "x"], "--pixel-threshold has no effect"),
        (["--model-dir", "m", "--map-size", "working", "x"], "--map-size has no effect"),
        (["--model-dir", "m", "-", "-"], "stdin is read once"),
        (["--model-dir", "m", "--save-jsonl", "no/such/f.jsonl", "x"], "is not a folder"),
        (["--train-dir", "t", "--model", "darknes", "x"], "did you mean darkness"),
        (["--train-dir", "t", "--model", "darkness", "--model-kwargs", "[", "x"], "not JSON"),
        (
            ["--train-dir", "t", "--model", "darkness", "--model-kwargs", '{"device": "cpu"}', "x"],
            "an option of its own, --device",
        ),
    ],
)
def test_usage_errors(call: Call, arguments: list[str], said: str) -> None:
    code, records, err = call(*arguments)
    assert code == 2 and records == [] and said in err.splitlines()[-1]


def test_a_method_without_maps(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Darkness, "has_maps", False)
    for option in (["--regions"], ["--save-maps", folder / "m"], ["--include-maps"]):
        code, _, err = call(*fit_on(folder), folder / "parts", *option)
        assert code == 2 and "has no anomaly maps" in err
    assert call(*fit_on(folder), folder / "parts")[0] == 0


_PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import pyimgano.models
from tests.pixel_detector import fitted
pyimgano.models.load_model = lambda folder, **options: fitted()
from pyimgano.cli import infer
infer(sys.argv[1:])
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command as a process of its own."""
    program = _PROGRAM.format(root=str(Path(__file__).resolve().parents[2]))
    begun: list[subprocess.Popen[bytes]] = []

    def run(*arguments: object) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", program, "--model-dir", "m", *map(str, arguments)]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


Start = Callable[..., "subprocess.Popen[bytes]"]


def test_a_line_on_stdin_gives_a_record_at_once(start: Start, folder: Path) -> None:
    process = start("--input", "-", "--save-masks", folder / "out")
    assert process.stdin is not None and process.stdout is not None
    for name, pred in (("a/0.png", 0), ("a/1.png", 1), ("missing.png", None)):
        process.stdin.write(f"{folder}/parts/{name}\n".encode())
        process.stdin.flush()
        record = json.loads(process.stdout.readline())  # would wait for ever if it were not
        assert record["pred"] == pred and record["input"].endswith(name)
    process.stdin.close()
    process.stdin = None
    assert process.wait(30) == 1
    assert len(list((folder / "out" / "%outside").rglob("*.mask.png"))) == 2


@pytest.mark.parametrize("given", [b"", b"\n\n# nothing\n"])
def test_an_empty_stdin_is_an_error(start: Start, given: bytes) -> None:
    process = start("--input", "-")
    out, err = process.communicate(given, timeout=30)
    assert process.returncode == 1 and out == b""
    assert b"-: stdin named no image; give paths of images, one a line\n" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_whole_lines(start: Start, folder: Path, number: int) -> None:
    jsonl = folder / "out.jsonl"
    process = start("--input", "-", "--save-jsonl", jsonl)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{folder}/parts/a/1.png\n".encode())
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(30) == 130
    assert [json.loads(line)["pred"] for line in jsonl.read_text().splitlines()] == [1]


def test_a_reader_that_goes_away_ends_it(start: Start, folder: Path) -> None:
    jsonl = folder / "out.jsonl"
    process = start("--input", "-", "--save-jsonl", jsonl)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{folder}/parts/a/1.png\n".encode())
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(f"{folder}/parts/a/0.png\n".encode())
    process.stdin.flush()
    assert process.wait(30) == 1
    assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    assert len([json.loads(line) for line in jsonl.read_text().splitlines()]) == 2


def test_watching_ends_well_on_a_signal_and_goes_on_after_it(start: Start, folder: Path) -> None:
    jsonl = folder / "out.jsonl"
    arguments = ["--watch", folder / "parts", "--settle", 0.05, "--watch-interval", 0.05]
    process = start(*arguments, "--save-jsonl", jsonl)
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with jsonl.open("ab") as file:
        file.write(b'{"index": 3, "inp')  # as a power cut would leave it
    save(folder / "parts" / "new.png", spotted())
    process = start(*arguments, "--save-jsonl", jsonl, "--stop-when-idle", 0.2)
    out, err = process.communicate(timeout=60)
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert process.returncode == 0, err
    assert records[:3] == first and [json.loads(line) for line in out.splitlines()] == records[3:]
    assert [r["file"]["path"] for r in records[3:]] == ["new.png"]
    assert [r["index"] for r in records] == [0, 1, 2, 3] and records[3]["pred"] == 1


def test_a_real_detector_end_to_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        save(folder / "striped" / f"{i}.png", picture(i))
    save(folder / "new" / "good.png", picture(50))
    save(folder / "new" / "bad.png", picture(51, spot=True))
    with pytest.raises(SystemExit) as left:
        command(
            ["--train-dir", str(folder / "striped"), "--resize", "64", "64", "--regions",
             "--input", str(folder / "new"), "--save-overlays", str(folder / "o"),
             "--include-maps"]
        )  # fmt: skip
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert left.value.code == 0 and [r["pred"] for r in records] == [1, 0]
    peak = records[0]["regions"][0]["peak_at"]
    assert 28 <= peak[0] <= 48 and 28 <= peak[1] <= 48  # the spot is at 32 to 44
    assert Image.open(records[0]["overlay"]).size == (64, 64)
    assert records[1]["regions"] == []
    for record in records:  # a score is no sum of which context would be a part
        assert "context_share" not in record
    assert records[0]["regions"][0]["peak_ratio"] == pytest.approx(records[0]["score_ratio"])


def test_a_region_of_interest_and_threads_for_a_model_fitted_on_the_spot(
    call: Call, folder: Path
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :24] = 255  # the spot of `spotted` lies right of it
    save(folder / "mask.png", mask)
    fit = ["--model", "vision_patchcore", "--train-dir", folder / "train", "--resize", 64, 64]
    arguments = [*fit, folder / "parts" / "a" / "1.png", "--num-threads", 1]
    _, (seen,), _ = call(*arguments)
    _, (blind,), _ = call(*arguments, "--roi", folder / "mask.png")
    assert seen["pred"] == 1 and blind["score"] < seen["score"]
    code, records, _ = call(*fit_on(folder), folder / "parts", "--roi", folder / "mask.png")
    assert code == 0 and len(records) == 3  # which every model has
    code, _, err = call(*arguments[:-1], 0)
    assert code == 2 and "num_threads must be" in err


def test_records_are_not_written_over_inputs_or_into_models(call: Call, folder: Path) -> None:
    picture = folder / "parts" / "a" / "0.png"
    (folder / "list.txt").write_text(f"{picture}\n")
    before = picture.read_bytes()
    wrong = [
        (["--save-jsonl", picture], [picture]),
        (["--save-jsonl", folder / "new.png"], [picture]),
        (["--save-jsonl", folder / "list.txt"], [folder / "list.txt"]),
        (["--save-jsonl", folder / "list.txt"], [f"@{folder / 'list.txt'}"]),
        (["--save-masks", folder / "m", "--save-model", folder / "m"], [picture]),
        (["--save-overlays", folder / "m" / "o", "--save-model", folder / "m"], [picture]),
    ]
    for options, inputs in wrong:
        code, _, err = call(*fit_on(folder), *options, *inputs)
        assert code == 2 and ("not a place for records" in err or "folder of a model" in err)
    assert picture.read_bytes() == before and not (folder / "m").exists()
    (folder / "kept").mkdir()
    code, _, err = call("--model-dir", folder / "kept", picture, "--save-jsonl", folder / "kept/r")
    assert code == 2 and "folder of a model" in err


def test_images_to_calibrate_on_must_not_be_learned_from(call: Call, folder: Path) -> None:
    code, _, err = call(*fit_on(folder), folder / "parts", "--calibrate-on", folder / "train")
    assert code == 2 and "train/0.png: is learned from and to be calibrated on" in err
    code, _, err = call(
        *fit_on(folder), folder / "parts", "--calibrate-on", folder / "train", "--tile-size", 32
    )
    assert code == 2 and "is learned from and to be calibrated on" in err
    shared = plain()
    with pytest.raises(UsageError, match="image 1: is learned from"):
        Darkness().fit([plain(), shared], calibration_images=[plain(), shared])


def test_unreadable_images_may_be_skipped(folder: Path, call: Call) -> None:
    (folder / "train/cut.jpg").write_bytes(b"cut")
    (folder / "parts/empty.png").write_bytes(b"")
    status, records, err = call(*fit_on(folder), folder / "parts")
    assert status == 1 and records == [] and "train/cut.jpg: not an image" in err
    status, records, err = call(*fit_on(folder), folder / "parts", "--on-error", "skip")
    assert status == 0 and [one["pred"] for one in records].count(None) == 1
    assert "cut.jpg: not an image in a known format; left out of the train images" in err
    assert "empty.png: the file is empty" in err and "1 unreadable" in err


def test_new_images_of_another_kind_are_said_before_they_are_scored(
    folder: Path, call: Call
) -> None:
    Image.fromarray(plain(220)).save(folder / "parts/new.jpg")
    _, _, err = call(*fit_on(folder), folder / "parts")
    said = "1 of 4 new images is JPEG, and the training images are PNG; scores may show this"
    assert said in err and err.index(said) < err.index("threshold ")


def test_a_terminal_gets_a_line_for_each_image(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "parts" / "c.png").write_bytes(b"no image")
    jsonl = folder / "r.jsonl"
    words = [*fit_on(folder), folder / "parts", "--regions", "--save-jsonl", jsonl]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        command([str(one) for one in words])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("good    ") and lines[1].startswith("DEFECT ")
    assert lines[1].endswith("1.png  1 region, the worst at 30, 10") and " x  " in lines[1]
    assert lines[3].startswith("unread") and "not an image" in lines[3]
    assert [json.loads(line)["pred"] for line in jsonl.read_text().splitlines()] == [0, 1, 0, None]
    code, records, _ = call(*words, "--json")
    assert code == 1 and len(records) == 4


def test_what_is_clear_is_taken_for_inputs(folder: Path) -> None:
    assert [one.score for one in infer(fitted(), folder / "parts")] == [35.0, 250.0, 33.0]
    (one,) = infer(fitted(), str(folder / "parts/a/1.png"))
    assert one.label == 1 and one.input.endswith("1.png")
    for image in (spotted(), Image.fromarray(spotted()), spotted()[:, :, 0]):
        assert [one.score for one in infer(fitted(), image)] == [250.0]
        assert [one.score for one in iter_infer(fitted(), iter([image, image]))] == [250.0] * 2
    with pytest.raises(UsageError, match=r"inputs\[1\] must be .* float64"):
        list(iter_infer(fitted(), iter([spotted(), spotted() / 255])))
    assert fitted().predict(folder / "parts").tolist() == [0, 1, 0]
    assert fitted().predict(str(folder / "parts/a/1.png")).tolist() == [1]
