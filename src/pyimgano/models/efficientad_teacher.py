"""The teacher of EfficientAD: distilled from a backbone here, or read from a file.

Section 3.1 of the paper: a patch description network learns to give, for a patch of 33 x 33
pixels, the features that a deep network has there when it sees the image at twice the size.
"""

from __future__ import annotations

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
from .spread import evenly
from .training import History, KeptImages, Minibatch, Parts, Plan, Task, drawn, train

if TYPE_CHECKING:
    from ..backbones import Backbone
    from .detector import Progress
    from .training import Checkpoint

#: Channels of a teacher, at most: those of the paper's.
MOST_CHANNELS = 384
#: And of one that is read.
READABLE_CHANNELS = 4096
#: Side of the crops that networks are trained on, at most.
CROP = 96
# Crops that the mean and deviation of the backbone's channels are taken over.
_MEASURED = 64


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
    """A teacher from a state dict: safetensors, or a torch file of tensors.

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
    """A teacher of the features of `backbone`, which gives patches.

    Learns from crops, flipped and with changed brightness, contrast or saturation.
    """
    side = crop_side(images.pixels.shape[1:3])
    mean, std = _measured(backbone, images.pixels[parts.learn], side, plan.seed)
    channels = int(mean.shape[1])
    network = drawn(lambda: patch_description_network(model_size, channels), plan.seed)
    network.to(backbone.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-5)

    def loss(network: nn.Module, batch: Minibatch) -> Tensor:
        pixels = torch.stack(
            [one for one, _ in crops(enlarged(batch.pixels), side, batch.generator)]
        )
        pixels = jittered(flipped(pixels, batch.generator), batch.generator).round()
        wanted = (_features(backbone, pixels, channels) - mean) / std
        given: Tensor = network(as_input(pixels))
        return (given - wanted.to(pixels.device)).square().mean()

    task = Task(network, optimizer, loss, late_decay(plan.steps))
    found = None if progress is None else _renamed(progress)
    history = train(task, images, parts, plan, checkpoint=checkpoint, progress=found)
    return Teacher(network.cpu(), channels, mean.flatten().cpu(), std.flatten().cpu(), history)


def late_decay(steps: int) -> Callable[[int], float]:
    """A learning rate that falls to a tenth after 95 % of the steps."""
    return lambda step: 0.1 if step >= 0.95 * steps else 1.0


def crop_side(size: Sequence[int]) -> int:
    """Of the crops of images (H, W) at the working size: a multiple of the stride."""
    return min(CROP, *working_size((size[0], size[1]))) // STRIDE * STRIDE


def crops(
    pixels: Tensor, side: int, generator: torch.Generator
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Of each image (H, W, 3) a square at a random place, and that place in cells (row, column)."""
    found = []
    for image in pixels:
        row, column = (
            int(torch.randint(0, (n - side) // STRIDE + 1, (1,), generator=generator))
            for n in image.shape[:2]
        )
        top, left = row * STRIDE, column * STRIDE
        found.append((image[top : top + side, left : left + side], (row, column)))
    return found


def flipped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, H, W, 3), each image flipped along each axis with chance 0.5."""
    choices = torch.rand((len(pixels), 2), generator=generator) < 0.5
    each = []
    for image, choice in zip(pixels, choices.tolist()):
        axes = [axis for axis, chosen in enumerate(choice) if chosen]
        each.append(image.flip(axes))
    return torch.stack(each)


def jittered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, H, W, 3) float32 of 0 to 255: brightness, contrast or saturation times 0.8 to 1.2."""
    x = pixels.float()
    kinds = torch.randint(0, 3, (len(x),), generator=generator).tolist()
    factors = (0.8 + 0.4 * torch.rand(len(x), generator=generator)).tolist()
    each = []
    for image, kind, factor in zip(x, kinds, factors):
        grey = (image * image.new_tensor([0.299, 0.587, 0.114])).sum(dim=-1, keepdim=True)
        anchor = (torch.zeros_like(grey), grey.mean(), grey)[kind]
        each.append((factor * image + (1 - factor) * anchor).clamp(0.0, 255.0))
    return torch.stack(each)


def _features(backbone: Backbone, pixels: Tensor, channels: int | None = None) -> Tensor:
    """The backbone's features (B, C, h, w) at the cells that a network without padding has."""
    side = int(pixels.shape[1])
    doubled = functional.interpolate(
        pixels.permute(0, 3, 1, 2).float(), scale_factor=2, mode="bilinear", align_corners=False
    )
    whole = doubled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    (found,) = backbone.features(list(whole.cpu().numpy()))  # (B, g, g, D)
    found = found.clone().permute(0, 3, 1, 2)
    cells = side // STRIDE
    if found.shape[-1] != cells or found.shape[-2] != cells:
        found = functional.interpolate(found, (cells, cells), mode="bilinear", align_corners=False)
    height, width = described((side, side))
    found = found[:, :, BORDER : BORDER + height, BORDER : BORDER + width]
    wanted = channels or min(MOST_CHANNELS, int(found.shape[1]))
    if found.shape[1] == wanted:
        return found
    flat = found.permute(0, 2, 3, 1).flatten(0, 2)  # means over neighbouring channels
    pooled = functional.adaptive_avg_pool1d(flat, wanted)
    return pooled.view(len(found), height, width, wanted).permute(0, 3, 1, 2)


def _measured(
    backbone: Backbone, pixels: npt.NDArray[np.uint8], side: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, C, 1, 1) of the backbone's channels over crops."""
    generator = torch.Generator().manual_seed(seed)
    total: Any = 0
    squares: Any = 0
    count = 0
    # spread over the images, and several crops of each where there are fewer
    for number in np.resize(evenly(np.arange(len(pixels)), _MEASURED), _MEASURED):
        ((crop, _),) = crops(
            enlarged(torch.from_numpy(pixels[number : number + 1])), side, generator
        )
        found = _features(backbone, crop[None]).double()
        total = total + found.sum(dim=(0, 2, 3))
        squares = squares + found.square().sum(dim=(0, 2, 3))
        count += found.shape[2] * found.shape[3]
    mean = total / count
    return tuple(  # type: ignore[return-value]
        one.float()[None, :, None, None] for one in (mean, safe_deviation(mean, squares / count))
    )


def safe_deviation(mean: Tensor, square: Tensor, least: float = 0.0) -> Tensor:
    """From first and second moments, `least` at least; 1 where there is no spread."""
    found = (square - mean.square()).clamp(min=0.0).sqrt()
    spread = torch.where(found > 1e-6 * square.sqrt(), found, torch.ones_like(found))
    return spread.clamp(min=least)


def _renamed(progress: Progress) -> Progress:
    return lambda stage, done, total: progress("teacher: " + stage, done, total)
