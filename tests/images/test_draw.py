"""Heat maps over images, and regions of maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyimgano.calibration import score_ratio
from pyimgano.images.draw import draw_overlay
from pyimgano.images.map_scale import MapScale
from pyimgano.inference import find_regions
from pyimgano.inference.regions import at_size, deciding_regions
from tests.pixel_detector import plain

SCALE = MapScale(0.0, 5.0)


def test_what_scores_low_is_left_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    before = image.copy()
    drawn = draw_overlay(image, np.full((300, 200), -3.0, np.float32), SCALE)
    np.testing.assert_array_equal(drawn[:300], image)
    np.testing.assert_array_equal(image, before)
    assert drawn.dtype == np.uint8 and drawn.shape[1:] == (200, 3) and drawn.shape[0] > 300


def test_colour_and_opacity_grow_with_the_score_and_with_nothing_else() -> None:
    grey = plain(100, 64, 64)
    scores = np.zeros((64, 64), np.float32)
    scores[10, 10], scores[20, 20], scores[30, 30], scores[40, 40] = 3.5, 6, 10, 1e6
    drawn = draw_overlay(grey, scores, SCALE).astype(int)
    away = [np.abs(drawn[at, at] - 100).sum() for at in (0, 10, 20, 30, 40)]
    assert away[0] == 0 < away[1] < away[2] < away[3] == away[4]
    assert drawn[10, 10, 2] > drawn[10, 10, 0]  # blue below
    assert drawn[30, 30, 0] > drawn[30, 30, 2]  # red above
    alone = draw_overlay(grey, np.where(scores == 3.5, scores, 0), SCALE)
    np.testing.assert_array_equal(alone[10, 10], drawn[10, 10])  # whatever else is in the image


def test_rows_are_drawn_alike_in_every_block() -> None:
    image = plain(90, 700, 170)
    scores = np.tile(np.linspace(0, 10, 170, dtype=np.float32), (700, 1))
    drawn = draw_overlay(image, scores, SCALE)
    assert (drawn[:700] == drawn[0]).all()


def test_outlines_follow_the_regions() -> None:
    mask = np.zeros((90, 100), bool)
    mask[20:50, 30:70] = True
    drawn = draw_overlay(plain(128, 90, 100), np.zeros((90, 100), np.float32), SCALE, outline=mask)
    changed = (drawn != 128).any(axis=2)
    assert changed[20, 30:70].all() and changed[49, 30:70].all() and changed[20:50, 30].all()
    assert not changed[30:40, 40:60].any() and not changed[60:].any()
    assert drawn[20, 50].min() > 200 > 100 > drawn[18, 50].max()  # light within dark


def test_the_legend_takes_rows_of_its_own_and_its_caption_is_drawn() -> None:
    none, some = (
        draw_overlay(plain(9, 400, 600), np.zeros((400, 600), np.float32), SCALE, caption=caption)
        for caption in ("", "DEFECT  score 1.0")
    )
    assert none.shape == some.shape and none.shape[0] > 400
    assert (none[:400] == 9).all() and (none[400:] != some[400:]).any()
    long = draw_overlay(
        plain(9, 400, 600), np.zeros((400, 600), np.float32), SCALE, caption="x" * 300
    )
    right = 600 - 600 // 4
    np.testing.assert_array_equal(long[400:, right:], none[400:, right:])  # does not run over it
    tiny = draw_overlay(plain(9, 5, 7), np.zeros((5, 7), np.float32), SCALE, caption="x")
    assert tiny.shape == (5, 7, 3)


@pytest.mark.parametrize("score", [2.9, 3.1])
def test_the_border_of_colours_lies_at_half_of_the_threshold(score: float) -> None:
    scores = np.zeros((4, 4), np.float32)
    scores[1, 1], scores[2, 2] = 3.0, 1.0
    scale = MapScale.of(3.0, score=score, threshold=3.0)
    drawn = draw_overlay(plain(90, 4, 4), scores, scale)
    assert (drawn[2, 2] == 90).all() and (drawn[1, 1] != 90).any()


FINITE = st.floats(-1e6, 1e6, width=32)


@given(FINITE, FINITE, FINITE, FINITE)
def test_a_map_reaches_the_line_exactly_where_the_score_reaches_the_threshold(
    peak: float, score: float, threshold: float, normal: float
) -> None:
    scale = MapScale.of(peak, score=score, threshold=threshold, normal=normal)
    anomaly_map = np.full((2, 2), peak, np.float32)
    assert bool((anomaly_map >= scale.line).all()) == (score >= threshold)
    assert scale.normal < scale.line and np.isfinite([scale.normal, scale.line]).all()
    assert np.isfinite(scale.multiples(anomaly_map)).all()


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 0.99))
def test_the_peak_has_the_multiple_of_the_score(
    peak: float, score: float, threshold: float, normal: float
) -> None:
    scale = MapScale.of(peak, score=score, threshold=threshold, normal=normal * peak)
    # where the normal value is close to the peak, float32 tells them apart with few digits
    precision = 1e-6 / (1 - normal)
    wanted = score_ratio(score, threshold)
    assert scale.multiple(peak) == pytest.approx(wanted, rel=precision)
    assert scale.multiple(normal * peak) == pytest.approx(0.0, abs=precision * (wanted or 1))
    assert scale.value(1.0) == scale.line


def test_a_region_surrounds_a_place_that_reaches_the_threshold() -> None:
    scores = np.full((40, 60), 1.0, np.float32)
    scores[5:15, 5:15] = 4.0
    scores[10, 10] = 7.0  # the peak
    scores[20:30, 20:30] = 4.0  # nowhere near the threshold
    scores[35, 50] = 6.5
    good = MapScale.of(7.0, score=9.0, threshold=9.5, normal=1.0)
    bad = MapScale.of(7.0, score=10.0, threshold=9.5, normal=1.0)
    assert bad.line == pytest.approx(1 + 6 * 0.95)
    found, mask = deciding_regions(scores, good)
    assert found == [] and not mask.any()
    found, mask = deciding_regions(scores, bad)
    assert [region.box for region in found] == [(5, 5, 10, 10)] and mask.sum() == 100
    clear = MapScale.of(7.0, score=19.0, threshold=9.5, normal=1.0)
    found, mask = deciding_regions(scores, clear)
    assert [region.peak for region in found] == [7.0, 6.5, 4.0] and mask.sum() == 201
    found, mask = deciding_regions(scores, good, pixel_threshold=6.0)  # whatever was decided
    assert [region.peak for region in found] == [7.0, 6.5] and mask.sum() == 2


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (9, 11), elements=st.floats(-5, 5, width=16)),
    st.floats(-4, 20),
    st.floats(-4, 20),
    st.floats(-6, 6),
)
def test_outlines_agree_with_the_verdict(
    anomaly_map: np.ndarray, score: float, threshold: float, normal: float
) -> None:
    scale = MapScale.of(float(anomaly_map.max()), score=score, threshold=threshold, normal=normal)
    found, mask = deciding_regions(anomaly_map, scale)
    assert bool(found) == bool(mask.any()) == (score >= threshold)
    if found:
        assert found[0].peak == anomaly_map.max()


def test_regions_in_pixels() -> None:
    scores = np.zeros((40, 60), np.float32)
    scores[5:8, 10:20] = 2.0
    scores[6, 12] = 7.0
    scores[8, 20] = 3.0  # touches by a corner
    scores[30:32, 40:42] = 9.0
    scores[39, 59] = 2.0
    found, mask = find_regions(scores, 2.0)
    assert [region.peak for region in found] == [9.0, 7.0, 2.0]
    assert found[1].box == (10, 5, 11, 4) and found[1].area == 31
    assert found[1].peak_at == (12, 6) and found[0].centroid == (40.5, 30.5)
    assert found[2].box == (59, 39, 1, 1) and mask.sum() == 36
    larger, kept = find_regions(scores, 2.0, min_area=4)
    assert [region.area for region in larger] == [4, 31]
    assert kept.sum() == 35 and not kept[39, 59]
    assert find_regions(scores, 10.0)[0] == [] and not find_regions(scores, 10.0)[1].any()


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([np.float32(0), np.float32(1), np.float32(2)]),
    ),
    st.integers(1, 6),
)
def test_regions_and_mask_say_the_same(scores: np.ndarray, min_area: int) -> None:
    found, mask = find_regions(scores, 1.0, min_area=min_area)
    everything, whole = find_regions(scores, 1.0)
    np.testing.assert_array_equal(whole, scores >= 1.0)
    assert found == [region for region in everything if region.area >= min_area]
    assert mask.sum() == sum(region.area for region in found)
    for region in found:
        x, y, width, height = region.box
        part = mask[y : y + height, x : x + width]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
        px, py = region.peak_at
        assert mask[py, px] and scores[py, px] == region.peak


def test_maps_at_the_size_of_the_image() -> None:
    small = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert at_size(small, (3, 4)) is small
    large = at_size(small, (30, 40))
    assert large.shape == (30, 40) and large.dtype == np.float32
    assert large.min() == 0 and large.max() == 11
    assert large.mean() == pytest.approx(small.mean(), rel=1e-5)
