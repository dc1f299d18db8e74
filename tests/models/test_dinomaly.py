"""Dinomaly: network, loss, optimizer and map against plain arithmetic, and as a detector."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf

from pyimgano.backbones import create_backbone
from pyimgano.errors import DataError, UsageError
from pyimgano.models import create_model, load_model
from pyimgano.models.detector import Detector
from pyimgano.models.dinomaly import dinomaly_loss, easy_share, hard_places, rise_and_fall
from pyimgano.models.dinomaly_networks import (
    DinomalyNetwork,
    EncoderGroups,
    dropped,
    grouped,
    linear_attention,
)
from pyimgano.models.pyramid import LevelMaps
from pyimgano.models.training import Plan, drawn
from pyimgano.models.training import images as training_images
from pyimgano.models.training.stable_adamw import StableAdamW
from pyimgano.threads import limited_threads
from tests.models.test_transformer_methods import SIZE, images, spoilt, tiny  # noqa: F401

LEFT = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]


def make(**keywords: Any) -> Detector:
    given = {
        "backbone": "dinov2_tiny_reg",
        "pretrained": False,
        "device": "cpu",
        "resize": SIZE,
        "steps": 4,
        "train_batch_size": 8,
        **keywords,
    }
    return create_model("vision_dinomaly", **given)


# ---- the network


def normed(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-8)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One head of one image, (T, c) each: a mean of v with weights, token by token."""
    q, k = (np.where(x > 0, x + 1, np.exp(x)) for x in (q, k))
    found = np.zeros_like(v)
    for i in range(len(q)):
        weights = np.array([q[i] @ k[j] for j in range(len(k))])
        found[i] = sum(weights[j] * v[j] for j in range(len(v))) / weights.sum()
    return found


def test_linear_attention_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, 7, 5)) for _ in range(3))
    found = linear_attention(*(torch.from_numpy(x) for x in (q, k, v))).numpy()
    for n in range(2):
        for head in range(3):
            wanted = attention(q[n, head], k[n, head], v[n, head])
            np.testing.assert_allclose(found[n, head], wanted, rtol=1e-12)
    far = torch.full((1, 1, 2, 2), -1e4)
    assert torch.isfinite(linear_attention(far, far, far)).all()  # where all weights round to 0


def test_the_network_is_its_formulas() -> None:
    """Bottleneck, blocks and groups, written out in numpy."""
    network = drawn(
        lambda: DinomalyNetwork(128, (2, 3), blocks=3, groups=2, dropout=0.2), 5
    ).double()
    with torch.no_grad():
        for value in network.parameters():  # so that nothing is nearly 0
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    w = {name: value.detach().numpy() for name, value in network.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(name: str, x: np.ndarray) -> np.ndarray:
        return normed(x) * w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens = np.random.default_rng(2).normal(size=(1 + 4 + 6, 128))
    x = linear("bottleneck.fc2", gelu(linear("bottleneck.fc1", tokens)))
    after = []
    for i in range(3):
        b = f"decoder.{i}"
        q, k, v = np.split(linear(f"{b}.attn.qkv", layer_norm(f"{b}.norm1", x)), 3, axis=1)
        heads = [attention(*(y[:, h : h + 64] for y in (q, k, v))) for h in (0, 64)]
        x = x + linear(f"{b}.attn.proj", np.concatenate(heads, axis=1))
        x = x + linear(f"{b}.mlp.fc2", gelu(linear(f"{b}.mlp.fc1", layer_norm(f"{b}.norm2", x))))
        after.append(x[5:].T.reshape(128, 2, 3))
    first, second = network(torch.from_numpy(tokens)[None])
    # blocks 0 and 1 of the encoder are given back by 2 and 1 of the decoder, block 2 by 0
    np.testing.assert_allclose(first[0].detach(), (after[2] + after[1]) / 2, rtol=1e-9)
    np.testing.assert_allclose(second[0].detach(), after[0], rtol=1e-9)


def test_groups() -> None:
    assert grouped(8, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grouped(5, 2) == [[0, 1, 2], [3, 4]]
    assert grouped(3, 3) == [[0], [1], [2]]


def test_what_the_network_sees_of_the_encoder() -> None:
    rng = np.random.default_rng(3)
    patches = rng.normal(size=(3, 2, 4, 2, 3))  # of 3 blocks, 2 images
    token, registers = rng.normal(size=(3, 2, 4, 1, 1)), rng.normal(size=(3, 2, 4, 1, 4))
    features = [torch.from_numpy(one) for part in (patches, token, registers) for one in part]
    tokens, first, second = EncoderGroups(3, 2)(features)
    assert tokens.shape == (2, 1 + 4 + 6, 4)
    np.testing.assert_allclose(tokens[:, 0], token.mean(0)[:, :, 0, 0])
    np.testing.assert_allclose(tokens[1, 3], registers.mean(0)[1, :, 0, 2])
    np.testing.assert_allclose(tokens[1, 5 + 4], patches.mean(0)[1, :, 1, 1])
    np.testing.assert_allclose(first, patches[:2].mean(0))
    np.testing.assert_allclose(second, patches[2])


def test_dropout_keeps_the_mean_and_needs_a_generator() -> None:
    x = torch.ones(200, 200)
    found = dropped(x, 0.2, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 1.25}
    assert (found == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert dropped(x, 0.2, None) is x


# ---- the loss


def cosine_away(t: np.ndarray, s: np.ndarray) -> float:
    return float(1 - (t * s).sum() / np.sqrt((t**2).sum() * (s**2).sum()))


@pytest.mark.parametrize("cells", [None, [1, 2, 5]])
def test_the_loss_is_its_formula(cells: list[int] | None) -> None:
    rng = np.random.default_rng(4)
    t, s = (rng.normal(size=(2, 2, 4, 2, 3)) for _ in range(2))  # 2 groups of 2 images
    kept = range(6) if cells is None else cells
    wanted = np.mean(
        [
            cosine_away(
                t[g, n].reshape(4, 6)[:, kept].ravel(), s[g, n].reshape(4, 6)[:, kept].ravel()
            )
            for g in range(2)
            for n in range(2)
        ]
    )
    groups = [[torch.from_numpy(one) for one in x] for x in (t, s)]
    counted = None if cells is None else torch.tensor(cells)
    for easy in (0.0, 0.5, 0.9):  # which changes gradients alone
        assert dinomaly_loss(*groups, easy, counted).item() == pytest.approx(wanted)


@pytest.mark.parametrize("cells", [None, [0, 1, 2, 5]])
def test_easy_places_pass_on_a_tenth_of_their_gradient(cells: list[int] | None) -> None:
    rng = np.random.default_rng(5)
    t = torch.from_numpy(rng.normal(size=(2, 4, 2, 3)))
    s = torch.from_numpy(rng.normal(size=(2, 4, 2, 3))).requires_grad_(True)
    counted = None if cells is None else torch.tensor(cells)
    (plain,) = torch.autograd.grad(dinomaly_loss([t], [s], 0.0, counted), s)
    (found,) = torch.autograd.grad(dinomaly_loss([t], [s], 0.5, counted), s)
    pairs = [(n, r, c) for n in range(2) for r in range(2) for c in range(3)]
    pairs = [p for p in pairs if cells is None or p[1] * 3 + p[2] in cells]
    away = {p: cosine_away(t[p[0], :, p[1], p[2]].numpy(), _at(s, p)) for p in pairs}
    easy = sorted(pairs, key=lambda p: away[p])[: len(pairs) // 2]
    for n, r, c in pairs:
        factor = 0.1 if (n, r, c) in easy else 1.0
        np.testing.assert_allclose(found[n, :, r, c], factor * plain[n, :, r, c], rtol=1e-9)


def _at(s: torch.Tensor, place: tuple[int, int, int]) -> np.ndarray:
    n, r, c = place
    return s.detach()[n, :, r, c].numpy()


def test_where_all_places_are_equal_none_is_easy() -> None:
    same = torch.ones(1, 3, 2, 2).requires_grad_(True)
    (found,) = torch.autograd.grad(hard_places(torch.ones(1, 3, 2, 2), same, 0.9).sum(), same)
    assert (found == 1).all()


def test_schedules() -> None:
    assert [easy_share(step, 10_000) for step in (0, 500, 1000, 9999)] == [0, 0.45, 0.9, 0.9]
    assert easy_share(10, 100) == 0.9 and easy_share(0, 1) == 0
    rate = rise_and_fall(10_000)
    assert rate(0) == pytest.approx(0.01) and rate(99) == 1.0 and rate(100) == 1.0
    assert rate(5050) == pytest.approx(0.55) and rate(9999) == pytest.approx(0.1, abs=1e-4)
    assert [rise_and_fall(1)(0), rise_and_fall(50)(0)] == [1.0, 1.0]


# ---- the optimizer


def test_stable_adamw_is_its_formula() -> None:
    rng = np.random.default_rng(6)
    p = rng.normal(size=(3, 2))
    gradients = [rng.normal(size=(3, 2)) * scale for scale in (1.0, 0.1, 30.0, 1e-3, 0.0)]
    learned = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimizer = StableAdamW([learned], 0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    m = v = largest = np.zeros((3, 2))
    shortened = []
    for t, g in enumerate(gradients, 1):
        learned.grad = torch.from_numpy(g)
        optimizer.step()
        # the moments as Adam has them, divided by what they lack at first
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.99**t)
        largest = np.maximum(largest, v_hat)
        surprise = np.sqrt(np.mean(g**2 / np.maximum(v_hat, 1e-12)))
        shortened.append(surprise > 1)
        rate = 0.05 / max(1.0, surprise)
        p = p - rate * 0.1 * p - rate * m_hat / (np.sqrt(largest) + 1e-6)
        np.testing.assert_allclose(learned.detach().numpy(), p, rtol=1e-10)
    assert any(shortened) and not all(shortened)


# ---- the detector


def test_the_map_and_score_are_their_formulas() -> None:
    detector = make(top_share=0.05).fit(images(12))
    network = detector.learned_.network
    layers = ["block1", "block2", "block3"]  # 2 to 9 of 12, of 4 blocks, and those alone differ
    layers += [f"{one}{part}" for part in (".class", ".registers") for one in layers[:3]]
    backbone = create_backbone("dinov2_tiny_reg", layers=layers, pretrained=False, device="cpu")
    assert list(detector.describe()["backbone"]["layers"]) == layers
    picture = spoilt(images(1, seed=9)[0])
    features = [one.double() for one in backbone.features([picture])]
    patches = features[:3]
    tokens = torch.cat(
        [sum(features[i : i + 3]).flatten(2) / 3 for i in (3, 6, 0)], dim=2
    ).transpose(1, 2)
    found = network.double()(tokens)
    network.float()
    wanted = [(patches[0] + patches[1]) / 2, patches[2]]
    distances = np.zeros((6, 8))
    for t, s in zip(wanted, found, strict=True):
        for r in range(6):
            for c in range(8):
                t_at, s_at = (x[0, :, r, c].detach().numpy() for x in (t, s))
                distances[r, c] += cosine_away(t_at, s_at) / 2
    maps = LevelMaps(
        [(6, 8)], SIZE, sigma=4.0, combine="sum", cells=[None], inside=None
    )  # fmt: skip
    _, smooth = maps([torch.from_numpy(distances).float()[None]])
    np.testing.assert_allclose(detector.get_anomaly_map(picture), smooth[0], rtol=1e-3, atol=1e-5)
    top = np.sort(smooth.numpy().ravel())[-round(0.05 * 84 * 112) :].mean()
    assert detector.decision_function([picture])[0] == pytest.approx(top, rel=1e-3)


@pytest.fixture(scope="module")
def fitted(request: pytest.FixtureRequest) -> Detector:
    from pyimgano.backbones import backbone, dinov2

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dinov2.SIZES, "tiny", dinov2.Size(32, 4, 2))
        patch.setattr(backbone, "_RECIPES", {**backbone._RECIPES, **backbone._transformers()})
        return make(steps=60).fit(images(24))


def test_training_lowers_the_loss_and_finds_a_planted_defect(fitted: Detector) -> None:
    losses = fitted.history_.losses
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    good = images(4, seed=9)
    bad = [spoilt(one) for one in good]
    assert fitted.decision_function(bad).min() > fitted.decision_function(good).max()
    assert fitted.predict(bad).tolist() == [1] * 4
    anomaly_map = fitted.predict_anomaly_map(bad).mean(axis=0)
    assert anomaly_map.min() >= 0
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert 30 <= row < 60 and 40 <= column < 75  # the defect is at 35 to 54, 45 to 69


def test_the_threshold_is_set_on_images_that_were_set_aside(fitted: Detector) -> None:
    calibration = fitted.calibration_
    assert calibration.method == "held-out-images" and calibration.n_scores == 8
    kept = [images(24)[i] for i in training_images.divide(24, calibrate=True).calibrate]
    np.testing.assert_array_equal(fitted.decision_scores_, fitted.decision_function(kept))


def test_saved_loaded_and_scored_alone(fitted: Detector, tmp_path: Path) -> None:
    some = [*images(2, seed=3), spoilt(images(1, seed=4)[0])]
    together = fitted.decision_function(some)
    np.testing.assert_array_equal(together, [fitted.decision_function([x])[0] for x in some])
    folder = fitted.save(tmp_path / "model")
    with limited_threads(1):
        again = load_model(folder)
    np.testing.assert_array_equal(again.decision_function(some), together)
    np.testing.assert_array_equal(
        again.predict_anomaly_map(some), fitted.predict_anomaly_map(some)
    )  # fmt: skip
    assert again.describe() == fitted.describe()


def test_an_interrupted_fit_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyimgano.models.training.Plan", partial(Plan, check_every=2))
    place = str(tmp_path / "training")
    good = images(14)
    whole = make().fit(good)

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training steps", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(checkpoint_dir=place).fit(good, progress=progress)
    with pytest.raises(DataError, match=r"of another training.*dropout was"):
        make(checkpoint_dir=place, dropout=0.4).fit(good)
    with limited_threads(1):
        again = make(checkpoint_dir=place).fit(good)
    assert again.history_ == whole.history_
    np.testing.assert_array_equal(again.decision_scores_, whole.decision_scores_)
    assert not Path(place).exists()


def test_outside_the_region_nothing_counts() -> None:
    detector = make(roi=LEFT).fit(images(6))
    good = images(1, seed=5)[0]
    other = good.copy()
    other[:, 57:] = 255
    np.testing.assert_array_equal(*(detector.decision_function([one]) for one in (good, other)))
    maps = detector.predict_anomaly_map([good, other])
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (maps[:, :, 56:] == 0).all()
    top = np.sort(maps[0, :, :56].ravel())[-round(0.01 * 84 * 56) :].mean()
    assert detector.decision_function([good])[0] == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize("backbone", ["dinov2_tiny", "dinov3_tiny"])
def test_other_transformers(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyimgano.backbones import backbone as module
    from pyimgano.backbones import dinov3

    size = dinov3.SIZES["vits16"]._replace(width=32, depth=4, heads=2)
    monkeypatch.setitem(dinov3.SIZES, "tiny", size)
    monkeypatch.setattr(module, "_RECIPES", {**module._RECIPES, **module._transformers()})
    detector = make(backbone=backbone, resize=(80, 112), steps=2, groups=1).fit(images(6))
    assert np.isfinite(detector.decision_function(images(2))).all()


@pytest.mark.parametrize("count", [1, 2])
def test_few_images(count: int) -> None:
    detector = make(steps=1).fit(images(1) * count)
    assert np.isfinite(detector.decision_function([spoilt(images(1)[0])])).all()
    assert detector.calibration_.promised_false_alarm_rate is None


def test_layers_that_are_named_and_steps_of_a_device() -> None:
    detector = make(layers=["block0", "1.0.normed"], steps=1).fit(images(4))
    named = ["block0", "block3.normed"]
    wanted = [f"{one}{part}" for part in ("", ".class", ".registers") for one in named]
    assert detector.describe()["backbone"]["layers"] == wanted
    method = make(steps=None).method(make(steps=None).validate_params())
    assert method.params.steps == 100


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"groups=4 is more than the 3 blocks"):
        make(groups=4).fit(images(2))
    with pytest.raises(UsageError, match="has to be a vision transformer"):
        make(backbone="resnet18").fit(images(2))
    with pytest.raises(UsageError, match=r"whole blocks here, got block0\.class"):
        make(layers=["block0.class"]).fit(images(2))
