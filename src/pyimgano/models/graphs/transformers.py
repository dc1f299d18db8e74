"""Fitted detectors on vision transformers as torch modules, from pixels to the decision.

Input and outputs of all are as of `PatchCoreGraph`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...backbones import Backbone
from ...backbones.network import FeatureGraph
from ..few_images import mean_of_top
from ..on_backbone import PatchGrid, on_grid
from .maps import DecisionGraph, MapGraph, NearestRow
from .region import Region, region_of


def features_on_cpu(backbone: Backbone) -> FeatureGraph:
    """Return what gives a backbone's features, as a copy on the CPU."""
    return FeatureGraph(copy.deepcopy(backbone.network).cpu(), backbone.layers)


class TopShareGraph(MapGraph):
    """Scores of patches, whose largest share gives the score; the base of the graphs below.

    Parameters
    ----------
    backbone
        Gives the features.
    grid
        The grid of the patches.
    top_share
        The share of the patches with the largest scores, whose mean is an image's.
    threshold
        Of the scores, float64.
    original_size
        (height, width) of images before resizing, where there is a region of interest.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: PatchGrid,
        top_share: float,
        threshold: float,
        original_size: tuple[int, int] | None,
    ) -> None:
        region = region_of(grid.region, grid.shape, original_size)
        super().__init__(grid.shape, grid.region.size, grid.sigma, threshold, region)
        self.features = features_on_cpu(backbone)
        self.top_share = top_share

    def patch_scores(self, features: Sequence[Tensor]) -> Tensor:
        """Return the scores (N, k) of the patches that count, from the features of the layers."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.patch_scores(self.features(self.masked(pixels)))
        score = mean_of_top(found, self.top_share)
        return score, self.map_of(found), self.label(score)


class AnomalyDINOGraph(TopShareGraph):
    """Cosine distances to the rows of a bank (M, D), without a mask of the object."""

    def __init__(self, bank: Tensor, *facts: Any) -> None:
        super().__init__(*facts)
        self.nearest = NearestRow(bank)

    def patch_scores(self, features: Sequence[Tensor]) -> Tensor:
        patches = functional.normalize(on_grid(features), dim=-1)  # (N, h, w, D)
        distances, _, _ = self.nearest(self.counted(patches))
        found: Tensor = 0.5 * distances.square().reshape(-1, self.count)
        return found


class SubspaceGraph(TopShareGraph):
    """Squared residuals of a subspace with the mean (D,) and components (D, m)."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor, *facts: Any) -> None:
        super().__init__(*facts)
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    def patch_scores(self, features: Sequence[Tensor]) -> Tensor:
        patches = torch.stack(list(features)).mean(dim=0).permute(0, 2, 3, 1)  # (N, h, w, D)
        away = self.counted(patches) - self.mean
        if self.components.shape[1] > 0:
            away = away - (away @ self.components) @ self.components.T
        return away.square().sum(dim=-1)


class RADGraph(TopShareGraph):
    """Distances to the same place in similar images: all products, of which those count.

    Parameters
    ----------
    memory
        For each block (h, w, n, C).
    tokens
        (n, C'), class tokens.
    similar, radius
        How many images are compared with, and how many rows and columns away.
    facts
        As of `TopShareGraph`.
    """

    tokens: Tensor

    def __init__(
        self, memory: Sequence[Tensor], tokens: Tensor, similar: int, radius: int, *facts: Any
    ) -> None:
        super().__init__(*facts)
        self.blocks = len(memory)
        for number, block in enumerate(memory):
            self.register_buffer(f"memory{number}", block)
        self.register_buffer("tokens", tokens)
        self.similar, self.radius = min(similar, len(tokens)), radius

    def patch_scores(self, features: Sequence[Tensor]) -> Tensor:
        *blocks, token = features
        products = functional.normalize(token.flatten(1), dim=-1) @ self.tokens.T  # (N, n)
        least = products.topk(self.similar, dim=1).values[:, -1:]
        others = 4.0 * (products < least).to(products.dtype)  # no cosine is smaller then
        found = [
            self._same_place(functional.normalize(one, dim=1), number, others)
            for number, one in enumerate(blocks)
        ]
        mean = torch.stack(found).mean(dim=0)  # (N, h, w)
        return self.counted(mean[:, :, :, None])[:, :, 0]

    def _same_place(self, queries: Tensor, number: int, others: Tensor) -> Tensor:
        """Return d (N, h, w) of one block, from unit vectors (N, C, h, w)."""
        memory = getattr(self, f"memory{number}")  # (h, w, n, C)
        height, width = self.grid
        queries = queries.permute(2, 3, 0, 1)  # (h, w, N, C)
        nearest: Tensor | None = None
        for down in range(-min(self.radius, height - 1), min(self.radius, height - 1) + 1):
            for across in range(-min(self.radius, width - 1), min(self.radius, width - 1) + 1):
                # queries whose place has one so far down and across, and what lies there
                top, bottom = max(0, -down), max(0, down)
                left, right = max(0, -across), max(0, across)
                seen = queries[top : height - bottom, left : width - right]
                there = memory[bottom : height - top, right : width - left]
                product = (seen @ there.transpose(-1, -2) - others).amax(dim=-1)  # (h', w', N)
                whole = functional.pad(product, (0, 0, left, right, top, bottom), value=-4.0)
                nearest = whole if nearest is None else torch.maximum(nearest, whole)
        assert nearest is not None
        return (1.0 - nearest).clamp(min=0.0).permute(2, 0, 1)


class TrainedGraph(DecisionGraph):
    """A trained network's graph, from pixels to score (N,) and map (N, H, W), with the label."""

    def __init__(self, graph: nn.Module, threshold: float, region: Region | None) -> None:
        super().__init__(threshold, region)
        self.graph_ = copy.deepcopy(graph).cpu().eval()  # TorchScript has a `graph` of its own

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score, anomaly_map = self.graph_(self.masked(pixels))
        if self.inside is not None:
            anomaly_map = anomaly_map * self.inside.to(anomaly_map.dtype)
        return score, anomaly_map, self.label(score)
