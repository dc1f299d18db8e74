"""Greedy selection and nearest neighbours, held to plain versions of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.errors import UsageError
from pyimgano.models.bank import (
    ExhaustiveSearch,
    MemoryBank,
    exhaustive,
    greedy_coreset,
    grouped_points,
    memory_bank,
    random_projection,
    streamed_coreset,
)
from pyimgano.models.bank import coreset as coreset_module
from pyimgano.models.bank.projection import Projection
from pyimgano.models.bank.rounded import Rounded, RoundedRows

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
def test_tight_clusters_more_than_pivots(spread: float) -> None:
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
    update = coreset_module._update

    def counting(*arguments):  # type: ignore[no-untyped-def]
        updates[0] += 1
        update(*arguments)

    monkeypatch.setattr(coreset_module, "_update", counting)
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
    for pool, pivots, rows in ((64, 4, 128), (3000, 1, 5000), (256, 90, 300)):
        monkeypatch.setattr(coreset_module, "_POOL", pool)
        monkeypatch.setattr(coreset_module, "_PIVOTS", pivots)
        monkeypatch.setattr(grouped_points, "_ROWS", rows)
        monkeypatch.setattr(grouped_points, "_COLUMNS", rows)
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


def test_search_is_exact_where_much_is_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(4000, 16, 3, 0.5)
    asked = clusters(3000, 16, 3, 0.5) + 0.1
    looked_at = [0]
    compare, lower = grouped_points.GroupedPoints._compare, ExhaustiveSearch.lower

    monkeypatch.setattr(memory_bank, "_FEW", 0)
    monkeypatch.setattr(memory_bank, "is_quick", lambda device: False)
    dtypes = torch.bfloat16, torch.float32  # as long as anything is ruled out
    monkeypatch.setattr(exhaustive, "_COST", dict.fromkeys(dtypes, 1.0))

    def counting(self, rows, group, centres, candidates, *given):  # type: ignore[no-untyped-def]
        looked_at[0] += (rows.stop - rows.start) * len(candidates)
        compare(self, rows, group, centres, candidates, *given)

    def counting_all(self, queries, *given):  # type: ignore[no-untyped-def]
        looked_at[0] += len(queries) * len(self)
        lower(self, queries, *given)

    monkeypatch.setattr(grouped_points.GroupedPoints, "_compare", counting)
    monkeypatch.setattr(ExhaustiveSearch, "lower", counting_all)
    bank = MemoryBank(torch.from_numpy(features), torch.zeros(4000, dtype=torch.int64))
    distances, _ = bank.search(torch.from_numpy(asked))
    plain = torch.cdist(torch.from_numpy(asked).double(), torch.from_numpy(features).double())
    torch.testing.assert_close(distances.double(), plain.amin(1), rtol=1e-5, atol=1e-5)
    assert looked_at[0] < 0.5 * 4000 * 3000


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
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    project=st.booleans(),
    kind=st.sampled_from(["any", "whole numbers", "in few dimensions"]),
)
def test_bounds_of_rounding_hold(
    seed: int,
    scale: float,
    offset: float,
    masked: bool,
    dtype: torch.dtype,
    project: bool,
    kind: str,
) -> None:
    rng = np.random.default_rng(seed)
    a = torch.from_numpy((rng.normal(offset, scale, (20, 24))).astype(np.float32))
    b = torch.from_numpy((rng.normal(offset, scale, (50, 24))).astype(np.float32))
    b[:20] = a + torch.from_numpy(rng.normal(0, 0.01 * scale, (20, 24)).astype(np.float32))
    if kind == "whole numbers":  # that bfloat16 holds, so that products alone are rounded
        a, b = (torch.from_numpy(rng.integers(-9, 10, one.shape)).float() for one in (a, b))
    if kind == "in few dimensions":  # nothing but rounding is left out by a projection
        a[:, 5:] = b[:, 5:] = 0
    (x, off_x), (y, off_y) = (a, None), (b, None)
    if project:
        across = rng.normal(size=(24, 5))
        if kind == "in few dimensions":
            across[5:] = 0
        directions = np.linalg.qr(across)[0].astype(np.float32)
        (x, off_x), (y, off_y) = (Projection(torch.from_numpy(directions))(v) for v in (a, b))
    left = Rounded(x, left=True, dtype=dtype, moved=off_x)
    right = RoundedRows(y, dtype=dtype, fill=16, moved=off_y)
    entries = left.factors @ right.factors.T
    assert entries.shape == (20, 64) and entries[:, 50:].isposinf().all()
    true = (a.double()[:, None] - b.double()[None]).square().sum(-1)
    if masked:
        own = torch.arange(20)[:, None] == torch.arange(50)
        entries[:, :50].masked_fill_(own, torch.inf)
        true.masked_fill_(own, torch.inf)
    assert (right.floor(left, entries.amin(dim=1)).double() <= true.amin(1)).all()
    nearest = true.argmin(1)
    limit = right.limit(left, true.amin(1).float())
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
    ExhaustiveSearch(points).lower(points, nearest, winner, (same, same))
    assert nearest.isposinf().all() and (winner == -1).all()


def narrow(n: int, seed: int) -> np.ndarray:
    """In 256 dimensions, close to 20 of them, with clusters."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(256, 20)))[0]
    inside = clusters(n, 20, seed, 2.0) @ directions.T
    return (3 + inside + rng.normal(0, 0.02, (n, 256))).astype(np.float32)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("masked", ["no", "runs", "mixed"])
@pytest.mark.parametrize("kind", ["clusters", "narrow"])
def test_every_way_of_searching_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, half: bool, masked: str, kind: str
) -> None:
    """All rows in float32 or bfloat16, what pivots leave of them, or in fewer dimensions."""
    monkeypatch.setattr(exhaustive, "is_quick", lambda device: half)
    if kind == "clusters":
        features = torch.from_numpy(clusters(5000, 24, 3, 0.5))
        queries = torch.from_numpy(clusters(3000, 24, 3, 0.5) + 0.1)
    else:
        features, queries = torch.from_numpy(narrow(5000, 3)), torch.from_numpy(narrow(3000, 4))
    features[77] = features[4000]  # the first of equals is found
    queries[5] = features[77]
    image = torch.arange(5000) // 50
    asked = {"no": None, "runs": torch.arange(3000) // 100, "mixed": torch.arange(3000) % 30}[
        masked
    ]
    whole = MemoryBank(features, image)
    assert whole._all.projects == (kind == "narrow")
    found = {
        "whole": whole.search(queries, asked),
        "without pruning": MemoryBank(features, image, prune=False).search(queries, asked),
        "few at a time": tuple(
            torch.cat(parts)
            for parts in zip(
                *(
                    whole.search(queries[i : i + 70], None if asked is None else asked[i : i + 70])
                    for i in range(0, 3000, 70)
                ),
                strict=True,
            )
        ),
    }
    monkeypatch.setattr(memory_bank, "_FEW", 0)
    monkeypatch.setattr(memory_bank, "is_quick", lambda device: False)
    grouped = []
    lower = grouped_points.GroupedPoints.lower
    monkeypatch.setattr(
        grouped_points.GroupedPoints,
        "lower",
        lambda *given, **named: (grouped.append(1), lower(*given, **named)),
    )
    found["pruned"] = MemoryBank(features, image).search(queries, asked)
    assert bool(grouped) == (kind == "clusters")
    true = torch.cdist(queries.double(), features.double(), compute_mode=EXACT)
    if asked is not None:
        true.masked_fill_(asked[:, None] == image, torch.inf)
    nearest = true.amin(1)
    for way, (distances, rows) in found.items():
        assert torch.equal(distances, found["whole"][0]), way
        assert torch.equal(rows, found["whole"][1]), way
    distances, rows = found["whole"]
    torch.testing.assert_close(distances.double(), nearest, rtol=1e-5, atol=1e-6)
    assert int(rows[5]) == 77
    few, apart = whole._all.nearest_few(queries[:90], 7)
    assert int(few[5, 0]) == 77 and int(few[5, 1]) == 4000
    true = torch.cdist(queries[:90].double(), features.double(), compute_mode=EXACT)
    wanted = true.topk(7, largest=False).values
    torch.testing.assert_close(apart.sqrt().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(true.gather(1, few), wanted, rtol=1e-5, atol=1e-6)


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
        patched.setattr(exhaustive, "is_quick", lambda device: half)
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


@pytest.mark.parametrize("half", [False, True])
def test_what_seems_nearest_bounds_from_above(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    monkeypatch.setattr(exhaustive, "is_quick", lambda device: half)
    rows, queries = torch.from_numpy(clusters(700, 8, 3, 2.0)), clusters(90, 8, 4, 2.0)
    labels = torch.arange(90).int() % 3, torch.arange(700).int() % 3
    first = ExhaustiveSearch(rows).beginning(300)
    assert 300 <= len(first) <= 600
    away = torch.cdist(torch.from_numpy(queries), rows[: len(first)], compute_mode=EXACT)
    away.masked_fill_(labels[0][:, None] == labels[1][: len(first)], torch.inf)
    found = first.near(torch.from_numpy(queries), (labels[0], labels[1][: len(first)])).sqrt()
    assert (found >= away.amin(1) * (1 - 1e-6)).all()
    assert (found <= away.amin(1) * 1.1 + 0.1).all()
    same = torch.zeros(700).int()
    assert ExhaustiveSearch(rows).near(rows, (same, same)).isposinf().all()


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


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(2, 6), k=st.integers(1, 40), rows=st.integers(2, 300), seed=st.integers(0, 9)
)
def test_the_farthest_query_is_that_of_a_whole_search(
    images: int, k: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # coarse values, so that equal distances occur
    points = torch.from_numpy(rng.integers(0, 4, (rows, 3)).astype(np.float32))
    queries = torch.from_numpy(rng.integers(0, 5, (images, k, 3)).astype(np.float32))
    owner = torch.from_numpy(np.r_[0, 1, rng.integers(0, images, rows - 2)])
    bank, own = MemoryBank(points, owner), torch.arange(images)
    distances, nearest = bank.search(queries.flatten(0, 1), own.repeat_interleave(k))
    expected = distances.view(images, k).amax(dim=1)
    found, which, row = bank.farthest(queries, own)
    assert torch.equal(found, expected)
    first = (distances.view(images, k) == expected[:, None]).int().argmax(dim=1)
    assert torch.equal(which, first)
    assert torch.equal(row, nearest.view(images, k).gather(1, first[:, None]).squeeze(1))
