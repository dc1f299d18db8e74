"""Forwards to `pyimgano.images.corrupt`: one function a corruption, of an image and its mask."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..images import get_corruption

__all__ = ["apply_blur", "apply_geo_jitter", "apply_glare", "apply_jpeg", "apply_lighting"]

_Image = npt.NDArray[np.uint8]
_Both = tuple[_Image, "_Image | None"]


def _apply(name: str, image: Any, mask: Any, severity: int, rng: Any) -> _Both:
    """Corrupt an image, and move its mask exactly as the image where the corruption moves it.

    `rng` is a generator or the seed of one; it is advanced once, by the draws of the image.
    """
    kind = get_corruption(name)
    parameters = kind.at(severity)
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
        raise UsageError("image must be an (H, W, 3) uint8 RGB array")
    if mask is not None and np.shape(mask) != image.shape[:2]:
        raise UsageError(
            f"mask must be (H, W) as its image, {image.shape[:2]}, got shape {np.shape(mask)}"
        )
    draws = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
    same_draws = copy.deepcopy(draws)
    corrupted = kind.apply(image, draws, **parameters)
    if mask is None:
        return corrupted, None
    if not kind.moves:
        return corrupted, np.array(mask)
    moved = kind.apply(np.asarray(mask, np.uint8), same_draws, **parameters, nearest=True)
    return corrupted, moved.astype(np.asarray(mask).dtype, copy=False)


def apply_lighting(image: Any, mask: Any = None, severity: int = 1, rng: Any = 0) -> _Both:
    """Return the image under a lamp that ages or moves, and its mask.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    mask
        (H, W) uint8 or bool, or None; what is returned is of the same kind.
    severity
        1 to 5.
    rng
        A `numpy.random.Generator`, or a seed; the same seed always draws the same.

    Raises
    ------
    UsageError
        Another severity, or arrays of another kind.
    """
    return _apply("lighting", image, mask, severity, rng)


def apply_jpeg(image: Any, mask: Any = None, severity: int = 1, rng: Any = 0) -> _Both:
    """Return the image coded as JPEG, and its mask; arguments as `apply_lighting`."""
    return _apply("jpeg", image, mask, severity, rng)


def apply_blur(image: Any, mask: Any = None, severity: int = 1, rng: Any = 0) -> _Both:
    """Return the blurred image and its mask; arguments as `apply_lighting`."""
    return _apply("blur", image, mask, severity, rng)


def apply_glare(image: Any, mask: Any = None, severity: int = 1, rng: Any = 0) -> _Both:
    """Return the image with highlights, and its mask; arguments as `apply_lighting`."""
    return _apply("glare", image, mask, severity, rng)


def apply_geo_jitter(image: Any, mask: Any = None, severity: int = 1, rng: Any = 0) -> _Both:
    """Return the turned, shifted and scaled image, and its mask moved with it.

    Arguments as `apply_lighting`; the mask's pixels keep their values.
    """
    return _apply("geo_jitter", image, mask, severity, rng)
