"""What docs/offline.md says of packages is what the program needs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from pyimgano import cli
from pyimgano.pipelines import export

PAGE = (Path(__file__).parents[2] / "docs" / "offline.md").read_text(encoding="utf-8")
#: What packages are imported as.
NAMES = {"cv2": "opencv-python-headless", "PIL": "pillow"}


def test_the_small_set_is_what_the_example_of_an_export_imports() -> None:
    example = Path(export.__file__).parent / "examples" / "example_openvino.py"
    imported = re.findall(r"^(?:import|from) (\w+)", example.read_text(encoding="utf-8"), re.M)
    standard = {"json", "sys", "pathlib", "__future__"}
    wanted = {NAMES.get(name, name) for name in imported if name not in standard}
    (listed,) = re.findall(r"^pip install --no-index --find-links light (.+)$", PAGE, re.M)
    (fetched,) = re.findall(r"^pip download -d light (.+)$", PAGE, re.M)
    assert set(listed.split()) == set(fetched.split()) == wanted


def test_the_commands_of_the_page_are_there() -> None:
    lines = re.findall(r"^(?:pyimgano/bin/)?pyimgano (\S+)(.*)$", PAGE, re.M)
    assert {name for name, _ in lines} == {"doctor", "export"}
    for name, rest in lines:
        command = cli._command(name)
        known = {flag for one in command.params for flag in one.opts}
        assert isinstance(command, click.Command)
        assert set(re.findall(r"--[\w-]+", rest)) <= known
