"""Two processes at once on the same folders do not disturb one another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyimgano import run_benchmark
from pyimgano.datasets.demo import DemoLayout
from pyimgano.errors import DataError
from pyimgano.runs import RunDirectory
from tests.conftest import MakeDataset
from tests.pipelines.test_benchmark import lines

HERE = Path(__file__).resolve().parent


#: The demo, but smaller; drawn when all are there.
DRAW = """
import sys, time
from pathlib import Path
import pyimgano.datasets.demo as demo
from pyimgano.datasets import load_dataset
demo._TRAIN, demo._TEST_GOOD, demo._TEST_EACH_DEFECT = 3, 2, 1
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("*.ready"))) < 3:
    time.sleep(0.001)
print(len(load_dataset("demo", sys.argv[1], "washer").get_train_paths()))
"""


def python(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(run: subprocess.Popen[str]) -> str:
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return out


def test_on_one_demo_dataset(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "demo"
    (tmp_path / "at").mkdir()
    runs = [python("-c", DRAW, root, tmp_path / "at" / f"{n}.ready") for n in range(3)]
    assert [end(run) for run in runs] == ["3\n"] * 3
    assert list(root.parent.iterdir()) == [root]  # nothing half made beside it


def test_on_one_feature_cache_and_one_output_root(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",), train=3, good=2, bad=2)
    keywords = {"engine": "torch"}  # nothing is compiled
    words = ["--dataset", "mvtec", "--root", root, "--resize", 64, 64, "--no-pixel", "--no-html"]
    words += ["--model-kwargs", json.dumps(keywords)]
    words += ["--cache-dir", tmp_path / "features", "--runs-dir", tmp_path / "runs"]
    runs = [python("-m", "pyimgano", "benchmark", *words) for _ in range(2)]
    folders = [Path(json.loads(end(run))["run_dir"]) for run in runs]
    assert folders[0] != folders[1]
    assert sorted((tmp_path / "runs").iterdir()) == sorted(folders)  # and nothing beside them
    assert list((tmp_path / "features").rglob("*.safetensors"))
    assert not list((tmp_path / "features").rglob("*.tmp"))
    alone = run_benchmark(
        dataset="mvtec",
        root=root,
        resize=(64, 64),
        pixel=False,
        model_kwargs=keywords,
        runs_dir=tmp_path / "alone",
    )
    found = [
        lines(folder / "categories" / "nut" / "per_image.jsonl")
        for folder in (*folders, Path(alone["run_dir"]))
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


def test_a_demo_that_another_process_has_just_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks incomplete, and then, looked at again, it is not empty."""
    root = tmp_path / "demo"
    (root / "fabric").mkdir(parents=True)
    import pyimgano.datasets.demo as demo

    looked = demo.is_folder

    def late(path: Path) -> bool:
        (root / demo._COMPLETE).touch()
        return looked(path)

    monkeypatch.setattr(demo, "is_folder", late)
    DemoLayout().prepare(root)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_the_lock_dies_with_its_process(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"), train=2, good=1, bad=1)
    keywords = json.dumps({"at": "scoring", "how": "python", "sign": str(tmp_path / "sign")})
    words = ["--dataset", "mvtec", "--root", str(root), "--model", "busy"]
    words += ["--model-kwargs", keywords, "--runs-dir", str(tmp_path / "r")]
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.interrupting", *words],
        cwd=HERE.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "sign").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    (folder,) = (tmp_path / "r").iterdir()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = python("-m", "pyimgano", "benchmark", "--resume", folder)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 1
    assert err == f"pyimgano: error: {folder}: another process is writing this run\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    run.send_signal(signal.SIGKILL)
    run.wait()
    RunDirectory(folder).close()


def test_without_locks_of_the_file_system_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def none(*rest: object) -> None:
        raise OSError(38, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", none)
        RunDirectory(tmp_path).close()
    assert "cannot be locked" in caplog.text
    held = RunDirectory(tmp_path)
    with pytest.raises(DataError, match="another process is writing"):
        RunDirectory(tmp_path)
    held.close()
