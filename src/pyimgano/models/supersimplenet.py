"""SuperSimpleNet: a small network that tells good features from disturbed ones.

Rolih, Fucka, Skocaj, "SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast
and Reliable Surface Defect Detection", ICPR 2024; the unsupervised setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, Strict

from .detector import Detector
from .parameters import Count
from .registry import register_model
from .saved_state import SavedState
from .trained import TrainedDetector, TrainedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .supersimplenet_networks import Heads
    from .training import KeptImages, Minibatch, Parts, Task

# Bytes of features of the training images that are kept, float16; above, they are computed anew.
_KEPT_BYTES = 2**30
# Images that the features are computed of at a time.
_AT_A_TIME = 16

_Positive = Annotated[float, Strict(), Field(gt=0, le=100)]
_Width = Annotated[int, Strict(), Field(ge=1, le=8192)]
_Threshold = Annotated[float, Strict(), Field(gt=-1, lt=1)]


class SuperSimpleNetParams(TrainedParams):
    """The keywords of SuperSimpleNet."""

    noise_std: _Positive = Field(
        0.8,
        description=(
            "sigma of the Gaussian noise that is added to adapted features where a mask is "
            "set, in units of the standard deviation of each channel over the training "
            "images, by which features are divided before the adaptor."
        ),
    )
    perlin_threshold: _Threshold = Field(
        0.2, description=("Where Perlin noise, in [-1, 1], is above it, the mask is set.")
    )
    learning_rate: _Positive = Field(
        1e-3, description=("Of the two heads; the adaptor's is half of it.")
    )
    score: Literal["map", "classification"] = Field(
        "map",
        description=(
            "What an image's score is: `map`, the largest value of its map, or "
            "`classification`, the output of that head, as in the paper."
        ),
    )
    hidden_dim: _Width = Field(
        1024, description=("Channels of the segmentation head, at most 8192.")
    )
    steps: Count = Field(250, description=("As in `TrainedDetector`."))
    train_batch_size: Count = Field(8, description=("As in `TrainedDetector`."))


class SuperSimpleNet(TrainedDetector):
    """The method of `VisionSuperSimpleNet`."""

    Params = SuperSimpleNetParams

    def _task(self, images: KeptImages, parts: Parts) -> Task:
        import torch

        from .training import Task, drawn

        params = self._params
        device = self._backbone.device
        features = _Features(self._backbone, images.pixels)
        self._measure()
        heads = drawn(self._blank, params.random_seed)
        heads.scale.copy_(features.deviation(parts.learn))
        heads.to(device)
        fast = [heads.segmentation, heads.classification, heads.score]
        optimizer = torch.optim.AdamW(
            [
                {"params": heads.adaptor.parameters(), "lr": params.learning_rate / 2},
                {
                    "params": [p for part in fast for p in part.parameters()],
                    "lr": params.learning_rate,
                    "weight_decay": 1e-5,
                },
            ]
        )

        def loss(network: nn.Module, batch: Minibatch) -> Tensor:
            return self._loss(network, features.of(batch), batch)  # type: ignore[arg-type]

        def rate(step: int) -> float:
            steps: int = params.steps
            return 0.4 ** int(step >= 0.8 * steps) * 0.4 ** int(step >= 0.9 * steps)

        return Task(heads, optimizer, loss, rate)

    def _loss(self, heads: Heads, layers: list[Tensor], batch: Minibatch) -> Tensor:
        """Of images whose features are disturbed under masks (section III-B)."""
        from .perlin import perlin_masks
        from .supersimplenet_networks import loss_of, upscaled

        adapted = heads.adapted(upscaled(layers))
        masks = perlin_masks(
            len(adapted),
            self.grid_,
            batch.generator,
            threshold=self._params.perlin_threshold,
        ).to(adapted.device)
        if heads.counted is not None:
            masks = masks * heads.counted
        noise = batch.normal(*adapted.shape) * self._params.noise_std
        segmented, score = heads(adapted + noise * masks)
        return loss_of(segmented, score, masks, heads.counted)

    def _measure(self) -> None:
        """Note the channels and the grid, twice as fine as the first layer."""
        shapes = self._backbone.shapes(self._size())
        self._channels = sum(shape[1] for shape in shapes)
        self._set_grid(2 * shapes[0][2], 2 * shapes[0][3])

    def _blank(self) -> Heads:
        import torch

        from .supersimplenet_networks import Heads

        counted = None
        if self._cells is not None:
            counted = torch.zeros(self.grid_, device="cpu")
            counted.view(-1)[self._cells.cpu()] = 1.0
        return Heads(self._channels, hidden=self._params.hidden_dim, counted=counted)

    def _graph(self, network: nn.Module) -> nn.Module:
        from ..backbones.network import FeatureGraph
        from .supersimplenet_networks import SuperSimpleNetGraph

        features = FeatureGraph(self._backbone.network, self._backbone.layers)
        graph = SuperSimpleNetGraph(
            features,
            network,  # type: ignore[arg-type]
            self.grid_,
            self._size(),
            by_map=self._params.score == "map",
        )
        return graph.to(self._backbone.device)

    def _check_shapes(self, saved: SavedState) -> None:
        from .training import require_shapes

        self._measure()
        require_shapes(self._blank, saved, "network.")

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "grid": list(self.grid_)}


@register_model(
    "vision_supersimplenet",
    tags=("discriminative", "synthetic-anomalies", "pixel-map", "deep-features", "trained"),
    metadata={
        "paper": "Rolih et al., SuperSimpleNet: Unifying Unsupervised and Supervised Learning for "
        "Fast and Reliable Surface Defect Detection, ICPR 2024",
        "year": 2024,
        "link": "https://arxiv.org/abs/2408.03143",
        "needs_training": "gradient steps on frozen features",
        "calibration_method": "held-out-images: a tenth of the training images is not learned from",
    },
    presets={
        "industrial-fast": {"resize": (192, 192), "steps": 150},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (320, 320), "steps": 2000, "learning_rate": 2e-4},
    },
)
class VisionSuperSimpleNet(Detector):
    """SuperSimpleNet: heads that learn to see noise in good features, of any backbone.

    Notes
    -----
    After the paper and the authors' program: strides 8 and 16 at twice the finer resolution,
    3x3 means, a linear adaptor, noise under a Perlin mask on every second image in the mean,
    truncated L1 (0.5) and focal loss (gamma 4) for the segmentation, focal loss for the
    classification, no gradient from the classification into the segmentation head, AdamW with
    weight decay 1e-5 on the heads, learning rates times 0.4 after 80 % and 90 % of the steps.

    What differs:

    - Steps: the paper has 300 epochs of batches of 32 images, each twice, with rates of 1e-4
      (adaptor) and 2e-4 (heads). Here a step has 8 images, each once, there are far fewer
      steps, and the rates are higher: minutes on two cores instead of hours.
    - Noise: the paper adds N(0, 0.015) to features of WideResNet50, whose size other backbones
      do not share. Here each channel is first divided by its deviation over the training images,
      and `noise_std` is in these units.
    - The score is the largest value of the map: after so few steps it orders images better
      than the classification head does (docs/models/supersimplenet.md).
      `score="classification"` gives that head's logit; its sigmoid would be 1 for all clear
      defects. The map is log(1 + e^s) of the smoothed logits s. Neither changes an order.
    - Interpolation has half-pixel centres, and 3x3 means at the border are over the cells that
      exist.
    - The authors set the mask's threshold to 0.2 for MVTec AD and to 0.6 for VisA.

    Features are computed once and kept in float16, up to 1 GiB; of more images they are
    computed anew in every step.
    """

    method = SuperSimpleNet


class _Features:
    """Features of the training images, computed once where they fit."""

    def __init__(self, backbone: Any, pixels: np.ndarray[Any, Any]) -> None:
        import torch

        self._backbone = backbone
        self._pixels = pixels
        self._kept: list[Tensor] | None = None
        shapes = backbone.shapes(pixels.shape[1:3])
        if 2 * len(pixels) * sum(int(np.prod(shape)) for shape in shapes) > _KEPT_BYTES:
            return
        kept = [torch.empty((len(pixels), *s[1:]), dtype=torch.float16) for s in shapes]
        for start in range(0, len(pixels), _AT_A_TIME):
            some = list(pixels[start : start + _AT_A_TIME])
            for layer, found in zip(kept, self._computed(some)):
                layer[start : start + len(some)] = found
        self._kept = kept

    def of(self, batch: Minibatch) -> list[Tensor]:
        """For each layer (B, C_l, h_l, w_l) float32 on the device."""
        if self._kept is None:
            return self._computed(list(batch.pixels.cpu().numpy()))
        return [layer[batch.numbers].float().to(self._backbone.device) for layer in self._kept]

    def deviation(self, numbers: np.ndarray[Any, Any]) -> Tensor:
        """(1, D, 1, 1) deviations of the channels over images; 1 for a channel that is constant."""
        import torch

        sums: list[Tensor] | None = None
        cells: list[int] = []
        for start in range(0, len(numbers), _AT_A_TIME):
            some = numbers[start : start + _AT_A_TIME]
            layers = (
                self._computed(list(self._pixels[some]))
                if self._kept is None
                else [layer[some] for layer in self._kept]
            )
            found = []
            cells = []
            for layer in layers:
                exact = layer.double()
                found.append(
                    torch.stack([exact.sum(dim=(0, 2, 3)), exact.square().sum(dim=(0, 2, 3))])
                )
                cells.append(len(numbers) * layer.shape[2] * layer.shape[3])
            sums = found if sums is None else [a + b for a, b in zip(sums, found)]
        assert sums is not None
        moments = torch.cat([s / n for s, n in zip(sums, cells)], dim=1)  # (2, D)
        deviation = (moments[1] - moments[0].square()).clamp(min=0.0).sqrt()
        known = deviation > 1e-6 * moments[1].sqrt()
        deviation = torch.where(known, deviation, torch.ones_like(deviation))
        return deviation.float()[None, :, None, None].cpu()

    def _computed(self, images: list[Any]) -> list[Tensor]:
        return [layer.clone() for layer in self._backbone.features(images)]
