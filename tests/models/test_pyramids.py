"""STFPM and reverse distillation: losses and maps against plain arithmetic, and as detectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pyimgano.backbones import create_backbone
from pyimgano.backbones.choice import LastOfStrides
from pyimgano.errors import DataError
from pyimgano.models import create_model, load_model
from pyimgano.models.detector import Detector
from pyimgano.models.pyramid import LevelMaps, untrained_copy
from pyimgano.models.reverse_distillation import cosine_distances, cosine_loss
from pyimgano.models.reverse_networks import Reverse
from pyimgano.models.stfpm import half_squared_distances, pyramid_loss
from pyimgano.models.training import Plan, drawn, images
from pyimgano.threads import limited_threads
from tests.conftest import picture

BOTH = ("vision_stfpm", "vision_reverse_distillation")
GOOD = [picture(i) for i in range(24)]


def make(name: str, **keywords: Any) -> Detector:
    given = {"resize": (64, 64), "device": "cpu", "train_batch_size": 8, **keywords}
    return create_model(name, **given)


def quick(name: str, **keywords: Any) -> Detector:
    """Random weights, nothing to compile, four steps."""
    given = {"pretrained": False, "engine": "torch", "steps": 4}
    return make(name, **{**given, "resize": (32, 32), **keywords})


# ---- formulas

RNG = np.random.default_rng(0)
T = [RNG.normal(size=(2, 3, 4, 4)), RNG.normal(size=(2, 5, 2, 2))]
S = [RNG.normal(size=(2, 3, 4, 4)), RNG.normal(size=(2, 5, 2, 2))]


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(one) for one in arrays]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def by_position(t: np.ndarray, s: np.ndarray, of: Callable[..., float]) -> np.ndarray:
    n, _, h, w = t.shape
    return np.array(
        [[[of(t[i, :, r, c], s[i, :, r, c]) for c in range(w)] for r in range(h)] for i in range(n)]
    )


def half_squared(t: np.ndarray, s: np.ndarray) -> float:
    return float(0.5 * ((unit(t) - unit(s)) ** 2).sum())


def one_less_cosine(t: np.ndarray, s: np.ndarray) -> float:
    return float(1 - unit(t) @ unit(s))


def test_stfpm_by_hand() -> None:
    t, s = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[0.0]], [[2.0]]]])
    # (0.6, 0.8) - (0, 1): 0.36 + 0.04, half of it
    assert half_squared_distances(t, s).item() == pytest.approx(0.2)
    assert pyramid_loss([t, t], [s, t]).item() == pytest.approx(0.2)


def test_stfpm_formulas() -> None:
    maps = [by_position(t, s, half_squared) for t, s in zip(T, S)]
    for t, s, wanted in zip(tensors(T), tensors(S), maps):
        np.testing.assert_allclose(half_squared_distances(t, s), wanted, rtol=1e-10)
    wanted = sum(one.mean() for one in maps)
    assert pyramid_loss(tensors(T), tensors(S)).item() == pytest.approx(wanted, rel=1e-10)
    cells = np.array([0, 3, 5])
    wanted = maps[0].reshape(2, -1)[:, cells].mean() + maps[1].mean()
    found = pyramid_loss(tensors(T), tensors(S), [torch.from_numpy(cells), None])
    assert found.item() == pytest.approx(wanted, rel=1e-10)


def test_reverse_distillation_by_hand() -> None:
    t, s = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[0.0]], [[2.0]]]])
    assert cosine_distances(t, s).item() == pytest.approx(0.2)  # 1 - 0.8
    assert cosine_loss([t, t], [s, t]).item() == pytest.approx(0.2)
    # two positions, of lengths 1 and 3: apart 0 and 1; together 1 - 1 / (sqrt(10) sqrt(2))
    t = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    s = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert cosine_loss([t], [s], flattened=False).item() == pytest.approx(0.5)
    assert cosine_loss([t], [s]).item() == pytest.approx(1 - 1 / 20**0.5)


def test_reverse_distillation_formulas() -> None:
    maps = [by_position(t, s, one_less_cosine) for t, s in zip(T, S)]
    for t, s, wanted in zip(tensors(T), tensors(S), maps):
        np.testing.assert_allclose(cosine_distances(t, s), wanted, rtol=1e-10, atol=1e-12)
    found = cosine_loss(tensors(T), tensors(S), flattened=False)
    assert found.item() == pytest.approx(sum(one.mean() for one in maps), rel=1e-10)
    whole = [[one_less_cosine(t[i].ravel(), s[i].ravel()) for i in range(2)] for t, s in zip(T, S)]
    found = cosine_loss(tensors(T), tensors(S))
    assert found.item() == pytest.approx(sum(np.mean(one) for one in whole), rel=1e-10)
    cells = np.array([1, 2])
    part = [[t.reshape(2, -1, t.shape[2] * t.shape[3])[:, :, cells] for t in one] for one in (T, S)]
    whole = [[one_less_cosine(t[i].ravel(), s[i].ravel()) for i in range(2)] for t, s in zip(*part)]
    found = cosine_loss(tensors(T), tensors(S), [torch.from_numpy(cells)] * 2)
    assert found.item() == pytest.approx(sum(np.mean(one) for one in whole), rel=1e-10)


@pytest.mark.parametrize(("combine", "sigma"), [("product", 0.0), ("sum", 2.0)])
def test_maps_of_levels(combine: Any, sigma: float) -> None:
    """Against torch's upsampling and scipy's Gaussian."""
    grids = [torch.rand(2, 4, 4), torch.rand(2, 2, 2)]
    build = LevelMaps(
        [(4, 4), (2, 2)], (16, 16), sigma=sigma, combine=combine, cells=[None, None], inside=None
    )
    up = [
        torch.nn.functional.interpolate(one[:, None], size=(16, 16), mode="bilinear")[:, 0].numpy()
        for one in grids
    ]
    wanted = up[0] * up[1] if combine == "product" else up[0] + up[1]
    if sigma:
        wanted = np.stack([gaussian_filter(one, sigma) for one in wanted])
    scores, maps = build(grids)
    np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, maps.flatten(1).max(dim=1).values)


def test_cells_that_do_not_count_change_no_map() -> None:
    cells = np.array([0, 1, 4, 5])  # the upper left quarter
    inside = np.zeros((16, 16), np.bool_)
    inside[:8, :8] = True
    build = LevelMaps(
        [(4, 4)], (16, 16), sigma=0.0, combine="sum", cells=[cells], inside=inside
    )  # fmt: skip
    grid = torch.full((1, 4, 4), 9.0)
    grid[:, :2, :2] = 2.0
    scores, maps = build([grid])
    # not mixed with others, and not lower at the border of the region
    np.testing.assert_allclose(maps[0, :8, :8], 2.0, rtol=1e-5)
    assert scores.item() == pytest.approx(2.0)


# ---- networks


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "resnet50"])
def test_levels_student_and_decoder_of_every_kind(name: str) -> None:
    network = create_backbone(name, pretrained=False, engine="torch").network
    layers = LastOfStrides((4, 8, 16), least=2)(network)
    image = torch.zeros(1, 3, 72, 40)  # grids with odd sides
    features = network.tapped(image, layers)
    assert [one.shape[-2] for one in features] == [18, 9, 5]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    student = drawn(lambda: untrained_copy(network, layers), 1)
    assert [one.shape for one in student.tapped(image, layers)] == [o.shape for o in features]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    names = dict(network.named_parameters())
    for key, value in student.named_parameters():
        if value.dim() == 4:
            assert not torch.equal(value, names[key]), key
    assert len(list(student.parameters())) < len(names)  # what comes after is let go
    reverse = Reverse(network, [one.shape[1] for one in features])
    assert [one.shape for one in reverse(features)] == [one.shape for one in features]


# ---- detectors


@pytest.fixture(scope="module", params=BOTH)
def fitted(request: pytest.FixtureRequest) -> Detector:
    return make(request.param, steps=45).fit(GOOD)


def test_training_lowers_the_loss_and_finds_a_planted_defect(fitted: Detector) -> None:
    losses = fitted.history_.losses
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    good = fitted.decision_function([picture(100 + i) for i in range(6)])
    spots = [picture(200 + i, spot=True) for i in range(6)]
    bad = fitted.decision_function(spots)
    assert bad.min() > good.max()
    anomaly_map = fitted.predict_anomaly_map(spots).mean(axis=0)
    assert anomaly_map.min() >= 0
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert 28 <= row < 48 and 28 <= column < 48  # the spot is at 32 to 43


def test_the_threshold_is_set_on_images_that_were_set_aside(fitted: Detector) -> None:
    calibration = fitted.calibration_
    assert calibration.method == "held-out-images" and calibration.n_scores == 8
    assert calibration.promised_false_alarm_rate == pytest.approx(1 / 9)
    assert "8 of the 24 training images were set aside" in calibration.notes[0]
    parts = images.divide(24, calibrate=True)
    kept = [GOOD[i] for i in parts.calibrate]
    np.testing.assert_array_equal(fitted.decision_scores_, fitted.decision_function(kept))


def test_company_and_threads_change_no_score(fitted: Detector, tmp_path: Path) -> None:
    some = [picture(300 + i, spot=i == 1) for i in range(3)]
    together = fitted.decision_function(some)
    alone = [fitted.decision_function([one])[0] for one in some]
    np.testing.assert_array_equal(together, alone)
    folder = fitted.save(tmp_path / "model")
    with limited_threads(1):
        again = load_model(folder)
    np.testing.assert_array_equal(again.decision_function(some), together)
    np.testing.assert_array_equal(
        again.predict_anomaly_map(some), fitted.predict_anomaly_map(some)
    )  # fmt: skip
    assert again.describe() == fitted.describe()
    assert again.describe()["training"]["steps"] == len(fitted.history_.losses)


@pytest.mark.parametrize("name", BOTH)
def test_an_interrupted_fit_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyimgano.models.training.Plan", partial(Plan, check_every=2))
    place = str(tmp_path / "training")
    whole = quick(name).fit(GOOD)

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training steps", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(name, checkpoint_dir=place).fit(GOOD, progress=progress)
    for other, what in (({"learning_rate": 0.01}, "learning_rate was"), ({}, "images was")):
        with pytest.raises(DataError, match=f"of another training.*{what}"):
            changed = GOOD if other else [*GOOD[1:], picture(999)]
            quick(name, checkpoint_dir=place, **other).fit(changed)
    again = quick(name, checkpoint_dir=place).fit(GOOD)
    assert again.history_ == whole.history_
    np.testing.assert_array_equal(again.decision_scores_, whole.decision_scores_)
    assert not Path(place).exists()  # of no more use


@pytest.mark.parametrize("name", BOTH)
def test_outside_the_region_nothing_counts(name: str) -> None:
    roi = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]
    detector = quick(name, roi=roi).fit(GOOD[:6])
    good, other = picture(50, 32), picture(50, 32)
    other[:, 17:] = 255
    np.testing.assert_array_equal(*(detector.decision_function([one]) for one in (good, other)))
    maps = detector.predict_anomaly_map([good, other])
    np.testing.assert_array_equal(maps[0], maps[1])
    assert maps[:, :, :16].max() == pytest.approx(detector.decision_function([good])[0], rel=1e-6)
    marked = good.copy()
    marked[10:20, 4:12] = 255
    assert detector.decision_function([marked])[0] != detector.decision_function([good])[0]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    "some", [GOOD[:1], GOOD[:1] * 4, [np.full((32, 32, 3), 128, np.uint8)] * 3],
    ids=["one", "identical", "constant"],
)  # fmt: skip
def test_special_training_sets(name: str, some: list[np.ndarray]) -> None:
    detector = quick(name).fit(some)
    assert np.isfinite(detector.decision_function([*some, picture(9, spot=True)])).all()
    assert detector.calibration_.promised_false_alarm_rate is None  # they are one image


def test_calibration_images_leave_all_others_to_learn_from() -> None:
    name = "vision_stfpm"
    detector = quick(name).fit(GOOD[:12], calibration_images=GOOD[12:])
    assert len(detector.decision_scores_) == 12
    inside = quick(name, calibration="in-sample").fit(GOOD[:12])
    assert inside.history_ == detector.history_  # learned from the same images
    assert inside.calibration_.promised_false_alarm_rate is None


def test_teacher_features_are_the_same_kept_and_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with limited_threads(1):  # torch's features may differ between numbers of threads
        kept = quick("vision_stfpm").fit(GOOD[:12])
        monkeypatch.setattr("pyimgano.models.pyramid._BYTES", 0)
        assert quick("vision_stfpm").fit(GOOD[:12]).history_ == kept.history_
