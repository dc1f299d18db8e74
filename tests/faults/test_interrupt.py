"""Ctrl-C: a clean end, and soon, whatever the program is at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MakeDataset

HERE = Path(__file__).resolve().parent
CASES = [
    ("fit", "python"),
    ("calibration", "thread"),
    ("fit", "native"),
    ("scoring", "native"),
    ("metrics", "python"),
]


def begin(root: Path, output: Path, at: str, how: str, sign: Path) -> subprocess.Popen[str]:
    keywords = json.dumps({"at": at, "how": how, "sign": str(sign)})
    words = ["--dataset", "mvtec", "--root", str(root), "--model", "busy"]
    words += ["--model-kwargs", keywords, "--runs-dir", str(output)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.interrupting", *words],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(sign: Path, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_it_ends_cleanly_at_any_stage(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    """All at once, so that they wait for their ends together."""
    root = make_mvtec(("bolt", "nut"), train=2, good=1, bad=1)
    runs = []
    for number, (at, how) in enumerate(CASES):
        sign = tmp_path / f"sign{number}"
        runs.append((begin(root, tmp_path / str(number), at, how, sign), sign))
    for run, sign in runs:
        wait_for(sign, run)
        run.send_signal(signal.SIGINT)
    for number, (run, _) in enumerate(runs):
        out, err = run.communicate(timeout=30)  # what it is busy with would take longer
        assert (run.returncode, out) == (130, ""), (CASES[number], err)
        (run_dir,) = (tmp_path / str(number)).iterdir()
        assert err.splitlines()[-2:] == [
            "pyimgano-benchmark: error: interrupted",
            f"to go on: pyimgano benchmark --resume {run_dir}",
        ], CASES[number]
        (top,) = (tmp_path / str(number)).glob("*/report.json")
        report = json.loads(top.read_text())
        assert report["status"] == "interrupted" and report["not_begun"] == ["nut"]
        assert report["per_category"]["bolt"]["status"] == "interrupted"
        stored = json.loads((top.parent / "categories/bolt/report.json").read_text())
        assert stored == report["per_category"]["bolt"]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_time_ends_it_at_once(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"), train=2, good=1, bad=1)
    run = begin(root, tmp_path / "r", "fit", "native", tmp_path / "sign")
    wait_for(tmp_path / "sign", run)
    began = time.monotonic()
    while run.poll() is None and time.monotonic() < began + 30:
        run.send_signal(signal.SIGINT)
        time.sleep(0.1)
    out, err = run.communicate(timeout=1)
    assert (run.returncode, out) == (130, "")
    assert err.splitlines()[-2] == "pyimgano-benchmark: error: interrupted"
    (top,) = (tmp_path / "r").glob("*/report.json")
    assert json.loads(top.read_text())["status"] == "interrupted"
