"""SPADE against a plain version of the paper's formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pyimgano.backbones import create_backbone
from pyimgano.backbones.choice import LastOfStrides
from pyimgano.errors import SavedModelError, UsageError
from pyimgano.models import create_model, load_model, spade
from pyimgano.models.anomaly_map import smooth_maps
from pyimgano.models.spade import VisionSpade
from tests.conftest import picture, spot_mask

SIZE = (64, 96)
TRAIN = [picture(i, 96)[:64] for i in range(7)]
TEST = [picture(50 + i, 96, spot=i % 2 == 1)[:64] for i in range(4)]
STAGES = ("layer1", "layer2", "layer3", "layer4")


def make(**keywords: object) -> VisionSpade:
    settings = {"backbone": "resnet18", "pretrained": False, "engine": "torch", "n_neighbors": 3}
    detector = create_model("vision_spade", resize=SIZE, device="cpu", **{**settings, **keywords})
    assert isinstance(detector, VisionSpade)
    return detector


@pytest.fixture(scope="module")
def fitted() -> VisionSpade:
    """On the engine whose features of an image do not depend on its company."""
    return make(engine="openvino").fit(TRAIN)


def plain_features(images: list[np.ndarray], level: int) -> tuple[np.ndarray, np.ndarray]:
    """F(y, p) of each image, (N, hw, D), and f_y, (N, C), in float64."""
    backbone = create_backbone(
        "resnet18", pretrained=False, engine="torch", device="cpu", layers=STAGES
    )
    maps = [m.numpy().astype(np.float64) for m in backbone.features(images)]
    h, w = maps[level - 1].shape[2:]
    joined = []
    for one in maps[:3]:
        n, c, rows, columns = one.shape
        if rows > h:
            step = rows // h
            joined.append(one.reshape(n, c, h, step, w, step).mean(axis=(3, 5)))
            continue
        up = np.empty((n, c, h, w))
        for i in range(h):
            for j in range(w):
                y = min(max((i + 0.5) * rows / h - 0.5, 0), rows - 1)
                x = min(max((j + 0.5) * columns / w - 0.5, 0), columns - 1)
                y0, x0 = int(y), int(x)
                y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
                top = one[:, :, y0, x0] * (1 - x + x0) + one[:, :, y0, x1] * (x - x0)
                low = one[:, :, y1, x0] * (1 - x + x0) + one[:, :, y1, x1] * (x - x0)
                up[:, :, i, j] = top * (1 - y + y0) + low * (y - y0)
        joined.append(up)
    pyramid = np.concatenate(joined, axis=1).reshape(len(images), -1, h * w).transpose(0, 2, 1)
    return pyramid, maps[3].mean(axis=(2, 3))


@pytest.mark.parametrize("level", [1, 2])
def test_is_the_papers_score_and_map(level: int) -> None:
    detector = make(matching_level=level).fit(TRAIN)
    train_positions, train_images = plain_features(TRAIN, level)
    positions, images = plain_features(TEST, level)
    scores = detector.decision_function(TEST)
    maps = detector.predict_anomaly_map(TEST)
    for i in range(len(TEST)):
        away = np.linalg.norm(train_images - images[i], axis=1)
        nearest = np.argsort(away)[:3]
        assert scores[i] == pytest.approx(away[nearest].mean(), rel=1e-5)
        gallery = train_positions[nearest].reshape(-1, positions.shape[2])
        cells = cdist(positions[i], gallery).min(axis=1)
        grid = torch.from_numpy(cells).float().view(1, *detector.grid_)
        expected = smooth_maps(grid, SIZE)[0].numpy()
        np.testing.assert_allclose(maps[i], expected, rtol=1e-4)


def test_a_defect_is_found_where_it_is(fitted: VisionSpade) -> None:
    scores = fitted.decision_function(TEST)
    assert min(scores[1], scores[3]) > max(fitted.threshold_, scores[0], scores[2])
    found = fitted.get_anomaly_map(TEST[1])
    mask = spot_mask(96)[:64] > 0
    assert found[mask].mean() > 2 * found[~mask].mean()
    assert mask[np.unravel_index(found.argmax(), found.shape)]


def test_a_training_image_is_scored_as_if_it_had_not_been_there(fitted: VisionSpade) -> None:
    assert fitted.calibration_.method == "leave-one-image-out"
    assert fitted.calibration_.promised_false_alarm_rate is not None
    for i in (0, 4):
        others = make(engine="openvino").fit(TRAIN[:i] + TRAIN[i + 1 :])
        assert others.decision_function(TRAIN[i : i + 1])[0] == fitted.decision_scores_[i]


def test_scores_do_not_depend_on_batches_or_blocks(
    fitted: VisionSpade, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, maps = fitted.decision_function(TEST), fitted.predict_anomaly_map(TEST)
    monkeypatch.setattr(spade, "_IMAGES", 1)
    for i, image in enumerate(TEST):
        (alone,) = fitted.score_images([image])
        assert alone.score == scores[i]
        np.testing.assert_array_equal(alone.anomaly_map, maps[i])


def test_neighbours_are_those_of_the_gallery(fitted: VisionSpade) -> None:
    small = make(max_gallery=4, n_neighbors=50).fit(TRAIN)
    assert small.describe()["gallery"]["size"] == 4
    assert "calibrated on 4 of the 7 training images, evenly spread" in small.calibration_.notes
    kept = [i for i in range(7) if i * 4 % 7 < 4]
    same = make(n_neighbors=50).fit([TRAIN[i] for i in kept])
    np.testing.assert_array_equal(small.decision_function(TEST), same.decision_function(TEST))
    np.testing.assert_array_equal(small.decision_scores_, same.decision_scores_)
    whole = fitted.describe()["gallery"]
    # 64 + 128 + 256 features at 8 x 12 positions, and 512 pooled ones
    assert whole["bytes"] == 7 * (4 * 8 * 12 * 448 + 8 * 512)


def test_the_gallery_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spade, "_BYTES", 3 * 4 * 8 * 12 * 448 + 1)
    assert make().fit(TRAIN).describe()["gallery"]["size"] == 3
    monkeypatch.setattr(spade, "_BYTES", 1)
    assert make().fit(TRAIN).describe()["gallery"]["size"] == 1


@pytest.mark.parametrize("images", [TRAIN[:1], TRAIN[:1] * 3, [np.full((64, 96, 3), 9, np.uint8)]])
def test_without_other_images_nothing_is_promised(images: list[np.ndarray]) -> None:
    detector = make().fit(images)
    assert detector.calibration_.method == "within-image"
    assert detector.calibration_.promised_false_alarm_rate is None
    notes = detector.calibration_.notes
    assert any("the threshold compares parts of an image" in note for note in notes)
    assert 1 <= len(detector.decision_scores_) <= len(images)
    assert (detector.decision_scores_ > 0).all()
    assert detector.fit_predict(images).tolist() == [0] * len(images)
    assert np.isfinite(detector.predict_anomaly_map(TEST)).all()


def test_layers_are_the_levels() -> None:
    detector = make(layers=("layer2", "layer4")).fit(TRAIN)
    assert detector.grid_ == (2, 3)
    assert detector.describe()["backbone"]["layers"] == ["layer2", "layer4"]
    assert detector.describe()["gallery"]["dimension"] == 128 + 512
    np.testing.assert_allclose(detector.decision_scores_, make().fit(TRAIN).decision_scores_)
    with pytest.raises(UsageError, match=r"matching_level must lie in 1\.\.1, .*got 2"):
        make(layers=("layer2",)).prepare()
    with pytest.raises(UsageError, match="layers is empty"):
        make(layers=()).prepare()


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("resnet18", ("layer1", "layer2", "layer3")),
        ("resnet50", ("layer1", "layer2", "layer3")),
        ("efficientnet_lite0", ("blocks.2", "blocks.4", "blocks.10")),
        ("efficientnet_lite2", ("blocks.3", "blocks.6", "blocks.14")),
    ],
)
def test_the_pyramid_of_a_backbone(name: str, levels: tuple[str, ...]) -> None:
    backbone = create_backbone(name, pretrained=False, engine="torch", device="cpu")
    network = backbone.network
    assert LastOfStrides((4, 8, 16))(network) == levels
    strides = {layer: stride for layer, (_, stride) in network.layer_kinds().items()}
    assert [strides[level] for level in levels] == [4, 8, 16]
    assert list(strides.values()) == sorted(strides.values()) and max(strides.values()) == 32
    assert LastOfStrides((3,))(network) == network.default_layers
    assert LastOfStrides((4, 3), least=2)(network) == network.default_layers


def test_a_saved_gallery_is_checked(
    fitted: VisionSpade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fitted.save(tmp_path / "model")
    loaded = load_model(folder)
    np.testing.assert_array_equal(loaded.decision_function(TEST), fitted.decision_function(TEST))
    np.testing.assert_array_equal(
        loaded.predict_anomaly_map(TEST), fitted.predict_anomaly_map(TEST)
    )
    state = fitted.learned_.state()
    arrays = {**state.arrays, "pooled": state.arrays["pooled"][:3]}
    monkeypatch.setattr(fitted.learned_, "state", lambda: spade.State(arrays, state.facts))
    other = fitted.save(tmp_path / "other")
    with pytest.raises(SavedModelError, match="'pooled' is float64 of shape"):
        load_model(other)
