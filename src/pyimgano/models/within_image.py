"""Comparing an image with itself, where there is no other: cells that lie far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def close_by(one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """(Q, M) bool: which cells `other` (M,) of a grid (h, w) lie near the cells `one` (Q,).

    Less than a quarter of the image away both ways. Cells are numbered r w + c.
    """
    height, width = grid
    place = one[:, None]
    down = (place // width - other // width).abs()
    across = (place % width - other % width).abs()
    return (down * 4 < height) & (across * 4 < width)
