"""A run that is killed at any moment leaves whole files, and can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeDataset

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_moment_is_resumed_to_the_same_end(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut", "washer"), train=2, good=2, bad=2)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killing", str(root), str(tmp_path / "out"), "14", "1"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 14
    # the moments were of all kinds: most of them in the middle
    assert sum(trial["killed"] and trial["began"] for trial in trials) >= 5
    assert any(trial["kept"] for trial in trials)
