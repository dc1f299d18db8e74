"""The networks of reverse distillation: the one-class bottleneck and the decoder.

Imports torch; `reverse_distillation` imports it inside its functions. Written for any
encoder: what is asked of it are the channels of its levels, and whether it is a ResNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.network import TappedNetwork
from ..backbones.resnet import ResNet

#: (inputs, outputs, stride): a residual block. A stride of -2 doubles the grid.
_Block = Callable[[int, int, int], nn.Module]


def _convolution(inputs: int, outputs: int, stride: int, groups: int = 1) -> nn.Module:
    """Make a 3x3 convolution of stride 1 or 2; with stride -2 transposed, 2x2, to double the
    grid.
    """
    if stride == -2:
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


class _Residual(nn.Module):
    """A ResNet's block, basic or (`middle` given) a bottleneck, that can also double the grid."""

    def __init__(self, inputs: int, outputs: int, stride: int, middle: int | None = None) -> None:
        super().__init__()
        parts: list[nn.Module]
        if middle is None:
            parts = [
                _convolution(inputs, outputs, stride),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                _convolution(outputs, outputs, 1),
            ]
        else:
            parts = [
                nn.Conv2d(inputs, middle, 1, bias=False),
                nn.BatchNorm2d(middle),
                nn.ReLU(),
                _convolution(middle, middle, stride),
                nn.BatchNorm2d(middle),
                nn.ReLU(),
                nn.Conv2d(middle, outputs, 1, bias=False),
            ]
        self.body = nn.Sequential(*parts, nn.BatchNorm2d(outputs))
        self.skip: nn.Module = nn.Identity()
        if stride == -2:
            up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
            self.skip = nn.Sequential(up, nn.BatchNorm2d(outputs))
        elif stride != 1 or inputs != outputs:
            down = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(down, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


class _Inverted(nn.Module):
    """Expand fourfold, depthwise, project, linear at the end; light, for all other encoders."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            _convolution(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def _like(encoder: TappedNetwork) -> tuple[_Block, Sequence[int]]:
    """Return the block of the encoder's kind, and how many there are in its stages."""
    if not isinstance(encoder, ResNet):
        return _Inverted, (2, 2, 2)
    stages = [getattr(encoder, name) for name in encoder.layer_names[:3]]
    depths = [len(stage) for stage in stages]
    first = stages[0][0]
    if not hasattr(first, "conv3"):
        return _Residual, depths
    # middle channels of a bottleneck, as a share of its outputs
    share = first.conv3.out_channels // first.conv2.out_channels
    return lambda i, o, stride: _Residual(i, o, stride, o // share), depths


class Bottleneck(nn.Module):
    """Section 3.3: multi-scale feature fusion, then one more residual stage of stride 2.

    Features of every level are brought to the deepest one's grid, by 3x3 convolutions of
    stride 2 with batch norm and ReLU, joined, and embedded.

    Parameters
    ----------
    channels
        C_l of the levels, the finest first.
    block, depth
        Of the residual stage.
    """

    def __init__(self, channels: Sequence[int], block: _Block, depth: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.down = nn.ModuleList()
        for level in range(last):
            parts: list[nn.Module] = []
            for step in range(level, last):
                parts += [
                    _convolution(channels[step], channels[step + 1], 2),
                    nn.BatchNorm2d(channels[step + 1]),
                    nn.ReLU(),
                ]
            self.down.append(nn.Sequential(*parts))
        joined, embedded = channels[-1] * len(channels), 2 * channels[-1]
        stage = [block(joined, embedded, 2)]
        stage += [block(embedded, embedded, 1) for _ in range(depth - 1)]
        self.embed = nn.Sequential(*stage)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        deepest = features[-1]
        same = [_at(down(one), deepest) for down, one in zip(self.down, features)]
        embedded: Tensor = self.embed(torch.cat([*same, deepest], dim=1))
        return embedded


class Reverse(nn.Module):
    """Bottleneck and decoder: from the teacher's features to features of the same shapes.

    The decoder mirrors the encoder: for each level, the deepest first, a stage that doubles
    the grid and ends in that level's channels.

    Parameters
    ----------
    encoder
        Whose kind of blocks is mirrored.
    channels
        C_l of its levels, the finest first, two or more.
    """

    def __init__(self, encoder: TappedNetwork, channels: Sequence[int]) -> None:
        super().__init__()
        block, depths = _like(encoder)
        depths = [*depths, *[depths[-1]] * len(channels)][: len(channels)]
        self.bottleneck = Bottleneck(channels, block, min(3, depths[0]))
        self.stages = nn.ModuleList()
        inputs = 2 * channels[-1]
        for outputs, depth in zip(reversed(channels), reversed(depths)):
            stage = [block(inputs, outputs, -2)]
            stage += [block(outputs, outputs, 1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*stage))
            inputs = outputs

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (N, C_l, h_l, w_l) a level in and out, the finest first."""
        x = self.bottleneck(features)
        found = []
        for stage, wanted in zip(self.stages, reversed(features)):
            x = _at(stage(x), wanted)
            found.append(x)
        return tuple(reversed(found))


def initialise_reverse(network: nn.Module) -> nn.Module:
    """He-normal convolutions, from torch's own generator (`training.drawn` seeds it)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _at(x: Tensor, like: Tensor) -> Tensor:
    """On the grid of `like`, which differs where a side is odd."""
    size = (int(like.shape[-2]), int(like.shape[-1]))
    if (int(x.shape[-2]), int(x.shape[-1])) == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
