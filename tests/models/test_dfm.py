"""Feature reconstruction errors against a plain PCA, and refitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pyimgano.backbones import create_backbone
from pyimgano.models import create_model, dfm
from pyimgano.models.dfm import VisionDFM
from tests.conftest import picture

SIZE = (96, 64)
TRAIN = [np.roll(picture(i, 96), 2 * i, axis=1)[:, :64] for i in range(9)]
TEST = [picture(50 + i, 96, spot=i % 2 == 1)[:, :64] for i in range(3)]


def make(**keywords: object) -> VisionDFM:
    return create_model(
        "vision_dfm",
        backbone="resnet18",
        pretrained=False,
        device="cpu",
        **{"resize": SIZE, **keywords},
    )


@pytest.fixture(scope="module")
def fitted() -> VisionDFM:
    return make().fit(TRAIN)


def plain_features(images: list[np.ndarray], kernel: int) -> np.ndarray:
    """u, (N, h, w, C) float64 of the last layer of stride 16, pooled."""
    (maps,) = create_backbone(
        "resnet18", layers=["layer3"], pretrained=False, device="cpu"
    ).features(images)
    x = maps.numpy().astype(np.float64)
    n, c, h, w = x.shape
    means = [
        x[:, :, i : i + kernel, j : j + kernel].mean(axis=(2, 3))
        for i in range(0, h, kernel)
        for j in range(0, w, kernel)
    ]
    return np.stack(means, axis=1).reshape(n, -(-h // kernel), -(-w // kernel), c)


def plain_errors(train: np.ndarray, test: np.ndarray, share: float) -> tuple[np.ndarray, int]:
    """FRE of each cell, (N, h, w), and the number of components."""
    flat = train.reshape(len(train), -1)
    mean = flat.mean(axis=0)
    _, sigma, components = np.linalg.svd(flat - mean, full_matrices=False)
    carried = (sigma**2).cumsum() / (sigma**2).sum()
    k = int(np.argmax(carried >= share)) + 1
    away = test.reshape(len(test), -1) - mean
    rest = away - away @ components[:k].T @ components[:k]
    return (rest.reshape(test.shape) ** 2).sum(axis=3), k


@pytest.mark.parametrize(("kernel", "share"), [(1, 0.97), (2, 0.97), (4, 0.5)])
def test_against_the_plain_version(fitted: VisionDFM, kernel: int, share: float) -> None:
    detector = fitted
    if kernel > 1:
        detector = make(pooling_kernel_size=kernel, explained_variance=share).fit(TRAIN)
    train, test = plain_features(TRAIN, kernel), plain_features(TEST, kernel)
    errors, k = plain_errors(train, test, share)
    assert detector.n_components_ == k and 0 < k < len(TRAIN)
    assert detector.grid_ == errors.shape[1:]
    np.testing.assert_allclose(detector.decision_function(TEST), errors.sum(axis=(1, 2)), rtol=1e-4)
    for found, grid in zip(detector.predict_anomaly_map(TEST), errors, strict=True):
        up = torch.nn.functional.interpolate(
            torch.from_numpy(grid)[None, None], size=SIZE, mode="bilinear"
        )
        np.testing.assert_allclose(found, gaussian_filter(up[0, 0].numpy(), 4.0), rtol=1e-3)


@pytest.mark.parametrize("folds", [None, 3])
def test_training_scores_are_those_of_refitting(
    fitted: VisionDFM, monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    detector = fitted
    if folds is not None:
        monkeypatch.setattr(dfm, "_ONE_BY_ONE", 5)
        monkeypatch.setattr(dfm, "_FOLDS", folds)
        detector = make().fit(TRAIN)
    method = "leave-one-image-out" if folds is None else "refitted-folds"
    assert detector.calibration_.method == method
    features, every = plain_features(TRAIN, 1), folds or len(TRAIN)
    number = np.arange(len(TRAIN))
    for fold in range(every):
        out = number % every == fold
        errors, _ = plain_errors(features[~out], features[out], 0.97)
        np.testing.assert_allclose(
            detector.decision_scores_[out], errors.sum(axis=(1, 2)), rtol=1e-4
        )


def test_two_images() -> None:
    """With one image left out there is no variance: the error is the squared difference."""
    detector = make().fit(TRAIN[:2])
    first, second = plain_features(TRAIN[:2], 1)
    np.testing.assert_allclose(
        detector.decision_scores_, [((first - second) ** 2).sum()] * 2, rtol=1e-5
    )


def test_all_variance_reconstructs_what_was_learned_from() -> None:
    detector = make(explained_variance=1.0, calibration="in-sample").fit(TRAIN)
    assert detector.n_components_ == len(TRAIN) - 1
    assert (detector.decision_scores_ < 1e-6 * detector.decision_function(TEST).min()).all()


def test_several_layers_on_one_grid() -> None:
    detector = make(layers=["layer2", "layer3"]).fit(TRAIN[:4])
    assert detector.grid_ == (12, 8)
    assert detector.describe()["subspace"]["dimension"] == 12 * 8 * 384
