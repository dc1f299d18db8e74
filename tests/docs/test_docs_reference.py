"""The Python reference of the documentation describes every public name, and only what exists."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "api").glob("*.md"))
DESCRIBED = [
    target
    for page in PAGES
    for target in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]
PACKAGES = ["", ".models", ".pipelines", ".inference", ".comparison", ".evaluation", ".postprocess"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_described(package: str) -> None:
    described = {target.rpartition(".")[2] for target in DESCRIBED}
    names = import_module(f"pyimgano{package}").__all__
    assert [n for n in names if n not in described and n != "__version__" and not n.isupper()] == []


def test_everything_described_exists_and_is_described_once() -> None:
    assert len(DESCRIBED) == len(set(DESCRIBED)) > 50
    for target in DESCRIBED:
        module, _, name = target.rpartition(".")
        assert hasattr(import_module(module), name), target
