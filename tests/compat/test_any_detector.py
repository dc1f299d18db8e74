"""Small detectors as scripts and their tests write them, through everything that takes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pyimgano.cli
import pyimgano.infer_cli
import pyimgano.robust_cli
from pyimgano.calibration.pixel_threshold import calibrate_normal_pixel_quantile_threshold
from pyimgano.errors import DataError, MissingFolderError, UnknownCategoryError, UnknownNameError
from pyimgano.evaluation import (
    compute_aupro,
    compute_bg_fpr,
    compute_pixel_auroc,
    compute_pixel_average_precision,
    compute_pixel_segf1,
)
from pyimgano.inference.api import calibrate_threshold, infer
from pyimgano.models import create_model, model_info
from pyimgano.models.adapted import adapt
from pyimgano.pipelines.mvtec_visa import BenchmarkSplit, evaluate_split, load_benchmark_split
from pyimgano.robustness import corruptions
from pyimgano.robustness.benchmark import run_robustness_benchmark
from pyimgano.utils import datasets

from ..conftest import save, spot_mask
from ..pixel_detector import plain


class Line:
    """Scores by position, whatever it is given."""

    def fit(self, X: Any) -> None:
        self.count = len(X)

    def decision_function(self, X: Any) -> np.ndarray:
        return np.linspace(0, 1, len(X))


class Decided(Line):
    """Has a threshold of its own, and no scores that another could come from."""

    threshold_ = 0.5

    def get_anomaly_map(self, item: Any) -> np.ndarray:
        return np.linspace(0, 1, 64).reshape(8, 8)


class Asserting(Line):
    """Asserts that it is given one array."""

    def fit(self, X: Any, y: Any = None) -> None:
        assert isinstance(X, np.ndarray) and X.ndim == 4

    def decision_function(self, X: Any) -> np.ndarray:
        assert isinstance(X, np.ndarray) and X.ndim == 4
        return X.reshape(len(X), -1).mean(axis=1)

    def predict_anomaly_map(self, X: Any) -> np.ndarray:
        assert isinstance(X, np.ndarray) and X.ndim == 4
        return X.mean(axis=3)


class Raising(Asserting):
    """Says so with a RuntimeError, as torch does."""

    def decision_function(self, X: Any) -> np.ndarray:
        if not isinstance(X, np.ndarray):
            raise RuntimeError("expected a 4D input")
        return super().decision_function(X)


class ListOfArrays:
    """Asserts that it is given a list of arrays."""

    def fit(self, X: Any) -> ListOfArrays:
        assert isinstance(X, list) and isinstance(X[0], np.ndarray)
        return self

    def decision_function(self, X: Any) -> list[float]:
        assert isinstance(X, list) and all(isinstance(one, np.ndarray) for one in X)
        return [float(one.mean()) for one in X]


class ReadsFiles:
    """Reads its own files."""

    def fit(self, X: Any) -> None:
        self.usual = np.mean([cv2.imread(one).mean() for one in X])

    def decision_function(self, X: Any) -> list[float]:
        return [abs(float(cv2.imread(one).mean() - self.usual)) for one in X]


class FittedElsewhere:
    """Has no fit: it came ready."""

    threshold_ = 100.0

    def decision_function(self, X: Any) -> np.ndarray:
        return np.asarray([float(np.mean(one)) for one in X])


ALL = [Line, Decided, Asserting, Raising, ListOfArrays]
IMAGES = [plain(value, 8, 8) for value in (10, 200)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One category of MVTec AD, of 16 x 16 pixels; its defective image is the brighter one."""
    for i in range(3):
        save(tmp_path / f"bottle/train/good/{i:03d}.png", plain(100 + i, 16, 16))
    save(tmp_path / "bottle/test/good/000.png", plain(101, 16, 16))
    save(tmp_path / "bottle/test/crack/000.png", plain(250, 16, 16))
    save(tmp_path / "bottle/ground_truth/crack/000_mask.png", spot_mask(16))
    return tmp_path


@pytest.fixture
def split(root: Path) -> BenchmarkSplit:
    return load_benchmark_split(dataset="mvtec", root=root, category="bottle", resize=(16, 16))


# ---- what a detector is given


@pytest.mark.parametrize("kind", [*ALL, ReadsFiles])
def test_evaluate_split_takes_it(split: BenchmarkSplit, kind: Any) -> None:
    found = evaluate_split(kind(), split)
    assert 0 <= found["auroc"] <= 1
    has_maps = hasattr(kind, "predict_anomaly_map") or hasattr(kind, "get_anomaly_map")
    assert ("pixel_metrics" in found) == has_maps
    if has_maps:
        strategy = "normal_pixel_quantile"
        found = evaluate_split(kind(), split, pixel_threshold_strategy=strategy)
        assert {"pixel_threshold", "pixel_segf1", "bg_fpr"} <= set(found["pixel_metrics"])


@pytest.mark.parametrize("kind", [*ALL, FittedElsewhere])
def test_infer_takes_it(kind: Any) -> None:
    detector = kind()
    found = infer(detector, IMAGES)
    assert found[0].score is not None and found[1].score is not None
    assert found[0].score < found[1].score
    threshold = calibrate_threshold(detector, IMAGES, quantile=0.5)
    assert detector.threshold_ == threshold
    labels = [one.label for one in infer(detector, IMAGES)]
    assert labels == [int(one.score >= threshold) for one in found if one.score is not None]


def test_infer_takes_paths_to_it(root: Path) -> None:
    paths = [str(root / f"bottle/test/{kind}/000.png") for kind in ("good", "crack")]
    for kind in ALL:
        assert [one.error for one in infer(kind(), paths)] == [None, None]
    found = infer(Asserting(), paths, include_maps=True)
    assert [one.score for one in found] == [101.0, 250.0]
    assert found[0].anomaly_map is not None and found[0].anomaly_map.shape == (16, 16)


def test_what_is_wrong_with_it_is_said_by_itself() -> None:
    """An error of one that was given an array is not covered by that of another form."""

    class Broken(Line):
        def decision_function(self, X: Any) -> np.ndarray:
            raise ZeroDivisionError("in one array" if isinstance(X, np.ndarray) else "in a list")

    with pytest.raises(ZeroDivisionError, match="in one array"):
        infer(Broken(), IMAGES)

    class OutOfMemory(Line):
        calls = 0

        def decision_function(self, X: Any) -> np.ndarray:
            self.calls += 1
            raise MemoryError

    detector = OutOfMemory()
    with pytest.raises(MemoryError):
        infer(detector, IMAGES)
    assert detector.calls == 1


def test_one_without_fit_can_score_and_not_be_fitted() -> None:
    made = adapt(FittedElsewhere(), fitted=True)
    assert made.predict(IMAGES).tolist() == [0, 1]
    with pytest.raises(ValueError, match="FittedElsewhere is no detector: it has no method fit"):
        made.fit(IMAGES)


def test_a_threshold_of_its_own_is_no_calibration() -> None:
    """No p-value is made of no scores."""
    found = infer(Decided(), IMAGES)
    assert [one.p_value for one in found] == [None, None]
    assert [one.label for one in found] == [0, 1]


def test_one_image_is_no_sequence() -> None:
    for call in (infer, calibrate_threshold):
        with pytest.raises(ValueError, match=r"got one image of shape \(8, 8, 3\)"):
            call(Line(), IMAGES[0], input_format="rgb_u8_hwc")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("mode", ["numpy", "paths"])
def test_the_robustness_benchmark_takes_it(split: BenchmarkSplit, kind: Any, mode: Any) -> None:
    found = run_robustness_benchmark(
        kind(), split, corruptions="blur", severities=1, input_mode=mode, resize=(16, 16)
    )
    assert list(found["corruptions"]["blur"]) == ["severity_1"]


def test_the_robustness_benchmark_takes_arrays_of_images() -> None:
    batch = np.stack(IMAGES)
    found = run_robustness_benchmark(
        Line(),
        train_images=batch,
        test_images=batch,
        test_labels=[0, 1],
        corruptions=["jpeg"],
        severities=[2],
    )
    assert found["clean"]["auroc"] == 1.0
    with pytest.raises(ValueError, match="train_images are empty"):
        run_robustness_benchmark(Line(), train_images=[], test_images=batch, test_labels=[0, 1])


# ---- in a command, in the place of ours


def ran(capsys: pytest.CaptureFixture[str], main: Any, *words: object) -> str:
    status = main([str(one) for one in words])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


@pytest.mark.parametrize("kind", [*ALL, ReadsFiles])
def test_the_commands_take_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    for module in (pyimgano.cli, pyimgano.infer_cli, pyimgano.robust_cli):
        monkeypatch.setattr(module, "create_model", lambda name, **keywords: kind())
    dataset = ["--dataset", "mvtec", "--root", root, "--category", "bottle", "--model", "any"]
    out = root / "out"
    report = json.loads(ran(capsys, pyimgano.cli.main, *dataset, "--output-dir", out))
    assert report["results"]["auroc"] == 1.0 or kind is Line or kind is Decided
    assert len((out / "categories/bottle/per_image.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "report.json").read_text())["detector"]["adapted"].endswith(
        kind.__name__
    )
    drift = ["--corruptions", "blur", "--severities", 1, "--no-save-run"]
    drift += ["--input-mode", "paths"] if kind is ReadsFiles else []
    found = json.loads(ran(capsys, pyimgano.robust_cli.main, *dataset, *drift))
    assert list(found["robustness"]["corruptions"]["blur"]) == ["severity_1"]
    words = ["--model", "any", "--train-dir", root / "bottle/train/good"]
    words += ["--input", root / "bottle/test/good", "--input", root / "bottle/test/crack"]
    lines = ran(capsys, pyimgano.infer_cli.main, *words).splitlines()
    assert [json.loads(one)["label"] in (0, 1) for one in lines] == [True, True]


def test_tiles_of_one_without_a_threshold(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyimgano.infer_cli, "create_model", lambda name, **keywords: Asserting())
    words = ["--model", "any", "--input", root / "bottle/test/crack", "--tile-size", 8]
    (line,) = ran(capsys, pyimgano.infer_cli.main, *words, "--include-maps").splitlines()
    assert json.loads(line)["label"] is None and json.loads(line)["score"] == 250.0


def test_infer_knows_the_flags_of_models(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def create(name: str, **keywords: Any) -> Line:
        asked.update(keywords)
        return Line()

    monkeypatch.setattr(pyimgano.infer_cli, "create_model", create)
    words = ["--model", "any", "--input", root / "bottle/test/crack"]
    ran(capsys, pyimgano.infer_cli.main, *words)
    assert "pretrained" not in asked and "contamination" not in asked
    ran(capsys, pyimgano.infer_cli.main, *words, "--no-pretrained", "--contamination", 0.1)
    assert asked["pretrained"] is False and asked["contamination"] == 0.1
    monkeypatch.undo()
    words += ["--train-dir", root / "bottle/train/good", "--resize", 32, 32]
    words[1] = "vision_ecod"
    ran(capsys, pyimgano.infer_cli.main, *words, "--no-pretrained")
    twice = [*words, "--no-pretrained", "--model-kwargs", '{"pretrained": false}']
    assert pyimgano.infer_cli.main([str(one) for one in twice]) == 2
    assert "pretrained in model_kwargs" in capsys.readouterr().err
    alone = ["--no-pretrained", "--model-dir", str(root), "--input", str(root)]
    assert pyimgano.infer_cli.main(alone) == 2
    assert "--pretrained has no effect without --train-dir" in capsys.readouterr().err


# ---- errors by the names of Python's own


@pytest.mark.parametrize(
    "name", ["MVTecDataset", "MVTecLOCODataset", "MVTecAD2Dataset", "VisADataset", "BTADDataset"]
)
def test_what_is_not_there(tmp_path: Path, root: Path, name: str) -> None:
    kind = getattr(datasets, name)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder \(the root of") as caught:
        kind(root=str(tmp_path / "nowhere"), category="bottle")
    assert isinstance(caught.value, MissingFolderError) and isinstance(caught.value, DataError)


def test_errors_of_names_are_those_of_python_too(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        datasets.CustomDataset(str(root / "nowhere"))
    (root / "screw").mkdir()  # an official name, and nothing in it
    with pytest.raises(FileNotFoundError, match="train/good: no such folder; the good training"):
        datasets.MVTecDataset(root, "screw")
    with pytest.raises(ValueError, match="unknown category 'bottel'; did you mean") as caught:
        datasets.MVTecDataset(root, "bottel")
    assert isinstance(caught.value, UnknownCategoryError) and caught.value.exit_code == 1
    for look_up in (create_model, model_info):
        for kind in (KeyError, ValueError):
            with pytest.raises(kind) as unknown:
                look_up("vision_nope")
            # a KeyError's message stands in quotes, ours does not
            assert str(unknown.value).startswith("unknown model 'vision_nope'")
            assert isinstance(unknown.value, UnknownNameError) and unknown.value.exit_code == 2
    with pytest.raises(KeyError, match="unknown dataset"):
        datasets.load_dataset("nope", root)


# ---- shapes and kinds of arrays


def test_maps_of_several_sizes_have_one_quantile() -> None:
    maps = [np.zeros((4, 4)), np.ones((2, 2))]
    assert calibrate_normal_pixel_quantile_threshold(maps, q=0.5) == 0.0
    masks = [np.ones((4, 4), bool), np.zeros((2, 2), bool)]
    assert calibrate_normal_pixel_quantile_threshold(maps, masks) == 1.0
    with pytest.raises(ValueError, match="same shape"):
        calibrate_normal_pixel_quantile_threshold(maps, masks[::-1])
    with pytest.raises(ValueError, match="no background pixel"):
        calibrate_normal_pixel_quantile_threshold([])


def test_flat_pixels() -> None:
    masks = (np.arange(24).reshape(2, 3, 4) % 5 == 0).astype(np.uint8)
    maps = np.random.default_rng(0).random((2, 3, 4))
    for metric in (compute_pixel_auroc, compute_pixel_average_precision):
        assert metric(masks.ravel(), maps.ravel()) == metric(masks, maps)
    for at in (compute_pixel_segf1, compute_bg_fpr):
        assert at(masks.ravel(), maps.ravel(), threshold=0.5) == at(masks, maps, threshold=0.5)
    with pytest.raises(ValueError, match=r"got shapes \(24,\)"):
        compute_aupro(masks.ravel(), maps.ravel())  # regions have no place in a row of pixels


@pytest.mark.parametrize("name", ["lighting", "jpeg", "blur", "glare", "geo_jitter"])
@pytest.mark.parametrize("side", [8, 16])
def test_tiny_images_and_masks_of_booleans(name: str, side: int) -> None:
    image, mask = plain(100, side, side), np.zeros((side, side), bool)
    mask[2:5, 2:5] = True
    for severity in range(1, 6):
        rng = np.random.default_rng(3)
        found, moved = getattr(corruptions, f"apply_{name}")(
            image, mask=mask, severity=severity, rng=rng
        )
        assert found.shape == image.shape and found.dtype == np.uint8
        assert moved.shape == mask.shape and moved.dtype == bool
