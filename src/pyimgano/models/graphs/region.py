"""The region of interest of a detector as constants of a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..region_cells import RegionCells


@dataclass(frozen=True)
class Region:
    """What counts of images of one size.

    Attributes
    ----------
    inside
        (H, W) bool: the pixels of the resized image that count. Maps are 0 elsewhere.
    background
        (H, W, 3) uint8: what stands in the place of the others before anything looks at them.
    cells
        (k,) int64, ascending: the cells r w + c of the patch grid that scores come from; None
        for all. A pixel that counts lies in one of them.
    """

    inside: Tensor
    background: Tensor
    cells: Tensor | None


def region_of(
    counted: RegionCells, grid: tuple[int, int], original_size: tuple[int, int] | None
) -> Region | None:
    """Return what counts of images of one size as constants; None if everything does.

    `original_size` is the (height, width) of images before resizing, on which it depends which
    pixels count; None for images that come at the detector's `resize`.
    """
    roi = counted.roi
    if roi is None:
        return None
    height, width = counted.size
    source = original_size or (height, width)
    blank = np.zeros((height, width, 3), np.uint8)
    cells = counted.cells(grid)
    return Region(
        torch.from_numpy(roi.counted((height, width), source).copy()),
        torch.from_numpy(roi.fill(blank, source, "an image")),
        None if cells is None else torch.from_numpy(cells),
    )
