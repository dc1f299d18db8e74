"""Metrics against reference values, against scikit-learn, and on what has no value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference

from pyimgano import evaluation
from pyimgano.errors import UsageError
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
    compute_spro,
    evaluate_kinds,
    evaluate_scores,
    find_optimal_threshold,
    weighted_curve,
)

CASES = ("aupro_case_64_diag", "aupro_case_256", "aupro_case_256_ties")


@pytest.mark.parametrize("case", CASES)
def test_pixel_metrics_equal_the_reference_values(pixel_anchors: Path, case: str) -> None:
    expected = json.loads((pixel_anchors / "values.json").read_text())[case]
    with np.load(pixel_anchors / f"{case}.npz") as arrays:
        masks, maps = arrays["masks"], arrays["maps"]
    assert compute_pixel_auroc(masks, maps) == pytest.approx(expected["pixel_auroc"], abs=1e-6)
    assert compute_pixel_average_precision(masks, maps) == pytest.approx(
        expected["pixel_average_precision"], abs=1e-6
    )
    for limit in (0.30, 0.05):
        assert compute_aupro(masks, maps, limit) == pytest.approx(
            expected[f"aupro_{limit:.2f}_official"], abs=1e-5
        )


def plain_aupro(masks: np.ndarray, maps: np.ndarray, limit: float) -> float:
    """The definition, written out: every threshold, every region."""
    from scipy.ndimage import label

    regions = []
    for index, mask in enumerate(masks):
        numbered, count = label(mask, structure=np.ones((3, 3)))
        regions += [maps[index][numbered == k] for k in range(1, count + 1)]
    normal = maps[masks == 0]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        rate = (normal >= threshold).mean()
        points.append((rate, float(np.mean([(r >= threshold).mean() for r in regions]))))
    x, y = np.array(points).T
    end = np.interp(limit, x, y) if limit not in x else y[x == limit].max()
    keep = x <= limit
    return float(np.trapezoid([*y[keep], end], [*x[keep], limit]) / limit)


@settings(max_examples=60, deadline=None)
@given(
    masks=hnp.arrays(np.uint8, (2, 5, 6), elements=st.integers(0, 1)),
    # few distinct values, so that there are ties
    maps=hnp.arrays(np.float32, (2, 5, 6), elements=st.integers(0, 6).map(float)),
    limit=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_aupro_is_its_definition(masks: np.ndarray, maps: np.ndarray, limit: float) -> None:
    assume(0 < masks.sum() < masks.size)
    assert compute_aupro(masks, maps, limit) == pytest.approx(
        plain_aupro(masks, maps, limit), abs=1e-9
    )


@settings(max_examples=150, deadline=None)
@given(
    labels=hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 1)),
    data=st.data(),
)
def test_image_metrics_equal_scikit_learn(labels: np.ndarray, data: st.DataObject) -> None:
    assume(0 < labels.sum() < len(labels))
    scores = data.draw(
        hnp.arrays(np.float64, len(labels), elements=st.integers(-3, 6).map(lambda v: v / 4))
    )
    assert compute_auroc(labels, scores) == pytest.approx(
        reference.roc_auc_score(labels, scores), abs=1e-12
    )
    assert compute_average_precision(labels, scores) == pytest.approx(
        reference.average_precision_score(labels, scores), abs=1e-12
    )
    predicted = (scores >= 0.5).astype(int)
    found = compute_classification_metrics(labels, predicted)
    tn, fp, fn, tp = reference.confusion_matrix(labels, predicted, labels=[0, 1]).ravel()
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (tn, fp, fn, tp)
    assert found["recall"] == pytest.approx(reference.recall_score(labels, predicted))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(reference.f1_score(labels, predicted, zero_division=0))
    if tp + fp:
        assert found["precision"] == pytest.approx(reference.precision_score(labels, predicted))
    else:
        assert found["precision"] == 0.0


def plain_spro(regions: list, maps: np.ndarray, limit: float) -> float:
    """The definition, written out: every threshold, every region, clamped at saturation."""
    outside = np.ones(maps.shape, bool)
    for index, image in enumerate(regions):
        for mask, _ in image:
            outside[index] &= ~mask
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlaps = [
            min((maps[index][mask] >= threshold).sum() / saturation, 1.0)
            for index, image in enumerate(regions)
            for mask, saturation in image
        ]
        points.append(((maps[outside] >= threshold).mean(), float(np.mean(overlaps))))
    x, y = np.array(points).T
    inside = x <= limit
    x_in, y_in = x[inside], y[inside]
    if x_in[-1] < limit:
        step = np.flatnonzero(~inside)[0]
        share = (limit - x[step - 1]) / (x[step] - x[step - 1])
        x_in = np.append(x_in, limit)
        y_in = np.append(y_in, y[step - 1] + share * (y[step] - y[step - 1]))
    return float(np.trapezoid(y_in, x_in) / limit)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_spro_is_its_definition(data: st.DataObject, limit: float) -> None:
    """Overlapping regions, whole and fractional saturation areas, ties, good images."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    levels = data.draw(st.sampled_from([3, 40, 10**6]))
    maps = rng.integers(levels, size=(3, 9, 11)).astype(np.float32)
    regions: list[list[tuple[np.ndarray, float]]] = [[], [], []]
    for _ in range(data.draw(st.integers(1, 5))):
        mask = np.zeros((9, 11), bool)
        top, left = rng.integers(7), rng.integers(8)
        mask[top : top + rng.integers(1, 5), left : left + rng.integers(1, 5)] = True
        area = float(mask.sum())
        saturation = data.draw(st.sampled_from([1.0, area, area / 2, area * 0.37]))
        regions[rng.integers(1, 3)].append((mask, min(saturation, area)))
    expected = plain_spro(regions, maps, limit)
    assert compute_spro(regions, maps, limit) == pytest.approx(expected, abs=1e-9)


def test_spro_saturated_at_the_whole_region_is_aupro() -> None:
    rng = np.random.default_rng(5)
    maps = rng.random((2, 12, 12))
    masks = np.zeros((2, 12, 12), bool)
    masks[0, :3, :4] = masks[0, 6:, 9:] = masks[1, 4:6] = True
    first, second = masks[0].copy(), masks[0].copy()
    first[6:], second[:6] = False, False
    regions = [[(first, 12.0), (second, 18.0)], [(masks[1], 24.0)]]
    assert compute_spro(regions, maps, 0.3) == pytest.approx(compute_aupro(masks, maps, 0.3))
    assert np.isnan(compute_spro([[], []], maps))
    assert np.isnan(compute_spro([[(np.ones((12, 12)), 1)]], maps[:1]))  # nothing outside


def test_metrics_do_not_depend_on_how_pixels_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    maps = np.round(rng.random((3, 40, 40)), 2)  # with ties
    masks = rng.random((3, 40, 40)) < 0.1
    whole = [compute_pixel_auroc(masks, maps), compute_aupro(masks, maps)]
    monkeypatch.setattr(weighted_curve, "_WORTH_THREADS", 1)
    monkeypatch.setattr(weighted_curve, "thread_count", lambda: 5)
    assert [compute_pixel_auroc(masks, maps), compute_aupro(masks, maps)] == whole


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0, 1))
def test_segf1_is_its_definition(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(6, size=(3, 5, 7)) / 5
    masks = rng.random((3, 5, 7)) < 0.2
    tp = fp = fn = 0
    for truth, score in zip(masks.ravel(), maps.ravel(), strict=True):
        called = score > threshold
        tp, fp, fn = tp + (truth and called), fp + (called and not truth), fn + (truth > called)
    f1 = compute_pixel_segf1(masks, maps, threshold=threshold)
    if tp == 0:
        assert f1 == 0.0 or np.isnan(f1)
    else:
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_threshold_is_not_rounded_to_the_precision_of_maps() -> None:
    tenth = np.float32(0.1)
    masks, threshold = np.array([[[1, 0]]]), float(np.nextafter(np.float64(tenth), 1))
    for maps in (np.full((1, 1, 2), tenth), np.full((1, 1, 2), np.float16(0.1))):
        assert compute_bg_fpr(masks, maps, threshold=threshold) == 0.0
        assert compute_pixel_segf1(masks, maps, threshold=threshold) == 0.0
        assert compute_pro_score(masks, maps, threshold) == 0.0
        assert compute_bg_fpr(masks, maps, threshold=float(maps.max())) == 0.0
        below = float(np.nextafter(np.float64(maps.max()), 0))
        assert compute_bg_fpr(masks, maps, threshold=below) == 1.0
        assert compute_bg_fpr(masks, maps, threshold=1e6) == 0.0


def test_pixel_thresholds_and_regions_of_evaluate_scores() -> None:
    found = evaluate_scores([0, 1], [0, 1], pixel_threshold=np.float32(0.5), regions=[[], []])
    json.dumps(found, allow_nan=False)
    assert found["pixel_metrics"]["spro"] is None
    assert found["undefined"]["spro"] == "no masks were given"
    with pytest.raises(UsageError, match="pixel_threshold must be a finite number, got nan"):
        evaluate_scores([0, 1], [0, 1], pixel_threshold=np.nan)
    with pytest.raises(UsageError, match="maps must be finite"):
        compute_spro([[]], np.full((1, 2, 2), np.nan))
    # regions that are not what the masks say have a sorting of their own
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True
    maps = np.random.default_rng(3).random((1, 4, 4))
    regions = [[(np.eye(4), 2.0)]]
    found = evaluate_scores([1], [1], pixel_masks=masks, pixel_scores=maps, regions=regions)
    assert found["pixel_metrics"]["spro"] == compute_spro(regions, maps, 0.3)


def test_each_kind_of_defect_against_all_good_images() -> None:
    y_true, scores = [0, 0, 1, 1, 1], [0.1, 0.5, 0.4, 0.9, 0.3]
    kinds = ["good", "good", "dent", "hole", "dent"]
    masks = np.zeros((5, 4, 4), bool)
    masks[2:, 1, 1:3] = True
    maps = np.random.default_rng(1).random((5, 4, 4))
    regions = [[], [], *([(masks[2], 1.0)] for _ in range(3))]
    found = evaluate_kinds(
        y_true,
        scores,
        kinds,
        threshold=0.45,
        pixel_masks=masks,
        pixel_scores=maps,
        pixel_threshold=0.5,
        regions=regions,
    )
    assert list(found) == ["dent", "hole"] and found["dent"]["count"] == 2
    assert found["hole"]["auroc"] == 1.0 and found["dent"]["auroc"] == 0.5
    assert found["hole"]["metrics"]["recall"] == 1.0 and found["dent"]["metrics"]["recall"] == 0.0
    chosen = [0, 1, 2, 4]
    dent = found["dent"]["pixel_metrics"]
    assert dent["aupro"] == compute_aupro(masks[chosen], maps[chosen])
    assert dent["spro"] == compute_spro([regions[i] for i in chosen], maps[chosen], 0.3)
    assert dent["segf1"] == compute_pixel_segf1(masks[chosen], maps[chosen], threshold=0.5)
    assert evaluate_kinds([0, 0], [1, 2], ["good", "good"]) == {}


def test_perfect_scores_give_exactly_one() -> None:
    labels = np.array([0] * 7 + [1] * 13)
    assert compute_auroc(labels, np.linspace(0, 1, 20)) == 1.0
    assert compute_average_precision(labels, np.linspace(0, 1, 20)) == 1.0
    assert compute_auroc(labels, np.zeros(20)) == 0.5


def test_what_is_undefined_is_none_with_a_reason_and_never_nan() -> None:
    only_good = evaluate_scores([0, 0], [0.1, 0.2], threshold=1.0)
    assert only_good["auroc"] is None and only_good["average_precision"] is None
    assert only_good["metrics"]["recall"] is None and only_good["metrics"]["precision"] is None
    assert only_good["undefined"]["auroc"] == "the test set has no defective image"
    assert only_good["undefined"]["aupro"] == "no masks were given"
    only_bad = evaluate_scores([1], [0.1], threshold=0.0)
    assert only_bad["undefined"]["auroc"] == "the test set has no good image"
    assert only_bad["metrics"]["specificity"] is None
    assert only_bad["average_precision"] == 1.0
    empty = evaluate_scores([], [], threshold=0.0)
    assert empty["metrics"]["accuracy"] is None and empty["metrics"]["tp"] == 0
    unthresholded = evaluate_scores([0, 1], [0, 1])
    assert unthresholded["metrics"]["tp"] is None
    assert unthresholded["undefined"]["f1"] == "no threshold was given"
    for result in (only_good, only_bad, empty, unthresholded):
        json.dumps(result, allow_nan=False)
        values = {**result, **result["metrics"], **result["pixel_metrics"]}
        assert {name for name, value in values.items() if value is None} - {"threshold"} == set(
            result["undefined"]
        )


def test_pixel_metrics_without_a_class_are_nan() -> None:
    maps = np.random.default_rng(0).random((2, 4, 4))
    for masks in (np.zeros((2, 4, 4)), np.ones((2, 4, 4))):
        for compute in (compute_pixel_auroc, compute_pixel_average_precision, compute_aupro):
            assert np.isnan(compute(masks, maps))
    found = evaluate_scores(
        [0, 1], [0, 1], threshold=1, pixel_masks=np.zeros((2, 4, 4)), pixel_scores=maps
    )
    assert found["undefined"]["aupro"] == "no pixel of the masks is anomalous"


def test_metrics_at_a_threshold_by_hand() -> None:
    masks = np.array([[[1, 1, 0, 0], [0, 0, 0, 1]]])  # a region of two pixels, one of one
    maps = np.array([[[0.9, 0.1, 0.8, 0.2], [0.0, 0.0, 0.0, 0.7]]])
    assert compute_pro_score(masks, maps, 0.5) == pytest.approx((0.5 + 1.0) / 2)
    assert compute_pixel_segf1(masks, maps, threshold=0.5) == pytest.approx(2 * 2 / (3 + 3))
    assert compute_bg_fpr(masks, maps, threshold=0.5) == pytest.approx(1 / 5)
    assert compute_pro_score(masks, maps) == compute_aupro(masks, maps, 1.0)
    assert np.isnan(compute_pixel_segf1(masks * 0, maps, threshold=2.0))
    assert np.isnan(compute_bg_fpr(masks * 0 + 1, maps, threshold=0.5))


def test_diagonal_neighbours_are_one_region() -> None:
    masks = np.zeros((1, 4, 4), np.uint8)
    masks[0, 0, 0] = masks[0, 1, 1] = 1
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 0, 0] = 1.0
    assert compute_pro_score(masks, maps, 0.5) == 0.5  # two regions would give 0.5 too ...
    masks[0, 3, 3] = 1
    assert compute_pro_score(masks, maps, 0.5) == pytest.approx(0.25)  # ... but not here


@pytest.mark.parametrize("metric", ["f1", "accuracy", "youden"])
def test_optimal_threshold_is_the_best_of_all(metric: str) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(labels, 1.0), 1)
    threshold, value = find_optimal_threshold(labels, scores, metric)  # type: ignore[arg-type]

    def at(t: float) -> float:
        predicted = scores >= t
        if metric == "f1":
            return float(reference.f1_score(labels, predicted))
        if metric == "accuracy":
            return float(reference.accuracy_score(labels, predicted))
        return float(2 * reference.balanced_accuracy_score(labels, predicted) - 1)

    assert value == pytest.approx(max(at(t) for t in scores))
    assert at(threshold) == pytest.approx(value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: compute_auroc([0, 1], [1.0]), "same length"),
        (lambda: compute_auroc([0, 2], [1.0, 2.0]), "0 .good. and 1"),
        (lambda: compute_auroc([0, 1], [1.0, np.nan]), "finite"),
        (lambda: compute_auroc([[0, 1]], [[1.0, 2.0]]), "one dimension"),
        (lambda: compute_aupro(np.ones((2, 2)), np.ones((3, 2))), "shapes"),
        (lambda: compute_aupro(np.ones((2, 2)), np.full((2, 2), np.inf)), "finite"),
        (lambda: compute_aupro(np.ones((2, 2)), np.ones((2, 2)), 0.0), "limit"),
        (lambda: find_optimal_threshold([0, 1], [0, 1], "auc"), "Unsupported metric .auc."),
        (lambda: compute_spro([[]], np.ones((2, 2))), r"maps must be .N, H, W., got shape"),
        (lambda: compute_spro([[]], np.ones((2, 2, 2))), "1 images with regions, but 2 maps"),
        (lambda: compute_spro([[(np.ones((2, 1)), 1)]], np.ones((1, 2, 2))), "mask of shape"),
        (lambda: compute_spro([[(np.eye(2), 3)]], np.ones((1, 2, 2))), "a saturation area of 3"),
        (lambda: compute_spro([[(np.eye(2), 1)]], np.full((1, 2, 2), np.nan)), "finite"),
        (lambda: evaluate_kinds([0, 1], [0, 1], ["a"]), "2 labels, but 1 kinds"),
        (lambda: evaluate_scores([0, 1], [0.0, 1.0], threshold=np.nan), "threshold must be"),
        (lambda: evaluate_scores([0, 1], [0.0, 1.0], threshold="x"), "threshold must be"),
        (lambda: compute_bg_fpr(np.ones((2, 2)), np.ones((2, 2)), threshold=np.nan), "threshold"),
        (lambda: compute_pro_score(np.ones((2, 2)), np.ones((2, 2)), np.inf), "threshold"),
        (lambda: compute_aupro(np.full((2, 2), np.nan), np.ones((2, 2))), "masks must be finite"),
        (lambda: compute_aupro(np.ones((2, 2)), np.ones((2, 2)) * 1j), "real numbers"),
        (lambda: find_optimal_threshold([0, 0], [0, 1]), "class is missing"),
        (lambda: compute_classification_metrics([0, 1], [0]), "same length"),
    ],
)
def test_bad_input_is_one_clear_line(call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=said):
        call()


def test_all_public_names_are_there() -> None:
    for name in evaluation.__all__:
        assert hasattr(evaluation, name)


def test_lists_of_several_sizes_are_named() -> None:
    masks = [np.zeros((4, 5)), np.ones((4, 5)), np.zeros((6, 5))]
    maps = [np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((6, 5))]
    said = r"masks are of several sizes: masks\[0\] has shape \(4, 5\) and masks\[2\] \(6, 5\);"
    for metric in (
        evaluation.compute_pixel_auroc,
        evaluation.compute_pixel_average_precision,
        evaluation.compute_aupro,
        evaluation.compute_pro_score,
    ):
        with pytest.raises(UsageError, match=said):
            metric(masks, maps)
    with pytest.raises(UsageError, match=said):
        evaluation.compute_pixel_segf1(masks, maps, threshold=0.5)
    with pytest.raises(UsageError, match=said):
        evaluation.evaluate_detector(
            [0, 1, 1], [0.1, 0.2, 0.3], pixel_masks=masks, pixel_scores=maps
        )
    with pytest.raises(UsageError, match="maps are of several sizes"):
        evaluation.compute_spro([[], [], []], maps)
    assert evaluation.compute_pixel_auroc(masks[:2], maps[:2]) == 0.5
