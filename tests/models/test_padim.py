"""PaDiM against a plain version of the paper's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pyimgano.backbones import create_backbone
from pyimgano.errors import UsageError
from pyimgano.models import create_model
from pyimgano.models.padim import VisionPaDiM
from tests.conftest import picture

SIZE = (64, 48)
TRAIN = [picture(i)[:, :48] for i in range(7)]
TEST = [picture(50 + i, spot=i % 2 == 1)[:, :48] for i in range(3)]
D = 30


def make(**keywords: object) -> VisionPaDiM:
    keywords = {"resize": SIZE, "device": "cpu", "d_reduced": D, **keywords}
    return create_model("vision_padim", backbone="resnet18", pretrained=False, **keywords)


@pytest.fixture(scope="module")
def fitted() -> VisionPaDiM:
    return make().fit(TRAIN)


def plain_vectors(images: list[np.ndarray], channels: np.ndarray) -> np.ndarray:
    """x_ij, (N, h, w, d) float64: three layers on the finest grid, bilinearly; some channels."""
    layers = create_backbone(
        "resnet18", layers=["layer1", "layer2", "layer3"], pretrained=False, device="cpu"
    ).features(images)
    size = layers[0].shape[-2:]
    whole = torch.cat(
        [torch.nn.functional.interpolate(x.double(), size, mode="bilinear") for x in layers], dim=1
    )
    return whole.numpy()[:, channels].transpose(0, 2, 3, 1)


def plain_maps(train: np.ndarray, test: np.ndarray, epsilon: float) -> np.ndarray:
    """Equations 1 and 2 and the map, (N, H, W)."""
    n, h, w, d = train.shape
    maps = []
    for x in test:
        distances = np.empty((h, w))
        for i in range(h):
            for j in range(w):
                mu = train[:, i, j].mean(axis=0)
                away = train[:, i, j] - mu
                sigma = sum(np.outer(a, a) for a in away) / (n - 1) + epsilon * np.eye(d)
                r = x[i, j] - mu
                distances[i, j] = np.sqrt(r @ np.linalg.solve(sigma, r))
        grid = torch.from_numpy(distances)[None, None]
        up = torch.nn.functional.interpolate(grid, size=SIZE, mode="bilinear")[0, 0].numpy()
        maps.append(gaussian_filter(up, 4.0))
    return np.stack(maps)


def test_against_the_plain_version(fitted: VisionPaDiM) -> None:
    channels = fitted.channels_.numpy()
    assert len(channels) == D and (np.diff(channels) > 0).all() and channels.max() < 448
    train, test = plain_vectors(TRAIN, channels), plain_vectors(TEST, channels)
    assert fitted.grid_ == train.shape[1:3] == (16, 12)
    maps = plain_maps(train, test, 0.01)
    np.testing.assert_allclose(fitted.predict_anomaly_map(TEST), maps, rtol=2e-4)
    np.testing.assert_allclose(fitted.decision_function(TEST), maps.max(axis=(1, 2)), rtol=2e-4)
    other = make(covariance_eps=0.5).fit(TRAIN)
    found = other.predict_anomaly_map(TEST[:1])
    np.testing.assert_allclose(found, plain_maps(train, test[:1], 0.5), rtol=2e-4)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_leaving_an_image_out_is_fitting_without_it(fitted: VisionPaDiM, n: int) -> None:
    detector = fitted if n == 7 else make().fit(TRAIN[:n])
    assert detector.calibration_.method == "leave-one-image-out"
    refitted, maps = [], []
    for i in range(n) if n < 7 else (0, 4):
        others = make().fit([x for j, x in enumerate(TRAIN[:n]) if j != i])
        refitted.append(others.decision_function([TRAIN[i]])[0])
        maps.append(others.predict_anomaly_map([TRAIN[i]])[0])
    scores = detector.decision_scores_ if n < 7 else detector.decision_scores_[[0, 4]]
    np.testing.assert_allclose(scores, refitted, rtol=1e-4)
    if n < 7:
        pixels = detector.pixel_calibration_
        assert pixels is not None
        assert pixels.mean == pytest.approx(np.mean(maps, dtype=np.float64), rel=1e-4)


def test_channels_are_drawn_from_the_seed() -> None:
    one, two, other = (make(random_seed=s).fit(TRAIN[:2]).channels_ for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_all_channels_where_there_are_no_more() -> None:
    detector = make(layers=["layer1"], d_reduced=100).fit(TRAIN[:3])
    assert detector.channels_.tolist() == list(range(64))
    assert detector.describe()["gaussians"] == {"positions": 192, "dimension": 64}


def test_what_does_not_fit_is_refused_before_an_image_is_read() -> None:
    with pytest.raises(UsageError, match=r"d_reduced=30 at 16 x 12 positions needs 0\.0 GiB") as e:
        make(memory_limit_gib=1e-3).fit(["/no/where.png"])
    assert "at most d_reduced=21 fits" in str(e.value)
    with pytest.raises(UsageError, match="memory_limit_gib=1e-06: give a smaller resize"):
        make(memory_limit_gib=1e-6).fit(["/no/where.png"])
    # cells outside a region need none
    make(memory_limit_gib=1.1e-3, roi=[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]).fit(TRAIN[:2])


def test_a_region_is_scored_within() -> None:
    """The score is the largest value of the map within the region."""
    detector = make(roi=[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]).fit(TRAIN)
    for result in detector.score_images(TEST):
        assert result.anomaly_map is not None and result.score == result.anomaly_map.max()
