"""Exports: the same scores without pyimgano, and nothing left of one that differs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pyimgano.models
import pyimgano.runs
from pyimgano.calibration import float32_threshold
from pyimgano.cli import export
from pyimgano.errors import DataError, ImageReadError, NotFittedError, UsageError
from pyimgano.images import read_image, resize_image
from pyimgano.models import Detector, create_model
from pyimgano.models.anomaly_map import smooth_maps
from pyimgano.models.graphs import PatchCoreGraph
from pyimgano.models.neighbors import MemoryBank
from pyimgano.models.patchcore import VisionPatchCore
from pyimgano.models.patchcore_paper import LearnedPaper
from pyimgano.models.region_cells import RegionCells
from pyimgano.pipelines import export_detector
from pyimgano.pipelines.export import formats, writing
from tests.conftest import picture, save
from tests.pixel_detector import DarknessMethod

SIZE = (64, 48)
EVERY = ("openvino", "onnx", "torch")


def fitted(**keywords: Any) -> VisionPatchCore:
    keywords = {"resize": SIZE, "device": "cpu", **keywords}
    detector = create_model("vision_patchcore", **keywords)
    return detector.fit([picture(i, 96) for i in range(6)])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def detector() -> VisionPatchCore:
    return fitted()


IMAGES = [picture(50 + i, 96, spot=i % 2 == 1) for i in range(4)]


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Modules that are not there."""

    def hide(*names: str) -> None:
        found = formats._installed
        monkeypatch.setattr(formats, "_installed", lambda name: name not in names and found(name))

    return hide


def require(form: str) -> None:
    for module in {"onnx": ("onnx", "onnxruntime")}.get(form, ()):
        pytest.importorskip(module)


@pytest.mark.parametrize("form", EVERY)
def test_every_format_does_as_the_detector(
    detector: VisionPatchCore, form: str, tmp_path: Path
) -> None:
    require(form)
    target = tmp_path / "deep" / "export"
    metadata = export_detector(detector, target, format=form, check_images=IMAGES)
    assert metadata.check.images == 4 and metadata.check.labels_differ == 0
    assert metadata.check.score.relative < 1e-5 and metadata.check.anomaly_map.relative < 1e-5

    program, _ = formats.FORMATS[form].open(target)
    batch = np.stack([resize_image(image, SIZE) for image in IMAGES])
    for some in (batch, batch[1:2]):  # the number of images is free
        score, anomaly_map, label = program(some)
        chosen = IMAGES if len(some) == 4 else IMAGES[1:2]
        np.testing.assert_allclose(score, detector.decision_function(chosen), rtol=1e-5)
        np.testing.assert_allclose(
            anomaly_map, detector.predict_anomaly_map(chosen), rtol=1e-5, atol=1e-4
        )
        assert label.tolist() == detector.predict(chosen).tolist()
        assert (score.dtype, anomaly_map.dtype, label.dtype) == (np.float32, np.float32, np.int64)
    assert program(batch)[2].tolist() == [0, 1, 0, 1]
    assert [p.name for p in target.parent.iterdir()] == ["export"]  # nothing temporary


@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("recipe", ["whitened", "paper"])
def test_a_batch_of_no_image(recipe: str, form: str, tmp_path: Path) -> None:
    require(form)
    detector = fitted(recipe=recipe)
    export_detector(detector, tmp_path / "model", format=form, check_images=IMAGES[:1])
    program, _ = formats.FORMATS[form].open(tmp_path / "model")
    for count in (0, 2):
        score, anomaly_map, label = program(np.zeros((count, *SIZE, 3), np.uint8))
        assert score.shape == label.shape == (count,) and anomaly_map.shape == (count, *SIZE)


def test_the_folder_says_what_it_is(detector: VisionPatchCore, tmp_path: Path) -> None:
    target = tmp_path / "export"
    returned = export_detector(detector, target, format="torch", check_images=IMAGES[:1])
    facts = json.loads((target / "metadata.json").read_text())
    assert facts == json.loads(returned.model_dump_json())
    assert facts["kind"] == "pyimgano-export" and facts["schema_version"] == 1
    assert facts["input"]["shape"] == ["N", 64, 48, 3] and facts["input"]["colour"] == "RGB"
    assert facts["input"]["resize"]["shrink"] == "cv2.INTER_AREA"
    assert [output["name"] for output in facts["outputs"]] == ["score", "anomaly_map", "label"]
    assert facts["threshold"] == detector.threshold_
    assert facts["threshold_in_model"] == pytest.approx(detector.threshold_, rel=1e-6)
    assert detector.pixel_calibration_ is not None
    assert facts["pixel_threshold"] == detector.pixel_calibration_.threshold
    assert facts["model"]["name"] == "vision_patchcore"
    weights = facts["model"]["description"]["backbone"]["weights"]
    assert weights == detector.describe()["backbone"]["weights"] and len(weights["sha256"]) == 64
    assert facts["versions"]["torch"] and facts["check"]["engine"].startswith("torch ")
    inside = {path.name for path in target.iterdir()}
    assert inside == {*facts["files"], "metadata.json"}
    assert inside == {"model.pt", "example.py", "README.txt", "metadata.json"}
    for name, file in facts["files"].items():
        data = (target / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("form", EVERY)
def test_the_example_runs_without_pyimgano(
    detector: VisionPatchCore, form: str, tmp_path: Path
) -> None:
    require(form)
    export_detector(detector, tmp_path / "export", format=form, check_images=IMAGES[:1])
    # a folder that may be moved anywhere, on an image that has to be turned and resized
    target = (tmp_path / "export").rename(tmp_path / "moved away")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save(tmp_path / "a part.png", picture(201, 200, spot=True)[:, 30:], exif=exif)
    assert read_image(image).shape == (170, 200, 3)
    hidden = tmp_path / "hidden" / "pyimgano"  # stands before the installed one
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('pyimgano is not installed')")
    start = f"import runpy, sys; sys.path.insert(0, {str(hidden.parent)!r}); "
    start += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"

    def example(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-I", "-c", start, target / "example.py", *arguments]
        return subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    done = example(image, "map.npy")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["score"] == pytest.approx(detector.decision_function([image])[0], rel=1e-5)
    assert printed["label"] == 1 and printed["map"] == "map.npy"
    found = np.load(tmp_path / "map.npy", allow_pickle=False)
    np.testing.assert_allclose(found, detector.get_anomaly_map(image), rtol=1e-5, atol=1e-4)
    if form != "torch":
        return
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:-3000])
    done = example(cut)  # what cannot be read has no score
    assert done.returncode != 0 and done.stdout == ""
    Image.fromarray(np.full((80, 80), 40_000, np.uint16)).save(tmp_path / "wide.png")
    done = example(tmp_path / "wide.png")
    assert done.returncode == 1 and "this example reads 8-bit images" in done.stderr


@pytest.mark.parametrize("b", [1, 3, 500])
@pytest.mark.parametrize("ratio", [0.02, 1.0])
def test_the_graph_in_torch(b: int, ratio: float) -> None:
    """Any number of neighbours, more than the bank has among them; small banks and large."""
    keywords = {"backbone": "resnet18", "pretrained": False, "resize": (64, 64)}
    found = fitted(n_neighbors=b, coreset_sampling_ratio=ratio, **keywords)
    batch = np.stack([resize_image(image, (64, 64)) for image in IMAGES])
    with torch.inference_mode():
        score, anomaly_map, label = found.export_graph()(torch.from_numpy(batch))
    np.testing.assert_allclose(score, found.decision_function(IMAGES), rtol=2e-5)
    np.testing.assert_allclose(anomaly_map, found.predict_anomaly_map(IMAGES), rtol=2e-5, atol=1e-5)
    assert label.tolist() == found.predict(IMAGES).tolist()


def test_a_bank_of_one_row() -> None:
    found = fitted(coreset_sampling_ratio=1e-9)
    assert len(found.learned_.memories.near.bank) == 1  # type: ignore[attr-defined]
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([resize_image(image, SIZE) for image in IMAGES]))
        score, _, _ = found.export_graph()(batch)
    np.testing.assert_allclose(score, found.decision_function(IMAGES), rtol=1e-5)


class _Given(torch.nn.Module):
    """In the place of a backbone: features that depend on nothing."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.features,)


def test_distances_do_not_cancel() -> None:
    """Features far from 0 and close to each other, where |a|^2 + |b|^2 - 2ab has no digits."""
    generator = torch.Generator().manual_seed(0)
    bank = 1000.0 + torch.randn(500, 32, generator=generator)
    queries = bank[:16] + 1e-3 * torch.randn(16, 32, generator=generator)
    graph = PatchCoreGraph(_Given(queries.view(1, 4, 4, 32)), bank, None, (4, 4), (4, 4), 1.0)
    score, _, _ = graph(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))
    expected = (queries - bank[:16]).double().norm(dim=1).max()
    assert float(score[0]) == pytest.approx(float(expected), rel=1e-3)
    naive = (queries.square().sum(1)[:, None] + bank.square().sum(1) - 2 * queries @ bank.T).amin(1)
    assert abs(float(naive.clamp(min=0).max().sqrt()) - float(expected)) > 0.1 * float(expected)


def test_what_is_not_a_number_is_not_good() -> None:
    features = torch.full((1, 2, 2, 3), torch.nan)
    graph = PatchCoreGraph(_Given(features), torch.randn(9, 3), None, (2, 2), (8, 8), 1.0)
    score, _, label = graph(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert score.isnan().all() and label.tolist() == [1]


class _HalfOfTheFrame:
    """A region of interest, to the left of 0.6 of the width; as a detector has it."""

    def counted(self, size: tuple[int, int], source: tuple[int, int] | None = None) -> Any:
        inside = np.zeros(size, np.bool_)
        inside[:, : int(0.6 * size[1]) - (source != size)] = True  # one column is mixed
        return inside

    def fill(self, image: np.ndarray, source: tuple[int, int], name: str) -> np.ndarray:
        return np.where(self.counted(image.shape[:2], source)[:, :, None], image, np.uint8(127))


@dataclass(frozen=True)
class HalfCells(RegionCells):
    counted: tuple[int, ...] = ()

    def cells(self, grid: tuple[int, int]) -> np.ndarray:
        return np.array(self.counted)


@pytest.mark.parametrize("form", EVERY)
def test_outside_the_region_nothing_counts(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(form)
    detector = fitted(recipe="paper")
    roi, grid = _HalfOfTheFrame(), detector.grid_
    assert grid == (8, 6)
    # 28 of 48 columns reach into four cells of 8
    across = np.arange(grid[1]) * 48 // grid[1] < 28
    cells = np.flatnonzero(np.tile(across, grid[0]))
    learned = detector.learned_
    assert isinstance(learned, LearnedPaper)
    region = HalfCells(SIZE, roi, tuple(cells))  # type: ignore[arg-type]
    learned = replace(learned, grid=replace(learned.grid, region=region))
    monkeypatch.setattr(detector, "learned_", learned)
    written = formats.FORMATS[form]
    written.write(detector.export_graph((96, 96)), SIZE, tmp_path)
    program, _ = written.open(tmp_path)
    inside = roi.counted(SIZE, (96, 96))
    pixels = resize_image(IMAGES[1], SIZE)
    other = np.where(inside[:, :, None], pixels, 255 - pixels)
    outputs = program(pixels[None])
    for one, same in zip(outputs, program(other[None]), strict=True):
        np.testing.assert_array_equal(one, same)
    score, anomaly_map, _ = outputs

    # the detector's own distances, of the patches that count
    filled = roi.fill(pixels, (96, 96), "")
    with torch.inference_mode():
        (features,) = learned.backbone.features([filled])
        patches = features.flatten(1, 2)[:, cells]
        distances, rows = learned.bank.search(patches[0])
    values, counted = torch.zeros(len(across) * grid[0]), torch.zeros(len(across) * grid[0])
    values[cells], counted[cells] = distances, 1.0
    sigma = learned.grid.sigma
    value, weight = (
        smooth_maps(v.view(1, *grid), SIZE, sigma)[0].numpy() for v in (values, counted)
    )
    assert (anomaly_map[0][~inside] == 0).all()
    found = anomaly_map[0][inside]
    np.testing.assert_allclose(found, value[inside] / weight[inside], rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        expected = learned.image_scores(patches, distances[None], rows[None])
    assert float(score[0]) == pytest.approx(float(expected[0]), rel=1e-5)


@pytest.mark.parametrize("form", EVERY)
def test_a_region_of_the_whitened_recipe(form: str, tmp_path: Path) -> None:
    """Both grids of patches leave out what does not count."""
    require(form)
    half = [[[0.0, 0.0], [0.55, 0.0], [0.55, 1.0], [0.0, 1.0]]]
    detector = fitted(recipe="whitened", roi=half, resize=(96, 128))
    context = detector.learned_.grids[1].cells  # type: ignore[attr-defined]
    assert context is not None and len(context) == 9
    written = formats.FORMATS[form]
    written.write(detector.export_graph((96, 96)), (96, 128), tmp_path)
    program, _ = written.open(tmp_path)
    pixels = resize_image(IMAGES[1], (96, 128))
    score, anomaly_map, _ = program(pixels[None])
    (expected,) = detector.score_images([IMAGES[1]])
    assert float(score[0]) == pytest.approx(expected.score, rel=1e-4)
    np.testing.assert_allclose(anomaly_map[0], expected.anomaly_map, rtol=1e-3, atol=1e-4)
    pixels[:, 72:] = 255 - pixels[:, 72:]
    for one, same in zip(program(pixels[None]), (score, anomaly_map)):
        np.testing.assert_array_equal(one, same)


def test_a_region_is_for_one_size(
    detector: VisionPatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "roi_", _HalfOfTheFrame(), raising=False)
    small = save(tmp_path / "small.png", picture(1, 80))
    with pytest.raises(UsageError, match=r"for images of one size; .* of 2: 80 x 80, 96 x 96"):
        export_detector(detector, tmp_path / "x", format="torch", check_images=[*IMAGES, small])
    assert not (tmp_path / "x").exists()


@given(st.floats(-(2.0**99), 2.0**99), st.floats(-(2.0**99), 2.0**99, width=32))
def test_the_float32_threshold_decides_alike(threshold: float, score: float) -> None:
    for near in (score, *np.nextafter(np.float32(threshold), np.float32([-np.inf, np.inf]))):
        if abs(near) >= np.finfo(np.float32).tiny or near == 0:
            assert (near >= float32_threshold(threshold)) == (float(near) >= threshold)


def test_a_threshold_just_above_nothing_does_not_vanish() -> None:
    assert float32_threshold(5e-324) == np.finfo(np.float32).tiny
    assert float32_threshold(0.0) == 0.0


# ---- what has to fail


@pytest.mark.parametrize("form", EVERY)
def test_a_wrong_bank_leaves_nothing(
    detector: VisionPatchCore, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(form)
    made = VisionPatchCore.export_graph

    def wrong(self: VisionPatchCore, size: Any) -> torch.nn.Module:
        graph = made(self, size)
        graph.near.nearest.bank[::2] += 0.5  # type: ignore[index]
        return graph

    monkeypatch.setattr(VisionPatchCore, "export_graph", wrong)
    with pytest.raises(DataError, match=r"differs from the detector: score by .* at most 0\.001"):
        export_detector(detector, tmp_path / "export", format=form, check_images=IMAGES)
    assert list(tmp_path.iterdir()) == []


def _planted(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    """What the written model gives is changed on the way to the check."""
    opened = formats.FORMATS["torch"].open

    def changed(folder: Path) -> tuple[formats.Program, str]:
        program, engine = opened(folder)
        return lambda pixels: change(program(pixels)), engine

    form = formats.FORMATS["torch"]
    planted = formats.Format("torch", form.files, form.needs, form.write, changed)
    monkeypatch.setitem(formats.FORMATS, "torch", planted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: [o[0], o[1] * 1.002, o[2]], r"anomaly map by"),
        (lambda o: [o[0], o[1], 1 - o[2]], r"gives label 1 to image 0"),
        (lambda o: [o[0] * np.nan, o[1], o[2]], r"not finite \(image 0\)"),
        (lambda o: [o[0], o[1][:, :-1], o[2]], r"shapes \[\(1,\), \(1, 63, 48\), \(1,\)\]"),
    ],
)
def test_every_output_is_compared(
    detector: VisionPatchCore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Any]], list[Any]],
    said: str,
) -> None:
    _planted(monkeypatch, change)
    with pytest.raises(DataError, match=said):
        export_detector(detector, tmp_path / "export", format="torch", check_images=IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_what_is_within_rounding_is_kept_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(recipe="paper", coreset_sampling_ratio=0.5)
    found.threshold_ = float(np.nextafter(found.decision_function(IMAGES[:1])[0], np.inf))
    _planted(monkeypatch, lambda o: [o[0] * np.float32(1 + 5e-6), o[1] * 1.0005, o[2] * 0 + 1])
    metadata = export_detector(found, tmp_path / "export", format="torch", check_images=IMAGES[:1])
    assert metadata.check.labels_differ == 1
    largest = float(found.get_anomaly_map(IMAGES[0]).max())
    assert found.pixel_calibration_ is not None
    scale = max(largest, found.pixel_calibration_.threshold)
    assert metadata.check.anomaly_map.absolute == pytest.approx(5e-4 * largest, rel=0.01)
    assert metadata.check.anomaly_map.relative == pytest.approx(5e-4 * largest / scale, rel=0.01)
    assert metadata.check.score.relative == pytest.approx(5e-6, rel=0.2)


class Mute(Detector):
    """A detector that has no graph."""

    method = DarknessMethod


def test_what_cannot_be_exported_says_so(
    detector: VisionPatchCore, tmp_path: Path, without_packages: Callable[..., None]
) -> None:
    target = tmp_path / "export"
    with pytest.raises(UsageError, match=r"Mute cannot be exported; what can: .*vision_patchcore"):
        export_detector(Mute(), target, check_images=IMAGES)
    with pytest.raises(UsageError, match="Mute cannot be exported"):
        Mute().export_graph()
    with pytest.raises(NotFittedError, match="not fitted yet"):
        export_detector(create_model("vision_patchcore"), target, check_images=IMAGES)
    with pytest.raises(UsageError, match="unknown format 'onx'; did you mean onnx"):
        export_detector(detector, target, format="onx", check_images=IMAGES)
    with pytest.raises(UsageError, match="check_images is empty"):
        export_detector(detector, target, format="torch", check_images=[])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match=r"broken\.png: not an image"):
        export_detector(detector, target, format="torch", check_images=[tmp_path / "broken.png"])
    without_packages("onnx")
    with pytest.raises(UsageError, match=r"'onnx' needs onnx, .* pip install 'pyimgano\[export\]'"):
        export_detector(detector, target, format="onnx", check_images=IMAGES)
    without_packages("openvino")
    with pytest.raises(UsageError, match=r"'openvino' needs openvino, .* pip install openvino"):
        export_detector(detector, target, format="openvino", check_images=IMAGES)
    assert not target.exists()


def test_onnx_is_checked_with_what_is_there(
    detector: VisionPatchCore, tmp_path: Path, without_packages: Callable[..., None]
) -> None:
    pytest.importorskip("onnx")
    without_packages("onnxruntime")
    metadata = export_detector(detector, tmp_path / "a", format="onnx", check_images=IMAGES[:2])
    assert metadata.check.engine.startswith("openvino ")
    assert metadata.check.anomaly_map.relative < 1e-5
    without_packages("onnxruntime", "openvino")
    with pytest.raises(UsageError, match="'onnx' needs onnxruntime or openvino"):
        export_detector(detector, tmp_path / "b", format="onnx", check_images=IMAGES)


def test_nothing_but_an_export_is_replaced(
    detector: VisionPatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(target: Path, **more: Any) -> None:
        export_detector(detector, target, format="torch", check_images=IMAGES[:1], **more)

    target = tmp_path / "export"
    to(target)
    before = (target / "metadata.json").read_bytes()
    with pytest.raises(UsageError, match=r"export: exists; .*--overwrite"):
        to(target)
    os.utime(target / "model.pt", (0, 0))
    # a failure on the way leaves the old one
    with monkeypatch.context() as patch:
        patch.setattr(writing, "describe_export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to(target, overwrite=True)
    assert (target / "metadata.json").read_bytes() == before
    with monkeypatch.context() as patch:
        renamed = Path.rename

        def stuck(self: Path, other: Path) -> Path:
            if self.suffix == ".tmp":
                raise PermissionError(13, "Permission denied")
            return renamed(self, other)

        patch.setattr(Path, "rename", stuck)
        with pytest.raises(DataError, match=r"export: cannot be written \(Permission denied\)"):
            to(target, overwrite=True)
    assert (target / "metadata.json").read_bytes() == before
    to(target, overwrite=True)
    assert (target / "model.pt").stat().st_mtime > 0
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"also holds 'notes\.txt'"):
        to(target, overwrite=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text('{"kind": "something else"}')
    with pytest.raises(UsageError, match="is not an export"):
        to(tmp_path / "data", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        to(tmp_path / "file", overwrite=True)
    with pytest.raises(DataError, match="cannot be written"):
        to(tmp_path / "file" / "below")
    (tmp_path / "empty").mkdir()
    to(tmp_path / "empty", overwrite=True)
    assert (tmp_path / "empty" / "metadata.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---- the command


@pytest.fixture
def call(
    detector: VisionPatchCore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `pyimgano-export` here, where every saved detector is the fitted one."""
    asked = SimpleNamespace()

    def find_model(run: Path, category: str | None = None) -> Path:
        asked.run, asked.category = run, category
        return run / "model"

    def load_model(folder: Path, device: str = "cpu", allow_outside: bool = False) -> Detector:
        asked.folder, asked.device = folder, device
        return detector

    monkeypatch.setattr(pyimgano.runs, "find_model", find_model, raising=False)
    monkeypatch.setattr(pyimgano.models, "load_model", load_model, raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            export([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    run.asked = asked  # type: ignore[attr-defined]
    return run


def test_the_command_prints_the_differences(call: Any, tmp_path: Path) -> None:
    paths = [save(tmp_path / "images" / f"{i}.png", image) for i, image in enumerate(IMAGES)]
    target = tmp_path / "export"
    known = ["--model-dir", tmp_path / "saved", "--format", "torch", "--output", target]
    code, out, err = call(*known, "--check", paths[0], paths[1])
    assert code == 0 and err == ""
    printed = json.loads(out)
    assert printed["folder"] == str(target) and printed["check"]["images"] == 2
    assert printed["check"]["score"]["absolute"] >= 0 and printed["check"]["labels_differ"] == 0
    assert printed["check"]["anomaly_map"]["image"] in {str(path) for path in paths}
    assert call.asked.folder == tmp_path / "saved" and call.asked.device == "cpu"
    code, out, err = call(*known, "--check", tmp_path / "images")
    assert (code, out) == (2, "") and f"{target}: exists" in err
    code, out, _ = call(*known, "--check", tmp_path / "images", "--overwrite")
    assert code == 0 and json.loads(out)["check"]["images"] == 4


def _record(category: str, path: Path, score: float | None = 1.0) -> str:
    known = {"index": 0, "dataset": "custom", "category": category, "input": str(path)}
    known |= {"y_true": 0, "defect": "good", "score": score, "threshold": 1.0, "pred": 0}
    return json.dumps(known) + "\n"


def test_a_run_knows_its_images(call: Any, tmp_path: Path) -> None:
    paths = [save(tmp_path / "images" / f"{i}.png", picture(i, 32)) for i in range(20)]
    run, target = tmp_path / "run", tmp_path / "export"
    for category, some in (("nut", paths), ("bolt", [tmp_path / "gone.png"])):
        records = run / "categories" / category / "per_image.jsonl"
        records.parent.mkdir(parents=True)
        records.write_text("".join(_record(category, path) for path in some) + '{"cut": ')
    known = ["--from-run", run, "--format", "torch", "--output", target]
    code, _, err = call(*known)
    assert code == 2 and "which category? give --category: bolt, nut" in err
    code, _, err = call(*known, "--category", "bolt")
    assert code == 2 and "none of the images it scored is there; give images with --check" in err
    code, out, _ = call(*known, "--category", "nut", "--device", "auto")
    assert code == 0 and json.loads(out)["check"]["images"] == 16
    assert (call.asked.run, call.asked.category, call.asked.device) == (run, "nut", "auto")
    assert call.asked.folder == run / "model"
    records.write_text("what is this\n")
    code, _, err = call(*known, "--category", "nut", "--overwrite")
    assert code == 1 and "per_image.jsonl: line 1 is not a record" in err


def test_a_failed_check_exits_1(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _planted(monkeypatch, lambda o: [o[0] * 1.01, o[1], o[2]])
    image = save(tmp_path / "a.png", IMAGES[1])
    known = ["--model-dir", tmp_path, "--format", "torch", "--output", tmp_path / "x"]
    code, out, err = call(*known, "--check", image)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "relatively 0.01" in err and "nothing was kept" in err
    assert not (tmp_path / "x").exists()


WRONG: list[tuple[list[str], int, str]] = [
    (["--output", "x"], 2, "--check is missing"),
    (["--output", "x", "--check", "a.png"], 2, "give either --from-run RUN or --model-dir DIR"),
    (["--output", "x", "a.png", "--model-dir", "m"], 2, "unexpected argument 'a.png'"),
    (["--model-dir", "m", "--check", "a.png"], 2, "--output"),
    (["--output", "x", "--model-dir", "m", "--check", "b"], 2, "--check b: no such file"),
    (["--output", "x", "--model-dir", "m", "--check", "empty"], 2, "empty: holds no images"),
    (["--output", "x", "--format", "tflite"], 2, "unknown format 'tflite'; known: onnx"),
    (["--output", "x", "--from-run", "no"], 2, "no: none of the images it scored"),
    (
        ["--output", "x", "--model-dir", "m", "--category", "c", "--check", "a.png"],
        2,
        "--category goes with --from-run",
    ),
    (
        ["--output", "x", "--model-dir", "m", "--from-run", "r", "--check", "a.png"],
        2,
        "give either --from-run RUN or --model-dir DIR",
    ),
]


@pytest.mark.parametrize(("wrong", "code", "said"), WRONG, ids=lambda v: str(v)[:60])
def test_what_is_wrong_is_one_clear_line(
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.png"), IMAGES[0])
    Path("empty").mkdir()
    found, out, err = call(*wrong)
    assert found == code, err
    assert out == "" and said in err and err.count("\n") == 1
    assert err.startswith("pyimgano-export: error: ") and not Path("x").exists()


def test_the_command_starts_without_torch() -> None:
    code = "import sys, pyimgano.cli.export, pyimgano.pipelines.export; "
    code += "sys.exit('torch' in sys.modules or 'openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bank_of_a_graph_is_a_copy(detector: VisionPatchCore) -> None:
    bank: MemoryBank = detector.learned_.memories.near.bank  # type: ignore[attr-defined]
    before = bank.features.clone()
    graph = detector.export_graph()
    graph.near.nearest.bank.zero_()  # type: ignore[union-attr,operator]
    assert torch.equal(bank.features, before)
