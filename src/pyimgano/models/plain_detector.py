"""What detectors of other programs can do, and the batches of images that they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images import ImageSource, read_image, resize_image
from ..images.samples import narrow_array


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
    for index, one in enumerate(images):
        if isinstance(one, np.ndarray):
            pixels, _, _ = narrow_array(f"image {index}", one, None)
        else:
            pixels = read_image(one)
        found.append(pixels if size is None else resize_image(pixels, size))
    batch: npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]] = as_batch(found)
    return batch
