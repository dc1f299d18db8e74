"""What graphs of detectors that compare patches share: region, nearest rows, map and label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...calibration import float32_threshold
from ..anomaly_map import map_operators
from .region import Region

# Neighbours that the product proposes and differences decide between, for each patch.
_CANDIDATES = 8


class NearestRow(nn.Module):
    """The nearest row of a bank, by a fixed sequence of operations that any engine runs.

    All distances by one matrix product, of which the least few are recomputed by differences.

    Parameters
    ----------
    bank
        (M, D) float32.
    """

    centre: Tensor
    bank: Tensor
    norms: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        # centred, as the detector's own bank, so that products cancel as little as possible
        self.register_buffer("centre", bank.mean(dim=0))
        self.register_buffer("bank", bank - self.centre)
        self.register_buffer("norms", self.bank.square().sum(dim=1))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances (Q, 1), rows (Q, 1) and centred patches (Q, D) of patches (N, k, D)."""
        queries = patches.flatten(0, 1) - self.centre  # (Q, D)
        away = functional.linear(-2.0 * queries, self.bank, self.norms)  # (Q, M), but for |q|^2
        few = min(_CANDIDATES, int(self.bank.shape[0]))
        proposed = away.topk(few, dim=1, largest=False, sorted=False).indices  # (Q, few)
        exact = (self.bank[proposed] - queries[:, None, :]).square().sum(dim=2)
        squared, which = exact.min(dim=1, keepdim=True)
        return squared.sqrt(), proposed.gather(1, which), queries


def rows_of(grids: Tensor) -> Tensor:
    """Return (N, h w, D) of (N, h, w, D).

    Only the number of images is left to be worked out: of no image, N = 0, an exported graph
    could not tell any other length.
    """
    _, height, width, channels = grids.shape
    return grids.reshape(-1, int(height) * int(width), int(channels))


class DecisionGraph(nn.Module):
    """What all graphs begin and end with: which pixels count, and the label; the base of graphs.

    Parameters
    ----------
    threshold
        Of the scores, float64.
    region
        What counts of an image; None for all of it.
    """

    threshold: Tensor
    inside: Tensor | None
    background: Tensor

    def __init__(self, threshold: float, region: Region | None) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float32_threshold(threshold)))
        if region is None:
            self.inside = None
        else:
            self.register_buffer("inside", region.inside)
            self.register_buffer("background", region.background)

    def masked(self, pixels: Tensor) -> Tensor:
        """Return images (N, H, W, 3) with the background where nothing counts."""
        if self.inside is None:
            return pixels
        return torch.where(self.inside[:, :, None], pixels, self.background)

    def label(self, score: Tensor) -> Tensor:
        """Return labels (N,) int64: not less, so that what is not a number is never called good."""
        return torch.logical_not(score < self.threshold).to(torch.int64)


class MapGraph(DecisionGraph):
    """From pixels to patches that count, and from their scores to a map.

    Parameters
    ----------
    grid
        (h, w) of the patches.
    size
        (H, W) of the maps.
    sigma
        Of the maps' smoothing, in pixels.
    threshold
        Of the scores, float64.
    region
        What counts of an image; None for all of it.
    """

    rows: Tensor
    columns: Tensor
    cells: Tensor | None
    place: Tensor
    scale: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        threshold: float,
        region: Region | None,
    ) -> None:
        super().__init__(threshold, region)
        self.grid = grid
        rows, columns = map_operators(grid, size, sigma)
        self.register_buffer("rows", torch.from_numpy(rows))  # (H, h)
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()))  # (w, W)
        self._set_region(region)

    def _set_region(self, region: Region | None) -> None:
        self.count = self.grid[0] * self.grid[1]  # of patches that count
        if region is None:
            self.cells = None
            return
        cells = torch.arange(self.count) if region.cells is None else region.cells
        counted = torch.zeros(self.count)
        counted[cells] = 1.0
        # where each cell of the grid finds its distance; past the last one stands a 0
        place = torch.full((self.count,), len(cells))
        place[cells] = torch.arange(len(cells))
        self.count = len(cells)
        # a pixel's score is the mean over the cells in reach that count
        weight = self.rows @ counted.view(self.grid) @ self.columns  # (H, W)
        scale = torch.where(region.inside, 1.0 / weight, torch.zeros(()))
        self.register_buffer("cells", cells)
        self.register_buffer("place", place)
        self.register_buffer("scale", scale)

    def counted(self, patches: Tensor) -> Tensor:
        """Return (N, k, D) of (N, h, w, D)."""
        flat = rows_of(patches)
        return flat if self.cells is None else flat.index_select(1, self.cells)

    def map_of(self, distances: Tensor) -> Tensor:
        """Return the maps (N, H, W) of the scores (N, k) of the patches that count."""
        if self.cells is not None:
            distances = functional.pad(distances, (0, 1)).index_select(1, self.place)  # (N, hw)
        found = self.rows @ distances.reshape(-1, *self.grid) @ self.columns  # (N, H, W)
        return found if self.inside is None else found * self.scale
