"""Conformal ranks, what they promise, and the exact interval of what is measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pyimgano.calibration import (
    ExponentialTail,
    ScoreScale,
    calibrate,
    calibration_at,
    choose_quantile,
    clopper_pearson,
    fit_exponential_tail,
    rank_bound,
    score_ratio,
    threshold_for_costs,
    threshold_for_misses,
)
from pyimgano.calibration.suspects import find_suspects
from pyimgano.errors import DataError, UsageError


def test_the_rank_is_the_conformal_one() -> None:
    scores = np.arange(1.0, 210.0)  # 209 of them, as in a category of that size
    found = calibrate(scores, 0.995, method="m", tail="conformal")
    assert found.threshold == np.nextafter(209.0, np.inf)  # ceil(210 * 0.995) = 209
    assert found.quantile_reached == pytest.approx(209 / 210)
    assert found.promised_false_alarm_rate == pytest.approx(1 / 210)
    assert found.notes == ()
    assert calibrate(scores, 0.9, method="m").threshold == np.nextafter(189.0, np.inf)


def test_products_that_are_whole_numbers_do_not_land_a_rank_too_high() -> None:
    # 200 * 0.995 and 100 * 0.07 are whole; floating point says 7.000000000000001 of the latter
    assert calibrate(np.arange(1.0, 200.0), 0.995, method="m").threshold == np.nextafter(199, 1e9)
    assert calibrate(np.arange(1.0, 100.0), 0.07, method="m").threshold == np.nextafter(7, 1e9)


def test_too_few_scores_take_the_largest_and_say_so() -> None:
    found = calibrate([3.0, 1.0, 2.0], 0.995, method="m")
    assert found.threshold == np.nextafter(3.0, np.inf)
    assert found.quantile_reached == 0.75
    assert found.promised_false_alarm_rate == 0.25
    assert "the quantile 0.995 needs at least 199 scores and there are only" in found.notes[0]
    assert calibrate(np.arange(199.0), 0.995, method="m", tail="conformal").notes == ()
    assert calibrate(np.arange(198.0), 0.995, method="m", tail="conformal").notes != ()


def test_equal_scores_raise_no_alarm() -> None:
    found = calibrate(np.full(50, 2.5), 0.9, method="m")
    assert not found.threshold <= 2.5


def test_scores_that_were_seen_promise_nothing() -> None:
    found = calibrate(np.arange(300.0), 0.995, method="in-sample", unseen=False)
    assert found.promised_false_alarm_rate is None
    assert "no false-alarm rate is promised" in found.notes[-1]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 80), quantile=st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_promise_holds(n: int, quantile: float) -> None:
    """Over many draws the false-alarm rate on new scores is at most what is promised."""
    rng = np.random.default_rng(n)
    alarms = []
    for _ in range(400):
        found = calibrate(rng.normal(size=n), quantile, method="m", tail="conformal")
        alarms.append((rng.normal(size=20) >= found.threshold).mean())
    promised = found.promised_false_alarm_rate
    assert promised is not None
    error = np.std(alarms) / np.sqrt(len(alarms))
    assert np.mean(alarms) <= promised + 4 * error


def test_choice_of_the_quantile() -> None:
    assert choose_quantile(None, None) == 0.995
    assert choose_quantile(None, 0.1) == 0.9
    assert choose_quantile(0.7, 0.1) == 0.7
    assert choose_quantile(None, np.float64(0.1)) == 0.9
    for bad in (0.0, 1.0, -1, 2):
        with pytest.raises(UsageError, match="calibration_quantile"):
            choose_quantile(bad, None)
    for bad in (0.0, 0.6):
        with pytest.raises(UsageError, match="contamination"):
            choose_quantile(None, bad)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        calibrate([], 0.9, method="m")
    with pytest.raises(UsageError, match="finite"):
        calibrate([1.0, np.nan], 0.9, method="m")
    with pytest.raises(UsageError, match=r"\(0, 1\)"):
        calibrate([1.0], 1.0, method="m")


@given(trials=st.integers(1, 300), data=st.data())
def test_interval_equals_scipy(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, trials))
    found = clopper_pearson(events, trials)
    expected = binomtest(events, trials).proportion_ci(0.95, method="exact")
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert found.low <= found.rate <= found.high


def test_interval_of_nothing() -> None:
    found = clopper_pearson(0, 0)
    assert found.rate is None and found.low is None and found.high is None
    with pytest.raises(UsageError):
        clopper_pearson(2, 1)
    with pytest.raises(UsageError):
        clopper_pearson(1, 2, 1.0)


SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "gamma": lambda rng, n: rng.gamma(4.0, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: np.exp(0.25 * rng.normal(size=n)),
}


@pytest.mark.parametrize("n", [60, 160, 267])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_exponential_tail_keeps_the_promise(shape: str, n: int) -> None:
    """Over many calibrations the rate on new scores is about what is promised, or below it."""
    rng = np.random.default_rng(0)
    new = np.sort(SHAPES[shape](rng, 200_000))
    rates, promised, bounds = [], [], []
    for _ in range(400):
        found = calibrate(SHAPES[shape](rng, n), 0.995, method="m")
        rates.append(1 - np.searchsorted(new, found.threshold) / len(new))
        promised.append(found.promised_false_alarm_rate)
        bounds.append(found.false_alarm_rate_bound)
    assert np.mean(np.array(rates) <= bounds) >= 0.92
    assert np.mean(rates) <= np.mean(promised) + 4 * np.std(rates) / np.sqrt(len(rates))


def test_the_rate_of_an_exponential_tail_is_exact_and_so_is_that_of_the_rule() -> None:
    """Of scores that are exponential the formulas hold without any approximation."""
    rng = np.random.default_rng(1)
    rates, rule, below = [], [], []
    for _ in range(1500):
        scores = np.sort(rng.exponential(size=220))
        tail = fit_exponential_tail(scores)
        assert isinstance(tail, ExponentialTail)
        threshold = tail.threshold(0.005)
        assert tail.rate(threshold) == pytest.approx(0.005)
        rates.append(np.exp(-threshold))
        rule.append(np.exp(-min(max(threshold, scores[-11]), scores[-1])))
        drawn = tail.rates(0.005, 220)
        below.append(rule[-1] <= np.quantile(drawn, 0.95))
    assert abs(np.mean(rates) - 0.005) <= 4 * np.std(rates) / np.sqrt(len(rates))
    error = np.std(rule) / np.sqrt(len(rule)) + np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(rule) - np.mean(drawn)) <= 4 * error
    assert abs(np.mean(below) - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / len(below))


def test_the_test_of_fit_has_its_level_and_sees_heavy_tails() -> None:
    rng = np.random.default_rng(2)

    def rejected(draw: Callable[[], np.ndarray]) -> float:
        """How often the quarter of the scores is no exponential tail."""
        tails = [fit_exponential_tail(np.sort(draw())) for _ in range(600)]
        assert all(isinstance(one, ExponentialTail) for one in tails)
        return float(np.mean([not (one.believed and one.n_excesses == 75) for one in tails]))  # type: ignore[union-attr]

    level = rejected(lambda: rng.exponential(size=300))
    assert 0.02 <= level <= 0.08
    assert rejected(lambda: rng.pareto(1.5, size=300)) > 0.8
    heavy = rng.pareto(1.0, size=300)
    found = calibrate(heavy, 0.995, method="m")
    assert found.tail == "conformal" and found.tail_fit_p_value < 0.05


def test_a_tail_that_is_not_believed_may_begin_higher() -> None:
    """Of scores with a bend only the upper half of the tail is exponential: that decides."""
    at = (np.arange(400) + 0.5) / 400
    # dense up to the 85 % quantile, sparse beyond it, and exponential there
    scores = np.where(at < 0.85, at, 0.85 - 0.4 * np.log((1 - np.minimum(at, 0.9999)) / 0.15))
    tail = fit_exponential_tail(scores)
    assert isinstance(tail, ExponentialTail)
    assert tail.believed and tail.n_excesses == 50
    found = calibrate(scores, 0.995, method="m")
    assert found.tail == "exponential"
    exact = 0.85 - 0.4 * np.log(0.005 / 0.15)
    assert found.threshold == pytest.approx(exact, rel=0.1)
    # without the bend the whole of it is believed
    plain = fit_exponential_tail(-np.log(1 - at))
    assert isinstance(plain, ExponentialTail) and plain.n_excesses == 100


def test_one_odd_image_does_not_decide() -> None:
    rng = np.random.default_rng(3)
    scores = rng.gamma(9.0, size=267) / 9
    odd = np.append(scores, 1e6)
    without, with_it = (calibrate(s, 0.995, method="m").threshold for s in (scores, odd))
    spread = np.quantile(scores, 0.99) - np.median(scores)
    assert abs(with_it - without) < 0.2 * spread
    assert calibrate(odd, 0.995, method="m", tail="conformal").threshold > 1e5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 500), shape=st.sampled_from(sorted(SHAPES)))
def test_invariants_of_the_estimate(seed: int, n: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    scores = SHAPES[shape](rng, n)
    quantiles = (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
    found = [calibrate(scores, q, method="m") for q in quantiles]
    thresholds = [one.threshold for one in found]
    assert thresholds == sorted(thresholds)  # a higher quantile is never a lower threshold
    for one, q in zip(found, quantiles):
        conformal = calibrate(scores, q, method="m", tail="conformal")
        assert one.threshold <= conformal.threshold
        shuffled = calibrate(rng.permutation(scores), q, method="m")
        assert shuffled == one
        moved = calibrate(4.0 * scores + 32.0, q, method="m")
        assert moved.threshold == pytest.approx(4.0 * one.threshold + 32.0, rel=1e-6)
        assert one.promised_false_alarm_rate is not None
        assert one.false_alarm_rate_bound is not None
        assert one.promised_false_alarm_rate <= one.false_alarm_rate_bound <= 1
        assert one.tail == "conformal" or one.estimate_interval is not None
        if one.estimate_interval is not None:
            low, high = one.estimate_interval
            assert 0 < low < one.promised_false_alarm_rate < high < 1
        if one.tail == "exponential":
            # however large the largest score is, the threshold stays
            larger = np.where(scores == scores.max(), scores.max() + 1e3, scores)
            assert calibrate(larger, q, method="m").threshold == one.threshold


def test_the_bound_of_a_rank_holds_with_its_confidence() -> None:
    rng = np.random.default_rng(4)
    bound = rank_bound(50, 48)
    rates = 1 - np.sort(rng.uniform(size=(4000, 50)), axis=1)[:, 47]
    assert abs(np.mean(rates <= bound) - 0.95) < 0.015
    assert calibrate(
        np.arange(50.0), 0.94, method="m", tail="conformal"
    ).false_alarm_rate_bound == (bound)


def test_a_threshold_that_was_given_is_measured_by_the_scores() -> None:
    found = calibration_at(98.0, np.arange(100.0), method="m", origin="me")
    assert (found.threshold, found.tail, found.origin) == (98.0, "given", "me")
    assert found.promised_false_alarm_rate == pytest.approx(3 / 101)
    exact = binomtest(2, 100).proportion_ci(0.9, method="exact").high
    assert found.false_alarm_rate_bound == pytest.approx(exact)
    assert calibration_at(-1.0, [0.0, 1.0], method="m", origin="me").false_alarm_rate_bound == 1
    for bad in (np.nan, np.inf, "3", True, None):
        with pytest.raises(UsageError, match="threshold must be"):
            calibration_at(bad, [1.0], method="m", origin="me")  # type: ignore[arg-type]


@given(
    score=st.floats(allow_nan=False, allow_infinity=False),
    threshold=st.floats(allow_nan=False, allow_infinity=False),
)
def test_the_ratio_decides_as_the_threshold_does(score: float, threshold: float) -> None:
    ratio = score_ratio(score, threshold)
    if ratio is None:
        assert threshold == 0 or abs(score) > 1e300 * min(1.0, abs(threshold))
    else:
        assert np.isfinite(ratio) and (ratio >= 1.0) == (score >= threshold)
        if threshold > 0 and score < threshold:
            assert ratio == pytest.approx(score / threshold)


def test_ratio_and_p_value() -> None:
    assert score_ratio(3.0, 2.0) == 1.5 and score_ratio(1.0, 0.0) is None
    assert score_ratio(-5.0, -10.0) == 1.5 and score_ratio(-20.0, -10.0) == 0.0
    scale = ScoreScale(2.0, [3.0, 1.0, 2.0])
    assert [scale.p_value(s) for s in (0.0, 1.0, 1.5, 3.0, 4.0)] == [1.0, 1.0, 0.75, 0.5, 0.25]
    assert ScoreScale(2.0, None).p_value(1.0) is None


def test_suspects_stand_apart_or_decide() -> None:
    rng = np.random.default_rng(5)

    def name(scores: np.ndarray) -> list[int]:
        def threshold_of(some: np.ndarray) -> float:
            return calibrate(some, 0.995, method="m").threshold

        return [one.position for one in find_suspects(scores, threshold_of)]

    normal = rng.gamma(9.0, size=200)
    assert name(normal) == []
    odd = normal.copy()
    odd[[17, 90]] = 60.0, 80.0
    assert name(odd) == [90, 17]
    few = rng.gamma(9.0, size=20)
    few[3] = 80.0
    assert name(few) == [3]
    assert name(few[:9]) == []  # too few to say
    quiet = sum(bool(name(rng.gamma(9.0, size=150))) for _ in range(100))
    assert quiet <= 30


def test_a_threshold_for_misses() -> None:
    scores = np.arange(1.0, 301.0)
    chosen = threshold_for_misses(scores, 0.02)
    # the bound of the rank that was taken holds, that of the next does not
    rank = int(chosen.threshold)
    assert binomtest(rank - 1, 300).proportion_ci(0.9, method="exact").high <= 0.02
    assert binomtest(rank, 300).proportion_ci(0.9, method="exact").high > 0.02
    assert threshold_for_misses(scores, 0.02, confidence=None).threshold == 6.0  # 6 / 301
    with pytest.raises(DataError, match="149 are needed"):
        threshold_for_misses([1.0], 0.02)
    with pytest.raises(DataError, match="on average: 49 are needed"):
        threshold_for_misses(np.arange(48.0), 0.02, confidence=None)
    threshold_for_misses(np.arange(49.0), 0.02, confidence=None)
    for keywords in ({"miss_rate": 0.0}, {"miss_rate": 0.1, "confidence": 1.0}):
        with pytest.raises(UsageError):
            threshold_for_misses(scores, **keywords)


@settings(max_examples=50, deadline=None)
@given(
    good=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    bad=st.lists(st.integers(10, 60), min_size=1, max_size=40),
    miss=st.sampled_from([0.1, 1.0, 50.0]),
)
def test_a_threshold_for_costs_is_the_cheapest(
    good: list[int], bad: list[int], miss: float
) -> None:
    chosen = threshold_for_costs(good, bad, cost_miss=miss, cost_false_alarm=1.0)

    def cost(threshold: float) -> float:
        missed = np.mean(np.array(bad) < threshold)
        alarms = (1 + (np.array(good) >= threshold).sum()) / (len(good) + 1)
        return float(miss * missed + alarms)

    everywhere = [cost(t) for t in np.arange(-1, 62, 0.5)]
    assert cost(chosen.threshold) == pytest.approx(min(everywhere))


def test_costs_out_of_range() -> None:
    for keywords in (
        {"cost_miss": 0.0, "cost_false_alarm": 1.0},
        {"cost_miss": 1.0, "cost_false_alarm": np.inf},
        {"cost_miss": 1.0, "cost_false_alarm": 1.0, "defect_share": 1.0},
    ):
        with pytest.raises(UsageError):
            threshold_for_costs([1.0], [2.0], **keywords)
    with pytest.raises(UsageError, match="calibration_tail"):
        calibrate([1.0], 0.9, method="m", tail="gumbel")
