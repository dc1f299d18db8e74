"""A threshold stays above slightly disturbed good images, and says so."""

import numpy as np
import pytest

from pyimgano.calibration import DisturbedScores, above_disturbed, calibrate, raise_again


@pytest.fixture
def calm():
    return calibrate(np.linspace(0.9, 1.1, 60), 0.995, method="leave-one-image-out")


def copies(scores, own):
    return DisturbedScores(np.array(scores), np.array(own), [f"kind {i}" for i in range(len(own))])


def test_the_highest_copy_is_no_false_alarm_and_is_named(calm):
    raised = above_disturbed(calm, copies([1.2, 1.5, 1.3], [1.0, 1.0, 1.0]))
    assert raised.threshold == np.nextafter(1.5, 2)
    assert (raised.disturbed_score, raised.disturbance) == (1.5, "kind 1")
    assert "kind 1" in raised.notes[-1]
    assert raised.promised_false_alarm_rate == calm.promised_false_alarm_rate


def test_nothing_changes_where_no_copy_reaches_the_threshold(calm):
    assert above_disturbed(calm, copies([1.0, 1.05], [1.0, 1.0])) is calm


def test_copies_of_images_that_are_odd_themselves_do_not_count(calm):
    assert above_disturbed(calm, copies([3.0], [2.9])) is calm
    raised = above_disturbed(calm, copies([3.0, 1.4], [2.9, 1.0]))
    assert raised.disturbed_score == 1.4


def test_raising_again_never_lowers(calm):
    raised = above_disturbed(calm, copies([1.5], [1.0]))
    assert raise_again(raised) is raised
    assert raise_again(calm) is calm
