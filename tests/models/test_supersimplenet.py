"""SuperSimpleNet against its formulas, worked out by hand, and on small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyimgano.errors import SavedModelError, UsageError
from pyimgano.models import create_model, load_model
from pyimgano.models.detector import Detector
from pyimgano.models.perlin import perlin_masks, perlin_noise
from pyimgano.models.saved_state import SavedState
from pyimgano.models.supersimplenet import SuperSimpleNet
from pyimgano.models.supersimplenet_networks import Heads, focal, loss_of, truncated_l1, upscaled
from tests.conftest import picture

GOOD = [picture(i) for i in range(14)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cheap(**keywords: object) -> Detector:
    settings = {
        "resize": (64, 64),
        "device": "cpu",
        "engine": "torch",  # nothing to compile for every fit
        "steps": 20,
        "hidden_dim": 64,
        "noise_std": 0.8,
        **keywords,
    }
    return create_model("vision_supersimplenet", **settings)


@pytest.fixture(scope="module")
def fitted() -> Detector:
    return cheap(engine="auto").fit(GOOD)


class TestPerlin:
    def test_zero_on_the_lattice_bounded_and_smooth(self) -> None:
        noise = perlin_noise((64, 96), (4, 8), generator())
        assert noise.shape == (64, 96)
        assert noise[::16, ::12].abs().max() < 1e-6
        assert 0.3 < noise.abs().max() <= 1.0
        assert noise.diff(dim=0).abs().max() < 0.3 and noise.diff(dim=1).abs().max() < 0.3

    def test_one_cell_by_hand(self) -> None:
        noise = perlin_noise((2, 2), (1, 1), generator(3))
        angles = torch.rand((2, 2), generator=generator(3)).numpy() * 2 * np.pi
        # the middle of the cell: each corner weighs 1/4
        offsets = {
            (0, 0): (0.5, 0.5),
            (0, 1): (0.5, -0.5),
            (1, 0): (-0.5, 0.5),
            (1, 1): (-0.5,) * 2,
        }
        middle = np.mean(
            [np.sin(angles[c]) * o[0] + np.cos(angles[c]) * o[1] for c, o in offsets.items()]
        )
        assert float(noise[1, 1]) == pytest.approx(np.sqrt(2) * middle, abs=1e-6)

    def test_masks(self) -> None:
        masks = perlin_masks(200, (32, 32), generator(), threshold=0.2)
        assert masks.shape == (200, 1, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
        some = masks.flatten(1).amax(dim=1).mean()
        assert 0.35 < some < 0.65  # an empty mask half of the time
        less = perlin_masks(200, (32, 32), generator(), threshold=0.6)
        assert 0 < less.mean() < 0.5 * masks.mean()
        again = perlin_masks(200, (32, 32), generator(), threshold=0.2)
        assert torch.equal(masks, again)
        assert perlin_masks(4, (1, 1), generator(), threshold=0.2).shape == (4, 1, 1, 1)


class TestLosses:
    def test_truncated_l1(self) -> None:
        logits = torch.tensor([[-1.0, -0.25, 0.75, 0.1]])
        mask = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        # normal: 0 and 0.25; anomalous: 0 and 0.4
        assert float(truncated_l1(logits, mask)) == pytest.approx(0.125 + 0.2)
        assert float(truncated_l1(logits, torch.zeros(1, 4))) == pytest.approx(
            (0 + 0.25 + 1.25 + 0.6) / 4
        )

    def test_focal(self) -> None:
        logits = torch.tensor([0.0, 2.0, -1.0])
        target = torch.tensor([1.0, 1.0, 1.0])
        p = 1 / (1 + np.exp(-logits.double().numpy()))
        wanted = np.mean(-((1 - p) ** 4) * np.log(p))
        assert float(focal(logits, target)) == pytest.approx(wanted, rel=1e-5)
        assert float(focal(-logits, 1 - target)) == pytest.approx(wanted, rel=1e-5)
        assert float(focal(torch.tensor([-200.0]), torch.tensor([1.0]))) == pytest.approx(200.0)

    def test_whole(self) -> None:
        segmented = torch.tensor([[[[-0.2, 0.3]]], [[[0.1, -0.7]]]])
        mask = torch.tensor([[[[0.0, 1.0]]], [[[0.0, 0.0]]]])
        score = torch.tensor([0.4, -0.6])
        apart = truncated_l1(segmented, mask) + focal(segmented, mask)
        apart = apart + focal(score, torch.tensor([1.0, 0.0]))
        assert float(loss_of(segmented, score, mask)) == pytest.approx(float(apart))
        # the second column alone
        part = loss_of(segmented, score, mask, torch.tensor([[0.0, 1.0]]))
        apart = truncated_l1(segmented[..., 1:], mask[..., 1:])
        apart = apart + focal(segmented[..., 1:], mask[..., 1:])
        apart = apart + focal(score, torch.tensor([1.0, 0.0]))
        assert float(part) == pytest.approx(float(apart))


class TestNetwork:
    def test_upscaling(self) -> None:
        fine = torch.arange(4.0).view(1, 1, 2, 2)
        coarse = torch.full((1, 1, 1, 1), 5.0)
        found = upscaled([fine, coarse])
        assert found.shape == (1, 2, 4, 4) and torch.allclose(found[:, 1], torch.tensor(5.0))
        # bilinear to 4 x 4, half-pixel centres: each axis 0, 1/4, 3/4, 1; then 3x3 means
        axis = np.array([0, 0.25, 0.75, 1])
        grid = 2 * axis[:, None] + axis[None, :]
        assert float(found[0, 0, 0, 0]) == pytest.approx(grid[:2, :2].mean())
        assert float(found[0, 0, 1, 2]) == pytest.approx(grid[:3, 1:].mean())

    def test_no_gradient_from_the_classification_into_the_segmentation(self) -> None:
        heads = Heads(3, hidden=4, pooled=2)
        _, score = heads(heads.adapted(torch.randn(2, 3, 5, 5, generator=generator())))
        score.sum().backward()
        assert all(p.grad is None for p in heads.segmentation.parameters())
        assert heads.adaptor.weight.grad is not None

    def test_pooling_over_what_counts(self) -> None:
        counted = torch.zeros(4, 4)
        counted[:2] = 1.0
        x = torch.randn(2, 3, 4, 4, generator=generator())
        largest, mean = Heads(3, hidden=4, pooled=2, counted=counted)._pooled(x)
        assert torch.equal(largest, x[:, :, :2].amax(dim=(2, 3)))
        assert torch.allclose(mean, x[:, :, :2].mean(dim=(2, 3)))


class TestDetector:
    def test_learns_and_finds_a_planted_defect(self, fitted: Detector) -> None:
        losses = fitted.history_.losses
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
        good = [picture(100 + i) for i in range(6)]
        bad = [picture(200 + i, spot=True) for i in range(6)]
        assert fitted.decision_function(bad).min() > fitted.decision_function(good).max()
        found = fitted.get_anomaly_map(bad[0])
        inside = found[30:46, 30:46].mean()
        assert (found >= 0).all() and inside > 2 * found[:16].mean()
        assert fitted.calibration_.method == "held-out-images"

    def test_score_of_the_classification(self) -> None:
        by_head = cheap(steps=2, score="classification").fit(GOOD)
        by_map = cheap(steps=2).fit(GOOD)
        largest = by_map.predict_anomaly_map(GOOD[:2]).max(axis=(1, 2))
        np.testing.assert_array_equal(by_map.decision_function(GOOD[:2]), largest)
        np.testing.assert_array_equal(
            by_head.predict_anomaly_map(GOOD[:2]), by_map.predict_anomaly_map(GOOD[:2])
        )
        assert (by_head.decision_function(GOOD[:2]) != largest).all()

    def test_same_bits_again_and_after_loading(self, fitted: Detector, tmp_path: Path) -> None:
        test = [picture(100), picture(200, spot=True)]
        scores = fitted.decision_function(test)
        again = cheap(engine="auto").fit(GOOD)
        np.testing.assert_array_equal(again.decision_function(test), scores)
        assert again.history_.losses == fitted.history_.losses
        loaded = load_model(fitted.save(tmp_path / "model"))
        np.testing.assert_array_equal(loaded.decision_function(test), scores)
        np.testing.assert_array_equal(
            loaded.predict_anomaly_map(test), fitted.predict_anomaly_map(test)
        )
        np.testing.assert_array_equal(loaded.decision_function(test[1:]), scores[1:])

    def test_features_that_do_not_fit_are_computed_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = cheap(steps=2).fit(GOOD)
        monkeypatch.setattr("pyimgano.models.supersimplenet._KEPT_BYTES", 0)
        anew = cheap(steps=2).fit(GOOD)
        # kept ones are float16
        assert anew.history_.losses == pytest.approx(kept.history_.losses, rel=2e-2)
        assert anew.history_.losses != kept.history_.losses

    @pytest.mark.parametrize("images", [GOOD[:1], [GOOD[0]] * 4, [np.zeros((64, 64, 3), np.uint8)]])
    def test_hardly_anything_to_learn_from(self, images: list[np.ndarray]) -> None:
        detector = cheap(steps=2).fit(images)
        assert np.isfinite(detector.decision_function([GOOD[5]])).all()
        assert np.isfinite(detector.get_anomaly_map(GOOD[5])).all()

    def test_keywords(self) -> None:
        with pytest.raises(UsageError, match=r"perlin_threshold: .* less than 1"):
            cheap(perlin_threshold=1.0)
        with pytest.raises(UsageError, match=r"noise_std: .* greater than 0"):
            cheap(noise_std=0.0)


def test_a_saved_width_that_its_arrays_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = [[(0.0, 0.0), (0.6, 0.0), (0.6, 0.6), (0.0, 0.6)]]
    detector = cheap(steps=1, roi=polygons).fit(GOOD[:3])
    method, state = SuperSimpleNet(detector.params_), detector.learned_.state()
    method.restore(SavedState(state.arrays, state.facts))
    method.params.hidden_dim = 8192
    devices: list[str] = []
    blank = method._heads

    def spy() -> torch.nn.Module:
        made = blank()
        devices.extend(one.device.type for one in made.parameters())
        return made

    monkeypatch.setattr(method, "_heads", spy)
    with pytest.raises(SavedModelError, match=r"segmentation.* wanted float32 of shape \(8192"):
        method.restore(SavedState(state.arrays, state.facts))
    assert set(devices) == {"meta"}
    with pytest.raises(UsageError, match="hidden_dim"):
        cheap(hidden_dim=8193).validate_params()
