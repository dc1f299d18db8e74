"""From a grid of patch scores to a map of pixel scores: bilinear upsampling, then a Gaussian.

Both steps are linear and separable, so together they are one matrix for the rows and one for
the columns: map = R @ grid @ C^T.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

#: Standard deviation of the smoothing, in pixels of the map (Roth et al. 2022, section 3.3).
SIGMA = 4.0
# Standard deviations that the Gaussian is cut at.
_TRUNCATE = 4.0
# Of the cells that count, in a pixel's score; a pixel in such a cell has far more.
_LEAST_WEIGHT = 1e-4


def smooth_maps(
    grids: Tensor,
    size: tuple[int, int],
    sigma: float = SIGMA,
    counted: Tensor | None = None,
) -> Tensor:
    """Return maps (N, H, W) from patch scores (N, h, w), on the same device, float32.

    Upsampling has half-pixel centres (no aligned corners); the Gaussian is cut at four
    standard deviations and reflects at the border, each edge pixel repeated.

    With `counted`, (h, w) of 0 and 1, a pixel's score is the weighted mean over the cells that
    count alone, so that near the others it is not lower; where none is in reach it is 0. The
    others' scores must be 0.
    """
    import torch

    height, width = grids.shape[-2:]
    rows = torch.from_numpy(_operator(height, size[0], sigma)).to(grids)  # (H, h)
    columns = torch.from_numpy(_operator(width, size[1], sigma)).to(grids)  # (W, w)
    maps = rows @ grids @ columns.T  # (N, H, W)
    if counted is None:
        return maps
    weight = rows @ counted.to(grids) @ columns.T  # (H, W) in [0, 1]
    return torch.where(weight > _LEAST_WEIGHT, maps / weight.clamp(min=_LEAST_WEIGHT), 0.0)


@lru_cache(maxsize=16)
def _operator(cells: int, pixels: int, sigma: float) -> npt.NDArray[np.float32]:
    """Return (pixels, cells): upsampling from `cells` to `pixels`, then smoothing, along one
    axis.
    """
    import cv2

    centre = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    left = np.floor(centre).astype(int)
    right = np.minimum(left + 1, cells - 1)
    weight = centre - left
    upsample = np.zeros((pixels, cells))
    upsample[np.arange(pixels), left] += 1 - weight
    upsample[np.arange(pixels), right] += weight
    smooth: npt.NDArray[Any] = upsample
    if sigma > 0:
        gaussian = cv2.getGaussianKernel(2 * int(_TRUNCATE * sigma + 0.5) + 1, sigma)
        smooth = cv2.sepFilter2D(upsample, -1, np.ones(1), gaussian, borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(smooth, dtype=np.float32)


def map_operators(
    grid: tuple[int, int], size: tuple[int, int], sigma: float = SIGMA
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the matrices R (H, h) and C (W, w) of a grid (h, w) and maps of `size` (H, W).

    With a `sigma` of 0 nothing is smoothed.
    """
    return _operator(grid[0], size[0], sigma), _operator(grid[1], size[1], sigma)
