"""Fixtures: small datasets that the tests make themselves, and real data where it is at hand."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

# Before numpy and torch look. There are as many processes as cores: each has one thread's share.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that import these themselves send nothing either (see test_privacy.py).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import numpy as np
import pytest
from PIL import Image

from pyimgano.models import registry

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use as many processes as there are cores, where pytest-xdist is there and no number is given.

    Not among the options of pyproject.toml, which would be errors without pytest-xdist.
    """
    options = config.option
    if (
        config.pluginmanager.hasplugin("xdist")
        and "PYTEST_XDIST_WORKER" not in os.environ
        and options.numprocesses is None
        and options.dist == "no"
        and not options.tx
        and not options.usepdb
        and not options.collectonly
    ):
        options.numprocesses, options.dist = "auto", "worksteal"


@pytest.fixture(scope="module", autouse=True)
def memory_of_a_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the backbones of a module's tests, and give back what these tests kept.

    Tests take the models in turn, so that the two backbones which a run keeps would be compiled
    again for each test. A process that kept those of all modules would have gigabytes in the end.
    """
    backbone = sys.modules.get("pyimgano.backbones.backbone")
    if backbone is not None and backbone._create.cache_info().maxsize == 2:
        backbone._create = lru_cache(maxsize=12)(backbone._create.__wrapped__)
    yield
    for kept in (*vars(request.module).values(), getattr(backbone, "_create", None)):
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not of glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def pages_are_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in this process leave a page of one line, unless a module asks for `real_pages`.

    A page takes half a second, and hundreds of tests run a benchmark for something else.
    """
    if request.node.get_closest_marker("real_pages") is None:
        monkeypatch.setattr("pyimgano.pipelines.run.write_report_page", _write_short_page)


def _write_short_page(run: Path) -> None:
    (run / "report.html").write_text("<p>not made in this test</p>\n")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the user's own cache folder.

    One folder for the whole session, with all its processes, so that networks are compiled once.
    """
    own = tmp_path_factory.getbasetemp()
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture(scope="session")
def real_mvtec() -> Path:
    """The real categories `bottle` and `magnetic_tile`, which are no part of the project."""
    root = SHARED / "data" / "mvtec"
    if not (root / "bottle").is_dir():
        pytest.skip(f"real images are not at hand ({root})")
    return root


@pytest.fixture(scope="session")
def pixel_anchors() -> Path:
    """Maps and masks with reference values of the metrics."""
    folder = SHARED / "anchors" / "pixel_metrics"
    if not folder.is_dir():
        pytest.skip(f"reference values are not at hand ({folder})")
    return folder


def copy_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that a test registers are gone after it; the built-in ones stay."""
    for name in registry.BUILT_IN:
        registry.model_entry(name)  # a module registers once, when it is imported
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def picture(seed: int, size: int = 64, *, spot: bool = False) -> np.ndarray:
    """A striped (size, size, 3) uint8 part; `spot` adds a dark square at (size / 2, size / 2)."""
    rng = np.random.default_rng(seed)
    _, columns = np.mgrid[0:size, 0:size]
    stripes = 120 + 60 * np.sin(columns / 3.0 + rng.uniform(0, 0.5))
    image = np.repeat(stripes[:, :, None], 3, axis=2) * np.array([1.0, 0.9, 0.8])
    image += rng.normal(0, 3, image.shape)
    if spot:
        half = size // 2
        image[half : half + size // 5, half : half + size // 5] = 15
    return np.clip(image, 0, 255).astype(np.uint8)


def spot_mask(size: int = 64) -> np.ndarray:
    """The mask (size, size) uint8 of 0 and 255 of `picture(spot=True)`."""
    mask = np.zeros((size, size), np.uint8)
    half = size // 2
    mask[half : half + size // 5, half : half + size // 5] = 255
    return mask


def save(path: Path, image: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


MakeDataset = Callable[..., Path]


@pytest.fixture
def make_mvtec(tmp_path: Path) -> MakeDataset:
    """Writes a dataset in MVTec layout and returns its root."""

    def make(
        categories: tuple[str, ...] = ("nut",),
        *,
        train: int = 6,
        good: int = 3,
        bad: int = 3,
        suffix: str = ".png",
        size: int = 64,
        name: str = "dataset",
    ) -> Path:
        root = tmp_path / name
        for offset, category in enumerate(categories):
            folder = root / category
            seed = 1000 * offset
            for i in range(train):
                save(folder / "train" / "good" / f"{i:03d}{suffix}", picture(seed + i, size))
            for i in range(good):
                save(folder / "test" / "good" / f"{i:03d}{suffix}", picture(seed + 100 + i, size))
            for i in range(bad):
                image = picture(seed + 200 + i, size, spot=True)
                save(folder / "test" / "spot" / f"{i:03d}{suffix}", image)
                mask = folder / "ground_truth" / "spot" / f"{i:03d}_mask.png"
                save(mask, spot_mask(size))
        return root

    return make


@pytest.fixture
def make_custom(tmp_path: Path) -> MakeDataset:
    """Writes a dataset in the custom layout and returns its root."""

    def make(*, train: int = 6, good: int = 3, bad: int = 3, masks: bool = True) -> Path:
        root = tmp_path / "plates"
        for i in range(train):
            save(root / "train" / "normal" / f"{i}.jpg", picture(i))
        for i in range(good):
            save(root / "test" / "normal" / f"{i}.png", picture(100 + i))
        for i in range(bad):
            save(root / "test" / "anomaly" / f"{i}.png", picture(200 + i, spot=True))
            if masks:
                save(root / "ground_truth" / "anomaly" / f"{i}_mask.png", spot_mask())
        return root

    return make
