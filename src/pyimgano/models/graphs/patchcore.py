"""A fitted PatchCore as one torch module: pixels in; score, map and decision out.

What `pyimgano.models.patchcore` does with searches that choose their way as they go is here
a fixed sequence of operations, which any engine runs: all distances by one matrix product, of
which the least few are recomputed by differences.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...backbones import Backbone
from ...backbones.network import FeatureGraph, PatchGraph
from ...calibration import float32_threshold
from ..anomaly_map import SIGMA, map_operators
from ..bank import MemoryBank, Whitening
from .region import Region

# Neighbours that the product proposes and differences decide between, for each patch.
_CANDIDATES = 8


class _Whitened(nn.Module):
    """Patch features of `patches`, whitened."""

    centre: Tensor
    matrix: Tensor

    def __init__(self, patches: nn.Module, whitening: Whitening) -> None:
        super().__init__()
        self.patches = patches
        self.register_buffer("centre", whitening.centre.cpu())
        self.register_buffer("matrix", whitening.matrix.cpu())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return ((self.patches(pixels)[0] - self.centre) @ self.matrix,)


class PatchCoreGraph(nn.Module):
    """Roth et al. 2022, section 3, with everything learned as constants.

    Input (N, H, W, 3) uint8 RGB at the detector's `resize`. Outputs, in this order: `score`
    (N,) float32, `anomaly_map` (N, H, W) float32 and `label` (N,) int64, 1 where the score
    reaches the threshold, and also where it is not a number. H and W are fixed, N is not.

    Parameters
    ----------
    patches
        Gives locally aware patch features (N, h, w, D) float32 of pixels, as the only entry
        of a tuple: a `PatchGraph`.
    bank
        (M, D) float32, the memory bank.
    neighbours
        (M, K) int64: of each row the K nearest rows, itself among them, for the re-weighting
        of equations 6 and 7; None turns it off.
    grid
        (h, w) of the patches.
    size
        (H, W) of the maps.
    threshold
        Of the scores, float64.
    region
        What counts of an image; None for all of it.
    sigma
        Of the maps' smoothing, in pixels.
    peak
        Whether a score is the peak of the map, without equations 6 and 7.
    """

    centre: Tensor
    bank: Tensor
    norms: Tensor
    neighbours: Tensor | None
    rows: Tensor
    columns: Tensor
    threshold: Tensor
    inside: Tensor | None
    background: Tensor
    cells: Tensor | None
    place: Tensor
    scale: Tensor

    def __init__(
        self,
        patches: nn.Module,
        bank: Tensor,
        neighbours: Tensor | None,
        grid: tuple[int, int],
        size: tuple[int, int],
        threshold: float,
        region: Region | None = None,
        *,
        sigma: float = SIGMA,
        peak: bool = False,
    ) -> None:
        super().__init__()
        self.patches = patches
        self.peak = peak
        self.grid = grid
        # centred, as the detector's own bank, so that products cancel as little as possible
        self.register_buffer("centre", bank.mean(dim=0))
        self.register_buffer("bank", bank - self.centre)
        self.register_buffer("norms", self.bank.square().sum(dim=1))
        # with one neighbour alone, the row itself, there is nothing to weigh with
        weigh = neighbours is not None and neighbours.shape[1] > 1
        self.register_buffer("neighbours", neighbours if weigh else None)
        rows, columns = map_operators(grid, size, sigma)
        self.register_buffer("rows", torch.from_numpy(rows))  # (H, h)
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()))  # (w, W)
        self.register_buffer("threshold", torch.tensor(float32_threshold(threshold)))
        self._set_region(region)

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        bank: MemoryBank,
        *,
        coarse: bool,
        whitening: Whitening | None,
        n_neighbors: int,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        threshold: float,
        region: Region | None,
    ) -> PatchCoreGraph:
        """Of a detector's parts, copied to the CPU; `n_neighbors` is b of the re-weighting.

        With a `whitening` scores are the peaks of maps.
        """
        network = copy.deepcopy(backbone.network).cpu()
        patches: nn.Module = PatchGraph(FeatureGraph(network, backbone.layers), coarse=coarse)
        neighbours = None
        if whitening is None:
            rows = torch.arange(len(bank), device=bank.features.device)
            found, _ = bank.neighbourhood(rows, n_neighbors)
            neighbours = found.cpu().clone()  # of a tensor that was made for inference
        else:
            patches = _Whitened(patches, whitening)
        graph = cls(
            patches,
            bank.features.cpu(),
            neighbours,
            grid,
            size,
            threshold,
            region,
            sigma=sigma,
            peak=whitening is not None,
        )
        return graph.eval()

    def _set_region(self, region: Region | None) -> None:
        self.count = self.grid[0] * self.grid[1]  # of patches that count
        if region is None:
            self.inside, self.cells = None, None
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
        self.register_buffer("inside", region.inside)
        self.register_buffer("background", region.background)
        self.register_buffer("cells", cells)
        self.register_buffer("place", place)
        self.register_buffer("scale", scale)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.inside is not None:
            pixels = torch.where(self.inside[:, :, None], pixels, self.background)
        patches = self.patches(pixels)[0].flatten(1, 2)  # (N, hw, D)
        if self.cells is not None:
            patches = patches.index_select(1, self.cells)  # (N, k, D)
        queries = patches.flatten(0, 1) - self.centre  # (Q, D)
        away = functional.linear(-2.0 * queries, self.bank, self.norms)  # (Q, M), but for |q|^2
        few = min(_CANDIDATES, int(self.bank.shape[0]))
        proposed = away.topk(few, dim=1, largest=False, sorted=False).indices  # (Q, few)
        exact = (self.bank[proposed] - queries[:, None, :]).square().sum(dim=2)
        squared, which = exact.min(dim=1, keepdim=True)
        nearest = proposed.gather(1, which)  # (Q, 1) rows of the bank
        distances = squared.sqrt().reshape(-1, self.count)  # (N, k)
        if not self.peak:
            score = self._score(distances, nearest.reshape(-1, self.count), queries)
        if self.cells is not None:
            distances = functional.pad(distances, (0, 1)).index_select(1, self.place)  # (N, hw)
        anomaly_map = self.rows @ distances.reshape(-1, *self.grid) @ self.columns  # (N, H, W)
        if self.inside is not None:
            anomaly_map = anomaly_map * self.scale
        if self.peak:
            score = anomaly_map.flatten(1).amax(dim=1)
        # not less, so that what is not a number is never called good
        label = torch.logical_not(score < self.threshold).to(torch.int64)
        return score, anomaly_map, label

    def _score(self, distances: Tensor, nearest: Tensor, queries: Tensor) -> Tensor:
        """Equations 6 and 7, (N,): as `VisionPatchCore._image_scores`, without masking."""
        s_star, where = distances.max(dim=1, keepdim=True)  # (N, 1)
        if self.neighbours is None:
            return s_star.squeeze(1)
        m_star = nearest.gather(1, where).squeeze(1)  # (N,)
        width = int(self.bank.shape[1])
        patches = queries.reshape(-1, self.count, width)  # (N, k, D)
        m_test = patches.gather(1, where[:, :, None].expand(-1, -1, width))  # (N, 1, D)
        near = self.bank[self.neighbours[m_star]]  # (N, K, D)
        away = (near - m_test).square().sum(dim=2).sqrt()  # (N, K)
        share = torch.exp(s_star.squeeze(1) - torch.logsumexp(away, dim=1))
        return (1.0 - share).clamp(min=0.0) * s_star.squeeze(1)
