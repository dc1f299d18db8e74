"""The default recipe of vision_patchcore, held to a plain version of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from pyimgano.backbones import create_backbone
from pyimgano.errors import PyimganoError
from pyimgano.models import create_model, load_model
from pyimgano.models.bank import Moments, PooledCoreset, Whitening
from pyimgano.models.working_size import working_size

from .conftest import picture, save

IMAGES = [picture(i) for i in range(6)]
TEST = [picture(50 + i, spot=i % 2 == 1) for i in range(4)]
SIZE = (64, 96)
LAYERS = ("blocks.4", "blocks.10", "blocks.14")


def make(**keywords: Any) -> Any:
    return create_model("vision_patchcore", **{"resize": SIZE, "device": "cpu", **keywords})


def resized(images: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
    from pyimgano.images import resize_image

    return [resize_image(image, SIZE) for image in images]


def plain_features(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """(N, h, w, D): layers averaged over 3x3, the finer one over 2x2 of those, side by side."""
    backbone = create_backbone(device="cpu", engine="torch", layers=LAYERS)
    maps = backbone.features(resized(images))
    fine, middle, deep = [
        torch.nn.functional.avg_pool2d(m.double(), 3, 1, 1, count_include_pad=False) for m in maps
    ]
    deep = torch.nn.functional.interpolate(deep, size=middle.shape[-2:], mode="bilinear")
    joined = torch.cat([torch.nn.functional.avg_pool2d(fine, 2), middle, deep], dim=1)
    return np.asarray(joined.permute(0, 2, 3, 1))


def plain_whitened(rows: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> Any:
    """`of`, whitened by what `rows` are like."""
    variances, directions = np.linalg.eigh(np.cov(rows.T, bias=True))
    return (of - rows.mean(0)) @ directions / np.sqrt(variances + 0.01 * variances.mean())


def test_against_a_plain_version() -> None:
    detector = make(engine="torch").fit(IMAGES)
    train, test = plain_features(IMAGES), plain_features(TEST)
    n, h, w, width = train.shape
    assert detector.grid_ == (h, w) == (4, 6)
    near = 40 + 112  # channels of strides 8 and 16

    def whitened(patches: Any, of: Any = train) -> Any:
        rows, flat = of.reshape(-1, width), patches.reshape(-1, width)
        parts = [
            plain_whitened(rows[:, :near], flat[:, :near]),
            0.4 * plain_whitened(rows[:, near:], flat[:, near:]),
        ]
        return np.concatenate(parts, axis=1).reshape(len(patches), -1, width)

    white = whitened(train)
    picked = detector.coreset_indices_.numpy()
    assert len(picked) == round(n * h * w * 0.1) and len(set(picked)) == len(picked)
    bank, owner = white.reshape(-1, width)[picked], picked // (h * w)
    queries = whitened(test)

    def plain_map(patches: Any, memory: Any) -> Any:
        away = np.sqrt(((patches[:, None] - memory[None]) ** 2).sum(-1)).min(1)
        grid = torch.from_numpy(away.reshape(1, 1, h, w))
        up = torch.nn.functional.interpolate(grid, size=SIZE, mode="bilinear")[0, 0].numpy()
        return gaussian_filter(up, 4.0 / 256 * np.sqrt(SIZE[0] * SIZE[1]))

    expected = [plain_map(patches, bank) for patches in queries]
    found = detector.predict_anomaly_map(TEST)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_array_equal(detector.decision_function(TEST), found.max((1, 2)))
    # each of fewer than ten images is whitened, and the bank with it, by what the others say
    unseen = []
    for i in range(n):
        others = np.delete(train, i, axis=0)
        of = whitened(np.stack([train[i], train[i]]), others)[0]
        memory = whitened(train, others).reshape(-1, width)[picked][owner != i]
        unseen.append(plain_map(of, memory).max())
    np.testing.assert_allclose(detector.decision_scores_, unseen, rtol=2e-3)


def test_whitened_rows_are_uncorrelated_and_of_one_spread() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 5)) * [100.0, 10.0, 1.0, 1.0, 3.0] @ rng.normal(size=(5, 5)) + 7.0
    data = torch.from_numpy(rows).float()
    whitening = Whitening.of(Moments.of(data), data, shrinkage=1e-7)
    found = whitening(torch.from_numpy(rows).float()[None])[0].double().numpy()
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(5), atol=0.02)
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-3)


def test_whitening_needs_no_spread() -> None:
    rows = torch.full((40, 3), 5.0)
    whitening = Whitening.of(Moments.of(rows), rows)
    assert whitening(rows[None]).abs().max() == 0.0
    assert torch.equal(whitening.matrix, torch.eye(3))


def test_whitening_is_the_same_with_other_threads_and_company() -> None:
    rows = torch.randn((70000, 24), generator=torch.Generator().manual_seed(0)).float()
    images = rows.view(70, 1000, 24)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            with threadpool_limits(limits=count):
                whitening = Whitening.of(Moments.of(rows), rows)
                found.append((whitening.matrix, whitening(images), whitening(images[3:4])))
        finally:
            torch.set_num_threads(threads)
    (one, all_one, alone), (two, all_two, _) = found
    assert torch.equal(one, two) and torch.equal(all_one, all_two)
    assert torch.equal(all_one[3:4], alone)


@settings(max_examples=200, deadline=None)
@given(
    images=st.integers(1, 40), cells=st.integers(1, 30), pool=st.integers(1, 700), data=st.data()
)
def test_the_pool_is_spread_over_all_patches(
    images: int, cells: int, pool: int, data: st.DataObject
) -> None:
    """Also where images are missing, and in whatever parts they come."""
    total = images * cells
    facts = {
        "cells": cells,
        "expected": total,
        "ratio": 0.5,
        "max_rows": 10**6,
        "projection_dim": None,
    }
    coreset = PooledCoreset(pool_size=pool, seed=data.draw(st.integers(0, 9)), **facts)
    came = cells * data.draw(st.integers(1, images))
    rows = torch.arange(came).float()[:, None]
    for part in rows.split(data.draw(st.integers(1, came))):
        coreset.add(part)
    numbers = coreset._drawn[: coreset._filled]
    assert len(coreset._drawn) == min(pool, total)
    assert np.array_equal(np.unique(coreset._drawn), coreset._drawn)
    assert np.array_equal(coreset._block[: coreset._filled, 0].numpy(), numbers)
    ends = np.arange(len(coreset._drawn) + 1) * total // len(coreset._drawn)
    assert (ends[:-1] <= coreset._drawn).all() and (coreset._drawn < ends[1:]).all()
    if coreset._filled:
        _, indices = coreset.finish()
        assert 1 <= len(indices) <= max(1, round(came * 0.5))
        assert set(indices.tolist()) <= set(numbers.tolist())


def test_the_working_size_follows_the_images(tmp_path: Path) -> None:
    def of(*sizes: tuple[int, int]) -> tuple[int, int]:
        return working_size([np.zeros((*size, 3), np.uint8) for size in sizes])

    assert of((64, 64)) == of((320, 320)) == (256, 256)
    assert of((900, 900)) == of((4000, 3000)) == (512, 512)
    assert of((512, 512)) == (384, 384)
    assert of((300, 900)) == (384, 384)  # by area
    assert of(*[(500, 500)] * 3, (64, 64)) == (384, 384)
    save(tmp_path / "a.png", picture(1, 500))
    (tmp_path / "b.png").write_bytes(b"no image")
    assert working_size([tmp_path / "a.png", tmp_path / "b.png"]) == (384, 384)
    assert working_size([tmp_path / "b.png"]) == (256, 256)


def test_recipes_have_their_own_defaults() -> None:
    paper = make(recipe="paper", resize=None).validate_params()
    assert (paper.resize, paper.patch_grid, paper.max_bank_size) == ((256, 256), "fine", 32_768)
    assert make(backbone="resnet18").validate_params().recipe == "paper"
    white = make(resize=None).validate_params()
    assert white.recipe == "whitened"
    assert (white.resize, white.patch_grid, white.max_bank_size) == (None, "coarse", 10_000)
    fitted = make(resize=None).fit([picture(i, 420) for i in range(3)])
    assert fitted.params_.resize == (320, 320) and fitted.get_params()["resize"] is None
    assert fitted.predict_anomaly_map([picture(9, 64)]).shape == (1, 320, 320)


@pytest.mark.parametrize("region", [None, [[[0.1, 0.1], [0.6, 0.1], [0.6, 0.9]]]])
def test_saved_and_loaded(tmp_path: Path, region: Any) -> None:
    detector = make(roi=region).fit(IMAGES)
    detector.save(tmp_path / "d")
    loaded = load_model(tmp_path / "d")
    np.testing.assert_array_equal(loaded.decision_function(TEST), detector.decision_function(TEST))
    maps = detector.predict_anomaly_map(TEST)
    np.testing.assert_array_equal(loaded.predict_anomaly_map(TEST), maps)
    # which pixels of the border count depends on the image's own size, and the score does not
    np.testing.assert_allclose(detector.decision_function(TEST), maps.max((1, 2)), rtol=0.02)


def test_a_damaged_whitening_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from pyimgano.models.saving import ARRAYS

    make().fit(IMAGES).save(tmp_path / "d")
    arrays = load_file(tmp_path / "d" / ARRAYS)
    names = [name for name in arrays if name.endswith("whitening")]
    assert names
    arrays[names[0]] = arrays[names[0]][:5]
    save_file(arrays, tmp_path / "d" / ARRAYS)
    with pytest.raises(PyimganoError, match=r"d"):
        load_model(tmp_path / "d")


def test_scores_do_not_depend_on_company() -> None:
    detector = make().fit(IMAGES)
    together = detector.decision_function(TEST)
    alone = np.concatenate([detector.decision_function([image]) for image in TEST])
    np.testing.assert_array_equal(together, alone)
