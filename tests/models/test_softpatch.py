"""SoftPatch against a plain version of the paper's formulas, and its calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyimgano.models import create_model
from pyimgano.models.neighbors import (
    DiscriminatedCoreset,
    greedy_coreset,
    local_outlier_factor,
    local_outlier_factors,
    streamed_coreset,
)
from pyimgano.models.softpatch import VisionSoftPatch, _outliers
from tests.conftest import picture

from .test_patchcore import plain_patches

SIZE = (64, 48)
TRAIN = [picture(i)[:, :48] for i in range(9)]
TEST = [picture(50 + i, spot=i % 2 == 1)[:, :48] for i in range(4)]


def make(name: str = "vision_softpatch", **keywords: object) -> VisionSoftPatch:
    settings = {"backbone": "resnet18", "pretrained": False, "engine": "torch", "resize": SIZE}
    return create_model(name, device="cpu", **{**settings, **keywords})  # type: ignore[return-value]


def plain_factors(points: np.ndarray, k: int, floor: float) -> np.ndarray:
    """LOF of each of (n, D), by the definitions."""
    n = len(points)
    away = np.linalg.norm(points[:, None] - points[None], axis=2)
    near = [sorted((j for j in range(n) if j != i), key=lambda j: away[i, j])[:k] for i in range(n)]
    edge = [away[i, near[i][-1]] for i in range(n)]
    reach = [np.mean([max(edge[o], away[i, o]) for o in near[i]]) for i in range(n)]
    density = [1 / (r + floor) for r in reach]
    return np.array([np.mean([density[o] for o in near[i]]) / density[i] for i in range(n)])


def plain_reach(points: np.ndarray, k: int) -> float:
    """The mean over all points of the mean reachability distance."""
    away = np.linalg.norm(points[:, None] - points[None], axis=2)
    order = away.argsort(axis=1)[:, 1 : k + 1]
    edge = np.take_along_axis(away, order, 1)[:, -1]
    return float(np.maximum(np.take_along_axis(away, order, 1), edge[order]).mean())


def plain_noise(patches: np.ndarray, k: int) -> np.ndarray:
    """W of patches (n, hw, D), (n, hw)."""
    positions = patches.transpose(1, 0, 2)
    floor = 1e-3 * np.mean([plain_reach(p, k) for p in positions])
    return np.stack([plain_factors(p, k, floor) for p in positions]).T


class TestOutlierFactors:
    def test_are_those_of_the_definitions(self) -> None:
        sets = np.random.default_rng(0).normal(size=(3, 20, 5)) * [[[1]], [[5]], [[0.1]]]
        found = local_outlier_factors(torch.from_numpy(sets).float(), 6).numpy()
        floor = 1e-3 * np.mean([plain_reach(p, 6) for p in sets])
        for points, factors in zip(sets, found):
            np.testing.assert_allclose(factors, plain_factors(points, 6, floor), rtol=1e-4)

    def test_do_not_depend_on_how_the_work_is_cut_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 15, 4))).float()
        whole = local_outlier_factors(sets, 4)
        monkeypatch.setattr(local_outlier_factor, "_NUMBERS", 1)
        assert torch.equal(local_outlier_factors(sets, 4), whole)

    def test_of_few_points_and_of_copies(self) -> None:
        assert local_outlier_factors(torch.rand(3, 1, 4), 6).tolist() == [[1.0]] * 3
        torch.testing.assert_close(local_outlier_factors(torch.rand(1, 2, 4), 6), torch.ones(1, 2))
        torch.testing.assert_close(local_outlier_factors(torch.ones(2, 9, 4), 6), torch.ones(2, 9))
        # nine copies and one beside them: an outlier, but not without bounds
        points = torch.ones(1, 10, 1)
        points[0, 3] += 0.5
        found = local_outlier_factors(points, 6)[0]
        assert found.argmax() == 3 and 100 < found[3] < 1e5

    def test_many_far_from_0_are_told_apart(self) -> None:
        points = np.random.default_rng(2).normal(size=(1, 12, 3)) + 1000
        found = local_outlier_factors(torch.from_numpy(points).float(), 3)[0]
        exact = points.astype(np.float32).astype(np.float64)[0]
        expected = plain_factors(exact, 3, 1e-3 * plain_reach(exact, 3))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


class TestDiscriminatedCoreset:
    def fill(self, points: np.ndarray, **keywords: object) -> DiscriminatedCoreset:
        n, cells, _ = points.shape
        facts = {"ratio": 0.3, "max_rows": 10_000, "projection_dim": None, "seed": 0}
        coreset = DiscriminatedCoreset(
            cells=cells, neighbours=3, threshold=0.2, expected=n * cells, **{**facts, **keywords}
        )
        for some in np.array_split(points, 3):
            coreset.add(torch.from_numpy(some).float().flatten(0, 1))
        return coreset

    def test_leaves_out_the_noisiest(self) -> None:
        points = np.random.default_rng(3).normal(size=(10, 6, 4))
        points[4, 2] += 30
        coreset = self.fill(points)
        features, picked = coreset.finish()
        noise = plain_noise(points, 3)
        np.testing.assert_allclose(coreset.noise.numpy().reshape(10, 6), noise, rtol=1e-3)
        discarded = noise > np.quantile(noise, 0.8)
        assert discarded[4, 2] and discarded.sum() == 12
        np.testing.assert_array_equal(coreset.discarded.numpy().reshape(10, 6), discarded)
        kept = np.flatnonzero(~discarded.ravel())
        flat = torch.from_numpy(points.reshape(60, 4)).float()
        start = int(np.flatnonzero(kept == int(picked[0]))[0])
        expected = kept[greedy_coreset(flat[kept], 18, start=start).numpy()]
        np.testing.assert_array_equal(picked.numpy(), expected)
        assert torch.equal(features, flat[picked])
        assert torch.equal(coreset.weights, coreset.noise[picked])
        assert coreset.whole is not None and len(coreset.whole) == 60

    def test_blocks_are_of_whole_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streamed_coreset, "BLOCK_ROWS", 25)  # four images of six patches
        points = np.random.default_rng(4).normal(size=(10, 6, 4))
        coreset = self.fill(points, max_rows=12)
        _, picked = coreset.finish()
        assert len(picked) == 12 and coreset.selections > 3
        noise = [plain_noise(some, 3) for some in (points[:4], points[4:8], points[8:])]
        np.testing.assert_allclose(coreset.noise.numpy(), np.vstack(noise).ravel(), rtol=1e-3)
        assert not coreset.discarded[picked].any()
        assert torch.equal(coreset.weights, coreset.noise[picked])

    def test_without_a_threshold_nothing_is_left_out(self) -> None:
        points = np.random.default_rng(5).normal(size=(5, 4, 3))
        coreset = self.fill(points, ratio=1.0)
        coreset._threshold = 0.0
        _, picked = coreset.finish()
        assert not coreset.discarded.any() and sorted(picked.tolist()) == list(range(20))


@pytest.fixture(scope="module")
def fitted() -> VisionSoftPatch:
    return make(feature_projection_dim=None, lof_neighbors=4).fit(TRAIN)


def test_is_the_papers_score(fitted: VisionSoftPatch) -> None:
    train = plain_patches(TRAIN, "resnet18")
    train = train.reshape(len(TRAIN), -1, train.shape[-1])
    cells = train.shape[1]
    noise = plain_noise(train, 4).ravel()
    picked = fitted.coreset_indices_.numpy()
    assert (noise[picked] <= np.quantile(noise, 0.85) * (1 + 1e-6)).all()
    assert fitted.describe()["memory_bank"]["patches_discarded"] == np.sum(
        noise > np.quantile(noise, 0.85)
    )
    bank = train.reshape(-1, train.shape[-1])[picked]

    def plain_score(patches: np.ndarray, rows: np.ndarray) -> float:
        away = np.linalg.norm(patches[:, None] - bank[rows][None], axis=2)
        return float((away.min(axis=1) * noise[picked][rows][away.argmin(axis=1)]).max())

    test = plain_patches(TEST, "resnet18").reshape(len(TEST), cells, -1)
    every = np.arange(len(picked))
    scores = [plain_score(one, every) for one in test]
    np.testing.assert_allclose(fitted.decision_function(TEST), scores, rtol=1e-3)
    unseen = [plain_score(one, every[picked // cells != i]) for i, one in enumerate(train)]
    np.testing.assert_allclose(fitted.decision_scores_, unseen, rtol=1e-3)
    hard = make(feature_projection_dim=None, lof_neighbors=4, soft_weights=False).fit(TRAIN)
    noise[:] = 1.0
    np.testing.assert_allclose(
        hard.decision_function(TEST), [plain_score(one, every) for one in test], rtol=1e-3
    )


def test_a_defect_is_found(fitted: VisionSoftPatch) -> None:
    assert fitted.predict(TEST).tolist() == [0, 1, 0, 1]
    found = fitted.get_anomaly_map(TEST[1])
    assert found[32:44, 32:44].mean() > 2 * found[:24].mean()


class TestNoisyTraining:
    """Two dozen images of which three are bad, with a defect each at a place of its own."""

    BAD = (2, 11, 20)

    def test_suspects_do_not_raise_the_threshold(self) -> None:
        images = [picture(i) for i in range(24)]
        for number, (row, column) in zip(self.BAD, [(4, 8), (40, 20), (20, 44)]):
            images[number][row : row + 12, column : column + 12] = 15
        keywords = {"backbone": "efficientnet_lite0", "pretrained": True, "resize": (64, 64)}
        test = [picture(70 + i, spot=i % 2 == 1) for i in range(6)]
        detector = make(**keywords).fit(images)
        assert detector.suspects_.tolist() == list(self.BAD)
        assert detector.describe()["suspects"] == list(self.BAD)
        assert len(detector.decision_scores_) == 21
        (note,) = (one for one in detector.calibration_.notes if "left out" in one)
        assert "3 training images left out of the calibration" in note
        assert "(counted from 0: 2, 11, 20)" in note
        pixels = detector.pixel_calibration_
        assert pixels is not None and pixels.n_images == 21
        scores = detector.decision_function(test)
        assert min(scores[1::2]) > detector.threshold_
        every = make(**keywords, outlier_cutoff=None).fit(images)
        assert every.suspects_.tolist() == [] and len(every.decision_scores_) == 24
        assert every.threshold_ > 2 * detector.threshold_
        np.testing.assert_array_equal(every.decision_function(test), scores)
        clean = make(**keywords).fit([one for i, one in enumerate(images) if i not in self.BAD])
        assert clean.suspects_.tolist() == []

    def test_outliers(self) -> None:
        usual = np.exp(np.random.default_rng(0).normal(2, 0.1, 60))
        assert not _outliers(usual, 5.0).any()
        mixed = np.concatenate([usual, [40.0, 60.0]])
        assert np.flatnonzero(_outliers(mixed, 5.0)).tolist() == [60, 61]
        assert not _outliers(mixed, None).any()
        assert not _outliers(mixed[-19:], 5.0).any()  # too few to tell
        assert not _outliers(np.zeros(30), 5.0).any()
        # most are equal: what differs by a few hundredths is none
        assert not _outliers(np.array([5.0] * 29 + [5.2]), 5.0).any()
        assert _outliers(np.array([0.0] * 10 + [5.0] * 29 + [9.0]), 5.0).sum() == 1
