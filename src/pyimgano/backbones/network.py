"""What every backbone network offers: feature maps at named layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown_name


class TappedNetwork(nn.Module):
    """A frozen network whose intermediate feature maps have names.

    A subclass says which layers it has, which of them a detector taps by default, and how
    its input is normalised, and implements `tapped`.
    """

    #: Layers that can be tapped, in the order of computation.
    layer_names: tuple[str, ...]
    #: The two layers of strides 8 and 16 that PatchCore uses.
    default_layers: tuple[str, ...]
    #: Per-channel mean and standard deviation of the input, for pixels of 0 to 255, RGB.
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    #: Whether deeper layers see wider on coarser grids. The layers of one that is no pyramid are
    #: all of one stride, and a method that chooses by strides takes `default_layers`.
    pyramid: bool = True
    #: Sides of images are multiples of so many pixels, and others are resized to the nearest one.
    multiple: int = 1
    #: Whether OpenVINO would compute something else.
    torch_alone: bool = False

    def resolve_layer(self, layer: str, name: str) -> str:
        """Return the one name of a layer, where it has several.

        Raises
        ------
        UsageError
            The network, called `name`, has no such layer.
        """
        if layer not in self.layer_names:
            raise UsageError(unknown_name(f"layer of {name}", layer, self.layer_names))
        return layer

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Return feature maps (N, C_l, H_l, W_l) of `layers`, in that order.

        `x` is (N, 3, H, W) float32, normalised. Nothing after the deepest layer runs.
        """
        raise NotImplementedError

    def layer_kinds(self) -> dict[str, tuple[int, int]]:
        """Return (channels, stride) of each layer, in the order of computation."""
        side = 64  # enough for strides up to 32 to be seen
        weight = next(self.parameters())
        with torch.inference_mode():
            maps = self.tapped(weight.new_zeros((1, 3, side, side)), self.layer_names)
        return {
            name: (int(one.shape[1]), round(side / int(one.shape[-1])))
            for name, one in zip(self.layer_names, maps, strict=True)
        }

    def cut(self, layers: Sequence[str]) -> None:
        """Let go of what comes after the deepest of `layers`, where that is easily told."""


class TapCollector:
    """Keeps the feature maps that were asked for, and knows when there are no more."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = tuple(layers)
        self._maps: dict[str, Tensor] = {}

    def offer(self, name: str, features: Tensor) -> bool:
        """Take `features` if `name` was asked for; True when all have been seen."""
        if name in self._layers:
            self._maps[name] = features
        return len(self._maps) == len(set(self._layers))

    def in_order(self) -> list[Tensor]:
        return [self._maps[name] for name in self._layers]


class FeatureGraph(nn.Module):
    """Pixels in, tapped feature maps out: what an engine runs.

    Input (N, H, W, 3) uint8 RGB; output one (N, C_l, H_l, W_l) float32 tensor a layer.
    Normalisation is part of the graph, so that every engine does it alike.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, network: TappedNetwork, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)
        self.register_buffer("mean", torch.tensor(network.mean).view(1, 3, 1, 1))
        self.register_buffer("inverse_std", 1.0 / torch.tensor(network.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)  # (N, 3, H, W)
        x = (x - self.mean) * self.inverse_std
        return tuple(self.network.tapped(x, self.layers))


class PatchGraph(nn.Module):
    """Pixels in, locally aware patch features out (Roth et al. 2022, section 3.1).

    Each cell of a layer becomes the mean of its 3x3 neighbourhood, over the cells that exist;
    layers are brought to the finest grid, or if `coarse` to one of half as many cells both ways,
    bilinearly, and joined (of the finest layer it is then the mean of 2x2 cells). Output one
    (N, h, w, D) float32 tensor; with layers `apart`, given by their numbers, these are joined by
    themselves, on the finest grid among them, as a second one.
    """

    def __init__(
        self, graph: FeatureGraph, *, coarse: bool = False, apart: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.maps = graph  # TorchScript has an attribute `graph` of its own
        self.coarse = coarse
        self.apart = tuple(apart)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(pixels)  # (N, C_l, h_l, w_l)
        near = _joined([m for i, m in enumerate(maps) if i not in self.apart], self.coarse)
        if not self.apart:
            return (near,)
        return near, _joined([maps[i] for i in self.apart], False)


def _joined(maps: Sequence[Tensor], coarse: bool) -> Tensor:
    """Return (N, h, w, D) of maps (N, C_l, h_l, w_l)."""
    grid = max((int(m.shape[-2]), int(m.shape[-1])) for m in maps)  # that of the finest
    if coarse:
        grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
    joined = []
    for m in maps:
        rows = _mean_and_resize(int(m.shape[-2]), grid[0]).to(m)  # (h, h_l)
        columns = _mean_and_resize(int(m.shape[-1]), grid[1]).to(m)  # (w, w_l)
        joined.append(rows @ (m @ columns.T))
    return torch.cat(joined, dim=1).permute(0, 2, 3, 1).contiguous()


@lru_cache(maxsize=32)
def _mean_and_resize(cells: int, wanted: int) -> Tensor:
    """Return (wanted, cells): along one axis, the mean of each cell and its neighbours that exist,
    then bilinear resizing with half-pixel centres. Both axes together are the 3x3 mean and
    bilinear resizing, which are separable."""
    # numpy, so that tracing takes the result as a constant
    number = np.arange(cells)
    near = (np.abs(number[:, None] - number) <= 1).astype(np.float64)
    mean = near / near.sum(axis=1, keepdims=True)
    centre = np.clip((np.arange(wanted) + 0.5) * cells / wanted - 0.5, 0, cells - 1)
    left = np.floor(centre).astype(np.int64)
    right = np.minimum(left + 1, cells - 1)
    share = (centre - left)[:, None]
    operator = (1 - share) * mean[left] + share * mean[right]
    return torch.from_numpy(operator.astype(np.float32))


def initialise(network: nn.Module, seed: int) -> None:
    """Random weights that depend on `seed` alone: He-normal convolutions, unit batch norms.

    A network with an `initialise` of its own draws them itself.
    """
    generator = torch.Generator().manual_seed(seed)
    own = getattr(network, "initialise", None)
    if own is not None:
        own(generator)
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            std = (2.0 / (fan_out / module.groups)) ** 0.5
            with torch.no_grad():
                module.weight.normal_(0.0, std, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
