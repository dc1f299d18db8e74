"""Faults injected into whole commands: one clear line, nothing that looks whole and is not,
no hang, and what was finished stays. The table of docs/faults.md names these tests."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from pyimgano.cli import benchmark as benchmark_command
from pyimgano.cli import infer as infer_command
from pyimgano.datasets import listing
from pyimgano.errors import DataError
from pyimgano.images import read, read_image, stream, stream_images
from pyimgano.models import register_model
from pyimgano.runs import RunDirectory, append_line
from tests.conftest import MakeDataset, copy_registry, picture, save
from tests.faults.faults import fill_disk, forbidden, permissions_bite, small_disk, watchdog
from tests.pixel_detector import Darkness, LearnedDarkness

pytestmark = pytest.mark.real_pages

Call = Callable[..., tuple[int, str, str]]
COMMANDS = {"benchmark": benchmark_command, "infer": infer_command}
FULL = "No space left on device"


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`darkness` is a model, and nothing may hang."""
    copy_registry(monkeypatch)
    register_model("darkness")(Darkness)
    with watchdog():
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command here: exit status, stdout, stderr. A traceback fails the test."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            COMMANDS[command]([str(one) for one in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        code = left.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return run


def benchmark(root: Path, runs: Path, **more: object) -> list[object]:
    given = {"category": "all", **more}
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    return [
        *["--dataset", "mvtec", "--root", root, "--model", "darkness", "--resize", 64, 64],
        *["--runs-dir", runs, *options],
    ]


def error_line(err: str) -> str:
    """The one line that says why the command ended."""
    (line,) = [one for one in err.splitlines() if ": error: " in one]
    return line


def run_of(output: Path) -> Path:
    (found,) = output.iterdir()
    return found


def require_whole(folder: Path) -> dict[str, Any]:
    """Every document in it parses, every line is a record, nothing half done lies about.

    Gives the documents by their path.
    """
    documents = {}
    for path in sorted(folder.rglob("*")):
        assert not path.name.endswith((".tmp", ".old")), path
        if path.suffix == ".json":
            documents[path.relative_to(folder).as_posix()] = json.loads(path.read_text())
        if path.suffix == ".jsonl":
            text = path.read_text()
            assert text == "" or text.endswith("\n")
            for line in text.splitlines():
                assert "score" in json.loads(line)
    return documents


# ---- a full disk


@pytest.mark.parametrize("room", [0, 700, 5000])
def test_a_full_disk_under_the_records(
    call: Call,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    root = make_mvtec(("nut", "bolt"), good=8, bad=8)
    fill_disk(monkeypatch, lambda path: path.name == "per_image.jsonl", room)
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert code == 1
    assert f"per_image.jsonl: cannot be written ({FULL})" in err
    documents = require_whole(tmp_path / "runs")
    statuses = {name: one["status"] for name, one in json.loads(out)["per_category"].items()}
    assert "failed" in statuses.values()
    (top,) = [one for name, one in documents.items() if name.count("/") == 1 and "report" in name]
    assert top["status"] == "failed"


@pytest.mark.parametrize("name", ["report.json", "config.json"])
def test_a_full_disk_under_a_document(
    call: Call,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    root = make_mvtec(("nut",))
    fill_disk(monkeypatch, lambda path: name in path.name)
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert code == 1 and out == ""
    said = {
        "report.json": "report.json: cannot be written",
        "config.json": "no run can be written there",
    }
    assert error_line(err).endswith(f"{said[name]} ({FULL})")
    assert not any(name in one.name for one in tmp_path.joinpath("runs").rglob("*"))


def test_a_disk_that_fills_up_keeps_finished_categories(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("a", "b", "c"))
    fill_disk(monkeypatch, lambda path: "categories/b" in path.as_posix())
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert code == 1
    assert error_line(err).endswith(f"categories/b/report.json: cannot be written ({FULL})")
    printed = json.loads(out)
    assert printed["status"] == "failed" and printed["per_category"]["a"]["results"]
    documents = require_whole(run_of(tmp_path / "runs"))
    assert documents["categories/a/report.json"]["status"] == "complete"
    assert documents["report.json"]["status"] == "failed"
    assert FULL in documents["report.json"]["failure"]["message"]
    assert "categories/b/report.json" not in documents


def test_what_was_measured_is_printed_where_its_report_cannot_be_written(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("nut",))
    scored = LearnedDarkness.score

    def then_full(self: LearnedDarkness, *arguments: Any) -> Any:
        fill_disk(monkeypatch, lambda path: "report.json" in path.name)
        return scored(self, *arguments)

    monkeypatch.setattr(LearnedDarkness, "score", then_full)
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", category="nut"))
    assert code == 1
    assert error_line(err).endswith(f"categories/nut/report.json: cannot be written ({FULL})")
    printed = json.loads(out)
    assert printed["status"] == "failed" and printed["results"]["auroc"] is not None
    assert FULL in printed["failure"]["message"]
    documents = require_whole(run_of(tmp_path / "runs"))
    assert documents["report.json"]["status"] == "running"  # as when it was last written
    lines = (run_of(tmp_path / "runs") / "categories/nut/per_image.jsonl").read_text()
    assert len(lines.splitlines()) == 6


def test_a_real_small_disk(call: Call, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    """With ever more room: always one line and whole files, until all fits."""
    root = make_mvtec(("nut", "bolt"), good=8, bad=8)
    page, ends = 4096, []
    for pages in (1, 4, 6, 8, 10, 12, 16, 24, 100, 2000):
        disk = tmp_path / f"disk{pages}"
        with small_disk(disk, pages * page):
            code, out, err = call("benchmark", *benchmark(root, disk / "runs"))
            ends.append(code)
            require_whole(disk)
            if code:
                assert f"cannot be written ({FULL})" in err or f"({FULL})" in error_line(err)
            else:
                assert json.loads(out)["status"] == "complete"
                # all but the page to look at, which can be made again, and which says so
                full = [line for line in err.splitlines() if FULL in line]
                assert all("report.html could not be written" in line for line in full)
                assert len(list(disk.rglob("report.html"))) == 1 - len(full)
    assert ends[0] == 1 and ends[-1] == 0 and set(ends) == {0, 1} and not full


@pytest.mark.parametrize("option", ["save-maps", "save-overlays", "save-masks", "save-jsonl"])
def test_a_full_disk_under_what_inference_leaves(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    for i in range(4):
        save(tmp_path / "train" / f"{i}.png", picture(i))
    target = tmp_path / ("records.jsonl" if option == "save-jsonl" else "left")
    fill_disk(monkeypatch, lambda path: path.is_relative_to(target), 600)
    code, out, err = call(
        "infer",
        *["--model", "darkness", "--resize", 64, 64, "--train-dir", tmp_path / "train"],
        *["--input", tmp_path / "train", f"--{option}", target],
    )
    assert code == 1
    line = error_line(err)
    assert str(target) in line and line.endswith(f"cannot be written ({FULL})")
    for record in out.splitlines():  # each was whole, with its files, when it was printed
        json.loads(record)
    if option == "save-jsonl":
        assert [json.loads(one) for one in target.read_text().splitlines()]
        assert target.read_text().endswith("\n")
    else:
        assert not [one for one in target.rglob("*") if one.name.endswith(".tmp")]
        for one in target.rglob("*.png"):
            read_image(one)


def test_the_summary_is_printed_where_its_file_cannot_be(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("nut",))
    fill_disk(monkeypatch, lambda path: "summary" in path.name)
    arguments = {"category": "nut", "output": tmp_path / "summary.json"}
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", **arguments))
    assert code == 1 and json.loads(out)["results"]["auroc"] is not None
    assert error_line(err).endswith(f"summary.json: cannot be written ({FULL})")


def test_a_full_disk_under_a_saved_model_and_under_a_cache(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("nut", "bolt"), train=3, good=1, bad=1)
    small = '{"backbone": "resnet18", "engine": "torch"}'
    arguments = [
        *["--dataset", "mvtec", "--root", root, "--no-pretrained", "--resize", 64, 64],
        *["--model-kwargs", small, "--cache-dir", tmp_path / "cache", "--save-model"],
    ]
    with monkeypatch.context() as patched:
        fill_disk(patched, lambda path: "pyimgano-features" in path.parts, 20_000)
        code, out, err = call("benchmark", *arguments, "--runs-dir", tmp_path / "one")
    assert code == 0
    (warning,) = [line for line in err.splitlines() if "cache" in line]
    assert warning == (
        f"warning: {tmp_path}/cache/pyimgano-features: nothing more is cached ({FULL}); results "
        "do not depend on it"
    )
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    scores = json.loads(out)["per_category"]["nut"]["results"]

    with monkeypatch.context() as patched:
        fill_disk(patched, lambda path: ".model." in path.parent.name, 20_000)
        code, out, err = call("benchmark", *arguments, "--runs-dir", tmp_path / "two")
    assert code == 1
    assert f"nut/model: cannot be written ({FULL})" in err
    require_whole(tmp_path / "two")
    assert not list((tmp_path / "two").rglob("model"))
    code, out, _ = call("benchmark", *arguments, "--runs-dir", tmp_path / "three")
    assert code == 0 and json.loads(out)["per_category"]["nut"]["results"] == scores


def test_a_line_that_was_cut_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    with path.open("wb", buffering=0) as file:
        append_line(file, path, b"first")
    with monkeypatch.context() as patched:
        fill_disk(patched, lambda one: one == path, 3)
        with path.open("r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            with pytest.raises(DataError, match=FULL):
                append_line(file, path, b"second")
            assert path.read_bytes() == b"first\n"
    with path.open("ab", buffering=0) as file:
        append_line(file, path, b"third")
    assert path.read_bytes() == b"first\nthird\n"


# ---- permissions


def test_folders_that_may_not_be_written(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("nut",))
    runs = tmp_path / "runs"
    runs.mkdir()
    with forbidden(runs, 0o500):
        code, out, err = call("benchmark", *benchmark(root, runs))
    assert (code, out) == (1, "")
    assert error_line(err).endswith(f"{runs}: no run can be written there (Permission denied)")
    assert list(runs.iterdir()) == []


def test_a_run_folder_that_becomes_read_only(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("a", "b"))
    runs = tmp_path / "runs"
    scored = LearnedDarkness.score

    def lock(self: Darkness, *arguments: Any) -> Any:
        if (run_of(runs) / "categories" / "b").exists():
            (run_of(runs) / "categories" / "b").chmod(0o500)
        return scored(self, *arguments)

    monkeypatch.setattr(LearnedDarkness, "score", lock)
    with permissions_bite():
        code, _, err = call("benchmark", *benchmark(root, runs))
    (run_of(runs) / "categories" / "b").chmod(0o700)
    assert code == 1
    assert error_line(err).endswith("b/report.json: cannot be written (Permission denied)")
    documents = require_whole(run_of(runs))
    assert documents["categories/a/report.json"]["status"] == "complete"


def test_a_category_that_may_not_be_read(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("a", "b"))
    with forbidden(root / "b"):
        code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert code == 1
    report = json.loads(out)
    assert report["per_category"]["a"]["status"] == "complete"
    assert report["failed_categories"] == ["b"]
    assert f"b: {root}/b/train: Permission denied" in err.splitlines()


def test_a_root_that_may_not_be_read(call: Call, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("a",))
    with forbidden(root):
        code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert (code, out) == (1, "") and error_line(err).endswith("Permission denied")
    assert str(root) in err


@pytest.mark.parametrize("on_error", ["error", "skip"])
def test_images_that_may_not_be_read(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, on_error: str
) -> None:
    root = make_mvtec(("nut",))
    train, test = root / "nut/train/good/003.png", root / "nut/test/good/001.png"
    with forbidden(test), forbidden(train):
        arguments = {"category": "nut", "on-error": on_error}
        code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", **arguments))
    if on_error == "error":
        assert code == 1 and error_line(err).endswith(f"{train}: permission denied")
        return
    assert code == 0
    report = json.loads(out)
    assert {(one["kind"], one["path"], one["message"]) for one in report["problems"]} == {
        ("unreadable_train_image", str(train), "permission denied"),
        ("unreadable_test_image", str(test), "permission denied"),
    }


def test_a_cache_that_may_not_be_written(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("nut",), train=3, good=1, bad=1)
    cache = tmp_path / "cache"
    cache.mkdir()
    small = '{"backbone": "resnet18", "engine": "torch"}'
    with forbidden(cache, 0o500):
        code, _, err = call(
            "benchmark",
            *["--dataset", "mvtec", "--root", root, "--no-pretrained"],
            *["--resize", 64, 64, "--model-kwargs", small, "--cache-dir", cache, "--no-save-run"],
        )
    assert code == 0
    (line,) = [line for line in err.splitlines() if "cache" in line]
    assert line.startswith("warning: ") and "nothing more is cached (Permission denied)" in line


# ---- images that vanish


@pytest.mark.parametrize("on_error", ["error", "skip"])
def test_images_that_vanish_between_listing_and_reading(
    call: Call,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_error: str,
) -> None:
    root = make_mvtec(("nut",))
    train, test = root / "nut/train/good/003.png", root / "nut/test/good/001.png"
    listed = listing._entries

    def then_gone(folder: Path) -> list[Path]:
        found = listed(folder)
        for one in (train, test):
            if one.parent == folder:
                one.unlink(missing_ok=True)
        return [
            *found,
            *(one for one in (train, test) if one.parent == folder and one not in found),
        ]

    monkeypatch.setattr(listing, "_entries", then_gone)
    arguments = {"category": "nut", "on-error": on_error}
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", **arguments))
    if on_error == "error":
        assert code == 1 and error_line(err).endswith(f"{train}: no such file")
        return
    assert code == 0 and f"unreadable_test_image: {test}: no such file" in err
    report = json.loads(out)
    assert report["counts"]["train_skipped"] == report["counts"]["test_unreadable"] == 1
    lines = (Path(report["run_dir"]) / "categories/nut/per_image.jsonl").read_text().splitlines()
    (record,) = [one for one in map(json.loads, lines) if one["input"] == str(test)]
    assert (record["score"], record["pred"], record["error"]) == (None, None, "no such file")


# ---- decoders and threads


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory for it"),
        (RuntimeError("the decoder lost\nits way"), "the decoder lost its way"),
        (cv2.error("inside OpenCV"), "inside OpenCV"),
        (SystemError("unknown opcode"), "unknown opcode"),
        (RecursionError(), "RecursionError"),
    ],
)
def test_what_a_decoder_raises_costs_its_image(
    call: Call,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    def broken(decode: Callable[..., Any], data: bytes) -> Callable[..., Any]:
        def decoder(given: bytes, *arguments: Any, **keywords: Any) -> Any:
            if given == data:
                raise error
            return decode(given, *arguments, **keywords)

        return decoder

    root = make_mvtec(("nut",), train=3)
    png, jpeg = root / "nut/test/spot/001.png", save(root / "nut/test/good/9.jpg", picture(9))
    monkeypatch.setattr(read, "quick_png", broken(read.quick_png, png.read_bytes()))
    decode_jpeg = broken(simplejpeg.decode_jpeg, jpeg.read_bytes())
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", category="nut"))
    assert code == 1
    assert f"nut: unreadable_test_image: {png}: {said}" in err.splitlines()
    assert f"nut: unreadable_test_image: {jpeg}: {said}" in err.splitlines()
    report = json.loads(out)
    assert report["status"] == "complete" and report["counts"]["test_unreadable"] == 2


def test_what_resizing_raises_costs_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(save(tmp_path / f"{i}.png", picture(i, 40 + i))) for i in range(3)]

    def short(image: np.ndarray, size: Any) -> np.ndarray:
        if image.shape[0] == 41:
            raise MemoryError
        return image

    monkeypatch.setattr(stream, "resize_image", short)
    loaded = list(stream_images(paths, (40, 40)))
    assert [one.error is None for one in loaded] == [True, False, True]
    assert str(loaded[1].error) == f"{paths[1]}: not enough memory for it"


def test_ctrl_c_in_a_decoder_is_not_swallowed(
    call: Call, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    root = make_mvtec(("nut",))
    monkeypatch.setattr(read, "quick_png", interrupted)
    code, _, err = call("benchmark", *benchmark(root, tmp_path / "runs"))
    assert code == 130 and error_line(err).endswith("interrupted")
    assert require_whole(run_of(tmp_path / "runs"))["report.json"]["status"] == "interrupted"


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
def test_a_decoding_thread_that_dies(
    call: Call,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
) -> None:
    def dies(*given: Any) -> Any:
        raise kind(0)

    root = make_mvtec(("nut",))
    monkeypatch.setattr(read, "quick_png", dies)
    code, out, err = call("benchmark", *benchmark(root, tmp_path / "runs", category="nut"))
    assert (code, out) == (1, "")
    said = f"a thread that decodes images was ended from within ({kind.__name__})"
    assert error_line(err).endswith(said)
    top = require_whole(run_of(tmp_path / "runs"))["report.json"]
    assert top["status"] == "failed" and top["failure"]["message"] == said


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_system_that_gives_no_more_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    paths = [str(save(tmp_path / f"{i}.png", picture(i, 16))) for i in range(20)]
    start, started = threading.Thread.start, []

    def limited(self: threading.Thread) -> None:
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    loaded = list(stream_images(paths, (16, 16), threads=4))
    assert [one.name for one in loaded] == paths
    assert all(one.error is None for one in loaded) and len(started) == allowed


# ---- time


def test_a_clock_that_jumps_back_overwrites_nothing(tmp_path: Path) -> None:
    """Runs are told apart by mkdir, not by the time."""
    noon = datetime(2026, 7, 1, 12, 0, 5).astimezone()
    earlier = noon.replace(second=1)
    paths = [
        RunDirectory.create(tmp_path, "d", "m", when).path
        for when in (noon, earlier, noon, earlier, noon)
    ]
    assert len(set(paths)) == 5
    assert [one.name[16:] for one in paths] == ["d_m", "d_m", "d_m_2", "d_m_2", "d_m_3"]
