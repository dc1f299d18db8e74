"""The threshold of a fitted detector, from good images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..calibration import DEFAULT_QUANTILE
from ..errors import UsageError
from ..images import ImageSource, as_sources
from ..images.image_format import ImageFormat, to_rgb_u8
from ..models.adapted import adapt
from ..models.detector import OnError, Progress, require_fitted
from ..models.held_out import score_held_out
from ..models.tiled import TiledDetector


def calibrate_threshold(
    detector: Any,
    inputs: Iterable[ImageSource],
    *,
    quantile: float = DEFAULT_QUANTILE,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    input_format: ImageFormat | str | None = None,
) -> float:
    """Take the threshold from good images that the detector has not seen.

    Sets `threshold_`, `calibration_`, `decision_scores_` and, from the same pass,
    `pixel_calibration_`. The quantile is taken by conformal rank, as in fitting
    (`pyimgano.calibration`).

    Parameters
    ----------
    detector
        Fitted, or loaded; or any object with `fit` and `decision_function`, of which
        `threshold_` alone is set.
    inputs
        Good images that were not learned from: paths or (H, W, 3) uint8 RGB arrays.
    quantile
        In (0, 1).
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
        No inputs, or a quantile outside (0, 1).
    ImageReadError
        An unreadable image, unless `on_error="skip"`.
    DataError
        No image could be read.
    """
    if input_format is not None:
        inputs = [to_rgb_u8(one, input_format, name=f"inputs[{i}]") for i, one in enumerate(inputs)]
    given, detector = detector, adapt(detector, fitted=True, own_paths=True)
    require_fitted(detector)
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if not 0 < quantile < 1:
        raise UsageError(f"quantile must lie in (0, 1), got {quantile!r}")
    found = score_held_out(detector, as_sources(inputs, name="inputs"), on_error, progress)
    if found.skipped:
        left = f"{len(found.skipped)} of the images to calibrate on could not be read"
        found = replace(found, notes=(*found.notes, left))
    if isinstance(detector, TiledDetector):
        detector.set_calibration(found, float(quantile))
    else:
        found.calibrate(detector, float(quantile))
    if given is not detector:
        given.threshold_ = detector.threshold_
    threshold: float = detector.threshold_
    return threshold
