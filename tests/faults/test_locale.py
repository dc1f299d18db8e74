"""A plain C locale, in which names of files and the streams are ASCII, with names that are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import picture, save

PROGRAM = """
import sys
from pathlib import Path
from pyimgano.cli import benchmark, infer

assert sys.getfilesystemencoding() != "utf-8"

def call(command, *arguments):
    try:
        assert not command(list(arguments))
    except SystemExit as end:
        assert not end.code, end.code

small = ["--model", "vision_knn", "--resize", "32", "32", "--no-pixel", "--output-dir", "runs"]
call(benchmark, "--dataset", "mvtec", "--root", "data", *small, "--save-model")
(report,) = [
    path for path in Path("runs").rglob("report.json") if "categories" not in path.parts
]
image = next(map(str, Path("data").rglob("0.png")))
call(infer, "--from-run", str(report.parent), "--input", image, "--save-jsonl", "out.jsonl")
call(benchmark, "--dataset", "mvtec", "--root", "data", "--list-categories")
"""


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode on Windows")
def test_a_category_whose_name_is_not_ascii(tmp_path: Path) -> None:
    category = tmp_path / "data" / "größe"
    for i in range(3):
        save(category / "train" / "good" / f"{i}.png", picture(i, 32))
    save(category / "test" / "good" / "0.png", picture(9, 32))
    save(category / "test" / "späne" / "0.png", picture(19, 32, spot=True))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    # its folder has the name that it has under every other locale
    assert [path.name for path in (tmp_path / "runs").rglob("categories/*")] == ["größe"]
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 1
