"""What the Gaussian models and the subspace model share: moments, whitening, special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from pyimgano.backbones import LastOfStages, LastOfStrides, create_backbone
from pyimgano.models import create_model
from pyimgano.models.detector import Detector
from pyimgano.models.gaussian import (
    Moments,
    by_eights,
    cells_beside,
    ledoit_wolf,
    left_out_squared,
    whitening,
)
from pyimgano.threads import limited_threads
from tests.conftest import picture

MODELS = ["vision_dfm", "vision_mahalanobis", "vision_padim"]
IMAGES = [picture(i) for i in range(6)]


def make(name: str, **keywords: object) -> Detector:
    keywords = {"d_reduced": 24, **keywords} if name == "vision_padim" else keywords
    return create_model(name, resize=(64, 64), device="cpu", **keywords)


# ---- moments


@pytest.mark.parametrize("n", [1, 5, 70])
def test_streamed_moments_are_those_of_two_passes(n: int) -> None:
    rng = np.random.default_rng(0)
    x = (1000.0 + rng.normal(0, [0.1, 1, 10], (n, 4, 3))).astype(np.float32)
    moments = Moments(torch.from_numpy(x[0]))
    for part in np.split(x, [1, 3]) if n > 3 else [x]:
        moments.add(torch.from_numpy(part))
    assert moments.count == n
    mean = x.astype(np.float64).mean(axis=0)
    away = x - mean
    np.testing.assert_allclose(moments.mean().numpy(), mean, rtol=1e-13)
    for block in moments.blocks():
        scatter = np.einsum("npi,npj->pij", away, away)[block]
        np.testing.assert_allclose(moments.scatter(block).numpy(), scatter, atol=1e-8)


@pytest.mark.parametrize("d", [1, 2, 7, 32])
def test_whitening_is_the_inverse_of_the_cholesky_factor(d: int) -> None:
    a = np.random.default_rng(d).normal(size=(5, d, 2 * d))
    covariance = a @ a.transpose(0, 2, 1)
    found = whitening(torch.from_numpy(covariance)).numpy()
    np.testing.assert_allclose(found, np.linalg.inv(np.linalg.cholesky(covariance)), atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(3, 5), (12, 4)])
def test_leaving_one_out_in_closed_form(n: int, d: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, d))
    weight, ridge = 0.3, 0.05
    away = x - x.mean(axis=0)
    whole = np.linalg.inv(weight * away.T @ away + ridge * np.eye(d))
    q = np.einsum("ni,ij,nj->n", away, whole, away)
    expected = []
    for i in range(n):
        others = np.delete(x, i, axis=0)
        left = others - others.mean(axis=0)
        r = x[i] - others.mean(axis=0)
        expected.append(r @ np.linalg.solve(weight * left.T @ left + ridge * np.eye(d), r))
    found = left_out_squared(torch.from_numpy(q), n, weight).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(4, 30), (50, 6), (2, 3)])
def test_shrinkage_is_that_of_scikit_learn(n: int, d: int) -> None:
    x = np.random.default_rng(1).normal(size=(n, d)) * np.linspace(0.1, 5, d) + 7
    away = torch.from_numpy(x - x.mean(axis=0))
    covariance = away.T @ away / n
    lengths = away.square().sum(dim=1)
    found = ledoit_wolf(
        d,
        n,
        covariance.trace(),
        covariance.square().sum(),
        lengths.square().sum(),
        torch.tensor(0.0).double(),
    )
    expected = LedoitWolf().fit(x)
    assert float(found.shrinkage) == pytest.approx(expected.shrinkage_, rel=1e-9)
    shrunk = (1 - found.shrinkage) * covariance + found.ridge * torch.eye(d).double()
    np.testing.assert_allclose(shrunk, expected.covariance_, rtol=1e-9, atol=1e-12)


def test_eight_at_a_time_filled_up() -> None:
    x = torch.arange(9 * 2 * 3, dtype=torch.float32).view(9, 2, 3)
    parts = list(by_eights(x))
    assert [tuple(one.shape) for one in parts] == [(2, 3, 8)] * 2
    assert torch.equal(torch.cat([one.permute(2, 0, 1) for one in parts])[:9], x)
    assert (parts[1][:, :, 1:] == 0).all()


def test_the_cells_beside() -> None:
    assert cells_beside((2, 3), None).tolist() == [1, 2, 1, 4, 5, 4]
    # of the cells 1, 3 and 5 none has a neighbour; 4 has 5, and 5 has 4
    assert cells_beside((2, 3), torch.tensor([1, 3])).tolist() == [0, 1]
    assert cells_beside((2, 3), torch.tensor([0, 4, 5])).tolist() == [0, 2, 1]
    assert cells_beside((1, 1), None).tolist() == [0]


# ---- the choice of layers


@pytest.mark.parametrize(
    ("backbone", "strides", "stages"),
    [
        ("efficientnet_lite0", (2, 4, 10), (0, 2, 4, 7, 10, 14, 15)),
        ("efficientnet_lite1", (3, 6, 14), (0, 3, 6, 10, 14, 19, 20)),
        ("resnet18", (1, 2, 3), (1, 2, 3, 4)),
    ],
)
def test_layers_by_stride_and_by_stage(
    backbone: str, strides: tuple[int, ...], stages: tuple[int, ...]
) -> None:
    def named(choice: object) -> list[str]:
        return list(create_backbone(backbone, layers=choice, pretrained=False).layers)  # type: ignore[arg-type]

    prefix = "layer" if backbone == "resnet18" else "blocks."
    assert named(LastOfStrides((4, 8, 16))) == [f"{prefix}{i}" for i in strides]
    assert named(LastOfStages()) == [f"{prefix}{i}" for i in stages]
    default = create_backbone(backbone, pretrained=False).layers
    assert named(LastOfStrides((64,))) == list(default)
    assert LastOfStrides((4,)) == LastOfStrides((4,)) != LastOfStrides((8,))


# ---- of each model


@pytest.fixture(scope="module", params=MODELS)
def fitted(request: pytest.FixtureRequest) -> Detector:
    return make(request.param).fit(IMAGES)


def test_a_planted_defect_is_found(fitted: Detector) -> None:
    good = fitted.decision_function([picture(100 + i) for i in range(4)])
    bad = fitted.decision_function([picture(200 + i, spot=True) for i in range(4)])
    assert bad.min() > 1.3 * good.max() and bad.min() > fitted.threshold_
    if fitted.has_maps:
        found = fitted.get_anomaly_map(picture(200, spot=True))
        row, column = np.unravel_index(found.argmax(), (64, 64))
        assert 24 <= row <= 52 and 24 <= column <= 52 and found.min() >= 0


def test_company_and_order_change_nothing(fitted: Detector) -> None:
    images = [picture(100 + i, spot=i % 3 == 0) for i in range(11)]
    together = list(fitted.score_images(images))
    for number in (10, 0, 8):
        (alone,) = fitted.score_images([images[number]])
        assert alone.score == together[number].score
        np.testing.assert_array_equal(alone.anomaly_map, together[number].anomaly_map)


@pytest.mark.parametrize("name", MODELS)
def test_neither_batches_nor_threads_change_anything(name: str) -> None:
    test = [picture(100 + i, spot=i % 2 == 0) for i in range(3)]
    found = []
    for size, threads in ((8, 1), (3, 2)):
        with limited_threads(threads):
            detector = make(name)
            detector.batch_size = size  # type: ignore[misc]
            detector.fit(IMAGES)
            found.append((detector, list(detector.score_images(test))))
    (one, first), (two, second) = found
    assert one.threshold_ == two.threshold_ and one.pixel_calibration_ == two.pixel_calibration_
    np.testing.assert_array_equal(one.decision_scores_, two.decision_scores_)
    for a, b in zip(first, second, strict=True):
        assert a.score == b.score
        np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)


@pytest.mark.parametrize("name", MODELS)
def test_one_image_works_and_is_said(name: str) -> None:
    detector = make(name).fit(IMAGES[:1])
    assert detector.calibration_.method == "within-image"
    assert detector.calibration_.promised_false_alarm_rate is None
    assert any("1 training image" in note for note in detector.calibration_.notes)
    assert detector.predict(IMAGES[:1]).tolist() == [0]
    assert detector.predict([picture(9, spot=True)]).tolist() == [1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image", [picture(1), np.zeros((64, 64, 3), np.uint8)], ids=["", "black"])
def test_equal_images_are_good(name: str, image: np.ndarray) -> None:
    detector = make(name).fit([image] * 4)
    assert detector.calibration_.promised_false_alarm_rate is None  # they are one image
    assert detector.predict([image] * 2).tolist() == [0, 0]
    assert detector.predict([picture(5, spot=True)]).tolist() == [1]
    assert np.isfinite(detector.decision_function([picture(5, spot=True)])).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_part_calibrates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(name).fit(IMAGES)
    monkeypatch.setattr("pyimgano.models.evenly_spread._IMAGES", 2)
    monkeypatch.setattr("pyimgano.models.dfm._IMAGES", 3)
    part = make(name).fit(IMAGES)
    notes = part.calibration_.notes
    if name == "vision_dfm":  # learns from them too
        assert part.describe()["subspace"]["images"] == 3
        assert "calibrated on 3 of the 6 training images, evenly spread" in notes
        return
    assert "calibrated on 2 of the 6 training images, evenly spread" in notes
    np.testing.assert_array_equal(part.decision_scores_, whole.decision_scores_[[0, 3]])


@pytest.mark.parametrize("name", MODELS)
def test_in_sample_scores_are_those_of_scoring(name: str) -> None:
    naive = make(name, calibration="in-sample").fit(IMAGES)
    assert naive.calibration_.promised_false_alarm_rate is None
    np.testing.assert_array_equal(naive.decision_scores_, naive.decision_function(IMAGES))
    unseen = make(name).fit(IMAGES)
    assert (unseen.decision_scores_ > 1.5 * naive.decision_scores_).all()
