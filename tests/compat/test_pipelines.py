"""The pipelines by the names, signatures and behaviours that older scripts rely on."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyimgano
from pyimgano.errors import UsageError
from pyimgano.models import list_models
from pyimgano.models.adapted import AdaptedDetector, adapt
from pyimgano.pipelines.mvtec_visa import (
    BenchmarkSplit,
    build_default_detector,
    evaluate_split,
    load_benchmark_split,
)
from pyimgano.postprocess.anomaly_map import AnomalyMapPostprocess

from ..conftest import MakeDataset, picture, save
from ..pixel_detector import Darkness


class ByName:
    """Scores names and nothing else: it never opens a file."""

    def __init__(self) -> None:
        self.fitted: list[str] = []

    def fit(self, X: list[str]) -> ByName:
        self.fitted = list(X)
        return self

    def decision_function(self, X: list[str]) -> np.ndarray:
        return np.asarray([1.0 if "bad" in one else 0.0 for one in X], np.float32)


class WithMaps(ByName):
    """Maps of 4 x 4: the upper left quarter is hot where the name is that of a bad image."""

    threshold_ = 0.5

    def get_anomaly_map(self, item: str) -> np.ndarray:
        found = np.full((4, 4), 0.1, np.float32)
        if "bad" in item:
            found[:2, :2] = 1.0
        return found


class AllMaps(WithMaps):
    def predict_anomaly_map(self, X: list[str]) -> np.ndarray:
        return np.stack([self.get_anomaly_map(one) for one in X])


class BatchOnly:
    """Takes nothing but an (N, H, W, C) array."""

    def fit(self, X: np.ndarray) -> None:
        self.shape = X.shape

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return -X.min(axis=(1, 2, 3)).astype(float)

    def predict_anomaly_map(self, X: np.ndarray) -> np.ndarray:
        return 255.0 - X.min(axis=3).astype(np.float32)


@pytest.fixture
def split() -> BenchmarkSplit:
    """Names of images that are nowhere, with masks of 8 x 8."""
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[2:, :4, :4] = 1
    return BenchmarkSplit(
        train_paths=[f"good{i}.png" for i in range(5)],
        test_paths=["good_a.png", "good_b.png", "bad_a.png", "bad_b.png"],
        test_labels=np.array([0, 0, 1, 1]),
        test_masks=masks,
    )


# ---- run_benchmark is a function, and a module of that name


def test_the_function_and_the_module_are_found_in_every_way() -> None:
    code = """
import json
from pyimgano.pipelines import run_benchmark
from pyimgano.pipelines.run_benchmark import run_benchmark as second, list_dataset_categories
import pyimgano.pipelines.run_benchmark as module
import pyimgano
names = ["bolt"]
for function in (run_benchmark, second, module.run_benchmark, module, pyimgano.run_benchmark,
                 pyimgano.pipelines.run_benchmark):
    try:
        function(dataset="no such")
    except pyimgano.errors.UsageError as error:
        assert "no such" in str(error)
    else:
        raise SystemExit("not called")
assert module.list_dataset_categories is list_dataset_categories
"""
    for first in ("", "import pyimgano.pipelines.run_benchmark\n", "import pyimgano.pipelines\n"):
        subprocess.run([sys.executable, "-c", first + code], check=True)


def test_the_module_shows_the_signature_and_takes_a_replacement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyimgano.pipelines.run_benchmark as module
    from pyimgano.pipelines import run_benchmark

    assert inspect.signature(run_benchmark) == inspect.signature(pyimgano.run_benchmark)
    monkeypatch.setattr("pyimgano.pipelines.run_benchmark.run_benchmark", lambda **given: given)
    assert module.run_benchmark(dataset="x") == {"dataset": "x"} == run_benchmark(dataset="x")


def test_categories_by_the_module(make_mvtec: MakeDataset) -> None:
    from pyimgano.pipelines.run_benchmark import list_dataset_categories

    root = make_mvtec(("nut", "bolt"), train=1, good=1, bad=1)
    assert list_dataset_categories(dataset="mvtec", root=str(root)) == ["bolt", "nut"]


# ---- step by step


def test_a_default_detector() -> None:
    made = build_default_detector(
        model="vision_padim", device="cpu", contamination=0.1, pretrained=False, d_reduced=8
    )
    given = made.get_params()
    assert given["contamination"] == 0.1 and given["d_reduced"] == 8 and not given["pretrained"]
    assert "vision_padim" in list_models()


def test_ours_end_to_end(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    loaded = load_benchmark_split(
        dataset="mvtec", root=str(root), category="nut", resize=(64, 64), load_masks=True
    )
    found = evaluate_split(Darkness(), loaded, pixel_segf1=True, pro_num_thresholds=7)
    own = Darkness().fit(loaded.train_paths).pixel_calibration_
    assert own is not None and found["pixel_metrics"]["pixel_threshold"] == own.threshold
    strategy = "normal_pixel_quantile"
    pixels = evaluate_split(Darkness(), loaded, pixel_threshold_strategy=strategy)["pixel_metrics"]
    assert pixels["pixel_segf1"] > 0.8 and pixels["bg_fpr"] < 0.01
    assert pixels["pixel_threshold"] < own.threshold
    json.dumps(found)


def test_a_detector_of_somebody_else(split: BenchmarkSplit) -> None:
    plain = ByName()
    found = evaluate_split(plain, split)
    assert found["auroc"] == 1.0 and found["average_precision"] == 1.0
    assert "pixel_metrics" not in found and plain.fitted == list(split.train_paths)
    # no threshold is made up, and none is looked for on the labels of the test images
    assert found["threshold"] is None and found["metrics"]["f1"] is None
    assert found["undefined"]["f1"] == "no threshold was given"


@pytest.mark.parametrize("kind", [WithMaps, AllMaps])
def test_its_maps_are_brought_to_the_masks(split: BenchmarkSplit, kind: type[WithMaps]) -> None:
    found = evaluate_split(kind(), split)
    assert found["pixel_metrics"]["pixel_auroc"] > 0.99  # the resized edge is soft
    assert found["threshold"] == 0.5 and found["metrics"]["f1"] == 1.0
    assert "pixel_segf1" not in found["pixel_metrics"]
    assert found["pixel_metrics"]["segf1"] is None  # it has no threshold for pixels
    without = evaluate_split(kind(), split, compute_pixel_scores=False)
    assert "pixel_metrics" not in without and without["auroc"] == 1.0
    wide = evaluate_split(kind(), split, pro_integration_limit=1.0)
    assert wide["pixel_metrics"]["aupro"] >= found["pixel_metrics"]["aupro"]


def test_maps_that_are_given(split: BenchmarkSplit) -> None:
    assert split.test_masks is not None
    perfect = split.test_masks.astype(np.float32)
    for detector in (ByName(), WithMaps()):
        found = evaluate_split(detector, split, perfect, compute_pixel_scores=False)
        assert found["pixel_metrics"]["pixel_auroc"] == 1.0 == found["pixel_metrics"]["aupro"]
    small = perfect[:, ::2, ::2]
    assert evaluate_split(ByName(), split, small)["pixel_metrics"]["pixel_auroc"] > 0.99
    with pytest.raises(UsageError, match=r"pixel_scores has shape \(3, 8, 8\), wanted \(4, H, W\)"):
        evaluate_split(ByName(), split, perfect[:3])


def test_a_threshold_of_pixels_from_held_out_images(split: BenchmarkSplit) -> None:
    detector = AllMaps()
    found = evaluate_split(
        detector,
        split,
        pixel_segf1=True,
        pixel_threshold_strategy="normal_pixel_quantile",
        pixel_normal_quantile=0.9,
        calibration_fraction=0.4,
        calibration_seed=3,
    )
    pixels = found["pixel_metrics"]
    assert len(detector.fitted) == 3  # two of five are held out
    assert pixels["pixel_threshold"] == pytest.approx(0.1)  # of maps of good images
    # by hand: the hot quarter, resized to 8 x 8 and above 0.1, reaches one pixel further
    above = evaluate_by_hand(detector, split, pixels["pixel_threshold"])
    assert (pixels["pixel_segf1"], pixels["bg_fpr"]) == pytest.approx(above)
    assert 0 < pixels["bg_fpr"] < 1
    again = evaluate_split(
        AllMaps(), split, pixel_threshold_strategy="normal_pixel_quantile", calibration_fraction=0.4
    )
    assert set(pixels) == set(again["pixel_metrics"])


def evaluate_by_hand(
    detector: AllMaps, split: BenchmarkSplit, threshold: float
) -> tuple[float, float]:
    import cv2

    maps = detector.predict_anomaly_map(list(split.test_paths))
    called = np.stack([cv2.resize(one, (8, 8)) for one in maps]) > threshold
    assert split.test_masks is not None
    truth = split.test_masks > 0
    hits = (called & truth).sum()
    return 2 * hits / (called.sum() + truth.sum()), (called & ~truth).sum() / (~truth).sum()


def test_segf1_without_a_threshold_says_why(split: BenchmarkSplit) -> None:
    found = evaluate_split(WithMaps(), split, pixel_segf1=True)
    assert found["pixel_metrics"]["pixel_segf1"] is None
    assert found["undefined"]["pixel_segf1"] == "there is no threshold for pixels"


def test_a_single_training_image_serves_for_both(split: BenchmarkSplit) -> None:
    one = BenchmarkSplit(
        split.train_paths[:1], split.test_paths, split.test_labels, split.test_masks
    )
    found = evaluate_split(AllMaps(), one, pixel_threshold_strategy="normal_pixel_quantile")
    assert found["pixel_metrics"]["pixel_threshold"] == pytest.approx(0.1)


def test_maps_are_post_processed_and_scores_are_not(split: BenchmarkSplit) -> None:
    seen: list[tuple[int, ...]] = []

    def upside_down(one: np.ndarray) -> np.ndarray:
        seen.append(one.shape)
        return -one

    plain = evaluate_split(AllMaps(), split)
    turned = evaluate_split(AllMaps(), split, postprocess=upside_down)
    assert seen == [(8, 8)] * 4
    assert turned["auroc"] == plain["auroc"]
    left, right = (one["pixel_metrics"]["pixel_auroc"] for one in (plain, turned))
    assert left + right == pytest.approx(1.0)
    smooth = AnomalyMapPostprocess(normalize=False, gaussian_sigma=1.0)
    assert evaluate_split(AllMaps(), split, postprocess=smooth)["pixel_metrics"]["aupro"] > 0.5


def test_a_detector_of_arrays_alone(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    loaded = load_benchmark_split(dataset="mvtec", root=root, category="nut", resize=(32, 32))
    detector = BatchOnly()
    found = evaluate_split(detector, loaded)
    assert detector.shape == (6, 64, 64, 3) and found["auroc"] == 1.0
    assert found["pixel_metrics"]["pixel_auroc"] > 0.95


def test_an_image_that_cannot_be_read_is_not_good(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    broken = root / "nut/test/good/001.png"
    broken.write_bytes(b"not an image")
    loaded = load_benchmark_split(dataset="mvtec", root=root, category="nut", resize=(32, 32))
    found = evaluate_split(ByName(), loaded)  # which would have given it 0, the best score
    assert [one["kind"] for one in found["problems"]] == ["unreadable_test_image"]
    assert found["problems"][0]["path"] == str(broken)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pixel_threshold_strategy": "best"}, "pixel_threshold_strategy must be None or"),
        ({"pixel_normal_quantile": 1.0}, r"pixel_normal_quantile must lie in \(0, 1\), got 1.0"),
        ({"calibration_fraction": 0}, r"calibration_fraction must lie in \(0, 1\), got 0"),
        ({"postprocess": lambda one: one[:2]}, r"postprocess gave a map of shape \(2, 8\)"),
    ],
)
def test_what_is_refused(split: BenchmarkSplit, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(pyimgano.errors.PyimganoError, match=said):
        evaluate_split(WithMaps(), split, **wrong)


def test_what_is_no_detector(split: BenchmarkSplit) -> None:
    with pytest.raises(UsageError, match="object is no detector: it has no method decision_f"):
        evaluate_split(object(), split)

    class TooFew(ByName):
        def decision_function(self, X: list[str]) -> np.ndarray:
            return np.zeros(1)

    with pytest.raises(pyimgano.errors.DataError, match="gave 1 scores of 4 images"):
        evaluate_split(TooFew(), split)


# ---- a detector of somebody else under our contract


def test_a_threshold_from_training_images_promises_nothing(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", picture(i, 16)) for i in range(4)]
    made = adapt(BatchOnly()).fit(paths)
    assert isinstance(made, AdaptedDetector) and made.n_train_ == 4
    assert made.calibration_.method == "in-sample"
    assert made.calibration_.promised_false_alarm_rate is None
    assert made.threshold_ > made.decision_scores_.max()
    further = [save(tmp_path / f"further{i}.png", picture(10 + i, 16)) for i in range(3)]
    made.fit(paths, calibration_images=further)
    assert made.calibration_.promised_false_alarm_rate == 0.25
    assert made.pixel_calibration_ is not None


@pytest.mark.parametrize("mode", ["numpy", "paths"])
def test_the_form_in_which_images_are_given(tmp_path: Path, mode: Any) -> None:
    seen: list[Any] = []

    class Watching(BatchOnly):
        def fit(self, X: Any) -> None:
            seen.append(X)

        def decision_function(self, X: Any) -> np.ndarray:
            seen.append(X)
            if mode == "paths":
                assert all(Path(one).is_file() for one in X)
            return np.zeros(len(X))

    path = save(tmp_path / "a.png", picture(0, 32))
    made = adapt(Watching(), input_mode=mode, resize=(16, 16), calibrates=False).fit([path])
    made.decision_function([picture(1, 32), picture(2, 16)])
    if mode == "numpy":
        assert [one.shape for one in seen] == [(1, 16, 16, 3), (2, 16, 16, 3)]
    else:
        assert seen[0] == [str(path)] and not Path(seen[1][0]).exists()  # it was temporary


def test_ours_are_left_as_they_are() -> None:
    ours = Darkness()
    assert adapt(ours) is ours
