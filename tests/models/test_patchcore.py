"""PatchCore against a plain, slow version of the paper's formulas."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pyimgano.backbones import create_backbone
from pyimgano.errors import UsageError
from pyimgano.models import create_model, evenly_spread
from pyimgano.models.anomaly_map import smooth_maps
from pyimgano.models.neighbors import random_projection, streamed_coreset
from pyimgano.models.patchcore import VisionPatchCore
from tests.conftest import picture, save

from .test_coreset import textbook

SIZE = (64, 48)
TRAIN = [picture(i, 64)[:, :48] for i in range(8)]
TEST = [picture(50 + i, 64, spot=i % 2 == 1)[:, :48] for i in range(5)]


def plain_patches(images: list[np.ndarray], backbone: str) -> np.ndarray:
    """P(x), (N, h, w, D) float64: 3x3 means over existing cells, bilinear, concatenated."""
    maps = create_backbone(backbone, pretrained=False, engine="torch", device="cpu").features(
        images
    )

    def pooled(x: np.ndarray) -> np.ndarray:
        h, w = x.shape[2:]
        out = np.empty_like(x)
        for i in range(h):
            for j in range(w):
                cells = x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                out[:, :, i, j] = cells.mean(axis=(2, 3))
        return out

    shallow, deep = (pooled(m.numpy().astype(np.float64)) for m in maps)
    n, _, h, w = shallow.shape
    up = np.empty((n, deep.shape[1], h, w))
    for i in range(h):
        for j in range(w):
            y = min(max((i + 0.5) * deep.shape[2] / h - 0.5, 0), deep.shape[2] - 1)
            x = min(max((j + 0.5) * deep.shape[3] / w - 0.5, 0), deep.shape[3] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, deep.shape[2] - 1), min(x0 + 1, deep.shape[3] - 1)
            fy, fx = y - y0, x - x0
            up[:, :, i, j] = (1 - fy) * (
                (1 - fx) * deep[:, :, y0, x0] + fx * deep[:, :, y0, x1]
            ) + fy * ((1 - fx) * deep[:, :, y1, x0] + fx * deep[:, :, y1, x1])
    return np.concatenate([shallow, up], axis=1).transpose(0, 2, 3, 1)


def plain_score(patches: np.ndarray, bank: np.ndarray, b: int) -> tuple[float, np.ndarray]:
    """Equations 6 and 7 for one image (hw, D); also the distance of each patch."""
    away = np.sqrt(((patches[:, None] - bank[None]) ** 2).sum(-1))  # (hw, M)
    distances = away.min(1)
    star = int(distances.argmax())
    m_star = int(away[star].argmin())
    s_star = distances[star]
    if b == 1 or len(bank) == 1:
        return float(s_star), distances
    neighbours = np.argsort(((bank - bank[m_star]) ** 2).sum(1), kind="stable")[:b]
    exponents = np.exp(away[star][neighbours])
    weight = 1 - np.exp(s_star) / exponents.sum()
    return float(weight * s_star), distances


@pytest.mark.parametrize("b", [9, 3, 1])
@pytest.mark.parametrize(("backbone", "projection"), [("resnet18", 24), ("resnet18", None)])
def test_against_the_plain_version(backbone: str, projection: int | None, b: int) -> None:
    detector = create_model(
        "vision_patchcore",
        recipe="paper",
        backbone=backbone,
        pretrained=False,
        resize=SIZE,
        feature_projection_dim=projection,
        n_neighbors=b,
        device="cpu",
        engine="torch",
    ).fit(TRAIN)

    train = plain_patches(TRAIN, backbone)
    n, h, w, dim = train.shape
    flat = train.reshape(-1, dim)
    assert detector.grid_ == (h, w) == (8, 6)
    projected = random_projection(torch.from_numpy(flat).float(), projection, 0).numpy()
    start = int(np.random.default_rng(0).integers(len(flat)))
    indices = textbook(projected, round(0.1 * len(flat)), start)
    assert detector.coreset_indices_.tolist() == indices

    bank = flat[indices]
    test = plain_patches(TEST, backbone).reshape(len(TEST), h * w, dim)
    expected = [plain_score(patches, bank, b) for patches in test]
    np.testing.assert_allclose(
        detector.decision_function(TEST), [score for score, _ in expected], rtol=1e-4
    )
    for found, (_, distances) in zip(detector.predict_anomaly_map(TEST), expected, strict=True):
        grid = torch.from_numpy(distances.reshape(1, 1, h, w))
        up = torch.nn.functional.interpolate(grid, size=SIZE, mode="bilinear")[0, 0].numpy()
        np.testing.assert_allclose(found, gaussian_filter(up, 4.0), rtol=1e-4, atol=1e-5)

    image_of = np.asarray(indices) // (h * w)
    left_out = [plain_score(train[i].reshape(-1, dim), bank[image_of != i], b)[0] for i in range(n)]
    np.testing.assert_allclose(detector.decision_scores_, left_out, rtol=1e-4)


@pytest.mark.parametrize(("grid", "size"), [((7, 9), (50, 30)), ((1, 2), (3, 5))])
def test_maps_are_bilinear_then_gaussian(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Also where the Gaussian is wider than the map."""
    grids = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    found = smooth_maps(grids, size)
    up = torch.nn.functional.interpolate(grids[:, None], size=size, mode="bilinear")[:, 0]
    for ours, one in zip(found, up, strict=True):
        np.testing.assert_allclose(ours, gaussian_filter(one.numpy(), 4.0), rtol=2e-5, atol=1e-6)


def small(**keywords: object):  # type: ignore[no-untyped-def]
    return create_model(
        "vision_patchcore", **{"recipe": "paper", "resize": (64, 64), "device": "cpu", **keywords}
    )


IMAGES = [picture(i) for i in range(6)]


def test_defects_score_higher_and_maps_point_at_them() -> None:
    detector = small().fit(IMAGES)
    good = detector.decision_function([picture(100 + i) for i in range(4)])
    bad = detector.decision_function([picture(200 + i, spot=True) for i in range(4)])
    assert bad.min() > 1.3 * good.max()
    assert detector.predict([picture(200, spot=True)]).tolist() == [1]
    row, column = np.unravel_index(
        detector.get_anomaly_map(picture(200, spot=True)).argmax(), (64, 64)
    )
    assert 30 <= row <= 48 and 30 <= column <= 48


def test_training_scores_have_not_seen_their_image() -> None:
    """In-sample scores look much better than they are; left-out ones look like new images."""
    detector = small(coreset_sampling_ratio=1.0).fit(IMAGES)
    naive = small(coreset_sampling_ratio=1.0, calibration="in-sample").fit(IMAGES)
    new = detector.decision_function([picture(100 + i) for i in range(6)])
    assert naive.decision_scores_.max() == 0.0  # every patch finds itself
    assert 0.8 * new.mean() < detector.decision_scores_.mean() < 1.25 * new.mean()
    np.testing.assert_allclose(naive.decision_scores_, naive.decision_function(IMAGES), rtol=1e-4)
    assert detector.calibration_.method == "leave-one-image-out"
    assert naive.calibration_.method == "in-sample"
    assert naive.calibration_.promised_false_alarm_rate is None


def test_one_training_image_works_and_is_said() -> None:
    detector = small().fit(IMAGES[:1])
    assert detector.calibration_.n_scores == 1
    assert detector.calibration_.promised_false_alarm_rate is None
    assert any("1 training image" in note for note in detector.calibration_.notes)
    assert detector.predict(IMAGES[:3]).tolist() == [0, 0, 0]
    assert detector.predict([picture(9, spot=True)]).tolist() == [1]


def test_one_tiny_image_works_too() -> None:
    detector = create_model("vision_patchcore", resize=(8, 8), device="cpu").fit(IMAGES[:1])
    assert np.isfinite(detector.threshold_)


def test_identical_and_constant_images_are_good() -> None:
    for image in (picture(1), np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)):
        detector = small().fit([image] * 5)
        assert np.isfinite(detector.decision_scores_).all()
        assert detector.predict([image] * 2).tolist() == [0, 0]


def test_arrays_and_paths_score_alike(tmp_path: Path) -> None:
    from tests.conftest import save

    paths = [str(save(tmp_path / f"{i}.png", image)) for i, image in enumerate(IMAGES)]
    by_path, by_array = small().fit(paths), small().fit(np.stack(IMAGES))
    np.testing.assert_array_equal(by_path.decision_scores_, by_array.decision_scores_)
    np.testing.assert_array_equal(
        by_path.decision_function(IMAGES), by_array.decision_function(paths)
    )


def test_scores_do_not_depend_on_order_or_batches() -> None:
    detector = small().fit(IMAGES)
    images = [picture(100 + i, spot=i % 3 == 0) for i in range(11)]
    together = detector.decision_function(images)
    np.testing.assert_allclose(detector.decision_function(images[::-1])[::-1], together, rtol=1e-6)
    one_by_one = [detector.decision_function([image])[0] for image in images]
    np.testing.assert_allclose(one_by_one, together, rtol=1e-6)


def test_the_same_seed_gives_the_same_detector() -> None:
    first, second, other = (small(random_seed=seed).fit(IMAGES) for seed in (0, 0, 1))
    assert torch.equal(first.coreset_indices_, second.coreset_indices_)
    np.testing.assert_array_equal(first.decision_scores_, second.decision_scores_)
    assert not torch.equal(first.coreset_indices_, other.coreset_indices_)


@pytest.mark.parametrize("layers", [["blocks.4"], ["blocks.2", "blocks.4", "blocks.10"]])
def test_one_layer_or_three(layers: list[str]) -> None:
    detector = small(layers=layers).fit(IMAGES)
    assert detector.decision_function([picture(200, spot=True)])[0] > detector.threshold_


def test_the_finest_layer_makes_the_grid_in_any_order() -> None:
    ordered = small(layers=["blocks.4", "blocks.10"]).fit(IMAGES)
    turned = small(layers=["blocks.10", "blocks.4"]).fit(IMAGES)
    assert ordered.grid_ == turned.grid_ == (8, 8)
    with pytest.raises(UsageError, match="layers is empty"):
        small(layers=[]).fit(IMAGES)


def test_one_images_threshold_is_on_the_scale_of_scores() -> None:
    keywords = {"backbone": "resnet18", "pretrained": False}
    with_weight = small(n_neighbors=9, **keywords).fit(IMAGES[:1])
    without = small(n_neighbors=1, **keywords).fit(IMAGES[:1])
    assert with_weight.threshold_ < without.threshold_


def test_two_detectors_in_two_threads() -> None:
    detectors = [small(random_seed=0).fit(IMAGES) for _ in range(2)]  # one backbone for both
    expected = detectors[0].decision_function(IMAGES)
    failures: list[object] = []

    def score(detector) -> None:  # type: ignore[no-untyped-def]
        try:
            for _ in range(10):
                np.testing.assert_allclose(detector.decision_function(IMAGES), expected)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=score, args=(d,)) for d in detectors]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert failures == []


def test_describe_names_what_ran() -> None:
    described = small(backbone="resnet18", pretrained=False, random_seed=3).fit(IMAGES).describe()
    assert described["backbone"]["weights"]["source"] == "random"
    assert described["backbone"]["weights"]["detail"] == "seed 3"
    assert described["memory_bank"] == {"size": 38, "dimension": 384, "selections": 1}


def make(**keywords: object) -> VisionPatchCore:
    return create_model(
        "vision_patchcore", **{"recipe": "paper", "resize": (64, 64), "device": "cpu", **keywords}
    )


def test_held_out_images_calibrate_and_are_not_learned_from() -> None:
    train, held_out = [picture(i) for i in range(5)], [picture(50 + i) for i in range(3)]
    detector = make().fit(train, calibration_images=held_out)
    alone = make().fit(train)
    np.testing.assert_array_equal(detector.coreset_indices_, alone.coreset_indices_)
    scores = alone.decision_function(held_out)
    np.testing.assert_array_equal(detector.decision_scores_, scores)
    assert detector.threshold_ == np.nextafter(scores.max(), np.inf)
    assert detector.calibration_.method == "held-out-images" and detector.n_train_ == 5
    maps = alone.predict_anomaly_map(held_out).astype(np.float64)
    pixels = detector.pixel_calibration_
    assert pixels is not None and pixels.n_images == 3
    assert pixels.threshold == pytest.approx(maps.mean() + 3 * maps.std(), rel=1e-9)
    with pytest.raises(UsageError, match="calibration_images is empty"):
        make().fit(train, calibration_images=[])
    with pytest.raises(UsageError, match="calibration_images must be a sequence"):
        make().fit(train, calibration_images="a.png")


def test_the_pixel_threshold_is_that_of_leave_one_out_maps() -> None:
    """With a bank of all patches, leaving an image out is fitting without it."""
    images = [picture(i) for i in range(4)]
    detector = make(coreset_sampling_ratio=1.0).fit(images)
    maps = [
        make(coreset_sampling_ratio=1.0)
        .fit([other for j, other in enumerate(images) if j != i])
        .predict_anomaly_map([image])[0]
        for i, image in enumerate(images)
    ]
    values = np.stack(maps).astype(np.float64)
    pixels = detector.pixel_calibration_
    assert pixels is not None and pixels.method == "leave-one-image-out"
    assert pixels.mean == pytest.approx(values.mean(), rel=1e-4)
    assert pixels.std == pytest.approx(values.std(), rel=1e-3)


def test_many_training_images_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, and calibration on a part: scores are those of the bank that came out."""
    images = [picture(i) for i in range(13)]
    monkeypatch.setattr(streamed_coreset, "BLOCK_ROWS", 150)  # 64 patches an image
    monkeypatch.setattr(evenly_spread, "_IMAGES", 5)
    detector = make(max_bank_size=40).fit(images)
    assert len(detector.coreset_indices_) == 40
    assert detector.describe()["memory_bank"]["selections"] > 1
    assert detector.calibration_.n_scores == 5 and detector.n_train_ == 13
    assert "calibrated on 5 of the 13 training images, evenly spread" in detector.calibration_.notes
    kept = [i for i in range(13) if i * 5 % 13 < 5]
    assert len(kept) == 5 and kept[0] == 0
    whole = make(coreset_sampling_ratio=1.0).fit(images)  # features of all patches, in order
    order = whole.coreset_indices_.argsort()
    features = whole.learned_.bank.features[order].numpy()
    bank = features[detector.coreset_indices_]
    for number, score in zip(kept, detector.decision_scores_, strict=True):
        others = bank[detector.coreset_indices_.numpy() // 64 != number]
        mine = features[number * 64 : (number + 1) * 64]
        nearest = np.linalg.norm(mine[:, None] - others[None], axis=2).min(axis=1)
        assert 0 < score <= nearest.max() * (1 + 1e-5)
    assert make().fit_predict(images).shape == (13,)


@pytest.mark.parametrize("block", [10**6, 100])
def test_few_of_many_images_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(streamed_coreset, "BLOCK_ROWS", block)
    monkeypatch.setattr(evenly_spread, "_IMAGES", 2)
    paths = [save(tmp_path / f"{i:02d}.png", picture(i)) for i in range(12)]
    for path in paths[3:]:
        path.write_bytes(b"")
    detector = make().fit(paths, on_error="skip")
    assert detector.n_train_ == 3 and detector.calibration_.n_scores >= 1
