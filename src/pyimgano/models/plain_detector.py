"""Detectors of other programs: anything with `decision_function`, asked for scores and maps.

Such an object need not be an estimator: nothing but `decision_function`, and perhaps
`predict_anomaly_map` or `get_anomaly_map`, is ever called on it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError
from ..images import ImageSource, read_image, resize_image


def require_decision_function(detector: Any) -> None:
    """Raise `UsageError` if the object cannot score images."""
    if not callable(getattr(detector, "decision_function", None)):
        raise UsageError(f"{type(detector).__name__} has no decision_function(X) and cannot score")


def gives_maps(detector: Any) -> bool:
    """Return whether the object has `predict_anomaly_map` or `get_anomaly_map`."""
    return any(
        callable(getattr(detector, name, None))
        for name in ("predict_anomaly_map", "get_anomaly_map")
    )


def as_batch(images: Sequence[Any]) -> Any:
    """Return arrays of one shape as (N, H, W, C), and anything else as the list that it is.

    Many detectors take nothing but a batch, and those that iterate take a batch as well.
    """
    arrays = all(isinstance(one, np.ndarray) for one in images)
    if len(images) and arrays and len({one.shape for one in images}) == 1:
        return np.stack(images)
    return list(images)


def read_batch(
    images: Sequence[ImageSource], size: tuple[int, int] | None
) -> npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]:
    """Read image files into arrays (H, W, 3) uint8 RGB, resized to `size` where it is given.

    Raises
    ------
    ImageReadError
        A file cannot be read.
    """
    found = []
    for one in images:
        pixels = one if isinstance(one, np.ndarray) else read_image(one)
        found.append(pixels if size is None else resize_image(pixels, size))
    batch: npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]] = as_batch(found)
    return batch


def plain_scores(detector: Any, images: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Return the detector's scores (N,) float64 of N images.

    Raises
    ------
    UsageError
        The object has no `decision_function`.
    DataError
        It returns another number of scores, or some that are not finite.
    """
    require_decision_function(detector)
    if len(images) == 0:
        return np.zeros(0, np.float64)
    scores = np.asarray(detector.decision_function(as_batch(images)), np.float64)
    name = type(detector).__name__
    if scores.size != len(images):
        raise DataError(
            f"{name}.decision_function returned shape {scores.shape} for {len(images)} images; "
            "one score an image is wanted"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{name}.decision_function returned scores that are not finite")
    return scores.reshape(-1)


def plain_maps(detector: Any, images: Sequence[Any]) -> list[npt.NDArray[np.float32]] | None:
    """Return one map (H, W) float32 for each of N images; None if the detector has no maps.

    Raises
    ------
    DataError
        It returns another number of maps, maps that are not (H, W), or values that are not
        finite.
    """
    if not gives_maps(detector):
        return None
    if callable(getattr(detector, "predict_anomaly_map", None)):
        found = list(detector.predict_anomaly_map(as_batch(images))) if len(images) else []
    else:
        found = [detector.get_anomaly_map(one) for one in images]
    name = type(detector).__name__
    maps = [np.asarray(one, np.float32) for one in found]
    if len(maps) != len(images):
        raise DataError(f"{name} returned {len(maps)} maps for {len(images)} images")
    for one in maps:
        if one.ndim != 2 or not np.isfinite(one).all():
            raise DataError(f"{name} returned a map of shape {one.shape}; finite (H, W) is wanted")
    return maps
