"""Greedy selection and nearest neighbours, held to plain versions of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.errors import UsageError
from pyimgano.models.neighbors import (
    ExhaustiveSearch,
    MemoryBank,
    greedy_coreset,
    grouped_points,
    random_projection,
    rounded_distances,
    streamed_coreset,
)
from pyimgano.models.neighbors import coreset as coreset_module
from pyimgano.models.neighbors import search as search_module
from pyimgano.models.neighbors.projection import Projection
from pyimgano.models.neighbors.rounded_distances import RoundedRows

# differences, not products
EXACT = "donot_use_mm_for_euclid_dist"


def textbook(features: np.ndarray, count: int, start: int) -> list[int]:
    """One distance per pick over all points, in the precision of the features."""
    points = torch.from_numpy(features)
    nearest = torch.full((len(points),), torch.inf)
    picked = [start]
    while len(picked) < count:
        nearest = torch.minimum(nearest, (points - points[picked[-1]]).square().sum(dim=1))
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return picked


def clusters(n: int, dim: int, seed: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 10, (7, dim))
    return (centres[rng.integers(0, 7, n)] + rng.normal(0, spread, (n, dim))).astype(np.float32)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])  # from clear clusters to none
@pytest.mark.parametrize(("n", "count"), [(9000, 900), (3000, 3000), (50, 7)])
def test_the_picks_are_the_textbooks(n: int, count: int, spread: float) -> None:
    features = clusters(n, 24, n, spread)
    found = greedy_coreset(torch.from_numpy(features), count, start=n // 3)
    assert found.tolist() == textbook(features, count, n // 3)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    dim=st.integers(1, 3),
    pool=st.integers(1, 8),
    pivots=st.integers(1, 6),
    data=st.data(),
)
def test_ties_go_to_the_lowest_index(
    n: int, dim: int, pool: int, pivots: int, data: st.DataObject
) -> None:
    """On a small grid many points coincide and many distances are equal, and exact."""
    seed = data.draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    # an even number of points, mirrored: the mean is 0 and centring keeps whole numbers
    half = rng.integers(-3, 4, (n, dim))
    features = np.concatenate([half, -half]).astype(np.float32)
    count = data.draw(st.integers(1, 2 * n))
    start = data.draw(st.integers(0, 2 * n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset_module, "_POOL", pool)
        patch.setattr(coreset_module, "_PIVOTS", pivots)
        patch.setattr(coreset_module, "_POINTS_PER_PIVOT", 4)
        found = greedy_coreset(torch.from_numpy(features), count, start=start)
    assert found.tolist() == textbook(features, count, start)


@pytest.mark.parametrize("spread", [1e-1, 1e-2])
def test_tight_clusters_far_from_each_other(spread: float) -> None:
    """Products of vectors cannot tell such neighbours apart; their differences can."""
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 10, (300, 24))
    points = centres[rng.integers(0, 300, 9000)] + rng.normal(0, spread, (9000, 24))
    features = points.astype(np.float32)
    found = greedy_coreset(torch.from_numpy(features), 1000, start=7)
    assert found.tolist() == textbook(features, 1000, 7)
    bank = MemoryBank(torch.from_numpy(features[:4000]), torch.zeros(4000, dtype=torch.int64))
    distances, _ = bank.search(torch.from_numpy(features[4000:6000]))
    away = torch.cdist(
        torch.from_numpy(features[4000:6000]).double(), torch.from_numpy(features[:4000]).double()
    )
    torch.testing.assert_close(distances.double(), away.amin(dim=1), rtol=1e-4, atol=0)


def test_copies_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once only copies of picks are left, the rest is filled up in order."""
    updates = [0]
    update = grouped_points.GroupedPoints.update

    def counting(*arguments):  # type: ignore[no-untyped-def]
        updates[0] += 1
        update(*arguments)

    monkeypatch.setattr(grouped_points.GroupedPoints, "update", counting)
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).repeat(100, 1)
    found = greedy_coreset(features, 500, start=60)
    assert found.tolist() == textbook(features.numpy(), 500, 60)
    assert updates[0] < 60


def test_identical_points_are_picked_once_each() -> None:
    found = greedy_coreset(torch.ones(40, 5), 40, start=3).tolist()
    assert sorted(found) == list(range(40))
    assert found[:4] == [3, 0, 1, 2]


def test_selection_does_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.from_numpy(clusters(6000, 16, 5, 2.0))
    whole = greedy_coreset(features, 1200)
    for pool, pivots, rows, few in ((64, 4, 128, 1.0), (3000, 1, 5000, 0.0), (256, 90, 300, 0.5)):
        monkeypatch.setattr(coreset_module, "_POOL", pool)
        monkeypatch.setattr(coreset_module, "_PIVOTS", pivots)
        monkeypatch.setattr(grouped_points, "_POINTS", rows)
        monkeypatch.setattr(grouped_points, "_CENTRES", rows)
        monkeypatch.setattr(grouped_points, "_FEW", few)
        monkeypatch.setattr(grouped_points, "_FEW_CENTRES", 0)
        monkeypatch.setattr(search_module, "_ON_CPU", (64 * rows, 2048))
        assert torch.equal(greedy_coreset(features, 1200), whole)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (11, 0), (3, 10), (3, -1)])
def test_numbers_out_of_range(count: int, start: int) -> None:
    with pytest.raises(UsageError):
        greedy_coreset(torch.zeros(10, 2), count, start=start)


def test_progress_ends_at_the_count() -> None:
    told: list[tuple[int, int]] = []
    greedy_coreset(torch.randn(500, 4), 100, progress=lambda a, b: told.append((a, b)))
    assert told[-1] == (100, 100) and all(a <= b for a, b in told)


def test_projection_keeps_distances_in_the_mean_and_is_the_seeds_alone() -> None:
    features = torch.from_numpy(clusters(300, 600, 1, 5.0))
    small = random_projection(features, 128, seed=4)
    assert small.shape == (300, 128)
    assert torch.equal(small, random_projection(features, 128, seed=4))
    ratio = torch.pdist(small) / torch.pdist(features)
    assert abs(ratio.mean() - 1) < 0.02 and ratio.std() < 0.1
    assert random_projection(features, None, 0) is features
    assert random_projection(features, 600, 0) is features


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 400),
    queries=st.integers(1, 300),
    spread=st.sampled_from([0.1, 2.0, 20.0]),
    images=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_search_finds_the_nearest(
    rows: int, queries: int, spread: float, images: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features = clusters(rows, 12, seed, spread)
    asked = np.concatenate([clusters(queries, 12, seed, spread), features[:5]])
    # at least two images, so that masking leaves a row for everyone
    image = np.concatenate([[0, 1], rng.integers(0, images, rows)])[: max(rows, 2)]
    features = np.concatenate([features, features[:1] + 1])[: max(rows, 2)]
    query_image = rng.integers(0, images + 1, len(asked))
    bank = MemoryBank(torch.from_numpy(features), torch.from_numpy(image))
    away = np.sqrt(((asked[:, None].astype(float) - features[None]) ** 2).sum(-1))
    for masked in (False, True):
        if masked:
            away[query_image[:, None] == image[None]] = np.inf
        distances, found = bank.search(
            torch.from_numpy(asked), torch.from_numpy(query_image) if masked else None
        )
        np.testing.assert_allclose(distances.numpy(), away.min(1), rtol=1e-4, atol=2e-3)
        chosen = away[np.arange(len(asked)), found.numpy()]
        np.testing.assert_allclose(chosen, away.min(1), rtol=1e-4, atol=2e-3)


def test_neighbourhood_is_sorted_masked_and_begins_with_itself() -> None:
    features = torch.from_numpy(clusters(200, 8, 2, 3.0))
    image = torch.arange(200) % 4
    bank = MemoryBank(features, image)
    rows = torch.tensor([5, 17, 120])
    found, valid = bank.neighbourhood(rows, 9)
    away = torch.cdist(features, features)
    assert valid.all() and found[:, 0].tolist() == [5, 17, 120]
    for row, neighbours in zip(rows, found, strict=True):
        assert neighbours.tolist() == away[row].argsort()[:9].tolist()
    masked, valid = bank.neighbourhood(rows, 9, torch.tensor([0, 0, 1]))
    assert valid.all()
    assert (image[masked] != torch.tensor([0, 0, 1])[:, None]).all()
    few, valid = MemoryBank(features[:4], image[:4]).neighbourhood(
        torch.tensor([1]), 9, torch.tensor([0])
    )
    assert few.shape == (1, 4) and valid.tolist() == [[True, True, True, False]]


def stream(features: np.ndarray, step: int, **keywords: object) -> streamed_coreset.StreamedCoreset:
    given = {"ratio": 0.1, "max_rows": 10**6, "projection_dim": None, "seed": 4, **keywords}
    builder = streamed_coreset.StreamedCoreset(expected=len(features), **given)  # type: ignore[arg-type]
    for start in range(0, len(features), step):
        builder.add(torch.from_numpy(features[start : start + step]))
    return builder


def radius(features: np.ndarray, bank: np.ndarray) -> float:
    """How far the farthest point is from the bank."""
    return float(torch.cdist(torch.from_numpy(features), torch.from_numpy(bank)).amin(1).max())


@pytest.mark.parametrize("step", [1, 7, 500])
def test_what_fits_in_one_block_is_the_textbooks(step: int) -> None:
    features = clusters(300, 8, 2, 1.0)
    builder = stream(features, step)
    bank, indices = builder.finish()
    start = int(np.random.default_rng(4).integers(300))
    assert indices.tolist() == textbook(features, 30, start)
    np.testing.assert_array_equal(bank.numpy(), features[indices])
    assert builder.single and builder.selections == 1 and builder.whole is not None
    np.testing.assert_array_equal(builder.whole.numpy(), features)


@pytest.mark.parametrize(("max_rows", "step"), [(10**6, 37), (120, 37), (120, 1000), (30, 9)])
def test_blocks_are_merged_and_reduced(
    monkeypatch: pytest.MonkeyPatch, max_rows: int, step: int
) -> None:
    monkeypatch.setattr(streamed_coreset, "BLOCK_ROWS", 400)
    features = clusters(2900, 8, 2, 1.0)
    builder = stream(features, step, max_rows=max_rows)
    bank, indices = builder.finish()
    assert not builder.single and builder.selections > 1 and builder.whole is None
    assert len(bank) == min(290, max_rows) and len(set(indices.tolist())) == len(indices)
    np.testing.assert_array_equal(bank.numpy(), features[indices])
    # a cover within a small factor of the one that sees all points at once
    best = radius(features, features[textbook(features, len(bank), 0)])
    assert radius(features, bank.numpy()) <= 2.5 * best
    again, same = stream(features, 13, max_rows=max_rows).finish()
    assert torch.equal(same, indices) and torch.equal(again, bank)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    offset=st.sampled_from([0.0, 5.0]),
    masked=st.booleans(),
    half=st.booleans(),
    project=st.booleans(),
    kind=st.sampled_from(["any", "whole numbers", "in few dimensions"]),
)
def test_bounds_of_rounding_hold(
    seed: int, scale: float, offset: float, masked: bool, half: bool, project: bool, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    a = torch.from_numpy((rng.normal(offset, scale, (20, 24))).astype(np.float32))
    b = torch.from_numpy((rng.normal(offset, scale, (50, 24))).astype(np.float32))
    b[:20] = a + torch.from_numpy(rng.normal(0, 0.01 * scale, (20, 24)).astype(np.float32))
    if kind == "whole numbers":  # that bfloat16 holds, so that products alone are rounded
        a = torch.from_numpy(rng.integers(-9, 10, a.shape)).float()
        half_of_b = torch.from_numpy(rng.integers(-9, 10, (25, 24))).float()
        b = torch.cat([half_of_b, -half_of_b])  # their mean is 0
    if kind == "in few dimensions":  # nothing but rounding is left out by a projection
        a[:, 5:] = b[:, 5:] = 0
    across = rng.normal(size=(24, 5))
    if kind == "in few dimensions":
        across[5:] = 0
    directions = torch.from_numpy(np.linalg.qr(across)[0].astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounded_distances, "has_bfloat16_units", lambda device: half)
        patch.setattr(Projection, "of", lambda rows: Projection(directions))
        rounded = RoundedRows(b, fill=16, project=project).distances(a)
    entries = rounded.entries
    assert entries.dtype == (torch.bfloat16 if half else torch.float32)
    assert entries.shape == (20, 64) and entries[:, 50:].isposinf().all()
    true = (a.double()[:, None] - b.double()[None]).square().sum(-1)
    if masked:
        own = torch.arange(20)[:, None] == torch.arange(50)
        entries[:, :50].masked_fill_(own, torch.inf)
        true.masked_fill_(own, torch.inf)
    assert (rounded.lower_bounds(entries.amin(dim=1)).double() <= true.amin(1)).all()
    nearest = true.argmin(1)
    limit = rounded.limits(true.amin(1).float())
    assert (entries[torch.arange(20), nearest] <= limit).all()


def test_what_overflows_is_not_near() -> None:
    """Squares of about 1e38 are the largest that there are; masked rows stay masked."""
    rows = torch.zeros(300, 1)
    rows[1] = 1.6e19
    bank = MemoryBank(rows, torch.arange(300))
    distances, nearest = bank.search(torch.full((1, 1), 1.6e19), torch.tensor([1]))
    assert int(nearest) != 1 and not distances.isnan().any()


def test_nothing_is_near_where_nothing_counts() -> None:
    points = torch.from_numpy(clusters(300, 8, 1, 1.0))
    nearest, winner = torch.full((300,), torch.inf), torch.full((300,), -1)
    same = torch.zeros(300, dtype=torch.int32)
    ExhaustiveSearch(points).update(points, nearest, winner, (same, same))
    assert nearest.isposinf().all() and (winner == -1).all()


def narrow(n: int, seed: int) -> np.ndarray:
    """In 256 dimensions, close to 20 of them, with clusters."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(256, 20)))[0]
    inside = clusters(n, 20, seed, 2.0) @ directions.T
    return (3 + inside + rng.normal(0, 0.02, (n, 256))).astype(np.float32)


@pytest.mark.parametrize("kind", ["clusters", "narrow"])
@pytest.mark.parametrize("masked", ["no", "runs", "mixed"])
def test_every_way_of_searching_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, masked: str, kind: str
) -> None:
    """In float32 or bfloat16, in all dimensions or in fewer, all queries together or a few."""
    if kind == "clusters":
        features = torch.from_numpy(clusters(5000, 24, 3, 0.5))
        queries = torch.from_numpy(clusters(1500, 24, 3, 0.5) + 0.1)
    else:
        features, queries = torch.from_numpy(narrow(5000, 3)), torch.from_numpy(narrow(1500, 4))
    features[77] = features[4000]  # the first of equals is found
    queries[5] = features[77]
    image = torch.arange(5000) // 50
    asked = {"no": None, "runs": torch.arange(1500) // 100, "mixed": torch.arange(1500) % 30}[
        masked
    ]
    true = torch.cdist(queries.double(), features.double(), compute_mode=EXACT)
    if asked is not None:
        true.masked_fill_(asked[:, None] == image, torch.inf)
    nearest, found = true.amin(1), {}
    for half in (False, True):
        monkeypatch.setattr(rounded_distances, "has_bfloat16_units", lambda device, h=half: h)
        bank = MemoryBank(features, image)
        assert (bank._rows._rounded._projection is not None) == (kind == "narrow")
        found[half, "whole"] = bank.search(queries, asked)
        parts = [
            bank.search(queries[i : i + 70], None if asked is None else asked[i : i + 70])
            for i in range(0, 1500, 70)
        ]
        found[half, "parts"] = tuple(torch.cat(some) for some in zip(*parts, strict=True))
        few, apart = ExhaustiveSearch(features).nearest_few(queries[:90], 7)
        assert int(few[5, 0]) == 77 and int(few[5, 1]) == 4000
        away = torch.cdist(queries[:90].double(), features.double(), compute_mode=EXACT)
        wanted = away.topk(7, largest=False).values
        torch.testing.assert_close(apart.sqrt().double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(away.gather(1, few), wanted, rtol=1e-5, atol=1e-6)
    distances, rows = found[False, "whole"]
    torch.testing.assert_close(distances.double(), nearest, rtol=1e-5, atol=1e-6)
    assert masked != "no" or int(rows[5]) == 77
    for way, (same, numbers) in found.items():
        assert torch.equal(same, distances) and torch.equal(numbers, rows), way


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 600), size=st.integers(1, 12), seed=st.integers(0, 99), half=st.booleans()
)
def test_the_nearest_few_are_those_of_a_sorted_list(
    rows: int, size: int, seed: int, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    # coarse values, so that equal distances occur
    points = rng.integers(0, 4, (rows, 3)).astype(np.float32)
    queries = rng.integers(0, 4, (9, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 9), rng.integers(0, 3, rows)
    size = min(size, rows)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rounded_distances, "has_bfloat16_units", lambda device: half)
        search = ExhaustiveSearch(torch.from_numpy(points))
    mine, theirs = (torch.from_numpy(one.astype(np.int32)) for one in labels)
    found, distances = search.nearest_few(torch.from_numpy(queries), size, (mine, theirs))
    away = np.square(queries[:, None] - points).sum(axis=2)
    away[labels[0][:, None] == labels[1]] = np.inf
    order = away.argsort(axis=1, kind="stable")[:, :size]
    wanted = np.take_along_axis(away, order, axis=1)
    np.testing.assert_array_equal(distances.numpy(), wanted)
    counted = np.isfinite(wanted)
    np.testing.assert_array_equal(found.numpy()[counted], order[counted])


def test_a_projection_is_tried_where_it_pays() -> None:
    assert Projection.of(torch.from_numpy(narrow(5000, 3))) is not None
    assert Projection.of(torch.from_numpy(narrow(500, 3))) is None  # few rows
    wide = np.random.default_rng(0).normal(size=(3000, 256)).astype(np.float32)
    assert Projection.of(torch.from_numpy(wide)) is None  # in all directions alike


def test_neighbourhoods_are_exact_far_from_the_mean() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 100, (8, 40))
    rows = (centres[rng.integers(0, 8, 400)] + rng.normal(0, 0.5, (400, 40))).astype(np.float32)
    bank = MemoryBank(torch.from_numpy(rows), torch.arange(400) // 4)
    asked = torch.arange(0, 400, 7)
    found, valid = bank.neighbourhood(asked, 9)
    true = torch.cdist(torch.from_numpy(rows).double(), torch.from_numpy(rows).double())
    assert valid.all() and (found[:, 0] == asked).all()
    wanted = true[asked].topk(9, largest=False).values
    torch.testing.assert_close(true[asked[:, None], found], wanted, rtol=1e-6, atol=1e-9)
