"""Regions of interest: what lies outside counts for nothing, to the bit."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pyimgano.datasets import Pixels, Region, Sample
from pyimgano.errors import DataError, ImageReadError, PyimganoError, UsageError
from pyimgano.evaluation import evaluate_scores
from pyimgano.images import FILL, RegionOfInterest, read_roi, resize_image, stream_images
from pyimgano.inference import infer
from pyimgano.models import Detector, ImageScore, create_model, registry
from pyimgano.models.anomaly_map import smooth_maps
from pyimgano.models.method import Method
from pyimgano.pipelines import run_benchmark
from pyimgano.pipelines.submission import Submission
from tests.conftest import MakeDataset, copy_registry, picture, save

POLYGON = [[0.15, 0.1], [0.9, 0.2], [0.7, 0.8], [0.1, 0.65]]
CHEAP = {"backbone": "resnet18", "pretrained": False, "engine": "torch"}


def make(**keywords: Any) -> Detector:
    return create_model(
        "vision_patchcore", **{"resize": (48, 64), "device": "cpu", **CHEAP, **keywords}
    )


sides = st.integers(1, 40)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, sides, sides, st.integers(0, 2**31))
def test_no_resized_pixel_that_counts_is_made_of_others(
    h: int, w: int, new_h: int, new_w: int, mask_h: int, mask_w: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((mask_h, mask_w)) < 0.9
    mask[rng.integers(mask_h), rng.integers(mask_w)] = True
    roi = RegionOfInterest.from_mask(mask)
    outside = ~roi.at((h, w))
    image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    other = image.copy()
    other[outside] = rng.integers(0, 256, (int(outside.sum()), 3), dtype=np.uint8)
    size = (new_h, new_w)
    counted = roi.counted(size, (h, w))
    np.testing.assert_array_equal(
        resize_image(image, size)[counted], resize_image(other, size)[counted]
    )
    assert not (counted & ~roi.counted(size)).any()
    if not counted.any():
        with pytest.raises(ImageReadError, match="nothing of the region of interest is left"):
            roi.fill(resize_image(image, size), (h, w), "it")
        return
    filled = roi.fill(resize_image(image, size), (h, w), "it")
    assert (filled[~counted] == FILL).all()
    np.testing.assert_array_equal(filled, roi.fill(resize_image(other, size), (h, w), "it"))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_no_more_is_left_out_than_must_be(factor: int) -> None:
    """Of a shrunk image what has a pixel outside, and of one that is not no pixel more."""
    mask = np.ones((12 * factor, 18 * factor), np.uint8)
    mask[0, 0] = mask[7 * factor : 8 * factor, 5 * factor] = 0
    counted = RegionOfInterest.from_mask(mask).counted((12, 18), mask.shape)
    expected = mask.reshape(12, factor, 18, factor).min(axis=(1, 3)) > 0
    np.testing.assert_array_equal(counted, expected)


def test_a_mask_is_stretched_to_the_frame() -> None:
    roi = RegionOfInterest.from_mask([[1, 0], [0, 1]])
    counted = roi.at((6, 8))
    assert counted[:3, :4].all() and counted[3:, 4:].all() and counted.sum() == 24
    # the middle column of three lies in both halves
    assert roi.at((2, 3)).tolist() == [[True, False, False], [False, False, True]]


def inside(ring: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule, edge by edge."""
    odd = False
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]]):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            odd = not odd
    return odd


fractions = st.integers(0, 64).map(lambda n: n / 64)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(fractions, fractions), min_size=3, max_size=7), sides, sides)
def test_polygons_against_the_even_odd_rule(
    ring: list[tuple[float, float]], height: int, width: int
) -> None:
    counted = RegionOfInterest.from_polygons(ring).at((height, width))
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) / width, (row + 0.5) / height
            near = min(
                abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0))
                for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]])
            )
            if near > 1e-9:  # on an edge rounding decides
                assert counted[row, column] == inside(ring, x, y)


def test_several_polygons_are_united_and_equal_regions_are_equal(tmp_path: Path) -> None:
    left = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    right = [[0.4, 0], [1, 0], [1, 1], [0.4, 1]]
    both = RegionOfInterest.from_polygons([left, right])
    assert both.at((10, 10)).all() and not RegionOfInterest.from_polygons(left).at((4, 4)).all()
    file = tmp_path / "roi.json"
    file.write_text(json.dumps([left, right]))
    assert read_roi(file) == both == read_roi(np.asarray([left, right]))
    assert read_roi(both) is both and hash(read_roi(str(file))) == hash(both)
    assert both != RegionOfInterest.from_polygons(left) and both != 3
    assert "2 polygons" in repr(both)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "roi: the region is empty, there is no polygon"),
        ([[0, 0], [1, 1]], "polygon 0 has 2 points and needs at least 3"),
        ([[[0, 0], [1, 0], [1, 1]], [[0, 0]]], "polygon 1 has 1 points"),
        ([[0, 0], [1.2, 0], [1, 1]], r"from 0 to 1, got \[1.2, 0\]"),
        ([[0, 0], [float("nan"), 0], [1, 1]], "from 0 to 1"),
        ([[0, 0], [True, 0], [1, 1]], "from 0 to 1"),
        ([[0, 0], [0, 0, 0], [1, 1]], "from 0 to 1"),
        ([[0, 0], "ab", [1, 1]], "from 0 to 1"),
        ([[[0, 0], [1, 0], [1, 1]], 5], "got 5 for polygon 1"),
        ([[[]]], "polygon 0 has 1 points"),
        (5, r"a list of \[x, y\] points"),
        ("", "give a file or polygons"),
    ],
)
def test_polygons_that_will_not_do(value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        make(roi=value)
    assert "\n" not in str(error.value)


def test_files_that_will_not_do(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "cut.png": (b"\x89PNG\r\n\x1a\n", "not an image in a known format"),
        "empty.png": (b"", "the file is empty"),
        "text.json": (b"{", "is not JSON"),
        "deep.json": (b"[" * 100_000, "is not JSON|wanted"),
        "object.json": (b'{"a": 1}', r"a list of \[x, y\] points"),
        "outside.json": (b"[[0, 0], [2, 0], [1, 1]]", "from 0 to 1"),
        "huge.json": (b"[[0, 0], [1e999, 0], [1, 1]]", "from 0 to 1"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*({said})") as error:
            make(roi=str(tmp_path / name)).fit([picture(0)])
        assert "\n" not in str(error.value)
    black = save(tmp_path / "black.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"black\.png: the region is empty"):
        make(roi=black).fit([picture(0)])
    for missing in ("no.png", "no.json"):
        with pytest.raises(DataError, match=f"roi .*{missing}: no such file"):
            make(roi=str(tmp_path / missing)).region_of_interest()
    with pytest.raises(DataError, match=r"roi .*: is a folder"):
        read_roi(tmp_path)
    thin = np.zeros((4000, 4000), np.uint8)
    thin[:, 17] = 255
    with pytest.raises(DataError, match="nothing of the region of interest is left at 64 x 48"):
        make(roi=str(save(tmp_path / "thin.png", thin))).fit([picture(0)])
    with pytest.raises(DataError, match="left at 64 x 48 pixels"):
        make(roi=[[0.5, 0.5], [0.5, 0.9], [0.5, 0.6]]).fit([picture(0)])


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
    )
)
def test_whatever_is_given_is_read_or_refused(value: Any) -> None:
    try:
        roi = read_roi(value)
    except PyimganoError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert roi.at((5, 5)).shape == (5, 5)


def scribble(image: np.ndarray, roi: RegionOfInterest, seed: int) -> np.ndarray:
    """The image with noise wherever it does not count."""
    other = image.copy()
    outside = ~roi.at(image.shape[:2])
    rng = np.random.default_rng(seed)
    other[outside] = rng.integers(0, 256, (int(outside.sum()), 3), dtype=np.uint8)
    return other


@pytest.mark.parametrize("keywords", [CHEAP, {"backbone": "efficientnet_lite0", "engine": "auto"}])
@pytest.mark.parametrize("size", [150, 64, 37])
def test_what_is_outside_changes_nothing(
    tmp_path: Path, keywords: dict[str, Any], size: int
) -> None:
    mask = np.zeros((31, 47), np.uint8)
    cv2.circle(mask, (25, 14), 11, 1, -1)
    file = str(save(tmp_path / "roi.png", mask))
    roi = read_roi(file)
    images = [picture(i, size)[: size * 4 // 5] for i in range(5)]
    tests = [picture(50 + i, size, spot=i % 2 == 1)[: size * 4 // 5] for i in range(3)]

    def paths(name: str, pictures: list[np.ndarray]) -> list[str]:
        return [str(save(tmp_path / f"{name}{i}.png", one)) for i, one in enumerate(pictures)]

    noisy = [scribble(one, roi, i) for i, one in enumerate(images)]
    first = make(roi=file, **keywords).fit(paths("a", images))
    second = make(roi=file, **keywords).fit(paths("b", noisy))
    assert first.threshold_ == second.threshold_
    assert first.pixel_calibration_ == second.pixel_calibration_
    np.testing.assert_array_equal(first.decision_scores_, second.decision_scores_)
    other_tests = paths("d", [scribble(one, roi, 9) for one in tests])
    for one, two in zip(first.score_images(paths("c", tests)), second.score_images(other_tests)):
        assert one.score == two.score
        np.testing.assert_array_equal(one.anomaly_map, two.anomaly_map)
        counted = roi.counted((48, 64), tests[0].shape[:2])
        assert one.anomaly_map is not None and (one.anomaly_map[~counted] == 0).all()
        assert (one.anomaly_map[counted] > 0).all()
    # and what is inside does change it
    inner = tests[0].copy()
    inner[size // 3 : size // 2, size // 3 : size // 2] = 255
    assert first.decision_function([inner])[0] != first.decision_function([tests[0]])[0]


def test_the_whole_frame_is_no_region(tmp_path: Path) -> None:
    images = [picture(i) for i in range(5)]
    whole = make(roi=[[0, 0], [1, 0], [1, 1], [0, 1]]).fit(images)
    plain = make().fit(images)
    assert whole.threshold_ == plain.threshold_
    assert whole.pixel_calibration_ == plain.pixel_calibration_
    test = [picture(9, spot=True)]
    np.testing.assert_array_equal(whole.predict_anomaly_map(test), plain.predict_anomaly_map(test))
    assert whole.roi_ is not None and plain.roi_ is None


def test_the_bank_and_the_score_are_of_cells_that_count() -> None:
    images = [picture(i) for i in range(5)]
    detector = make(roi=POLYGON).fit(images)
    roi = detector.roi_
    assert roi is not None
    height, width = detector.grid_  # type: ignore[attr-defined]
    counted = roi.counted((48, 64))
    cells = counted.reshape(height, 48 // height, width, 64 // width).any(axis=(1, 3))
    found = detector.region_cells.cells((height, width))
    assert found is not None and 0 < len(found) < height * width
    np.testing.assert_array_equal(found, np.flatnonzero(cells))
    indices = detector.coreset_indices_.numpy()  # type: ignore[attr-defined]
    assert len(indices) == round(0.1 * 5 * len(found))
    assert cells.ravel()[indices % (height * width)].all()
    assert set(indices // (height * width)) <= set(range(5))
    # the bank's own patches are at distance 0 of it, where the indices say
    n, place = divmod(int(indices[0]), height * width)
    filled = roi.fill(resize_image(images[n], (48, 64)), (64, 64), "it")
    (patches,) = detector.backbone_.features([filled])
    row = patches.flatten(1, 2)[0, place]
    bank = detector.learned_.bank.features[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(row.numpy(), bank.numpy(), rtol=1e-4, atol=1e-4)


def test_pixels_outside_are_in_no_statistics() -> None:
    images = [picture(i) for i in range(5)]
    good = [picture(20 + i) for i in range(3)]
    detector = make(roi=POLYGON).fit(images, calibration_images=good)
    calibration = detector.pixel_calibration_
    assert calibration is not None and detector.roi_ is not None
    counted = detector.counted_pixels((64, 64))
    assert counted is not None
    values = detector.predict_anomaly_map(good)[:, counted].astype(np.float64)
    assert calibration.mean == pytest.approx(values.mean(), rel=1e-9)
    assert calibration.std == pytest.approx(values.std(), rel=1e-9)
    trained = make(roi=POLYGON).fit(images).pixel_calibration_
    plain = make().fit(images).pixel_calibration_
    assert trained is not None and plain is not None
    assert abs(trained.mean - plain.mean) / plain.mean < 0.5  # no zeros in it
    same = make(roi=POLYGON, calibration="in-sample", coreset_sampling_ratio=1.0).fit(images[:1])
    assert same.pixel_calibration_ is not None and same.pixel_calibration_.threshold > 0


def test_one_training_image(tmp_path: Path) -> None:
    detector = make(roi=POLYGON).fit([picture(0)])
    assert detector.calibration_.method == "within-image" and detector.threshold_ > 0


def test_images_too_small_for_the_region_get_no_score() -> None:
    detector = make(roi=[[0.3, 0.3], [0.45, 0.3], [0.45, 0.45], [0.3, 0.45]])
    detector.fit([picture(i) for i in range(4)])
    tiny = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ImageReadError, match=r"nothing of the region .* image of 2 x 2 pixels"):
        detector.predict([tiny])
    recorded = list(detector.score_images([tiny, picture(9)], on_error="record"))
    assert recorded[0].score is None and recorded[1].score is not None
    with pytest.raises(ImageReadError, match="image 0: nothing of the region"):
        detector.fit([tiny])


def test_a_cache_knows_the_region(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{i}.png", picture(i))) for i in range(5)]
    cache = str(tmp_path / "cache")
    regions: list[Any] = [None, POLYGON, [[0, 0], [1, 0], [0, 1]], POLYGON, None]
    for roi in regions:
        with_cache = make(roi=roi, cache_dir=cache).fit(paths)
        without = make(roi=roi).fit(paths)
        assert with_cache.threshold_ == without.threshold_
        np.testing.assert_array_equal(
            with_cache.predict_anomaly_map(paths), without.predict_anomaly_map(paths)
        )


def test_a_stream_without_resizing_is_filled() -> None:
    roi = RegionOfInterest.from_mask([[1, 0]])
    image = picture(0)
    (loaded,) = stream_images([image], None, roi=roi)
    assert isinstance(loaded.pixels, np.ndarray)
    np.testing.assert_array_equal(loaded.pixels[:, :32], image[:, :32])
    assert (loaded.pixels[:, 32:] == FILL).all() and not (image[:, 32:] == FILL).all()


def test_metrics_of_counted_pixels_are_those_of_the_part() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 20, 30), np.uint8)
    masks[1, 3:9, 5:20] = masks[2, 12:18, 2:11] = masks[3, 0:4, 25:30] = 1
    maps = (rng.random(masks.shape) + 0.5 * masks).astype(np.float32)
    counted = np.zeros(masks.shape, bool)
    counted[:, 2:15, 4:18] = True
    saturated = [[], [(masks[1] * counted[1], 9.0)], [(masks[2] * counted[2], 5.0)], []]
    cut = [[(m[2:15, 4:18], s) for m, s in image] for image in saturated]
    labels, scores = [0, 1, 1, 1], [0.1, 0.9, 0.8, 0.7]
    keywords = {"pixel_threshold": 0.8}
    whole = evaluate_scores(
        labels,
        scores,
        pixel_masks=masks,
        pixel_scores=maps,
        pixel_counted=counted,
        regions=saturated,
        **keywords,  # type: ignore[arg-type]
    )
    part = evaluate_scores(
        labels,
        scores,
        pixel_masks=masks[:, 2:15, 4:18],
        pixel_scores=maps[:, 2:15, 4:18],
        regions=cut,
        **keywords,  # type: ignore[arg-type]
    )
    assert whole == part and whole["undefined"].get("spro") is None
    plain = evaluate_scores(labels, scores, pixel_masks=masks, pixel_scores=maps, **keywords)  # type: ignore[arg-type]
    for name, value in plain["pixel_metrics"].items():
        assert value != whole["pixel_metrics"][name]
    with pytest.raises(UsageError, match="pixel_counted has shape"):
        evaluate_scores(
            labels, scores, pixel_masks=masks, pixel_scores=maps, pixel_counted=counted[:2]
        )


def test_a_defect_outside_is_named(tmp_path: Path) -> None:
    counted = np.zeros((8, 8), bool)
    counted[:, :4] = True
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 5:7] = 255
    sample = Sample(tmp_path / "a.png", 1, "dent", (save(tmp_path / "a_mask.png", mask),))
    pixels = Pixels((8, 8), True, None, None, lambda size: counted)
    pixels.add(sample, ImageScore(0, 1.0, np.ones((8, 8), np.float32), (8, 8)))
    assert [one.kind for one in pixels.problems] == ["mask_outside_roi"]
    assert not pixels.masks[0].any() and pixels.arrays()["pixel_counted"].sum() == 32


def test_a_benchmark_with_a_region(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    file = save(tmp_path / "roi.png", np.pad(np.full((16, 16), 9, np.uint8), ((0, 4), (0, 0))))
    given: dict[str, Any] = {
        "dataset": "mvtec",
        "root": root,
        "category": "nut",
        "resize": (64, 64),
        "runs_dir": tmp_path / "runs",
    }
    report = run_benchmark(roi=file, **given)
    region = report["roi"]
    assert region["share"] == pytest.approx(0.8, abs=0.02) and str(file) in region["origin"]
    assert any("region of interest of 79.7 % of the frame" in note for note in report["notes"])
    assert report["detector"]["parameters"]["roi"] == str(file)
    config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
    assert config["roi"] == str(file)
    polygons = [[0, 0], [1, 0], [1, 0.8], [0, 0.8]]
    again = run_benchmark(model_kwargs={"roi": polygons}, **given)
    assert again["results"] == report["results"] and again["roi"]["share"] == region["share"]
    upper = run_benchmark(
        roi=save(tmp_path / "up.png", np.pad([[9]], ((0, 2), (0, 0))).astype("u1")), **given
    )
    assert [p["kind"] for p in upper["problems"]] == ["mask_outside_roi"] * 3
    assert upper["results"]["pixel_metrics"]["pixel_auroc"] is None
    assert upper["results"]["undefined"]["pixel_auroc"] == "no pixel of the masks is anomalous"
    with pytest.raises(UsageError, match="roi stands in model_kwargs too"):
        run_benchmark(roi=file, model_kwargs={"roi": polygons}, **given)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        run_benchmark(roi=tmp_path / "none.png", **given)


def test_a_region_that_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PlainParams(BaseModel):
        resize: tuple[int, int] = (8, 8)

    class PlainMethod(Method):
        Params = PlainParams  # type: ignore[assignment]

    class Plain(Detector):
        method = PlainMethod

    copy_registry(monkeypatch)
    registry.register_model("plain")(Plain)
    with pytest.raises(UsageError, match="roi does not apply to model 'plain'"):
        run_benchmark(dataset="mvtec", root=tmp_path, model="plain", roi="mask.png")


def test_statistics_of_training_maps_are_of_pixels_inside() -> None:
    images = [picture(i) for i in range(4)]
    detector = make(roi=POLYGON, calibration="in-sample").fit(images)
    counted = detector.counted_pixels((64, 64))
    calibration = detector.pixel_calibration_
    assert counted is not None and calibration is not None
    values = detector.predict_anomaly_map(images)[:, counted].astype(np.float64)
    assert calibration.mean == pytest.approx(values.mean(), rel=1e-4)
    assert calibration.std == pytest.approx(values.std(), rel=1e-4)


def test_maps_do_not_fade_towards_the_edge() -> None:
    counted = torch.zeros((6, 8))
    counted[1:4, 2:7] = 1.0
    found = smooth_maps(3.0 * counted[None], (48, 64), counted=counted)[0]
    np.testing.assert_allclose(found[8:32, 16:56].numpy(), 3.0, rtol=1e-5)
    assert smooth_maps(3.0 * counted[None], (48, 64))[0, 8, 16] < 2
    detector = make(roi=POLYGON).fit([picture(i) for i in range(4)])
    cells, inside = detector.region_cells.cells((6, 8)), detector.counted_pixels((48, 64))
    assert cells is not None and inside is not None
    maps = detector.learned_.grid.maps(torch.full((1, len(cells)), 3.0))  # type: ignore[attr-defined]
    np.testing.assert_allclose(maps[0].numpy()[inside], 3.0, rtol=1e-5)


def test_patches_within_one_image_are_told_apart_by_their_place() -> None:
    """In a region that does not begin at the top: none is compared with itself."""
    lower = [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]
    detector = make(roi=lower, coreset_sampling_ratio=1.0, n_neighbors=1).fit([picture(0)])
    assert detector.calibration_.method == "within-image" and detector.threshold_ > 0.1


def test_regions_of_masks_are_cut(tmp_path: Path) -> None:
    counted = np.zeros((8, 8), bool)
    counted[:, :4] = True
    across, beyond = np.zeros((2, 8, 8), bool)
    across[1, 2:7] = beyond[5, 5:] = True
    regions = [Region(tmp_path, across, 5.0), Region(tmp_path, beyond, 1.0)]
    pixels = Pixels((8, 8), True, None, None)
    sample = Sample(tmp_path / "a.png", 1, "dent")
    mask, kept = pixels._within(sample, (across | beyond).astype(np.uint8), regions, counted)
    assert mask.sum() == 2 and len(kept) == 1
    assert kept[0].mask.sum() == 2 and kept[0].saturation == 2.0 and not pixels.problems


def test_maps_for_a_server_are_zero_outside(tmp_path: Path) -> None:
    lower = [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]
    detector = make(roi=lower).fit([picture(i, 96) for i in range(4)])
    sample = Sample(save(tmp_path / "a.png", picture(9, 96)), None, "unlabelled")
    layout = SimpleNamespace(server_path=lambda root, sample: PurePosixPath("a"))
    submission = Submission(
        layout,  # type: ignore[arg-type]
        tmp_path,
        SimpleNamespace(path=tmp_path),  # type: ignore[arg-type]
        [sample],
        detector,
    )
    (result,) = detector.score_images([sample.path])
    file = submission.save(detector, sample, result)
    assert file is not None
    scores = tifffile.imread(tmp_path / file)
    assert (scores[:48] == 0).all() and (scores[48:] > 0).all()


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e-6])
def test_regions_lie_within_the_region_of_interest_at_any_threshold(threshold: float) -> None:
    polygon = [[0.25, 0.25], [0.5, 0.25], [0.5, 0.75], [0.25, 0.75]]
    train = [picture(seed, 90) for seed in range(5)]
    detector = create_model("vision_patchcore", resize=(64, 64), roi=polygon).fit(train)
    found = infer(detector, [picture(9, 500)], regions=True, pixel_threshold=threshold)
    (region,) = found[0].regions or ()
    x, y, width, height = region.box
    assert x >= 125 and y >= 125 and x + width <= 250 and y + height <= 375
    assert region.area > 10_000
