"""The threshold of a fitted detector, from good images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..calibration import (
    CONFIDENCE,
    DEFAULT_QUANTILE,
    DEFAULT_TAIL,
    threshold_for_costs,
    threshold_for_misses,
)
from ..calibration.threshold import check_tail
from ..errors import UsageError
from ..images import ImageSource, as_sources
from ..images.image_format import ImageFormat
from ..models.adapted import adapt
from ..models.detector import require_fitted
from ..models.held_out import calibrate_on_held_out
from ..models.training_images import OnError, Progress
from .scoring import in_rgb

_ORIGIN = "good images that were given after the fit"


def calibrate_threshold(
    detector: Any,
    inputs: Iterable[ImageSource],
    *,
    quantile: float = DEFAULT_QUANTILE,
    tail: str = DEFAULT_TAIL,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    input_format: ImageFormat | str | None = None,
) -> float:
    """Take the threshold from good images that the detector has not seen.

    Sets `threshold_`, `calibration_`, `decision_scores_` and, from the same pass,
    `pixel_calibration_`. The quantile is estimated as in fitting (`pyimgano.calibration`).

    Parameters
    ----------
    detector
        Fitted, or loaded; or any object with `fit` and `decision_function`, of which
        `threshold_` alone is set.
    inputs
        Good images that were not learned from: paths or (H, W, 3) uint8 RGB arrays.
    quantile
        In (0, 1).
    tail
        `exponential` or `conformal`.
    on_error
        `raise`: an unreadable image is an error that names it. `skip`: it is left out.
    progress
        Called with (stage, done, total).
    input_format
        What arrays among the inputs hold, as in `infer`.

    Returns
    -------
    float
        The new `threshold_`.

    Raises
    ------
    NotFittedError
        The detector was not fitted.
    UsageError
        No inputs, a quantile outside (0, 1), or an unknown tail.
    ImageReadError
        An unreadable image, unless `on_error="skip"`.
    DataError
        No image could be read.
    """
    if input_format is not None:
        inputs = list(in_rgb(inputs, input_format))
    given, detector = detector, adapt(detector, fitted=True, own_paths=True)
    require_fitted(detector)
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if not 0 < quantile < 1:
        raise UsageError(f"quantile must lie in (0, 1), got {quantile!r}")
    check_tail(tail)
    calibrate_on_held_out(
        detector,
        as_sources(inputs, name="inputs", learning=True),
        float(quantile),
        tail=tail,
        on_error=on_error,
        progress=progress,
        origin=_ORIGIN,
    )
    if given is not detector:
        given.threshold_ = detector.threshold_
    threshold: float = detector.threshold_
    return threshold


def threshold_from_defects(
    detector: Any,
    inputs: Iterable[ImageSource],
    *,
    miss_rate: float,
    confidence: float | None = CONFIDENCE,
) -> float:
    """Take the largest threshold that misses few enough defects, and set it.

    Parameters
    ----------
    detector
        Fitted, or loaded. Its `calibration_` then says where the threshold comes from.
    inputs
        Defective images: paths or (H, W, 3) uint8 RGB arrays.
    miss_rate, confidence
        As `pyimgano.calibration.threshold_for_misses`.

    Returns
    -------
    float
        The new `threshold_`.

    Raises
    ------
    NotFittedError, UsageError, ImageReadError
        The detector was not fitted, a value is out of range, or an image cannot be read.
    DataError
        There are too few images for this rate.
    """
    require_fitted(detector)
    scores = detector.decision_function(as_sources(inputs, name="inputs"))
    chosen = threshold_for_misses(scores, miss_rate, confidence=confidence)
    detector.set_threshold(chosen.threshold, origin=chosen.origin)
    return chosen.threshold


def threshold_from_costs(
    detector: Any,
    inputs: Iterable[ImageSource],
    *,
    cost_miss: float,
    cost_false_alarm: float,
    defect_share: float = 0.5,
) -> float:
    """Take the threshold at which errors cost least, and set it.

    False alarms are counted among the detector's `decision_scores_`.

    Parameters
    ----------
    detector, inputs
        As `threshold_from_defects`.
    cost_miss, cost_false_alarm, defect_share
        As `pyimgano.calibration.threshold_for_costs`.

    Returns
    -------
    float
        The new `threshold_`.

    Raises
    ------
    NotFittedError, UsageError, ImageReadError
        The detector was not fitted, a value is out of range, or an image cannot be read.
    """
    require_fitted(detector)
    chosen = threshold_for_costs(
        detector.decision_scores_,
        detector.decision_function(as_sources(inputs, name="inputs")),
        cost_miss=cost_miss,
        cost_false_alarm=cost_false_alarm,
        defect_share=defect_share,
    )
    detector.set_threshold(chosen.threshold, origin=chosen.origin)
    return chosen.threshold
