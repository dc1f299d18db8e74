"""A threshold for the pixels of anomaly maps, from the maps of normal images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError

# Of a map, how many are looked at in double precision at a time.
_BLOCK_PIXELS = 2**22


@dataclass(frozen=True)
class PixelCalibration:
    """A threshold for the pixels of anomaly maps.

    Attributes
    ----------
    threshold
        Mean plus three standard deviations over all pixels of the maps of normal images, as
        MVTec AD 2 has it (Heckler-Kram et al. 2025). A pixel at or above it is called
        defective.
    mean, std
        Of those pixels; the standard deviation is the population's.
    method
        How the maps were obtained, as `Calibration.method`.
    n_images
        How many normal images there were.
    unseen
        Whether the detector had not seen them.
    """

    threshold: float
    mean: float
    std: float
    method: str
    n_images: int
    unseen: bool


class MapStatistics:
    """Mean and deviation over the pixels of maps, image by image.

    The result does not depend on how the images are cut into batches, nor on their order.
    """

    def __init__(self) -> None:
        self._pixels: list[int] = []
        self._means: list[float] = []
        self._squares: list[float] = []  # of the deviations from that mean
        self._images = 0

    def add(self, maps: npt.NDArray[np.floating]) -> None:
        """Take in maps (B, H, W), or the pixels (B, P) of them that count, by blocks."""
        for one in maps:
            flat = one.reshape(-1)
            for start in range(0, len(flat), _BLOCK_PIXELS):
                values = flat[start : start + _BLOCK_PIXELS].astype(np.float64)
                mean = float(values.mean())
                self._pixels.append(values.size)
                self._means.append(mean)
                self._squares.append(float(np.square(values - mean).sum()))
            self._images += 1

    def calibrate(self, method: str, *, unseen: bool = True) -> PixelCalibration | None:
        """Calibrate the threshold for pixels; None without maps.

        Raises
        ------
        DataError
            A map holds values that are not finite.
        """
        if not self._pixels:
            return None
        total = sum(self._pixels)
        mean = math.fsum(n * m for n, m in zip(self._pixels, self._means)) / total
        between = (n * (m - mean) ** 2 for n, m in zip(self._pixels, self._means))
        std = math.sqrt((math.fsum(self._squares) + math.fsum(between)) / total)
        if not math.isfinite(mean + std):
            raise DataError("the anomaly maps of normal images are not finite")
        return PixelCalibration(mean + 3.0 * std, mean, std, method, self._images, unseen)


def calibrate_normal_pixel_quantile_threshold(
    scores: Any, pixel_labels: Any = None, q: float = 0.999
) -> float:
    """Return the quantile of the scores of background pixels.

    Parameters
    ----------
    scores
        Maps of any shape, such as (N, H, W), finite; or a list of maps, which may be of several
        sizes.
    pixel_labels
        Masks of the same shapes, above 0 where a pixel is defective: such pixels are left out.
        None takes every pixel for background, as those of good images are.
    q
        The quantile in (0, 1); between two scores it is interpolated linearly.

    Raises
    ------
    UsageError
        Shapes differ, a score is not finite, no background pixel is there, or q is out of range.
    """
    if not 0 < q < 1:
        raise UsageError(f"q must lie in (0, 1), got {q!r}")
    maps = _each(scores)
    if pixel_labels is not None:
        masks = _each(pixel_labels)
        shapes, others = [one.shape for one in maps], [one.shape for one in masks]
        if shapes != others:
            raise UsageError(
                f"scores and pixel_labels must have the same shape, got {shapes} and {others}"
            )
        maps = [one[~(mask > 0)] for one, mask in zip(maps, masks, strict=True)]
    values = np.concatenate([one.reshape(-1) for one in maps]) if maps else np.zeros(0)
    if values.size == 0:
        raise UsageError("there is no background pixel to take the quantile of")
    if not np.isfinite(values).all():
        raise UsageError("scores must be finite")
    return float(np.quantile(values.astype(np.float64, copy=False), q))


def _each(values: Any) -> list[npt.NDArray[Any]]:
    """Return the arrays of a list one by one, for they may be of several sizes."""
    if isinstance(values, (list, tuple)):
        return [np.asarray(one) for one in values]
    return [np.asarray(values)]
