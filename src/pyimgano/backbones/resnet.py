"""The ResNet family with torchvision's state-dict keys: 18, 34, 50 and wide 50-2.

He et al., "Deep Residual Learning", CVPR 2016; Zagoruyko & Komodakis, "Wide Residual
Networks", BMVC 2016. The stride of a bottleneck sits in its 3x3 convolution, as in the
published torchvision weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .network import TapCollector, TappedNetwork

_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, width: int) -> None:
        super().__init__()
        inner = planes * width // 64
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = _downsample(inputs, planes * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(TappedNetwork):
    """The convolutional trunk; layers are `layer1` (stride 4) to `layer4` (stride 32)."""

    layer_names: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    default_layers = ("layer2", "layer3")
    mean = _IMAGENET_MEAN
    std = _IMAGENET_STD

    def __init__(
        self, block: type[_Basic] | type[_Bottleneck], depths: Sequence[int], width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (planes, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                blocks.append(block(inputs, planes, stride, width))
                inputs = planes * block.expansion
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        taps = TapCollector(layers)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.layer_names:
            x = getattr(self, name)(x)
            if taps.offer(name, x):
                break
        return taps.in_order()

    def cut(self, layers: Sequence[str]) -> None:
        kept = 1 + max(self.layer_names.index(layer) for layer in layers)
        for name in self.layer_names[kept:]:
            delattr(self, name)
        self.layer_names = self.layer_names[:kept]


def drop_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's state dict without the classifier's keys."""
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def resnet18() -> ResNet:
    return ResNet(_Basic, (2, 2, 2, 2))


def resnet34() -> ResNet:
    return ResNet(_Basic, (3, 4, 6, 3))


def resnet50() -> ResNet:
    return ResNet(_Bottleneck, (3, 4, 6, 3))


def wide_resnet50_2() -> ResNet:
    return ResNet(_Bottleneck, (3, 4, 6, 3), width=128)
