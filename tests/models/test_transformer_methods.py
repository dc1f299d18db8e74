"""AnomalyDINO, SubspaceAD and RAD: what they compute by plain versions of their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pyimgano.backbones import backbone, create_backbone, dinov2
from pyimgano.backbones.choice import Depths, LastBlock, MiddleBlocks
from pyimgano.backbones.dinov2 import DinoV2
from pyimgano.errors import UsageError
from pyimgano.images import resize_image
from pyimgano.models import create_model, list_models, load_model
from pyimgano.models.anomalydino import _otsu, _spread_rows, learn_object_mask
from pyimgano.models.few_images import mean_of_top, turned
from pyimgano.models.rad import most_similar, same_place_distances

SIZE = (84, 112)
GRID = (6, 8)
NEW = ("vision_anomalydino", "vision_subspace", "vision_rad")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(dinov2.SIZES, "tiny", dinov2.Size(32, 4, 2))
    monkeypatch.setattr(backbone, "_RECIPES", {**backbone._RECIPES, **backbone._transformers()})
    backbone._create.cache_clear()
    yield
    backbone._create.cache_clear()


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    """Textured parts on a dark ground."""
    rng = np.random.default_rng(seed)
    base = np.full((84, 112, 3), 12)
    base[16:70, 20:94] = np.random.default_rng(7).integers(120, 220, (54, 74, 3))
    found = (base + rng.integers(-12, 13, base.shape) for _ in range(count))
    return [np.clip(one, 0, 255).astype(np.uint8) for one in found]


def spoilt(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[35:55, 45:70] = (255, 0, 0)
    return image


def make(model: str, **keywords: Any) -> Any:
    given = {"backbone": "dinov2_tiny", "pretrained": False, "device": "cpu", "resize": SIZE}
    return create_model(model, **{**given, **keywords})


def features(layers: list[str], pictures: list[np.ndarray]) -> list[np.ndarray]:
    """For each layer (n, hw, C) float64 of the tiny network."""
    made = create_backbone("dinov2_tiny", layers=layers, pretrained=False, device="cpu")
    found = made.features([resize_image(one, SIZE) for one in pictures])
    return [one.flatten(2).transpose(1, 2).double().numpy() for one in found]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def top_mean(d: np.ndarray) -> float:
    """The mean of the largest 1 % of 48 distances, one at least."""
    return float(np.sort(d)[-1])


# ---- shared parts


def test_mean_of_the_largest() -> None:
    values = torch.arange(200.0)[None] % 100
    assert mean_of_top(values, 0.01).tolist() == [99.0]
    assert mean_of_top(values, 0.02).tolist() == [98.5 + 0.0]  # 99, 99, 98, 98
    assert mean_of_top(values[:, :3], 0.01).tolist() == [2.0]


def test_turned_images() -> None:
    image = images(1)[0]
    assert turned(image, 0) is image and turned(image, 360) is image
    square = image[:84, :84]
    np.testing.assert_array_equal(turned(square, 90), np.rot90(square))
    back = turned(turned(cv2.GaussianBlur(image, (0, 0), 3), 30), -30)
    inner = (slice(20, 64), slice(30, 82))
    blurred = cv2.GaussianBlur(image, (0, 0), 3)
    assert np.abs(back[inner].astype(int) - blurred[inner].astype(int)).mean() < 3


def test_blocks_chosen_by_depth() -> None:
    with torch.device("meta"):
        small, large = DinoV2(dinov2.SIZES["vits14"]), DinoV2(dinov2.SIZES["vitl14"])
    assert LastBlock()(small) == ("block11.normed",)
    assert Depths((0.25, 0.5, 0.75, 1.0))(small) == tuple(
        f"block{number}.normed" for number in (3, 6, 9, 11)
    )
    assert MiddleBlocks()(large) == tuple(f"block{number}" for number in range(12, 19))


# ---- AnomalyDINO


def test_anomalydino_is_its_formula() -> None:
    good, test = images(3), [spoilt(images(1, seed=5)[0]), images(1, seed=6)[0]]
    detector = make("vision_anomalydino", turns=4, object_mask=False).fit(good)
    copies = [turned(resize_image(one, SIZE), 90 * i) for one in good for i in range(4)]
    (memory,), (tested,) = features(["1.normed"], copies), features(["1.normed"], test)
    memory, tested = unit(memory), unit(tested)
    flat = memory.reshape(-1, 32)
    wanted = [top_mean((1 - one @ flat.T).min(axis=1)) for one in tested]
    np.testing.assert_allclose(detector.decision_function(test), wanted, rtol=1e-3, atol=1e-5)
    # each training image against the others, without any of its turned copies
    for number, score in enumerate(detector.decision_scores_):
        others = np.delete(memory, slice(4 * number, 4 * number + 4), axis=0).reshape(-1, 32)
        own = memory[4 * number]
        assert score == pytest.approx(top_mean((1 - own @ others.T).min(axis=1)), rel=1e-3)
    assert detector.calibration_.method == "leave-one-image-out"
    found = detector.get_anomaly_map(test[0])
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 25 < row < 65 and 35 < column < 80


def test_the_object_is_told_from_its_background() -> None:
    rng = np.random.default_rng(0)
    base = np.full((168, 168, 3), 12)
    base[42:126, 42:126] = rng.integers(120, 220, (84, 84, 3))
    good = [(base + rng.integers(-8, 9, base.shape)).astype(np.uint8) for _ in range(3)]
    given = {"turns": 1, "resize": (168, 168), "layers": ["block0"]}  # where patches mix least
    detector = make("vision_anomalydino", **given).fit(good)
    assert detector.object_mask_ is not None and detector.describe()["object_mask"]
    speck, defect = good[0].copy(), good[0].copy()
    speck[2:12, 2:12] = (0, 255, 0)  # on the background, far from the object
    defect[70:100, 70:100] = (255, 0, 0)
    plain = make("vision_anomalydino", object_mask=False, **given).fit(good)
    assert plain.predict([speck, defect]).tolist() == [1, 1]
    assert detector.predict([speck, defect]).tolist() == [0, 1]
    assert (detector.get_anomaly_map(speck)[:14, :14] < 1e-6).all()
    texture = [np.random.default_rng(i).integers(0, 256, (84, 112, 3), np.uint8) for i in range(3)]
    assert make("vision_anomalydino", turns=1).fit(texture).object_mask_ is None


def test_the_mask_is_the_side_of_the_middle() -> None:
    inside = np.zeros((2, *GRID), bool)
    inside[:, 1:5, 1:7] = True
    rng = np.random.default_rng(0)
    for sign in (1.0, -1.0):
        patches = rng.normal(0, 0.05, (2, 48, 5))
        patches[..., 2] += sign * np.where(inside.reshape(2, 48), 1.0, -1.0)
        given = torch.from_numpy(patches.astype(np.float32))
        mask = learn_object_mask(given, GRID)
        assert mask is not None
        found = mask.of(given, GRID).numpy().reshape(2, *GRID)
        assert found[:, 1:5, 1:7].all() and found.all()  # a cell wider
        hole = given.clone()
        hole.view(2, *GRID, 5)[:, 2, 3, 2] *= -1  # a defect that looks like background
        assert mask.of(hole, GRID).numpy().reshape(2, *GRID)[:, 2, 3].all()
    flat = torch.from_numpy(rng.normal(0, 1, (2, 48, 5)).astype(np.float32))
    assert learn_object_mask(flat, GRID) is None


def test_otsus_cut() -> None:
    values = np.concatenate([np.linspace(0, 1, 20), np.linspace(10, 11, 5)])
    assert 1 < _otsu(values) < 10
    assert _otsu(np.array([3.0])) == 3.0 and _otsu(np.array([3.0, 3.0])) == 3.0


def test_a_memory_of_a_share_of_the_patches_says_so() -> None:
    kept = [_spread_rows(48, 0.5, number) for number in range(40)]
    assert {len(one) for one in kept} == {24}
    assert all((np.diff(one) >= 1).all() and one.max() < 48 for one in kept)
    assert len(np.unique(np.concatenate(kept))) == 48  # every place is in some copy
    detector = make("vision_anomalydino", turns=2, max_bank_size=100).fit(images(3))
    assert detector.describe()["memory_bank"]["size"] <= 100
    assert any("of the patches, evenly spread" in one for one in detector.calibration_.notes)


# ---- SubspaceAD


def test_subspace_is_its_formula() -> None:
    good, test = images(4), [spoilt(images(1, seed=5)[0]), images(1, seed=6)[0]]
    detector = make("vision_subspace", turns=2, explained_variance=0.9).fit(good)
    rng = np.random.default_rng(0)
    copies = [
        [turned(resize_image(one, SIZE), angle) for angle in (0.0, *rng.uniform(0, 360, 2))]
        for one in good
    ]
    layers = ["block2", "block3"]
    memory = [np.mean(features(layers, some), axis=0) for some in copies]
    tested = np.mean(features(layers, test), axis=0)

    def residuals(fitted: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, int]:
        mean = fitted.mean(axis=0)
        _, sigma, vt = np.linalg.svd(fitted - mean, full_matrices=False)
        share = np.cumsum(sigma**2) / (sigma**2).sum()
        count = int(np.searchsorted(share, 0.9)) + 1
        away = x - mean
        rest = away - away @ vt[:count].T @ vt[:count]
        return (rest**2).sum(axis=-1), count

    flat = np.concatenate(memory).reshape(-1, 32)
    wanted, count = residuals(flat, tested)
    assert detector.n_components_ == count
    scores = detector.decision_function(test)
    np.testing.assert_allclose(scores, [top_mean(one) for one in wanted], rtol=1e-3)
    for number, score in enumerate(detector.decision_scores_):
        others = np.concatenate(memory[:number] + memory[number + 1 :]).reshape(-1, 32)
        left, _ = residuals(others, memory[number][0])
        assert score == pytest.approx(top_mean(left), rel=1e-3)
    assert detector.calibration_.method == "leave-one-image-out"


def test_subspace_refuses_layers_that_are_not_alike() -> None:
    with pytest.raises(UsageError, match="to be of one width and stride; those of 'resnet18'"):
        make("vision_subspace", backbone="resnet18").fit(images(2))


def test_many_images_are_left_out_in_groups_and_copies_with_them() -> None:
    good = images(18)
    detector = make("vision_subspace").fit([*good, good[1]])
    assert detector.calibration_.method == "refitted-folds"
    assert any("19 images in 16 groups" in one for one in detector.calibration_.notes)
    # image 18 is in group 2, its copy in group 1
    assert any("images with copies do not calibrate" in one for one in detector.calibration_.notes)
    assert len(detector.decision_scores_) == 17


# ---- RAD


def test_rad_is_its_formula() -> None:
    good, test = images(5), [spoilt(images(1, seed=5)[0]), images(1, seed=6)[0]]
    detector = make("vision_rad", similar_images=2).fit(good)
    layers = ["block1.normed", "block2.normed", "block3.normed"]
    tokens = unit(features(["1.normed.class"], good)[0][:, 0])
    memory = [unit(one) for one in features(layers, good)]

    def score(picture: np.ndarray, left_out: int | None) -> float:
        token = unit(features(["1.normed.class"], [picture])[0][0, 0])
        near = tokens @ token
        if left_out is not None:
            near[left_out] = -2
        similar = np.argsort(-near)[:2]
        tested = [unit(one)[0] for one in features(layers, [picture])]
        d = np.zeros(GRID)
        for block, own in zip(memory, tested):
            for r in range(GRID[0]):
                for c in range(GRID[1]):
                    d[r, c] += min(
                        1 - own[r * 8 + c] @ block[y, q * 8 + s]
                        for y in similar
                        for q in range(max(0, r - 1), min(6, r + 2))
                        for s in range(max(0, c - 1), min(8, c + 2))
                    )
        return top_mean(d.ravel() / len(layers))

    wanted = [score(one, None) for one in test]
    np.testing.assert_allclose(detector.decision_function(test), wanted, rtol=1e-3, atol=1e-5)
    wanted = [score(one, number) for number, one in enumerate(good)]
    np.testing.assert_allclose(detector.decision_scores_, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("radius", [0, 1, 9])
def test_same_place_distances(radius: int) -> None:
    rng = np.random.default_rng(0)
    queries, memory = unit(rng.normal(size=(2, 4, 3, 5))), unit(rng.normal(size=(4, 3, 6, 5)))
    similar = rng.random((2, 6)) < 0.5
    similar[:, 2] = True
    found = same_place_distances(
        torch.from_numpy(queries), torch.from_numpy(memory), torch.from_numpy(similar), radius
    )
    for b in range(2):
        for r in range(4):
            for c in range(3):
                window = memory[
                    max(0, r - radius) : r + radius + 1, max(0, c - radius) : c + radius + 1
                ][:, :, similar[b]]
                best = 1 - (window @ queries[b, r, c]).max()
                assert found[b, r, c] == pytest.approx(best, abs=1e-9)


def test_the_most_similar_are_not_those_left_out() -> None:
    gallery = torch.eye(4)
    tokens = torch.tensor([[0.9, 0.3, 0.2, 0.1]])
    left_out = torch.tensor([[True, False, False, False]])
    assert most_similar(tokens, gallery, 2, left_out).tolist() == [[False, True, True, False]]
    # fewer are there than are asked for
    assert most_similar(tokens, gallery, 9, left_out).tolist() == [[False, True, True, True]]


def test_rad_takes_the_blocks_that_are_named() -> None:
    detector = make("vision_rad", layers=["block0", "0.5.normed"]).fit(images(2))
    described = detector.describe()
    assert described["backbone"]["layers"] == ["block0", "block1.normed", "block3.normed.class"]
    assert described["memory"] == {"images": 2, "blocks": 2}


def test_rad_refuses_what_it_cannot_do() -> None:
    with pytest.raises(
        UsageError, match="the backbone has to be a vision transformer with a class token"
    ):
        make("vision_rad", backbone="resnet18").fit(images(2))
    with pytest.raises(UsageError, match=r"memory_limit_gib=0\.001: \d+ images fit"):
        make("vision_rad", memory_limit_gib=0.001).fit(images(100))


# ---- all of them


@pytest.mark.parametrize("model", NEW)
def test_one_image_promises_nothing(model: str) -> None:
    one = images(1)
    for given in (one, one * 3):
        detector = make(model, **({"turns": 2} if model == "vision_subspace" else {})).fit(given)
        assert detector.calibration_.method == "within-image"
        assert any("no false-alarm rate is promised" in n for n in detector.calibration_.notes)
        assert detector.threshold_ > 0
        assert detector.decision_function(one)[0] < detector.threshold_


@pytest.mark.parametrize("model", NEW)
def test_saved_and_loaded(model: str, tmp_path: Path) -> None:
    good = images(4)
    detector = make(model).fit(good)
    detector.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    shown = [good[0], spoilt(good[1])]
    np.testing.assert_array_equal(again.decision_function(shown), detector.decision_function(shown))
    np.testing.assert_array_equal(
        again.predict_anomaly_map(shown), detector.predict_anomaly_map(shown)
    )
    assert again.describe() == detector.describe()
    assert model in list_models(tags="pixel-map")


@pytest.mark.parametrize("model", NEW)
def test_a_region_of_interest(model: str) -> None:
    good = images(4)
    left = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]
    detector = make(model, roi=left).fit(good)
    outside = good[0].copy()
    outside[30:50, 80:100] = (0, 255, 0)
    assert detector.predict([outside]).tolist() == [0]
    assert detector.predict([spoilt(good[0])]).tolist() == [1]
    assert (detector.get_anomaly_map(spoilt(good[0]))[:, 56:] == 0).all()
