"""The teacher of EfficientAD: distilled from a backbone here, or read from a file.

Section 3.1 of the paper: a patch description network learns to give, for a patch of 33 x 33
pixels, the features that a deep network has there when it sees the image at twice the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.weights import read_state
from ..errors import WeightsError
from .efficientad_networks import (
    BORDER,
    STRIDE,
    as_input,
    described,
    enlarged,
    patch_description_network,
    working_size,
)
from .evenly_spread import evenly
from .training import History, KeptImages, Minibatch, Parts, Plan, Task, drawn, train

if TYPE_CHECKING:
    from ..backbones import Backbone
    from .training import Checkpoint
    from .training_images import Progress

#: Channels of a teacher, at most: those of the paper's.
MOST_CHANNELS = 384
#: And of one that is read.
READABLE_CHANNELS = 4096
#: Side of the crops that networks are trained on, at most.
CROP = 96
# Images that the mean and deviation of the backbone's channels are taken over, at most.
_MEASURED = 64
# Bytes of features that are kept, at most.
_ROOM = 1 << 30


@dataclass(frozen=True)
class Teacher:
    """A teacher, and what is known of it.

    Attributes
    ----------
    network
        The patch description network, on the CPU.
    channels
        How many numbers it gives for a patch.
    mean, std
        (channels,) of the backbone's features that it learned to give normalised; None from a
        file.
    history
        Of its training; None from a file.
    """

    network: nn.Sequential
    channels: int
    mean: Tensor | None = None
    std: Tensor | None = None
    history: History | None = None


def read_teacher(path: str | Path, model_size: str) -> Teacher:
    """Read a teacher from a state dict: safetensors, or a torch file of tensors.

    Raises
    ------
    WeightsError
        It cannot be read, or is of another network.
    """
    path = Path(path)
    state = read_state(path)
    last = {"S": "8.weight", "M": "12.weight"}[model_size]
    if last not in state or state[last].ndim != 4:
        raise WeightsError(f"{path}: no teacher of size {model_size} (it has no {last!r})")
    channels = int(state[last].shape[0])
    if not 1 <= channels <= READABLE_CHANNELS:  # some weights grow with its square
        raise WeightsError(
            f"{path}: a teacher of {channels} channels, wanted 1 to {READABLE_CHANNELS}"
        )
    network = patch_description_network(model_size, channels)
    for name, own in network.state_dict().items():
        found = state.get(name)
        if found is None or found.shape != own.shape:
            shape = "nothing" if found is None else tuple(found.shape)
            raise WeightsError(
                f"{path}: no teacher of size {model_size} ({name} is {shape}, "
                f"wanted {tuple(own.shape)})"
            )
        if not found.isfinite().all():
            raise WeightsError(f"{path}: {name} holds values that are not finite")
    if unknown := sorted(set(state) - set(network.state_dict())):
        raise WeightsError(f"{path}: no teacher of size {model_size} (it has {unknown[0]!r})")
    network.load_state_dict(state)
    return Teacher(network, channels)


def distill(
    backbone: Backbone,
    images: KeptImages,
    parts: Parts,
    *,
    model_size: str,
    plan: Plan,
    learning_rate: float,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Teacher:
    """Distil a teacher of the features of `backbone`, which gives patches.

    Learns from crops with changed brightness, contrast or saturation. What it is to say of a
    crop is cut from the features of the unchanged whole image: a crop seen alone has other
    features, at each of its places, since a deep network looks further than 33 pixels.
    """
    side = crop_side(images.pixels.shape[1:3])
    height, width = described((side, side))
    features = _WholeFeatures(backbone, images)
    mean, std = _measured(features, parts.learn)
    channels = int(mean.shape[0])
    network = drawn(lambda: patch_description_network(model_size, channels), plan.seed)
    network.to(backbone.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-5)

    def loss(network: nn.Module, batch: Minibatch) -> Tensor:
        found = crops(enlarged(batch.pixels), side, batch.generator)
        pixels = jittered(torch.stack([crop for crop, _ in found]), batch.generator)
        whole = [features.of(int(number)) for number in batch.numbers]
        wanted = torch.stack(
            [
                one[:, row : row + height, column : column + width]
                for one, (_, (row, column)) in zip(whole, found)
            ]
        )
        wanted = (wanted.float() - mean) / std
        given: Tensor = network(as_input(pixels))
        return (given - wanted.to(pixels.device)).square().mean()

    task = Task(network, optimizer, loss, rise_and_fall(plan.steps))
    told = None if progress is None else _renamed(progress)
    history = train(task, images, parts, plan, checkpoint=checkpoint, progress=told)
    return Teacher(network.cpu(), channels, mean.flatten().cpu(), std.flatten().cpu(), history)


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """Return a learning rate that rises over a twentieth of the steps, and falls as a half
    cosine.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (1 + steps / 20))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    return factor


def crop_side(size: Sequence[int]) -> int:
    """Return the side of the crops of images (H, W) at the working size: a multiple of the
    stride.
    """
    return min(CROP, *working_size((size[0], size[1]))) // STRIDE * STRIDE


def crops(
    pixels: Tensor, side: int, generator: torch.Generator
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Cut from each image (H, W, 3) a square at a random place, and return its cell (row,
    column).
    """
    found = []
    for image in pixels:
        row, column = (
            int(torch.randint(0, (n - side) // STRIDE + 1, (1,), generator=generator))
            for n in image.shape[:2]
        )
        top, left = row * STRIDE, column * STRIDE
        found.append((image[top : top + side, left : left + side], (row, column)))
    return found


def jittered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply brightness, contrast or saturation of images (B, H, W, 3) by 0.8 to 1.2."""
    x = pixels.float()
    kinds = torch.randint(0, 3, (len(x),), generator=generator).tolist()
    factors = (0.8 + 0.4 * torch.rand(len(x), generator=generator)).tolist()
    each = []
    for image, kind, factor in zip(x, kinds, factors):
        grey = (image * image.new_tensor([0.299, 0.587, 0.114])).sum(dim=-1, keepdim=True)
        anchor = (torch.zeros_like(grey), grey.mean(), grey)[kind]
        each.append((factor * image + (1 - factor) * anchor).clamp(0.0, 255.0))
    return torch.stack(each)


class _WholeFeatures:
    """The backbone's features of whole images, computed once as far as there is room."""

    def __init__(self, backbone: Backbone, images: KeptImages) -> None:
        self._backbone = backbone
        self._pixels = images.pixels
        self._kept: dict[int, Tensor] = {}

    def of(self, number: int) -> Tensor:
        """Return the features of an image at the cells of its description, (C, h, w) float16 on
        the CPU.
        """
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        pixels = enlarged(torch.from_numpy(self._pixels[number : number + 1]))
        found = whole_features(self._backbone, pixels)[0].cpu()
        # half a float, kept or not, so that it does not depend on the room; far from its limits
        found = found.clamp(-6e4, 6e4).half().contiguous()
        if (len(self._kept) + 1) * found.numel() * found.element_size() <= _ROOM:
            self._kept[number] = found
        return found


def whole_features(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return the features (B, C, h, w) of images (B, H, W, 3) at the cells of their descriptions.

    The backbone sees them at twice the size, so that its finest layer has a cell for every
    `STRIDE` pixels; the cells at the border that have no description are left out.
    """
    rows, columns = (int(n) // STRIDE for n in pixels.shape[1:3])
    doubled = functional.interpolate(
        pixels[:, : rows * STRIDE, : columns * STRIDE].permute(0, 3, 1, 2).float(),
        scale_factor=2,
        mode="bilinear",
        align_corners=False,
    )
    whole = doubled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    (found,) = backbone.features(list(whole.cpu().numpy()))  # (B, g, g', D)
    found = found.clone().permute(0, 3, 1, 2)
    if tuple(found.shape[-2:]) != (rows, columns):
        found = functional.interpolate(found, (rows, columns), mode="bilinear", align_corners=False)
    height, width = described((int(pixels.shape[1]), int(pixels.shape[2])))
    found = found[:, :, BORDER : BORDER + height, BORDER : BORDER + width]
    wanted = min(MOST_CHANNELS, int(found.shape[1]))
    if found.shape[1] == wanted:
        return found
    flat = found.permute(0, 2, 3, 1).flatten(0, 2)  # means over neighbouring channels
    pooled = functional.adaptive_avg_pool1d(flat, wanted)
    return pooled.view(len(found), *found.shape[-2:], wanted).permute(0, 3, 1, 2)


def _measured(features: _WholeFeatures, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C, 1, 1) of the backbone's channels over images."""
    chosen = evenly(numbers, _MEASURED)
    mean: Any = 0
    square: Any = 0
    for number in chosen:
        found = features.of(int(number)).double()
        mean = mean + found.mean(dim=(1, 2)) / len(chosen)
        square = square + found.square().mean(dim=(1, 2)) / len(chosen)
    std = safe_deviation(mean, square)
    return mean.float()[:, None, None], std.float()[:, None, None]


def safe_deviation(mean: Tensor, square: Tensor, least: float = 0.0) -> Tensor:
    """Return the deviation from first and second moments, `least` at least; 1 without a spread."""
    found = (square - mean.square()).clamp(min=0.0).sqrt()
    spread = torch.where(found > 1e-6 * square.sqrt(), found, torch.ones_like(found))
    return spread.clamp(min=least)


def _renamed(progress: Progress) -> Progress:
    return lambda stage, done, total: progress("teacher: " + stage, done, total)
