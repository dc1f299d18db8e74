"""A fitted PatchCore of the whitened recipe as one torch module."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ...backbones import Backbone
from ...backbones.network import FeatureGraph, PatchGraph
from ..near_and_context import NearAndContext
from ..neighbors import PatchMemory
from ..power_means import image_scores
from .maps import MapGraph, NearestRow, rows_of
from .region import Region


class _Memory(nn.Module):
    """Scaled distances (N, k) of patches (N, k, D), as `PatchMemory.distances`, in its unit."""

    centre: Tensor
    matrix: Tensor
    scale: Tensor
    border: Tensor

    def __init__(self, memory: PatchMemory, unit: float) -> None:
        super().__init__()
        self.nearest = NearestRow(memory.bank.features.cpu())
        self.register_buffer("centre", memory.whitening.centre.cpu())
        self.register_buffer("matrix", memory.whitening.matrix.cpu())
        self.register_buffer("scale", memory.scale.cpu())
        self.register_buffer("border", memory.border.cpu() * unit)  # (k,)

    def forward(self, patches: Tensor) -> Tensor:
        distances, rows, _ = self.nearest((patches - self.centre) @ self.matrix)
        scaled = distances.squeeze(1) / self.scale.index_select(0, rows.squeeze(1))
        found: Tensor = scaled.reshape(-1, self.border.shape[0]) / self.border
        return found


class WhitenedGraph(MapGraph):
    """The default recipe of `vision_patchcore`, with everything learned as constants.

    Input and outputs as `PatchCoreGraph`; the score as `power_means` has it.

    Parameters
    ----------
    patches
        A `PatchGraph` with layers apart, if the detector has a context.
    memories
        What was learned.
    context_cells
        (l,) int64: the cells of the context's grid that count; None for all.
    grid, size, sigma, threshold, region
        As in `MapGraph`, of the near patches.
    """

    context_cells: Tensor | None

    def __init__(
        self,
        patches: nn.Module,
        memories: NearAndContext,
        context_cells: Tensor | None,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        threshold: float,
        region: Region | None,
    ) -> None:
        super().__init__(grid, size, sigma, threshold, region)
        self.patches = patches
        self.near, *around = (_Memory(memory, unit) for _, memory, unit in memories.memories())
        self.context = around[0] if around else None
        self.means_of = memories.means_of
        self.register_buffer("context_cells", context_cells)

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        memories: NearAndContext,
        *,
        context_cells: Tensor | None,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        threshold: float,
        region: Region | None,
    ) -> WhitenedGraph:
        """Copy a detector's parts to the CPU."""
        network = copy.deepcopy(backbone.network).cpu()
        maps = FeatureGraph(network, backbone.layers)
        patches = PatchGraph(maps, coarse=backbone.coarse, apart=backbone.apart)
        cells = None if context_cells is None else context_cells.cpu()
        return cls(patches, memories, cells, grid, size, sigma, threshold, region).eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grids = self.patches(self.masked(pixels))
        near, context = self.near(self.counted(grids[0])), None
        anomaly_map = self.map_of(near)
        if self.context is not None:
            around = rows_of(grids[1])  # (N, hw, E)
            if self.context_cells is not None:
                around = around.index_select(1, self.context_cells)
            context = self.context(around)
        score = image_scores(near, context, self.means_of, lambda: anomaly_map.amax(dim=(1, 2)))
        return score, anomaly_map, self.label(score)
