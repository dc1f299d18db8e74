"""`--output-dir` is the run directory itself; `--runs-dir` is the folder of named runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyimgano.cli import main
from pyimgano.errors import DataError, UsageError
from pyimgano.pipelines import run_benchmark, run_robust_benchmark
from pyimgano.runs import RunDirectory, require_empty
from tests import stubs
from tests.conftest import MakeDataset, copy_registry
from tests.faults.killing import contents
from tests.pipelines.test_resume import Stop


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    stubs.register()


@pytest.fixture
def given(make_mvtec: MakeDataset) -> dict[str, Any]:
    root = make_mvtec(("bolt", "nut"), train=3, good=1, bad=1)
    return {"dataset": "mvtec", "root": root, "model": "darkness", "resize": (64, 64)}


def test_it_is_the_run_directory(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    report = run_benchmark(output_dir=out, **given)
    assert report["run_dir"] == str(out)
    assert json.loads((out / "report.json").read_text()) == report
    names = {path.name for path in out.iterdir()}
    documents = {"config.json", "environment.json", "report.html", "report.json"}
    assert names == {".lock", "categories", *documents}
    named = run_benchmark(runs_dir=tmp_path / "runs", **given)
    assert Path(named["run_dir"]).parent == tmp_path / "runs"
    assert contents(out) == contents(Path(named["run_dir"]))


def test_without_either_runs_are_made_in_runs(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = run_benchmark(**given)
    assert Path(report["run_dir"]).parent == Path("runs")


def test_robustness_runs_too(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = {"corruptions": "lighting", "severities": [1]}
    report = run_robust_benchmark(output_dir=out, **more, **given)
    assert report["run_dir"] == str(out) and (out / "report.json").is_file()
    with pytest.raises(DataError, match="holds a run already"):
        run_robust_benchmark(output_dir=out, **more, **given)


@pytest.mark.parametrize("left", ["lost+found", ".DS_Store", "Thumbs.db", "environment.json"])
def test_an_empty_folder_is_taken(given: dict[str, Any], tmp_path: Path, left: str) -> None:
    """Also one that holds what file systems put there, or what a killed run left as it began."""
    out = tmp_path / "out"
    out.mkdir()
    if left == "lost+found":
        (out / left).mkdir()
    else:
        (out / left).write_text("half")
    (out / ".config.json.1-ab.tmp").write_text("{")
    assert run_benchmark(output_dir=out, **given)["status"] == "complete"
    assert not (out / ".config.json.1-ab.tmp").exists()


def test_what_holds_something_else_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "more").mkdir()
    with pytest.raises(DataError) as refused:
        run_benchmark(output_dir=out, **given)
    assert str(refused.value) == (
        f"{out}: is not empty, it holds 'more' and 1 more; the output directory is the run "
        "directory itself, and --runs-dir is the folder that named runs are made in"
    )
    assert {path.name for path in out.iterdir()} == {"notes.txt", "more"}  # nothing is added
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match="is not a folder; the run directory is to be made there"):
        run_benchmark(output_dir=file, **given)
    with pytest.raises(DataError, match="is not a folder"):
        run_benchmark(output_dir=given["root"] / "bolt/train/good/000.png", **given)
    with pytest.raises(DataError, match="holds 'bolt' and 1 more"):
        run_benchmark(output_dir=given["root"], **given)


def test_a_folder_through_a_link_and_a_link_to_nothing(
    given: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run_benchmark(output_dir=tmp_path / "link", **given)
    assert (tmp_path / "real" / "report.json").is_file()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a folder"):
        run_benchmark(output_dir=tmp_path / "dangling", **given)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_whose_parent_is_not_ours(given: dict[str, Any], tmp_path: Path) -> None:
    """As a volume of a container is."""
    out = tmp_path / "closed" / "out"
    out.mkdir(parents=True)
    out.parent.chmod(0o555)
    try:
        assert run_benchmark(output_dir=out, **given)["status"] == "complete"
        with pytest.raises(DataError, match="no run can be written there"):
            run_benchmark(output_dir=out.parent / "other", **given)
    finally:
        out.parent.chmod(0o755)


def test_it_is_resumed(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(output_dir=out, listener=Stop("nut", "test images"), **given)
    before = (out / "categories/bolt/report.json").read_bytes()
    with pytest.raises(DataError, match=r"holds a run already; resume it \(--resume "):
        run_benchmark(output_dir=out, **given)
    with pytest.raises(UsageError, match="output_dir: the run has "):
        run_benchmark(resume=out, output_dir=tmp_path / "other")
    report = run_benchmark(resume=out, output_dir=out)
    assert report["status"] == "complete" and report["run_dir"] == str(out)
    assert (out / "categories/bolt/report.json").read_bytes() == before
    assert run_benchmark(resume=out, runs_dir=tmp_path) == report


def test_one_of_both(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="output_dir and runs_dir: give one of them"):
        run_benchmark(output_dir=tmp_path / "a", runs_dir=tmp_path / "b", **given)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_two_that_begin_in_one_folder(tmp_path: Path) -> None:
    first = RunDirectory.create_at(tmp_path / "out")
    with pytest.raises(DataError, match="another process is writing this run"):
        RunDirectory.create_at(tmp_path / "out")
    first.close()
    require_empty(tmp_path / "out")  # no config.json was written


def test_by_the_commands(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "mvtec", "--root", str(given["root"]), "--model", "darkness"]
    out = tmp_path / "out"
    assert main(["benchmark", *words, "--output-dir", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())
    assert main(["benchmark", *words, "--output-dir", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"pyimgano: error: {out}: holds a run already")
    assert said.err.count("\n") == 1
    assert main(["benchmark", "--resume", str(out)]) == 0
    capsys.readouterr()
    robust = ["robust-benchmark", *words, "--corruptions", "blur", "--severities", "1"]
    assert main([*robust, "--output-dir", str(tmp_path / "robust")]) == 0
    assert (tmp_path / "robust" / "report.json").is_file()
    capsys.readouterr()
    both = ["--output-dir", str(tmp_path / "x"), "--runs-dir", str(tmp_path / "y")]
    assert main(["benchmark", *words, *both]) == 2
    assert "give one of them" in capsys.readouterr().err
