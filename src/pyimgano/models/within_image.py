"""Comparing an image with itself, where there is no other: cells that lie far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Queries whose distances to all of a bank are held together.
_QUERIES = 1024


def close_by(one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (Q, M) bool: which cells `other` (M,) of a grid (h, w) lie near the cells `one` (Q,).

    Less than a quarter of the image away both ways. Cells are numbered r w + c.
    """
    height, width = grid
    place = one[:, None]
    down = (place // width - other // width).abs()
    across = (place % width - other % width).abs()
    return (down * 4 < height) & (across * 4 < width)


def nearest_elsewhere(
    queries: Tensor,
    cells: Tensor,
    own: Tensor,
    memory: Tensor,
    memory_cells: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the nearest row of a memory that comes from one image alone.

    The image that it comes from is compared with what lies at least a quarter of the image away:
    what little is known of how patches that are not themselves differ. Where nothing does, on a
    grid of a cell or two, with everything.

    Parameters
    ----------
    queries
        (Q, D) float32.
    cells
        (Q,) int64, where in its image each is.
    own
        (Q,) bool: whether it is of the image that the memory comes from.
    memory, memory_cells
        (M, D) and (M,).
    grid
        (h, w).

    Returns
    -------
    distances, rows
        (Q,) float32 and (Q,) int64.
    """
    import torch

    distances = queries.new_empty(len(queries))
    rows = torch.empty_like(cells)
    for some in torch.arange(len(queries), device=cells.device).split(_QUERIES):
        # squared differences, so that a patch is at distance 0 from itself
        away = torch.cdist(
            queries[some], memory, compute_mode="donot_use_mm_for_euclid_dist"
        )  # (q, M)
        near = close_by(cells[some], memory_cells, grid)
        near &= own[some, None] & ~near.all(dim=1, keepdim=True)
        found = away.masked_fill_(near, torch.inf).min(dim=1)
        distances[some], rows[some] = found.values, found.indices
    return distances, rows


def within_image_note(images: int) -> str:
    """Return what a calibration says of it."""
    return (
        f"{images} training image{'s' * (images != 1)} with patches in the bank from one alone: "
        "the threshold compares patches within an image, and no false-alarm rate is promised"
    )
