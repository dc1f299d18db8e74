"""What can be said of the container without building it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyimgano.cli import main

ROOT = Path(__file__).resolve().parents[2]


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with what it is given."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"  # all but what is named
    sources = [
        name
        for step, given in steps()
        if step == "COPY" and not given.startswith("--from=")
        for name in given.split()[:-1]
    ]
    assert {"src", "pyproject.toml", "constraints.txt"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


def test_it_needs_nothing_but_the_package_index() -> None:
    runs = " ".join(given for step, given in steps() if step in ("RUN", "ADD"))
    assert "pip install -c constraints.txt ." in runs
    assert not re.search(r"https?:|curl|wget|apt|git ", runs)


def test_the_user_has_no_rights_and_the_demo_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = steps()
    last = max(number for number, (step, _) in enumerate(known) if step == "FROM")
    final = [step for step, _ in known[last:]]
    users = [given for step, given in known[last:] if step == "USER"]
    assert users == ["10001"]  # a number, which Kubernetes can tell from root
    assert "RUN" not in final[final.index("USER") :]
    entry, command = (json.loads(dict(known)[name]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["pyimgano"]
    monkeypatch.chdir(tmp_path)
    small = ["--category", "washer", "--limit-train", "6", "--limit-test", "6", "--resize"]
    assert main([*command, *small, "64", "64"]) == 0
    assert list((tmp_path / "runs").glob("*/report.json"))
