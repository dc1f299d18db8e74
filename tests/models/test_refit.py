"""A detector that is fitted anew while it is used: the earlier state as a whole, or one error."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest

from pyimgano.errors import NotFittedError
from pyimgano.inference import calibrate_threshold, iter_infer
from pyimgano.models import Detector
from pyimgano.models.tiled import TiledDetector
from tests.conftest import picture
from tests.pixel_detector import Darkness, DarknessMethod, LearnedDarkness, plain

from .test_models import fitted_once

OTHER = [picture(60 + i, 64, spot=True) for i in range(4)]
TEST = [picture(100 + i, 48) for i in range(2)]


#: One of each kind: the others of `list_models` learn and score through the same code.
KINDS = [
    "vision_dfm",
    "vision_efficientad",
    "vision_knn",
    "vision_mahalanobis",
    "vision_padim",
    "vision_patchcore",
    "vision_softpatch",
    "vision_spade",
    "vision_stfpm",
]


@pytest.mark.parametrize("name", KINDS)
def test_scoring_goes_on_with_the_earlier_state(name: str, tmp_path: Path) -> None:
    """Between any two stages of the fit, as another thread would do it."""
    detector = copy.deepcopy(fitted_once(name, False))
    detector.batch_size = 1
    wanted = [one.score for one in detector.score_images(TEST)]
    labels, threshold = detector.predict(TEST).tolist(), detector.threshold_
    begun = detector.score_images(TEST)
    decided = iter_infer(detector, TEST)
    found = [next(begun).score]
    refused = []

    def told(stage: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(NotFittedError, match="is being fitted at this moment"):
                detector.predict(TEST)
            with pytest.raises(NotFittedError, match="is being fitted at this moment"):
                detector.save(tmp_path / "model")
            refused.append(stage)
            found.extend(one.score for one in begun)

    detector.fit(OTHER, progress=told)
    assert refused and found == wanted
    results = list(decided)
    assert [one.score for one in results] == wanted
    assert [one.label for one in results] == labels
    assert {one.threshold for one in results} == {threshold}


def test_a_tiled_detector_too() -> None:
    model = TiledDetector(Darkness(resize=(16, 16)), tile_size=16)
    dark, light = [plain(40 + i) for i in range(8)], [plain(200 + i) for i in range(8)]
    model.fit(dark)
    wanted = [one.score for one in model.score_images(light)]
    begun, decided = model.score_images(light), iter_infer(model, light)
    found = [next(begun).score]
    threshold = model.threshold_
    model.fit(light)
    assert found + [one.score for one in begun] == wanted
    assert {one.threshold for one in decided} == {threshold} != {model.threshold_}


def test_a_failed_fit_leaves_no_detector_and_says_so() -> None:
    detector = Darkness(resize=(16, 16))
    with pytest.raises(NotFittedError, match="not fitted yet; call fit first"):
        detector.predict([plain(3)])
    detector.fit([plain(1), plain(2)])
    with pytest.raises(Exception, match="nowhere"):
        detector.fit(["/nowhere.png"])
    with pytest.raises(NotFittedError, match="or its last fit failed"):
        detector.predict([plain(3)])


def test_threads_that_score_see_one_of_two_states_or_an_error() -> None:
    """Every score, threshold and label belongs to one of the two fits."""
    images = {
        "dark": [plain(40 + i) for i in range(4)],
        "light": [plain(200 + i) for i in range(4)],
    }
    test = [plain(120)]
    states = {}
    for kind, good in images.items():
        one = Shifted(resize=(16, 16)).fit(good)
        states[one.threshold_] = (one.decision_function(test)[0], one.predict(test)[0], kind)
    detector = Shifted(resize=(16, 16)).fit(images["dark"])
    wrong: list[object] = []
    seen: set[object] = set()
    ended, scored = threading.Event(), threading.Event()

    def score() -> None:
        while not ended.is_set():
            try:
                (result,) = list(iter_infer(detector, test))
                fitted = detector.as_fitted()
                label = detector.predict(test)[0]
                score = fitted.decision_function(test)[0]
            except NotFittedError:
                seen.add("refused")
                continue
            except Exception as error:
                wrong.append(error)
                return
            known = states[result.threshold]
            if (result.score, result.label) != known[:2] or score != states[fitted.threshold_][0]:
                wrong.append((result, known))
            if label not in {one[1] for one in states.values()}:
                wrong.append(label)
            seen.add(known[2])
            scored.set()

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        detector.fit(images["light" if turn % 2 else "dark"])
        scored.clear()
        if not scored.wait(60):
            break
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong and seen >= {"dark", "light"}


class LearnedShift(LearnedDarkness):
    shift = 0.0

    def score(self, images, maps):  # type: ignore[no-untyped-def]
        scores, found = super().score(images, maps)
        return scores - self.shift, found


class ShiftedMethod(DarknessMethod):
    Learned = LearnedShift

    def learn(self, images):  # type: ignore[no-untyped-def]
        learned, found = super().learn(images)
        learned.shift = float(np.max(found.scores))  # type: ignore[attr-defined, union-attr]
        return learned, found


class Shifted(Detector):
    """Scores relative to the darkest training image, so that scores depend on the fit."""

    method = ShiftedMethod


def test_calibration_comes_as_a_whole() -> None:
    detector = Darkness(resize=(16, 16)).fit([plain(200), plain(201)])
    before = detector.as_fitted()
    calibrate_threshold(detector, [plain(50), plain(60), plain(70)])
    assert detector.threshold_ == detector.calibration_.threshold
    assert before.threshold_ == before.calibration_.threshold != detector.threshold_
    assert type(before) is Darkness
