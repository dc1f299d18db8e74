"""Setting training images aside for calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ..errors import UsageError

__all__ = ["split_train_calibration"]

_Item = TypeVar("_Item")


def split_train_calibration(
    train_paths: Sequence[_Item], calibration_fraction: float = 0.2, seed: int = 0
) -> tuple[list[_Item], list[_Item]]:
    """Split training images into those to fit on and those to calibrate on.

    Parameters
    ----------
    train_paths
        Two or more, of any kind.
    calibration_fraction
        The share to calibrate on, above 0 and below 1; at least one image is on either side.
    seed
        Which images are drawn: the same seed and number of images give the same split.

    Returns
    -------
    train, calibration
        Each in the order of `train_paths`; no image is in both, and none is lost.

    Raises
    ------
    UsageError
        Fewer than two images, or a fraction or seed out of range. It is a ValueError.
    """
    items = list(train_paths)
    if len(items) < 2:
        raise UsageError(
            f"train_paths: two images or more are wanted to split them, got {len(items)}"
        )
    if not 0 < calibration_fraction < 1:
        raise UsageError(
            f"calibration_fraction must lie between 0 and 1, got {calibration_fraction!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed must be a whole number, 0 or more, got {seed!r}")
    # half a picture more or less is rounded up, so that 0.5 of 3 is 2 under every Python
    number = math.floor(calibration_fraction * len(items) + 0.5)
    number = min(max(number, 1), len(items) - 1)
    drawn = set(np.random.default_rng(seed).permutation(len(items))[:number].tolist())
    train = [item for index, item in enumerate(items) if index not in drawn]
    return train, [item for index, item in enumerate(items) if index in drawn]
