"""The default recipe of vision_patchcore, held to a plain version of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from pyimgano.backbones import create_backbone
from pyimgano.errors import PyimganoError
from pyimgano.images import resize_image
from pyimgano.models import create_model, load_model
from pyimgano.models.neighbors import Moments, PooledCoreset, Whitening
from pyimgano.models.neighbors.nuisance_covariance import STRENGTHS, NuisanceCovariance
from pyimgano.models.nuisance import DRIFT, DRIFT_OF_FEW, EVERYDAY, drift_copies, everyday_copies
from pyimgano.models.on_backbone import features_of
from pyimgano.models.power_means import CONTEXT_POWER, NEAR_POWER, joint_score, power_mean
from pyimgano.models.working_size import working_size
from tests.conftest import picture, save

IMAGES = [picture(i) for i in range(6)]
TEST = [picture(50 + i, spot=i % 2 == 1) for i in range(4)]
SIZE = (64, 96)
DISTANCES = st.floats(0.0, 1e4, width=32)
LAYERS = ("blocks.4", "blocks.10", "blocks.14")


def make(**keywords: Any) -> Any:
    return create_model("vision_patchcore", **{"resize": SIZE, "device": "cpu", **keywords})


def plain_features(images: list[npt.NDArray[np.uint8]], size: tuple[int, int]) -> list[Any]:
    """(N, h, w, D) of the near layers, averaged over 3x3, the finer one over 2x2 of those, side by
    side; and of the deeper one on its own grid."""
    backbone = create_backbone(device="cpu", engine="torch", layers=LAYERS)
    maps = backbone.features([resize_image(image, size) for image in images])
    fine, middle, deep = [
        torch.nn.functional.avg_pool2d(m.double(), 3, 1, 1, count_include_pad=False) for m in maps
    ]
    near = torch.cat([torch.nn.functional.avg_pool2d(fine, 2), middle], dim=1)
    return [np.asarray(one.permute(0, 2, 3, 1)) for one in (near, deep)]


def plain_moved(images: list[npt.NDArray[np.uint8]], size: tuple[int, int]) -> Any:
    """Which images there are disturbed copies of, which of these by an everyday disturbance, and
    how far the features of each moved."""
    numbers = range(len(images))
    copies = [*everyday_copies(numbers, 1, 0), *drift_copies(numbers, 0)]
    clean = plain_features(images, size)
    found = plain_features([copy.alter(images[copy.image]) for copy in copies], size)
    owner = np.array([copy.image for copy in copies])
    everyday = np.array([copy.disturbance in EVERYDAY for copy in copies])
    return owner, everyday, [copied - own[owner] for own, copied in zip(clean, found, strict=True)]


def plain_whitened(
    rows: npt.NDArray[np.float64], moved: npt.NDArray[np.float64], strength: float, of: Any
) -> Any:
    """`of` (..., D), whitened by what `rows` are like, and by how far features moved."""
    rows, moved = (some.reshape(-1, some.shape[-1]) for some in (rows, moved))
    covariance = np.cov(rows.T, bias=True)
    covariance += strength * moved.T @ moved / len(moved)
    variances, directions = np.linalg.eigh(covariance)
    return (of - rows.mean(0)) @ directions / np.sqrt(variances + 0.01 * variances.mean())


class PlainMemory:
    """One grid's memory, in as few words as it can be said in."""

    def __init__(
        self, train: Any, owner: Any, moved: Any, strength: float, picked: Any, border: int
    ) -> None:
        self.train, self.picked, self.border = train, picked, border
        self.moved, self.strength = moved, strength
        self.n, self.h, self.w, self.width = train.shape
        self.owner = picked // (self.h * self.w)
        self.bank = self.whitened(train).reshape(-1, self.width)[picked]
        away = ((self.bank[:, None] - self.bank[None]) ** 2).sum(-1)
        self.around = away.argsort(1, kind="stable")[:, :10]
        # each of fewer than ten images is whitened, and the bank with it, by what the others say
        each = []
        for i in range(self.n):
            others = np.delete(train, i, axis=0), moved[owner != i], strength
            memory = plain_whitened(*others, train).reshape(-1, self.width)[picked]
            memory[self.owner == i] = np.inf
            each.append(self.nearest(plain_whitened(*others, train[i : i + 1]), memory))
        self.left_out = np.concatenate([one for one, _ in each])  # (n, hw)
        self.rows = np.concatenate([rows for _, rows in each])

    def whitened(self, of: Any) -> Any:
        return plain_whitened(self.train, self.moved, self.strength, of)

    def nearest(self, patches: Any, memory: Any) -> Any:
        flat = patches.reshape(-1, self.width)
        away = np.sqrt(((flat[:, None] - memory[None]) ** 2).sum(-1))
        return away.min(1).reshape(len(patches), -1), away.argmin(1).reshape(len(patches), -1)

    def scales(self, images: list[int]) -> Any:
        """What is divided by, for rows and for cells, from the distances of these images."""
        distances, rows, m = self.left_out[images], self.rows[images], len(self.bank)
        mean = distances.mean()
        scale = np.ones(m)
        for row in range(m):
            mine = distances[np.isin(rows, self.around[row])]
            scale[row] = np.sqrt((mine.sum() + 5 * mean) / (len(mine) + 5) / mean)
        scaled = (distances / scale[rows]).reshape(-1, self.h, self.w)
        d = self.border

        def large(some: Any) -> Any:
            return some.mean() + 2 * some.std()  # of fewer than ten images all count

        usual, border = large(scaled[:, d:-d, d:-d]), np.ones((self.h, self.w))
        for j in range(d):
            for k in (j, self.h - 1 - j):
                border[k] = np.maximum(border[k], large(scaled[:, k]) / usual)
            for k in (j, self.w - 1 - j):
                border[:, k] = np.maximum(border[:, k], large(scaled[:, :, k]) / usual)
        return scale, np.minimum(border, 2.0).ravel()

    def unseen(self) -> Any:
        found = []
        for i in range(self.n):
            scale, border = self.scales([j for j in range(self.n) if j != i])
            found.append(self.left_out[i] / scale[self.rows[i]] / border)
        return np.stack(found)

    def distances(self, patches: Any) -> Any:
        scale, border = self.scales(list(range(self.n)))
        away, rows = self.nearest(self.whitened(patches), self.bank)
        return away / scale[rows] / border


def shaded(image: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """Darker around a place of its own, so that no image is a copy of another."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    row, column = np.random.default_rng([seed, 1]).uniform(0, image.shape[:2])
    dark = 0.6 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (0.1 * image.size / 3))
    return np.asarray(image * (1 - dark[:, :, None]), np.uint8)


def test_against_a_plain_version() -> None:
    size = (192, 160)
    images, test = (
        [shaded(picture(i, 200), i) for i in range(6)],
        [shaded(picture(50, 200), 50), shaded(picture(51, 200, spot=True), 51)],
    )
    detector = make(engine="torch", resize=size).fit(images)
    train, new = plain_features(images, size), plain_features(test, size)
    n, h, w, _ = train[0].shape
    assert detector.grid_ == (h, w) == (12, 10) and train[1].shape[1:3] == (6, 5)
    picked = detector.coreset_indices_.numpy()
    assert len(picked) == round(n * h * w * 0.1) and len(set(picked)) == len(picked)
    owner, everyday, moved = plain_moved(images, size)
    memories = [memory for _, memory, _ in detector.learned_.memories.memories()]
    strengths = [memory.strength for memory in memories]
    assert set(strengths) <= set(STRENGTHS)
    near, context = (
        PlainMemory(one, owner[counts], far[counts], strength, memory.indices.numpy(), border)
        for one, far, strength, memory, border, counts in zip(
            train,
            moved,
            strengths,
            memories,
            (2, 1),
            (everyday if strength == STRENGTHS[0] else everyday | True for strength in strengths),
        )
    )

    def plain_maps(distances: Any) -> Any:
        grid = torch.from_numpy(distances.reshape(-1, 1, h, w))
        up = torch.nn.functional.interpolate(grid, size=size, mode="bilinear")[:, 0].numpy()
        sigma = 4.0 / 256 * np.sqrt(size[0] * size[1])
        return np.stack([gaussian_filter(one, sigma) for one in up])

    def mean(distances: Any, power: int) -> Any:
        return (distances**power).mean(1) ** (1 / power)

    def joint(near: Any, around: Any) -> Any:
        return ((near**12 + 0.5 * around**12) / 1.5) ** (1 / 12)

    unseen = mean(near.unseen(), 24), mean(context.unseen(), 16)
    units = np.median(unseen[0]), np.median(unseen[1])
    here, around = near.distances(new[0]) / units[0], context.distances(new[1]) / units[1]
    np.testing.assert_allclose(detector.predict_anomaly_map(test), plain_maps(here), rtol=2e-3)
    scores = joint(mean(here, 24), mean(around, 16))
    np.testing.assert_allclose(detector.decision_function(test), scores, rtol=2e-3)
    own = joint(unseen[0] / units[0], unseen[1] / units[1])
    np.testing.assert_allclose(detector.decision_scores_, own, rtol=2e-3)


def test_the_border_of_the_frame_is_no_defect() -> None:
    """Where distances at the border are larger in good images, they are brought down to the rest;
    where they are smaller, nothing is blown up."""
    from pyimgano.models.neighbors.patch_memory import _Scaling

    rng = np.random.default_rng(0)
    distances = rng.uniform(1, 2, (20, 6, 6)).astype(np.float32)
    distances[:, 0] *= 1.5
    distances[:, :, 5] /= 3
    distances[7, 0] *= 50  # one odd image does not excuse defects there
    cell = np.arange(36)
    borders = [cell[cell // 6 == 0], cell[cell % 6 == 5], cell[(cell // 6 > 0) & (cell % 6 < 5)]]
    rows, fold = np.zeros(720, np.int64), np.arange(20).repeat(36) % 10
    scaling = _Scaling(distances.ravel(), rows, fold, np.zeros((1, 1), np.int64), 36, borders)
    scale, border = scaling.learned()
    np.testing.assert_allclose(scale, 1.0, rtol=1e-6)
    assert (border[6:] == 1.0).all() and np.allclose(border[:5], 1.5, rtol=0.1)


def test_a_scale_is_learned_without_the_image_that_it_is_used_on() -> None:
    """One training image with defects at places of its own does not excuse them."""
    from pyimgano.models.neighbors.patch_memory import _Scaling

    distances = np.ones((10, 4), np.float32)
    distances[3, 2] = 100.0
    rows = np.tile(np.arange(4), 10)
    fold = np.arange(10).repeat(4)
    around = np.arange(4)[:, None]
    scaling = _Scaling(distances.ravel(), rows, fold, around, 4, [np.arange(4)])
    assert scaling.learned()[0][2] > 1.3
    np.testing.assert_allclose(scaling.learned(without=3)[0], 1.0)


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
    assert np.array_equal(coreset._pool[: coreset._filled, 0].numpy(), numbers)
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
    assert of((900, 900)) == of((4000, 3500)) == (512, 512)
    assert of((512, 512)) == (384, 384)
    assert of((500, 1250)) == (320, 800)  # as many pixels as a square of 512, in their shape
    assert of((900, 300)) == (672, 224)
    assert of((40, 4000)) == (160, 640)  # never longer than four times its width
    assert of(*[(500, 1250)] * 3, (1250, 500)) == (320, 800)  # as most of them are
    assert of(*[(300, 900)] * 2, *[(900, 300)] * 2) == (384, 384)  # of no one shape
    assert of(*[(300, 900), (400, 800), (450, 700), (500, 640), (500, 500)]) == (448, 448)
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


def test_a_damaged_whitening_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from pyimgano.models.saved import ARRAYS

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


@pytest.mark.filterwarnings("error")
def test_images_kept_for_calibration_are_of_all_parts() -> None:
    """Also where every tenth image is kept, of which scales are learned without their own part."""
    from pyimgano.models.evenly_spread import EvenlySpread
    from pyimgano.models.neighbors import PatchMemoryLearner

    patches = torch.randn((100, 16, 6), generator=torch.Generator().manual_seed(0))
    for part in (10, 1):
        learner = PatchMemoryLearner(
            grid=(4, 4),
            size=(128, 128),
            cells=None,
            spread=EvenlySpread(100, part),
            like=patches[0],
            images=100,
            max_rows=200,
            ratio=0.1,
            projection_dim=None,
            seed=0,
            progress=None,
        )
        for some in patches.split(8):
            learner.add(some)
        memory = learner.finish()
        numbers = torch.arange(0, 100, 100 // part)
        folds = learner._coreset.fold_of(numbers * 16)
        assert len(folds.unique()) == part
        assert learner.unseen.shape == (part, 16) and learner.several
        assert memory.border.min() >= 1.0 and learner.unseen.isfinite().all()


def test_a_fit_that_fails_keeps_nothing(tmp_path: Path) -> None:
    images = [*(save(tmp_path / f"{i}.png", picture(i)) for i in range(4)), tmp_path / "no.png"]
    detector = make()
    with pytest.raises(PyimganoError, match=r"no\.png"):
        detector.fit(images)
    assert not {"_learners", "_unseen_peaks", "_memories"} & set(vars(detector))
    detector.fit(images[:4]).set_params(recipe="paper").fit(images[:4])
    assert not {"_learners", "_unseen_peaks", "_memories", "_context_cells"} & set(vars(detector))


def test_few_that_can_be_read_of_many() -> None:
    detector = make(max_bank_size=1)
    missing = [f"missing{i}.png" for i in range(60)]
    detector.fit([*IMAGES[:2], *missing], on_error="skip")
    assert detector.n_train_ == 2 and np.isfinite(detector.threshold_)


def test_in_sample_says_how_many_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyimgano.models import evenly_spread

    monkeypatch.setattr(evenly_spread, "_IMAGES", 3)
    for calibration in ("in-sample", "out-of-sample"):
        notes = make(calibration=calibration).fit(IMAGES).calibration_.notes
        assert any("3 of the 6 training images" in note for note in notes)


def test_half_precision_is_kept_and_not_exported(tmp_path: Path) -> None:
    from pyimgano.errors import UsageError

    detector = make(precision="bfloat16", engine="torch").fit(IMAGES)
    detector.save(tmp_path / "d")
    loaded = load_model(tmp_path / "d")
    np.testing.assert_array_equal(loaded.decision_function(TEST), detector.decision_function(TEST))
    with pytest.raises(UsageError, match=r"computes in bfloat16 .* precision='float32'"):
        loaded.export_graph()


@pytest.mark.parametrize(("name", "value"), [("scale", 3.0), ("border", 0.5), ("unit", -1.0)])
def test_scales_out_of_range_are_refused(tmp_path: Path, name: str, value: float) -> None:
    from pyimgano.errors import SavedModelError
    from pyimgano.models.near_and_context import NearAndContext
    from pyimgano.models.saved_state import SavedState

    detector = make().fit(IMAGES)
    state = detector.learned_.state()
    arrays, facts = dict(state.arrays), dict(state.facts)
    if name in facts:
        facts[name] = value
    else:
        arrays[name] = np.full_like(arrays[name], value)
    memories = detector.learned_.memories
    cells = [len(memories.near.border), len(memories.context.border)]
    with pytest.raises(SavedModelError, match=name):
        NearAndContext.restored(SavedState(arrays, facts), memories.near.bank, cells, 192)


#: How many there are of how many images with how many patches.
EVERYDAY_COPIES = {
    (1, 256): 6,
    (2, 256): 12,
    (3, 1): 12,
    (5, 256): 12,
    (17, 4096): 12,
    (18, 4096): 18,
    (40, 256): 18,
    (100, 256): 36,
    (160, 256): 60,
    (209, 1024): 36,
    (999, 484): 72,
}


def test_disturbed_copies_are_of_all_kinds_and_images() -> None:
    """Whichever image is left out, every kind is still there, if there are two or more."""
    assert len({one.name for one in (*EVERYDAY, *DRIFT)}) == len(EVERYDAY) + len(DRIFT)
    made: list[Any] = []
    for (n, cells), count in EVERYDAY_COPIES.items():
        made.append((everyday_copies(range(0, 3 * n, 3), cells, 0), EVERYDAY, n, count))
    for n, kinds, count in ((3, DRIFT_OF_FEW, 16), (43, DRIFT_OF_FEW, 16), (44, DRIFT, 44)):
        made.append((drift_copies(range(0, 3 * n, 3), 0), kinds, n, count))
    made.append((drift_copies(range(0, 3 * 999, 3), 0), DRIFT, 999, 44))
    for copies, disturbances, n, count in made:
        kinds = {one.name for one in disturbances}
        assert {copy.image for copy in copies} <= set(range(0, 3 * n, 3))
        assert [copy.image for copy in copies] == sorted(copy.image for copy in copies)
        assert len(copies) == count
        for left_out in {copy.image for copy in copies} if n > 1 else ():
            rest = {copy.disturbance.name for copy in copies if copy.image != left_out}
            assert rest == kinds


@pytest.mark.parametrize("grey", [False, True])
def test_disturbances_are_drawn_from_the_seed_alone(grey: bool) -> None:
    """And change an image a little: a grey one stays grey."""
    image = picture(3, 400)  # of fewer pixels the mildest blur is none
    if grey:
        image = np.repeat(image[:, :, :1], 3, axis=2)
    before = image.copy()
    for copy in (*everyday_copies([7], 256, 5), *drift_copies([7], 5)):
        found = copy.alter(image)
        assert found.dtype == np.uint8 and found.shape == image.shape
        np.testing.assert_array_equal(found, copy.alter(image))
        assert not np.array_equal(found, image)
        assert np.abs(found.astype(int) - image).mean() < 25
        if grey:
            assert (found == found[:, :, :1]).all()
    np.testing.assert_array_equal(image, before)
    first, second = (everyday_copies([7], 256, seed)[2].alter(image) for seed in (0, 1))
    assert not np.array_equal(first, second)


def flat_parts(n: int) -> list[npt.NDArray[np.uint8]]:
    """Parts that differ by a spot's place and shade, without any noise of a sensor."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:96]
    parts = []
    for _ in range(n):
        at = rng.uniform(40, 56, 2)
        grey = 90 + rng.uniform(60, 100) * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 400)
        parts.append(np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8))
    return parts


def test_good_images_stay_good_when_they_are_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the nuisance their scores are far larger: what the test is worth."""
    from pyimgano.images import distort
    from pyimgano.models import patchcore_whitened

    images = flat_parts(24)
    new, rng = flat_parts(30)[24:], np.random.default_rng(1)
    changed = [distort.jpeg(image, rng, quality=80) for image in new]

    def ratio() -> float:
        detector = make(resize=(96, 96)).fit(images)
        clean, found = detector.decision_function(new), detector.decision_function(changed)
        return float(np.median(found) / np.median(clean))

    mended = ratio()
    monkeypatch.setattr(patchcore_whitened, "everyday_copies", lambda images, cells, seed: [])
    assert mended < 1.0 + 0.5 * (ratio() - 1.0)


def test_what_nuisance_counts_follows_the_images() -> None:
    """Little where good images differ more than disturbed ones do from themselves, much if not."""
    rng = torch.Generator().manual_seed(0)
    pool = torch.randn((400, 6), generator=rng)
    images = torch.arange(400) // 20
    clean = pool.view(20, 20, 6)[:8]

    def enough(moved: float, spread: float) -> bool:
        nuisance = NuisanceCovariance(10)
        scale = torch.exp(spread * torch.randn((8, 1, 1), generator=rng))
        away = moved * torch.randn(clean.shape, generator=rng)
        fold = torch.zeros(clean.shape[:2], dtype=torch.int64)
        kinds = ["a", "b"] * 4
        nuisance.add(clean * scale, clean * scale + away, fold, range(8), kinds, [True] * 8)
        whitening = Whitening.of(Moments.of(pool), pool[:0])  # that heeds none of it
        return nuisance.enough(whitening, pool, images)

    assert enough(moved=0.01, spread=0.5)
    assert not enough(moved=3.0, spread=0.0)


def test_what_an_image_is_scored_by_does_not_know_its_disturbed_copies() -> None:
    """Of a fold no movement is learned for its own whitening."""
    rows = torch.randn((10, 16, 5), generator=torch.Generator().manual_seed(0))
    coreset = PooledCoreset(
        pool_size=160, cells=16, expected=160, ratio=0.5, max_rows=80, projection_dim=None, seed=0
    )
    coreset.add(rows.flatten(0, 1))
    moved = torch.zeros_like(rows)
    moved[3, :, 0] = 10.0  # the fourth image alone moves, and far
    moved[5:8, :, 1] = 0.1
    numbers = [3, 5, 6, 7]
    coreset.disturbed(rows[numbers], (rows + moved)[numbers], numbers, ["a"] * 4, [True] * 4)
    coreset.finish()

    def length(whitening: Whitening) -> float:
        return float(whitening.matrix[0].norm())

    assert length(coreset.whitening_without(3)) > 5 * length(coreset.whitening)
    assert length(coreset.whitening_without(5)) < 1.2 * length(coreset.whitening)


def test_arrays_files_and_grey_files_of_16_bits_are_disturbed_alike(tmp_path: Path) -> None:
    import cv2

    grey = [picture(i)[:, :, 0] for i in range(5)]
    arrays = [np.repeat(one[:, :, None], 3, axis=2) for one in grey]
    files, deep = [], []
    for i, one in enumerate(grey):
        files.append(save(tmp_path / f"{i}.png", arrays[i]))
        deep.append(tmp_path / f"{i}-16.png")
        cv2.imwrite(str(deep[-1]), one.astype(np.uint16) * 257)
    first, *others = (make().fit(some).decision_scores_ for some in (arrays, files, deep))
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_are_disturbed_too(count: int) -> None:
    detector = make().fit(IMAGES[:count])
    scores = detector.decision_function(TEST)
    assert np.isfinite(scores).all() and np.isfinite(detector.decision_scores_).all()
    strengths = [memory.strength for _, memory, _ in detector.learned_.memories.memories()]
    assert count == 5 or set(strengths) == {STRENGTHS[0]}


def test_drift_is_looked_at_only_where_everyday_disturbances_are_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyimgano.models import patchcore_whitened

    asked: list[int] = []

    def counted(images: Any, seed: int) -> Any:
        asked.append(len(images))
        return drift_copies(images, seed)

    monkeypatch.setattr(patchcore_whitened, "drift_copies", counted)
    different = [shaded(picture(i, 96), i) for i in range(24)]
    alike = [np.roll(picture(i, 96), (17 * i, 7 * i), (0, 1)) for i in range(8)]
    for images, counts in ((different, []), (alike, [8])):
        detector = make(resize=(96, 96)).fit(images)
        assert asked == counts
        strengths = [memory.strength for _, memory, _ in detector.learned_.memories.memories()]
        assert (max(strengths) > STRENGTHS[0]) == bool(counts)


def test_the_default_threshold_stays_above_slightly_disturbed_good_images(tmp_path: Path) -> None:
    parts = flat_parts(44)
    detector = make().fit(parts)
    now = detector.calibration_
    assert now.disturbed_score is not None and now.disturbance is not None
    assert now.threshold == np.nextafter(now.disturbed_score, np.inf)
    assert now.threshold > detector.decision_scores_.max()
    assert now.disturbance in now.notes[-1]
    detector.save(tmp_path / "raised")
    loaded = load_model(tmp_path / "raised")
    assert loaded.calibration_ == now
    assert loaded.recalibrate(tail="conformal").threshold_ == now.threshold
    lower = loaded.recalibrate(quantile=0.9)
    assert lower.threshold_ < now.threshold and lower.calibration_.disturbed_score is None
    # a quantile that somebody chose is taken as it is
    chosen = make(calibration_quantile=0.995).fit(parts)
    assert chosen.threshold_ < now.threshold and chosen.calibration_.disturbed_score is None


def test_thresholds_are_raised_only_where_everyday_disturbances_stand_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyimgano.models import patchcore_whitened

    monkeypatch.setattr(patchcore_whitened, "are_enough_for_drift", lambda _: True)
    assert make().fit(flat_parts(24)).calibration_.disturbed_score is not None
    different = [shaded(picture(i, 96), i) for i in range(24)]
    assert make(resize=(96, 96)).fit(different).calibration_.disturbed_score is None


def test_few_images_raise_no_threshold() -> None:
    assert make().fit(flat_parts(43)).calibration_.disturbed_score is None


def test_detectors_saved_before_thresholds_were_raised_still_load(tmp_path: Path) -> None:
    make().fit(IMAGES).save(tmp_path / "old")
    document = next(
        one for one in (tmp_path / "old").glob("*.json") if "calibration" in one.read_text()
    )
    facts = json.loads(document.read_text())
    for name in ("disturbed_score", "disturbance"):
        del facts["calibration"][name]
    document.write_text(json.dumps(facts))
    assert load_model(tmp_path / "old").calibration_.disturbed_score is None


def test_detectors_saved_before_there_was_a_nuisance_still_load() -> None:
    from pyimgano.models.near_and_context import NearAndContext
    from pyimgano.models.saved_state import SavedState

    detector = make().fit(IMAGES)
    state = detector.learned_.state()
    facts = {name: one for name, one in state.facts.items() if "nuisance" not in name}
    assert len(facts) == len(state.facts) - 2
    memories = detector.learned_.memories
    cells = [len(memories.near.border), len(memories.context.border)]
    loaded = NearAndContext.restored(
        SavedState(state.arrays, facts), memories.near.bank, cells, 192
    )
    assert loaded.near.strength is loaded.context.strength is None


def test_detectors_saved_before_scores_were_power_means_score_as_they_did(tmp_path: Path) -> None:
    """The peak of the map and a half of the largest distance around, exported too."""
    detector = make().fit(IMAGES)
    detector.save(tmp_path / "d")
    document = json.loads((tmp_path / "d" / "detector.json").read_text())
    assert document["state"].pop("score") == "power means"
    (tmp_path / "d" / "detector.json").write_text(json.dumps(document))
    loaded = load_model(tmp_path / "d")
    learned = loaded.learned_
    assert not learned.memories.power_means and detector.learned_.memories.power_means
    assert learned.context_counts and not detector.learned_.context_counts
    features = features_of(learned.backbone, [resize_image(one, SIZE) for one in TEST])
    _, context = learned.memories.distances([some.flatten(1, 2) for some in features])
    expected = loaded.predict_anomaly_map(TEST).max((1, 2)) + 0.5 * context.amax(1).numpy()
    np.testing.assert_allclose(loaded.decision_function(TEST), expected, rtol=1e-6)
    pixels = torch.from_numpy(np.stack([resize_image(one, SIZE) for one in TEST]))
    graph = loaded.export_graph()
    found, _, _ = graph(pixels)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-3)
    document["state"]["score"] = "no score"
    (tmp_path / "d" / "detector.json").write_text(json.dumps(document))
    with pytest.raises(PyimganoError, match="score"):
        load_model(tmp_path / "d")


@given(
    distances=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        elements=st.just(0.0) | st.floats(0.125, 1e4, width=32),
    ),
    scale=st.sampled_from((1e-30, 1.0, 1e30)),
    power=st.sampled_from((NEAR_POWER, CONTEXT_POWER)),
)
def test_a_power_mean_is_below_the_largest_and_follows_it(
    distances: Any, scale: float, power: int
) -> None:
    given_ = torch.from_numpy(distances * np.float32(scale))
    found = power_mean(given_, power)
    largest, k = given_.amax(dim=1), given_.shape[1]
    assert found.isfinite().all() and found.dtype == torch.float32
    assert (found <= largest * (1 + 1e-6)).all()
    assert (found >= largest * k ** (-1 / power) * (1 - 1e-6)).all()
    assert torch.equal(power_mean(given_[:1], power), found[:1])
    one_more = torch.cat([given_, largest[:, None]], dim=1)  # two that stand out count more
    assert (power_mean(one_more, power) >= found * (1 - 1e-6)).all()


@given(near=DISTANCES, around=DISTANCES, more=DISTANCES)
def test_a_joint_score_grows_with_either_and_is_one_where_both_are(
    near: float, around: float, more: float
) -> None:
    def joint(a: float, b: float) -> float:
        return float(joint_score(torch.tensor([a]), torch.tensor([b])))

    found = joint(near, around)
    assert joint(near + more, around) >= found * (1 - 1e-6)
    assert joint(near, around + more) >= found * (1 - 1e-6)
    assert joint(near, near) == pytest.approx(near, rel=1e-6)
    # what one finds is hardly diluted by the other's finding nothing
    assert found >= max(near * 1.5 ** (-1 / 12), around * 3 ** (-1 / 12)) * (1 - 1e-6)
    assert joint_score(torch.tensor([near]), None) == torch.tensor([near])
