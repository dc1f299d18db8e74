"""What methods share that compare a frozen teacher's pyramid of features with another network's.

Imports torch; methods import it inside their functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.network import FeatureGraph, TappedNetwork, initialise
from .anomaly_map import map_operators
from .region_cells import RegionCells
from .trained import NetworkTraining
from .training import Minibatch

# Of a teacher's features that are kept through a training; above, they are computed each time.
_BYTES = 2**30
# Of the cells that count, in a pixel's score, as `smooth_maps` has it.
_LEAST_WEIGHT = 1e-4


def untrained_copy(network: TappedNetwork, layers: Sequence[str]) -> TappedNetwork:
    """Return the same network up to the deepest of `layers`, on the CPU, with random weights.

    Drawn from torch's own generator (`training.drawn` seeds it): every part by its own rule,
    convolutions He-normal.
    """
    twin = copy.deepcopy(network).cpu()
    twin.cut(layers)
    for module in twin.modules():
        again = getattr(module, "reset_parameters", None)
        if callable(again):
            again()
    initialise(twin, int(torch.randint(2**62, ())))
    return twin.requires_grad_(True)


def counted_cells(backbone: Backbone, region: RegionCells) -> list[Tensor | None]:
    """Return for each level the cells that count, (k,) int64 on the device; None for all."""
    cells = [region.cells((h, w)) for _, _, h, w in backbone.shapes(region.size)]
    return [None if one is None else torch.from_numpy(one).to(backbone.device) for one in cells]


class TeacherFeatures:
    """A backbone's features of the images of a training, computed once where 1 GiB holds them.

    Above that they are computed for every minibatch anew; they are the same either way.

    Parameters
    ----------
    backbone
        The teacher.
    training
        The images, and what each is for.
    reduce
        What is made of a teacher's features at once, for each layer (N, C_l, H_l, W_l), and kept
        in their place; None for the features themselves.
    """

    def __init__(
        self,
        backbone: Backbone,
        training: NetworkTraining,
        reduce: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> None:
        self._backbone = backbone
        self._reduce = reduce
        images, parts = training.kept, training.parts
        numbers = np.sort(np.concatenate([parts.learn, parts.watch]))
        shapes = backbone.shapes((images.pixels.shape[1], images.pixels.shape[2]))
        if reduce is not None:
            reduced = reduce([torch.empty(shape, device="meta") for shape in shapes])
            shapes = [tuple(one.shape) for one in reduced]
        size = sum(4 * int(np.prod(shape)) for shape in shapes)
        self._kept: list[Tensor] | None = None
        if size * len(numbers) > _BYTES:
            return
        self._kept = [
            torch.empty((len(numbers), *shape[1:]), device=backbone.device) for shape in shapes
        ]
        self._place = np.full(len(images), -1)
        self._place[numbers] = np.arange(len(numbers))
        for start in range(0, len(numbers), 8):
            found = self._computed(images.pixels[numbers[start : start + 8]])
            for layer, features in zip(self._kept, found):
                layer[start : start + len(features)] = features

    def of(self, batch: Minibatch) -> list[Tensor]:
        """Return for each layer (B, C_l, H_l, W_l), or what `reduce` makes of them, detached."""
        if self._kept is None:
            # outside of inference mode, so that gradients may pass by
            plain = torch.contiguous_format  # sums over channels depend on it
            return [
                one.clone(memory_format=plain) for one in self._computed(batch.pixels.cpu().numpy())
            ]
        places = torch.from_numpy(self._place[batch.numbers]).to(self._backbone.device)
        return [layer[places] for layer in self._kept]

    def _computed(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        # one at a time: what an image gives must not depend on its company
        each = [self._backbone.features([image]) for image in pixels]
        if self._reduce is not None:
            each = [self._reduce(layers) for layers in each]
        return [torch.cat(layers) for layers in zip(*each)]


class LevelMaps(nn.Module):
    """One map of a frame from a grid of distances for each level, and the score: its peak.

    Parameters
    ----------
    grids
        (h_l, w_l) of each level.
    size
        (H, W) of the map.
    sigma
        Of the Gaussian that smooths it, in pixels; 0 for none.
    combine
        Whether the levels' upsampled maps are multiplied or added.
    cells
        For each level the cells that count, as `RegionCells.cells` gives them. A pixel's
        score is the weighted mean over these.
    inside
        (H, W) bool: the pixels that the score is taken over; None for all.
    top_share
        The score is the mean of this share of these, the largest values; None for the largest.
    """

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        size: tuple[int, int],
        *,
        sigma: float,
        combine: Literal["product", "sum"],
        cells: Sequence[npt.NDArray[np.int64] | None],
        inside: npt.NDArray[np.bool_] | None,
        top_share: float | None = None,
    ) -> None:
        super().__init__()
        self.combine = combine
        pixels = size[0] * size[1] if inside is None else int(inside.sum())
        self.top = 1 if top_share is None else max(1, round(top_share * pixels))
        self.count = len(grids)
        for level, (grid, counted) in enumerate(zip(grids, cells)):
            rows, columns = (torch.from_numpy(m) for m in map_operators(grid, size, sigma))
            self.register_buffer(f"rows{level}", rows)  # (H, h)
            self.register_buffer(f"columns{level}", columns.T.contiguous())  # (w, W)
            mask = torch.ones(grid)
            scale = torch.ones(size)
            if counted is not None:
                mask.zero_().view(-1)[torch.from_numpy(counted)] = 1.0
                weight = rows @ mask @ columns.T
                scale = torch.where(weight > _LEAST_WEIGHT, 1.0 / weight, torch.zeros(()))
            self.register_buffer(f"mask{level}", mask)
            self.register_buffer(f"scale{level}", scale)
        whole = torch.ones(size) if inside is None else torch.from_numpy(inside.astype(np.float32))
        self.register_buffer("inside", whole)

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        region: RegionCells,
        *,
        sigma: float,
        combine: Literal["product", "sum"],
    ) -> LevelMaps:
        """Return that of the layers of a backbone, over what counts of the frame."""
        grids = [(h, w) for _, _, h, w in backbone.shapes(region.size)]
        return cls(
            grids,
            region.size,
            sigma=sigma,
            combine=combine,
            cells=[region.cells(grid) for grid in grids],
            inside=region.pixels(),
        )

    def forward(self, distances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scores (N,) and maps (N, H, W) of (N, h_l, w_l) a level."""
        found: Tensor | None = None
        for level in range(self.count):
            mask, rows = getattr(self, f"mask{level}"), getattr(self, f"rows{level}")
            columns, scale = getattr(self, f"columns{level}"), getattr(self, f"scale{level}")
            one = (rows @ (distances[level] * mask) @ columns) * scale
            if found is None:
                found = one
            else:
                found = found * one if self.combine == "product" else found + one
        assert found is not None
        counted = (found * self.get_buffer("inside")).flatten(1)  # (N, H W), 0 or more
        if self.top == 1:
            return counted.amax(dim=1), found
        return counted.topk(self.top, dim=1).values.mean(dim=1), found


class PyramidGraph(nn.Module):
    """Pixels in; score (N,) and map (N, H, W) out: what scores images.

    Parameters
    ----------
    teacher
        Gives the features of each level.
    other
        Gives what they are compared with: of the pixels, or, `from_features`, of the teacher's
        features.
    distance
        Of two (N, C, h, w): (N, h, w), 0 or more.
    maps
        What becomes of the distances.
    """

    def __init__(
        self,
        teacher: FeatureGraph,
        other: nn.Module,
        distance: Callable[[Tensor, Tensor], Tensor],
        maps: LevelMaps,
        *,
        from_features: bool,
    ) -> None:
        super().__init__()
        self.from_features = from_features
        self.teacher = teacher
        self.other = other
        self.distance = distance
        self.maps = maps

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        wanted = self.teacher(pixels)
        found = self.other(wanted if self.from_features else pixels)
        score, anomaly_map = self.maps([self.distance(t, s) for t, s in zip(wanted, found)])
        return score, anomaly_map
