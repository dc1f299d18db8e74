"""SuperSimpleNet: a small network that tells good features from disturbed ones.

Rolih, Fucka, Skocaj, "SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast
and Reliable Surface Defect Detection", ICPR 2024; the unsupervised setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, Strict

from .detector import Detector
from .method import Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import Count
from .registry import register_model
from .saved_state import SavedState
from .trained import STEPS, LearnedNetwork, NetworkTraining, TrainedParams, restored_network

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .supersimplenet_networks import Heads
    from .training import History, Minibatch
    from .training_images import TrainingImages

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
            "The deviation sigma of the Gaussian noise that is added to adapted features where a "
            "mask is set. Its unit is the standard deviation of each channel over the training "
            "images, by which features are divided before the adaptor."
        ),
    )
    perlin_threshold: _Threshold = Field(
        0.2, description="The mask is set where Perlin noise, in [-1, 1], is above this value."
    )
    learning_rate: _Positive = Field(
        1e-3, description="The learning rate of the two heads. The adaptor's is half of it."
    )
    score: Literal["map", "classification"] = Field(
        "map",
        description=(
            "What the score of an image is. `map` takes the largest value of its map. "
            "`classification` takes the output of the classification head, as the paper does."
        ),
    )
    hidden_dim: _Width = Field(
        1024, description="How many channels the segmentation head has inside, at most 8192."
    )
    steps: Count = Field(250, description=STEPS)
    train_batch_size: Count = Field(8, description="How many images a step of the training has.")


class SuperSimpleNet(Method):
    """An adaptor and two heads that tell good features from disturbed ones.

    The shapes are those of B images with D channels of all layers together, on a grid (h, w)
    twice as fine as the first layer.
    """

    Params = SuperSimpleNetParams

    def __init__(self, params: SuperSimpleNetParams) -> None:
        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, cached=False)

    def learn(self, images: TrainingImages) -> tuple[LearnedSuperSimpleNet, TrainingScores | None]:
        import torch

        from .perlin import perlin_masks
        from .supersimplenet_networks import loss_of, upscaled
        from .training import Task, drawn

        params, training = self.params, NetworkTraining(self, images)
        features = _Features(self.backbone, training.kept.pixels)
        _, grid = self._measures()
        heads = drawn(self._heads, params.random_seed)
        heads.scale.copy_(features.deviation(training.parts.learn))
        heads.to(self.backbone.device)

        def loss(heads: Heads, batch: Minibatch) -> Tensor:
            adapted = heads.adapted(upscaled(features.of(batch)))  # (B, D, h, w), section III-A
            # noise under masks, section III-B
            masks = perlin_masks(
                len(adapted), grid, batch.generator, threshold=params.perlin_threshold
            ).to(adapted.device)  # (B, 1, h, w)
            if heads.counted is not None:
                masks = masks * heads.counted
            noise = batch.normal(*adapted.shape) * params.noise_std
            segmented, score = heads(adapted + noise * masks)  # (B, 1, h, w), (B,)
            return loss_of(segmented, score, masks, heads.counted)

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

        def rate(step: int) -> float:
            steps: int = params.steps
            return 0.4 ** int(step >= 0.8 * steps) * 0.4 ** int(step >= 0.9 * steps)

        task = Task(heads, optimizer, loss, rate)  # type: ignore[arg-type]
        learned = self._learned(heads, training.train(task))
        return learned, training.scores(learned)

    def _measures(self) -> tuple[int, tuple[int, int]]:
        """Return D and the grid (h, w)."""
        shapes = self.backbone.shapes(self.region.size)  # (N, C_l, h_l, w_l)
        return sum(shape[1] for shape in shapes), (2 * shapes[0][2], 2 * shapes[0][3])

    def _heads(self) -> Heads:
        """Return the adaptor and the heads, untrained."""
        import torch

        from .supersimplenet_networks import Heads

        channels, grid = self._measures()
        mask = self.region.cell_mask(grid)
        counted = None if mask is None else torch.from_numpy(mask.astype(np.float32))
        return Heads(channels, hidden=self.params.hidden_dim, counted=counted)

    def _learned(self, heads: Heads, history: History) -> LearnedSuperSimpleNet:
        from ..backbones.network import FeatureGraph
        from .supersimplenet_networks import SuperSimpleNetGraph

        features = FeatureGraph(self.backbone.network, self.backbone.layers)
        _, grid = self._measures()
        by_map = self.params.score == "map"
        graph = SuperSimpleNetGraph(features, heads, grid, self.region.size, by_map=by_map)
        return LearnedSuperSimpleNet(self.backbone, heads, graph, history, grid)

    def restore(self, saved: SavedState) -> LearnedSuperSimpleNet:
        from .training import require_shapes

        require_shapes(self._heads, saved, "network.")  # `hidden_dim` comes from a file
        return self._learned(*restored_network(saved, self._heads, self.backbone))


@dataclass(eq=False)
class LearnedSuperSimpleNet(LearnedNetwork):
    """The adaptor and the heads, trained.

    Attributes
    ----------
    grid_
        The grid (h, w) of the segmentation.
    """

    grid_: tuple[int, int]

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "grid": list(self.grid_)}


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
        """Return for each layer (B, C_l, h_l, w_l) float32 on the device."""
        if self._kept is None:
            return self._computed(list(batch.pixels.cpu().numpy()))
        return [layer[batch.numbers].float().to(self._backbone.device) for layer in self._kept]

    def deviation(self, numbers: np.ndarray[Any, Any]) -> Tensor:
        """Return the deviations of the channels over images, (1, D, 1, 1); 1 of a constant one."""
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

    Attributes
    ----------
    history_
        What the loss did (`pyimgano.models.training.History`).

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
