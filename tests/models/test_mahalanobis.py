"""Gaussians of pooled features against scikit-learn's Ledoit-Wolf estimate, and refitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from pyimgano.backbones import create_backbone
from pyimgano.errors import UsageError
from pyimgano.models import create_model
from pyimgano.models.mahalanobis import VisionMahalanobis, pooled_features
from tests.conftest import picture

TRAIN = [picture(i) for i in range(20)]
TEST = [picture(50 + i, spot=i % 2 == 1) for i in range(4)]
LAYERS = [f"blocks.{i}" for i in (0, 2, 4, 7, 10, 14, 15)]


def make(**keywords: object) -> VisionMahalanobis:
    return create_model("vision_mahalanobis", resize=(64, 64), device="cpu", **keywords)


@pytest.fixture(scope="module")
def fitted() -> VisionMahalanobis:
    return make().fit(TRAIN)


def pooled(images: list[np.ndarray]) -> list[np.ndarray]:
    maps = create_backbone("efficientnet_lite0", layers=LAYERS, device="cpu").features(images)
    return [m.numpy().astype(np.float64).mean(axis=(2, 3)) for m in maps]


def plain_scores(train: list[np.ndarray], test: list[np.ndarray]) -> np.ndarray:
    """The sum over the levels of the Mahalanobis distances."""
    total = np.zeros(len(test[0]))
    for x, t in zip(train, test, strict=True):
        model = LedoitWolf().fit(x)
        away = t - model.location_
        total += np.sqrt((away * np.linalg.solve(model.covariance_, away.T).T).sum(axis=1))
    return total


def test_against_the_plain_version(fitted: VisionMahalanobis) -> None:
    described = fitted.describe()["levels"]
    assert [level["layer"] for level in described] == LAYERS
    assert [level["dimension"] for level in described] == [16, 24, 40, 80, 112, 192, 320]
    train, test = pooled(TRAIN), pooled(TEST)
    expected = [LedoitWolf().fit(x).shrinkage_ for x in train]
    np.testing.assert_allclose(fitted.shrinkages_, expected, rtol=1e-5)
    np.testing.assert_allclose(fitted.decision_function(TEST), plain_scores(train, test), rtol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 20])  # of less than, and of more images than dimensions
def test_leaving_an_image_out_is_fitting_without_it(fitted: VisionMahalanobis, n: int) -> None:
    detector = fitted if n == 20 else make(layers=["blocks.0"]).fit(TRAIN[:n])
    assert detector.calibration_.method == "leave-one-image-out"
    for i in (0, n - 1):
        others = [x for j, x in enumerate(TRAIN[:n]) if j != i]
        again = make(layers=detector.params_.layers).fit(others)
        score = again.decision_function([TRAIN[i]])[0]
        assert detector.decision_scores_[i] == pytest.approx(score, rel=1e-3)


def test_there_are_no_maps(fitted: VisionMahalanobis) -> None:
    assert fitted.pixel_calibration_ is None
    assert all(result.anomaly_map is None for result in fitted.score_images(TEST))
    with pytest.raises(UsageError, match="scores whole images and has no anomaly maps"):
        fitted.predict_anomaly_map(TEST)


def test_pooled_within_a_region() -> None:
    detector = make(roi=[[0, 0], [0.5, 0], [0.5, 1], [0, 1]], layers=["blocks.0"]).fit(TRAIN[:3])
    maps = torch.rand(3, 8, 8)
    (found,) = pooled_features([maps], detector.region_cells)
    np.testing.assert_allclose(found, maps[:, :, :4].double().mean(dim=(1, 2)), rtol=1e-12)
