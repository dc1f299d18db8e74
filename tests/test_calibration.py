"""Conformal ranks, what they promise, and the exact interval of what is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pyimgano.calibration import calibrate, choose_quantile, clopper_pearson
from pyimgano.errors import UsageError


def test_the_rank_is_the_conformal_one() -> None:
    scores = np.arange(1.0, 210.0)  # 209 of them, as in a category of that size
    found = calibrate(scores, 0.995, method="m")
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
    assert "cannot reach the quantile 0.995, which needs 199" in found.notes[0]
    assert calibrate(np.arange(199.0), 0.995, method="m").notes == ()
    assert calibrate(np.arange(198.0), 0.995, method="m").notes != ()


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
        found = calibrate(rng.normal(size=n), quantile, method="m")
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
