"""Readers of untrusted files: what fuzzing has found, and a short while of more fuzzing."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(path for path in (HERE / "corpus").glob("*/*") if path.is_file())
READERS = {
    "image": "ImageReader",
    "manifest": "ManifestReader",
    "saved_detector": "SavedDetectorReader",
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    """`fuzz/targets.py`, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(
        "targets", HERE.parents[1] / "fuzz" / "targets.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readers(targets: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        name: getattr(targets, cls)(tmp_path_factory.mktemp(name)) for name, cls in READERS.items()
    }


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A low limit of pixels, so that what is large is refused as it is with the usual one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**19)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_the_corpus_is_there_and_small() -> None:
    assert {path.parent.name for path in FILES} == set(READERS)
    assert sum(path.stat().st_size for path in FILES) < 200_000


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.name}" for path in FILES])
def test_replay(readers: dict[str, Any], path: Path) -> None:
    readers[path.parent.name].check(path.read_bytes())


def test_a_harness_can_fail(
    targets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = targets.ImageReader(tmp_path)
    whole = (HERE / "corpus/image/rgb.png").read_bytes()
    read, given_back = targets.read_image, []

    def once_right(path: Path) -> Any:
        given_back.append(path)
        return read(path) + (len(given_back) > 1)

    monkeypatch.setattr(targets, "read_image", once_right)
    with pytest.raises(AssertionError):
        reader.check(whole)


@st.composite
def changed(draw: st.DrawFn, folder: str) -> bytes:
    """A file of the corpus with some of its bytes changed, or a part of it left out or doubled."""
    data = bytearray(
        draw(st.sampled_from([p for p in FILES if p.parent.name == folder])).read_bytes()
    )
    last = max(0, len(data) - 1)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, last))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=4))
    start, end = sorted((draw(st.integers(0, last)), draw(st.integers(0, last))))
    kind = draw(st.sampled_from(["whole", "without", "doubled", "cut"]))
    pieces = {
        "whole": data,
        "without": data[:start] + data[end:],
        "doubled": data[:end] + data[start:],
        "cut": data[:end],
    }
    return bytes(pieces[kind])


def some(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@some(150)
@given(data=changed("image"))
def test_changed_images(readers: dict[str, Any], data: bytes) -> None:
    readers["image"].check(data)


@some(200)
@given(data=changed("manifest"))
def test_changed_manifests(readers: dict[str, Any], data: bytes) -> None:
    readers["manifest"].check(data)


@some(60)
@given(data=changed("saved_detector"))
def test_changed_saved_detectors(readers: dict[str, Any], data: bytes) -> None:
    readers["saved_detector"].check(data)
