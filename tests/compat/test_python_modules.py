"""The Python names that scripts import, one test a row of docs/compatibility.md."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.calibration.pixel_threshold import calibrate_normal_pixel_quantile_threshold
from pyimgano.evaluation import (
    compute_aupro,
    compute_auroc,
    compute_average_precision,
    compute_bg_fpr,
    compute_classification_metrics,
    compute_pixel_auroc,
    compute_pixel_average_precision,
    compute_pixel_segf1,
    compute_pro_score,
    evaluate_detector,
    find_optimal_threshold,
    print_evaluation_summary,
)
from pyimgano.inference.api import (
    InferenceResult,
    calibrate_threshold,
    infer,
    result_to_jsonable,
    results_to_jsonable,
)
from pyimgano.inputs.image_format import ImageFormat
from pyimgano.models import create_model
from pyimgano.postprocess.anomaly_map import AnomalyMapPostprocess
from pyimgano.reporting.report import save_jsonl_records, save_run_report
from pyimgano.robustness import corruptions
from pyimgano.robustness.benchmark import run_robustness_benchmark

from ..conftest import picture

LABELS = np.array([0, 0, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.2, 0.35, 0.8])


class Brightness:
    """A detector of another program: no base class, no parameters, arrays in one batch alone."""

    def fit(self, X: Any, y: Any = None) -> Brightness:
        self.mean = float(X.mean())  # a list has no mean
        return self

    def decision_function(self, X: Any) -> Any:
        assert X.ndim == 4
        return np.abs(X.astype(np.float64) - self.mean).mean(axis=(1, 2, 3))

    def predict_anomaly_map(self, X: Any) -> Any:
        return np.abs(X.astype(np.float32) - self.mean).mean(axis=3)[:, ::2, ::2]


# ---- evaluation


def test_one_class_alone_gives_nan() -> None:
    for labels in ([0, 0], [1, 1]):
        assert math.isnan(compute_auroc(labels, [0.1, 0.2]))
    assert math.isnan(compute_average_precision([0, 0], [0.1, 0.2]))
    masks, maps = np.zeros((1, 4, 4)), np.random.default_rng(0).random((1, 4, 4))
    for metric in (compute_pixel_auroc, compute_pixel_average_precision, compute_aupro):
        assert math.isnan(metric(masks, maps))
    assert math.isnan(compute_pro_score(masks, maps))


def test_nothing_predicted_positive_gives_zeros() -> None:
    for labels in ([0, 1, 1], [0, 0, 0]):
        found = compute_classification_metrics(labels, [0, 0, 0])
        assert (found["precision"], found["recall"], found["f1"]) == (0.0, 0.0, 0.0)
    assert math.isnan(compute_classification_metrics([0, 0], [0, 1])["recall"])


def test_empty_and_unequal_arrays_are_value_errors() -> None:
    for call in (compute_auroc, compute_average_precision, compute_classification_metrics):
        with pytest.raises(ValueError, match="empty"):
            call([], [])
        with pytest.raises(ValueError, match="same length"):
            call([0, 1], [1])
    with pytest.raises(ValueError, match="empty"):
        evaluate_detector([], [])
    with pytest.raises(ValueError, match="empty"):
        find_optimal_threshold([], [])


def test_find_optimal_threshold_gives_threshold_and_value() -> None:
    for metric in ("f1", "youden", "precision", "recall"):
        threshold, value = find_optimal_threshold(LABELS, SCORES, metric=metric)  # type: ignore[arg-type]
        predicted = threshold <= SCORES
        found = compute_classification_metrics(LABELS, predicted)
        wanted = found["recall"] + found["specificity"] - 1 if metric == "youden" else found[metric]
        assert value == pytest.approx(wanted)
    assert find_optimal_threshold(LABELS, SCORES, "precision") == (0.8, 1.0)
    assert find_optimal_threshold(LABELS, SCORES, "recall") == (0.35, 1.0)
    with pytest.raises(ValueError, match="Unsupported metric"):
        find_optimal_threshold(LABELS, SCORES, metric="area")  # type: ignore[arg-type]


def test_evaluate_detector_takes_its_arguments_and_says_when_it_tuned() -> None:
    masks = np.zeros((5, 8, 8), np.uint8)
    masks[3:, 2:4, 2:4] = 1
    maps = np.random.default_rng(1).random((5, 8, 8)) + masks
    found = evaluate_detector(
        LABELS,
        SCORES,
        threshold=None,
        find_best_threshold=True,
        pixel_labels=masks,
        pixel_scores=maps,
        pixel_threshold=0.9,
        pro_integration_limit=0.3,
        pro_num_thresholds=200,
    )
    assert (found["threshold"], found["metrics"]["f1"]) == find_optimal_threshold(LABELS, SCORES)
    assert found["threshold_tuned_on_labels"]
    pixels = found["pixel_metrics"]
    assert pixels["aupro"] == compute_aupro(masks, maps, 0.3, num_thresholds=7)
    assert pixels["pixel_segf1"] == compute_pixel_segf1(masks, maps, threshold=0.9)
    assert pixels["bg_fpr"] == compute_bg_fpr(masks, maps, threshold=0.9)
    assert pixels["pixel_threshold"] == 0.9
    given = evaluate_detector(LABELS, SCORES, threshold=0.5)
    assert given["threshold"] == 0.5 and not given["threshold_tuned_on_labels"]
    assert "pixel_metrics" not in given
    untuned = evaluate_detector(LABELS, SCORES, find_best_threshold=False)
    assert untuned["threshold"] is None and math.isnan(untuned["metrics"]["f1"])
    with pytest.raises(ValueError, match="no masks"):
        evaluate_detector(LABELS, SCORES, pixel_scores=maps)


def test_pro_score_goes_to_one_and_takes_num_thresholds() -> None:
    masks = np.zeros((2, 6, 6))
    masks[0, 1:3, 1:3] = 1
    maps = np.random.default_rng(2).random((2, 6, 6))
    assert compute_pro_score(masks, maps, num_thresholds=200) == compute_aupro(masks, maps, 1.0)
    assert compute_pro_score(masks, maps, integration_limit=0.3) == compute_aupro(masks, maps)


def test_segf1_and_background_count_strictly_above() -> None:
    masks, maps = np.array([[[1, 0, 0]]]), np.array([[[0.5, 0.5, 0.1]]])
    assert compute_pixel_segf1(masks, maps, threshold=0.5) == 0.0
    assert compute_bg_fpr(masks, maps, threshold=0.5) == 0.0
    assert compute_pixel_segf1(masks, maps, threshold=0.4) == pytest.approx(2 / 3)
    assert compute_bg_fpr(masks, maps, threshold=0.4) == 0.5


def test_the_summary_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation_summary(evaluate_detector(LABELS, SCORES))
    shown = capsys.readouterr().out
    assert "auroc" in shown and "0.8333" in shown and "flatter" in shown
    print_evaluation_summary(evaluate_detector([0, 0], [1.0, 2.0]))
    assert "undefined" in capsys.readouterr().out


# ---- inference


def test_infer_and_calibrate_any_detector_with_a_decision_function() -> None:
    images = [picture(i, 32) for i in range(8)]
    detector = Brightness().fit(np.stack(images))
    undecided = infer(detector, images, include_maps=True)
    assert [one.label for one in undecided] == [None] * 8
    assert undecided[0].anomaly_map is not None and undecided[0].anomaly_map.shape == (16, 16)
    threshold = calibrate_threshold(detector, images, quantile=0.5)
    assert threshold == detector.threshold_  # type: ignore[attr-defined]
    decided = infer(detector, images, batch_size=3)
    assert [one.score for one in decided] == [one.score for one in undecided]
    assert sum(one.label or 0 for one in decided) == sum(
        (one.score or 0) >= threshold for one in decided
    )
    assert 0 < sum(one.label or 0 for one in decided) < 8


def test_an_object_that_cannot_score_is_named() -> None:
    with pytest.raises(ValueError, match="has no method decision_function"):
        infer(object(), [picture(0, 32)])


def test_results_are_plain_json() -> None:
    result = InferenceResult(score=0.5, label=1, anomaly_map=np.zeros((2, 3), np.float32))
    found = result_to_jsonable(result, anomaly_map_path=Path("maps/0.npy"))
    assert found["score"] == 0.5 and found["label"] == 1
    assert found["anomaly_map"] == {"path": "maps/0.npy", "shape": [2, 3], "dtype": "float32"}
    several = results_to_jsonable([result, InferenceResult(np.float64(np.nan), None)])  # type: ignore[arg-type]
    assert json.loads(json.dumps(several, allow_nan=False))[1]["score"] is None
    values = results_to_jsonable([result], include_anomaly_map_values=True)
    assert values[0]["anomaly_map"]["values"] == [[0.0] * 3] * 2


def test_image_formats_give_the_same_scores() -> None:
    images = [picture(i, 48) for i in range(4)]
    detector = create_model("vision_pca", pretrained=False, resize=(48, 48)).fit(images)
    wanted = [one.score for one in infer(detector, images)]
    blue_first = [np.ascontiguousarray(one[:, :, ::-1]) for one in images]
    floats = [one.transpose(2, 0, 1).astype(np.float32) / 255 for one in images]
    for inputs, named in (
        (images, ImageFormat.RGB_U8_HWC),
        (blue_first, ImageFormat.BGR_U8_HWC),
        (blue_first, "bgr_u8_hwc"),
        (floats, ImageFormat.RGB_F32_CHW),
        (floats, "RGB_F32_CHW"),
    ):
        found = infer(detector, inputs, input_format=named)  # type: ignore[arg-type]
        assert [one.score for one in found] == wanted
        calibrate_threshold(detector, inputs, input_format=named)  # type: ignore[arg-type]
        assert sorted(detector.decision_scores_) == sorted(wanted)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("image", "named", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), "hsv", "input_format must be one of"),
        (np.zeros((8, 8, 3), np.float32), "rgb_u8_hwc", r"wants a \(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3), np.uint8), "rgb_f32_chw", r"wants a \(3, H, W\) floating"),
        (np.full((3, 8, 8), 255.0, np.float32), "rgb_f32_chw", "from 0 to 1, got 255"),
        (np.full((3, 8, 8), np.nan, np.float32), "rgb_f32_chw", "from 0 to 1"),
    ],
)
def test_wrong_formats_are_named(image: Any, named: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer(Brightness(), [image], input_format=named)


def test_postprocessing_changes_maps_and_never_scores() -> None:
    images = [picture(i, 64) for i in range(5)]
    detector = create_model("vision_padim", pretrained=False, resize=(64, 64)).fit(images)
    plain = infer(detector, images, include_maps=True)
    scaled = infer(detector, images, include_maps=True, postprocess=AnomalyMapPostprocess())
    for one, other in zip(plain, scaled, strict=True):
        assert (one.score, one.label) == (other.score, other.label)
        assert one.anomaly_map is not None and other.anomaly_map is not None
        assert (other.anomaly_map.min(), other.anomaly_map.max()) == (0.0, 1.0)
        assert one.anomaly_map.max() != 1.0


# ---- maps


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["minmax", "percentile"]))
def test_scaled_maps_lie_in_zero_to_one_and_keep_their_order(seed: int, method: Any) -> None:
    one = np.random.default_rng(seed).normal(size=(9, 11))
    found = AnomalyMapPostprocess(normalize_method=method, percentile_range=(5, 95))(one)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    order = np.argsort(one, axis=None)
    assert (np.diff(found.ravel()[order]) >= 0).all()


def test_opening_and_components_remove_specks() -> None:
    one = np.zeros((16, 16), np.float32)
    one[2, 2] = 5.0  # a speck
    one[8:12, 8:12] = 1.0
    opened = AnomalyMapPostprocess(normalize=False, morph_open_ksize=3)(one)
    cleaned = AnomalyMapPostprocess(normalize=False, component_threshold=0.5, min_component_area=4)(
        one
    )
    for found in (opened, cleaned):
        assert found[2, 2] == 0 and (found[8:12, 8:12] == 1).all()
    closed = AnomalyMapPostprocess(normalize=False, morph_close_ksize=3)(1 - one.clip(0, 1))
    assert closed[2, 2] == 1
    smooth = AnomalyMapPostprocess(normalize=False, gaussian_sigma=2)(one)
    assert 0 < smooth.max() < 5
    assert (AnomalyMapPostprocess()(np.full((3, 3), 7.0)) == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"normalize_method": "zscore"},
        {"percentile_range": (50, 50)},
        {"gaussian_sigma": -1},
        {"min_component_area": -1},
    ],
)
def test_wrong_steps_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AnomalyMapPostprocess(**wrong)


def test_the_quantile_of_background_pixels_leaves_defects_out() -> None:
    scores = np.arange(1000.0).reshape(1, 10, 100)
    labels = scores >= 900
    found = calibrate_normal_pixel_quantile_threshold(scores, labels, q=0.999)
    assert found == pytest.approx(np.quantile(np.arange(900.0), 0.999))
    assert calibrate_normal_pixel_quantile_threshold(scores) > 990
    with pytest.raises(ValueError, match="no background pixel"):
        calibrate_normal_pixel_quantile_threshold(scores, np.ones_like(scores))
    with pytest.raises(ValueError, match="q must lie"):
        calibrate_normal_pixel_quantile_threshold(scores, q=1)
    with pytest.raises(ValueError, match="same shape"):
        calibrate_normal_pixel_quantile_threshold(scores, np.ones(3))


# ---- robustness


@pytest.mark.parametrize("name", ["lighting", "jpeg", "blur", "glare", "geo_jitter"])
def test_corruptions_are_deterministic_and_move_masks_with_geometry(name: str) -> None:
    apply = getattr(corruptions, f"apply_{name}")
    image, mask = picture(3, 256, spot=True), np.zeros((256, 256), np.uint8)
    mask[20:30, 20:30] = 255
    first, moved = apply(image, mask, 3, np.random.default_rng(5))
    again, _ = apply(image, None, severity=3, rng=5)
    assert (first == again).all() and (first != image).any()
    assert first.shape == image.shape and first.dtype == np.uint8
    assert set(np.unique(moved)) <= {0, 255}
    assert (moved != mask).any() == (name == "geo_jitter")
    assert apply(image, None, 1, 0)[1] is None
    with pytest.raises(ValueError, match="severity"):
        apply(image, None, 6, 0)


def test_a_mask_moves_exactly_as_its_image() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 255
    image = np.repeat(mask[:, :, None], 3, axis=2)
    moved_image, moved_mask = corruptions.apply_geo_jitter(image, mask, 5, 11)
    assert moved_mask is not None
    away = np.abs(moved_image[:, :, 0].astype(int) - moved_mask) > 128
    assert away.mean() < 0.01  # edges are interpolated in one and not in the other


def test_the_robustness_benchmark_takes_any_detector() -> None:
    train = [picture(i, 32) for i in range(10)]
    test = [picture(20 + i, 32, spot=i >= 3) for i in range(6)]
    masks = np.zeros((6, 32, 32), np.uint8)
    masks[3:, 14:18, 14:18] = 1
    arguments: dict[str, Any] = {
        "train_images": train,
        "test_images": test,
        "test_labels": [0, 0, 0, 1, 1, 1],
        "test_masks": masks,
        "corruptions": ["blur", "geo_jitter"],
        "severities": [1, 3],
        "resize": None,
    }
    found = run_robustness_benchmark(Brightness(), **arguments)
    assert set(found["corruptions"]) == {"blur", "geo_jitter"}
    assert set(found["corruptions"]["blur"]) == {"severity_1", "severity_3"}
    for one in (found["clean"], *found["corruptions"]["geo_jitter"].values()):
        assert one["threshold"] == found["threshold"] is not None
        assert {"aupro", "pixel_segf1", "bg_fpr"} <= set(one["pixel_metrics"])
    again = run_robustness_benchmark(Brightness(), **arguments)
    assert json.dumps(found, default=str) == json.dumps(again, default=str)
    with pytest.raises(ValueError, match="6 test images, but 1 labels"):
        run_robustness_benchmark(Brightness(), **{**arguments, "test_labels": [0]})


# ---- reporting


def test_reports_of_numpy_and_paths_become_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    save_run_report(
        path,
        {
            1: np.float32(0.5),
            "array": np.arange(3),
            "path": tmp_path,
            ("a", 2): {np.int64(3)},
            "nan": np.nan,
            "flag": np.bool_(True),
            "nested": [{"inf": float("inf")}],
        },
    )
    found = json.loads(path.read_text())
    assert found["1"] == 0.5 and found["array"] == [0, 1, 2] and found["path"] == str(tmp_path)
    assert found["nan"] is None and found["flag"] is True and found["nested"] == [{"inf": None}]
    assert found['["a", 2]'] == [3]
    lines = tmp_path / "records.jsonl"
    save_jsonl_records(lines, ({"score": np.float64(i), "input": Path("x")} for i in range(3)))
    assert [json.loads(one)["score"] for one in lines.read_text().splitlines()] == [0.0, 1.0, 2.0]


def test_what_has_no_json_form_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'model'\].*object has no JSON form"):
        save_run_report(tmp_path / "r.json", {"model": object()})
    with pytest.raises(ValueError, match="two keys become '1'"):
        save_run_report(tmp_path / "r.json", {1: 0, "1": 0})
    with pytest.raises(ValueError, match="record 1"):
        save_jsonl_records(tmp_path / "r.jsonl", [{}, {"x": object()}])
    assert list(tmp_path.iterdir()) == []


def test_the_forwarding_modules_import_nothing_heavy() -> None:
    names = (
        "pyimgano.inputs.image_format",
        "pyimgano.postprocess.anomaly_map",
        "pyimgano.reporting.report",
        "pyimgano.robustness.corruptions",
        "pyimgano.robustness.benchmark",
        "pyimgano.inference.api",
        "pyimgano.evaluation",
    )
    heavy = ("torch", "openvino", "sklearn", "scipy")
    program = f"import sys, {', '.join(names)}\nprint([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
