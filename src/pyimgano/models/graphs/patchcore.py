"""A fitted PatchCore of the paper's recipe as one torch module, from pixels to the decision.

What `pyimgano.models.patchcore_paper` does with searches that choose their way as they go is here
a fixed sequence of operations, which any engine runs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ...backbones.network import FeatureGraph, PatchGraph
from ..anomaly_map import SIGMA
from ..neighbors import MemoryBank
from ..patch_summary import OWN, PatchSummary
from .maps import MapGraph, NearestRow
from .region import Region


class PatchCoreGraph(MapGraph):
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
    summary
        What of an image's distances is its score.
    grid, size, threshold, region, sigma
        As in `MapGraph`.
    """

    neighbours: Tensor | None

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
        summary: PatchSummary = OWN,
    ) -> None:
        super().__init__(grid, size, sigma, threshold, region)
        self.patches = patches
        self.summary = summary
        self.nearest = NearestRow(bank)
        # with one neighbour alone, the row itself, there is nothing to weigh with
        weigh = neighbours is not None and neighbours.shape[1] > 1
        self.register_buffer("neighbours", neighbours if weigh else None)

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        bank: MemoryBank,
        *,
        n_neighbors: int,
        summary: PatchSummary,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        threshold: float,
        region: Region | None,
    ) -> PatchCoreGraph:
        """Copy a detector's parts to the CPU; `n_neighbors` is b of the re-weighting."""
        network = copy.deepcopy(backbone.network).cpu()
        patches = PatchGraph(FeatureGraph(network, backbone.layers), coarse=backbone.coarse)
        rows = torch.arange(len(bank), device=bank.features.device)
        found, _ = bank.neighbourhood(rows, n_neighbors)
        neighbours = found.cpu().clone()  # of a tensor that was made for inference
        features = bank.features.cpu()
        graph = cls(
            patches,
            features,
            neighbours,
            grid,
            size,
            threshold,
            region,
            sigma=sigma,
            summary=summary,
        )
        return graph.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        patches = self.counted(self.patches(self.masked(pixels))[0])  # (N, k, D)
        distances, nearest, queries = self.nearest(patches)
        distances = distances.reshape(-1, self.count)  # (N, k)
        score = self._score(distances, nearest.reshape(-1, self.count), queries)
        return score, self.map_of(distances), self.label(score)

    def _score(self, distances: Tensor, nearest: Tensor, queries: Tensor) -> Tensor:
        """Equations 6 and 7, (N,): as `LearnedCoreset.image_scores`, without masking."""
        if self.summary.kind != "own":
            return self.summary.plain(distances)
        s_star, where = distances.max(dim=1, keepdim=True)  # (N, 1)
        if self.neighbours is None:
            return s_star.squeeze(1)
        bank = self.nearest.bank
        m_star = nearest.gather(1, where).squeeze(1)  # (N,)
        width = int(bank.shape[1])
        patches = queries.reshape(-1, self.count, width)  # (N, k, D)
        m_test = patches.gather(1, where[:, :, None].expand(-1, -1, width))  # (N, 1, D)
        near = bank[self.neighbours[m_star]]  # (N, K, D)
        away = (near - m_test).square().sum(dim=2).sqrt()  # (N, K)
        share = torch.exp(s_star.squeeze(1) - torch.logsumexp(away, dim=1))
        return (1.0 - share).clamp(min=0.0) * s_star.squeeze(1)
