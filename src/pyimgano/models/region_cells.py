"""Which pixels and cells of an image count: all of them, or those in the region of interest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import RegionOfInterest


@dataclass(frozen=True)
class RegionCells:
    """The frame that images are resized to, and what of it counts.

    Attributes
    ----------
    size
        (H, W) in pixels: the `resize` of the fit.
    roi
        The region of interest; None if the whole frame counts.
    """

    size: tuple[int, int]
    roi: RegionOfInterest | None

    def pixels(self, original_size: tuple[int, int] | None = None) -> npt.NDArray[np.bool_] | None:
        """Return which pixels of the map of an image count, (H, W) bool; None if all do.

        `original_size` is the (height, width) of the image before resizing; None for one that
        comes at `size`.
        """
        return None if self.roi is None else self.roi.counted(self.size, original_size)

    def pixels_of_all(
        self, original_sizes: Iterable[tuple[int, int]]
    ) -> npt.NDArray[np.bool_] | None:
        """Return which pixels count in the images of each of these sizes, as `pixels`.

        Raises
        ------
        DataError
            No pixel counts in all of them.
        """
        if self.roi is None:
            return None
        sizes = sorted(set(original_sizes))
        counted = np.logical_and.reduce([self.roi.counted(self.size, one) for one in sizes])
        if not counted.any():
            raise DataError(
                f"{self.roi.origin}: the training images are of {len(sizes)} sizes, and no pixel "
                "counts in all of them"
            )
        return np.asarray(counted, dtype=np.bool_)

    def cells(self, grid: tuple[int, int]) -> npt.NDArray[np.int64] | None:
        """Return the cells r w + c of a grid (h, w) over the frame that count, (k,) ascending.

        A cell counts if a pixel that counts lies in it. None if all do.
        """
        counted = self.cell_mask(grid)
        return None if counted is None else np.flatnonzero(counted)

    def cell_mask(self, grid: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """Return which cells of a grid count, as `cells`: (h, w) bool; None if all do."""
        if self.roi is None:
            return None
        counted = self.roi.counted(self.size)
        for axis, cells in enumerate(grid):
            pixels = counted.shape[axis]
            number = np.arange(cells)
            ranges = zip(number * pixels // cells, -(-(number + 1) * pixels // cells))
            parts = [counted.take(range(a, b), axis).any(axis) for a, b in ranges]
            counted = np.stack(parts, axis)
        return None if counted.all() else counted
