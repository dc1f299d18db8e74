"""The script that goes through all names, under the Python that runs the tests."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path


def test_the_notebook_runs(tmp_path: Path) -> None:
    script = Path(__file__).with_name("notebook.py")
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"15 cells ran on Python {platform.python_version()}\n"
    assert list(tmp_path.iterdir()) == []
