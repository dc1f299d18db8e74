"""Dinomaly: a decoder that cannot copy, and what it does not give back of a vision transformer.

Guo, Lu, Zhang, Chen, Li, Liao, "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised
Anomaly Detection", CVPR 2025 (arXiv 2405.14325). f_E and f_D the features of a group of blocks of
encoder and decoder, the mean over its blocks; M(h, w) = 1 - cos(f_E(h, w), f_D(h, w)); the loss of
a group is 1 - cos of both as one vector an image, where f_D(h, w) passes on a tenth of its gradient
at the k % of the places that have the smallest M (section 3.5). The map is the mean of M over the
groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from ..errors import UsageError
from .detector import Detector
from .method import Method, TrainingScores
from .on_backbone import open_backbone, require_exportable
from .parameters import Count, Positive, Ratio, Share, Size
from .region_cells import RegionCells
from .registry import register_model
from .saved_state import SavedState
from .trained import STEPS, LearnedNetwork, NetworkTraining, TrainedParams, restored_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from .dinomaly_networks import DinomalyNetwork, EncoderGroups
    from .training import History, Minibatch
    from .training_images import TrainingImages

# The encoder's blocks that are given back: 2 to 9 of 12, counted from 0, or as deep in others.
_DEPTHS = tuple(number / 12 for number in range(2, 10))
# Steps of the optimizer, at most, on a GPU and on a CPU.
_STEPS = {"cuda": 5000, "cpu": 100}
# Steps in which the learning rate rises, and the share k of the places that are easy, at most; in
# shorter trainings a hundredth and a tenth of the steps, as these are of the paper's 10,000.
_RISE, _HARDENING = 100, 1000
# The learning rate at the end, as a share of the highest.
_LAST_RATE = 0.1
# The share k of the places that are easy, and the share of the gradient that they pass on.
_EASY, _PASSED_ON = 0.9, 0.1
_BETAS, _EPS, _WEIGHT_DECAY = (0.9, 0.999), 1e-10, 1e-4
# Deviation of the Gaussian that smooths the map, in pixels.
_SIGMA = 4.0


class DinomalyParams(TrainedParams):
    """The keywords of Dinomaly."""

    steps: Count | None = Field(  # type: ignore[assignment]
        None,
        description=(
            f"{STEPS} None is {_STEPS['cuda']:,} on a GPU and {_STEPS['cpu']} on a CPU, which is "
            "little. The paper has 10,000 steps for 12 or 15 products together."
        ),
    )
    train_batch_size: Count = Field(
        16, description="How many images a step of the training has. 16 is the paper's."
    )
    patience: Count = Field(
        16,
        description=(
            "Training ends after this many looks at the held-out loss, one every 25 steps, "
            "without a lower one. The state with the lowest loss is kept."
        ),
    )
    learning_rate: Positive = Field(
        2e-3,
        description=(
            "The learning rate of StableAdamW at its highest. 2e-3 is the paper's. It rises over "
            "the first 100 steps, and falls to a tenth as a half cosine."
        ),
    )
    dropout: Share = Field(
        0.2,
        description=(
            "The share of the bottleneck's elements that are dropped in training. The paper has "
            "0.2, and 0.4 for data that differ more."
        ),
    )
    groups: Count = Field(
        2,
        description=(
            "How many groups the encoder's blocks are in, whose means are given back. 2 is the "
            "paper's; as many as blocks compares block by block."
        ),
    )
    top_share: Ratio = Field(
        0.01,
        description=(
            "The share of the map's pixels, those with the largest values, whose mean is an "
            "image's score."
        ),
    )
    backbone: str = Field(
        "dinov2_vits14_reg",
        description=(
            "The encoder, a vision transformer: a name of `pyimgano.backbones.list_backbones()`, "
            "or `timm:<name>`. The paper's is `dinov2_vitb14_reg`. The layers are the middle eight "
            "of twelve blocks, unnormed, where none are named; class token and registers are seen "
            "with them."
        ),
    )
    resize: Size = Field(
        (392, 392),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class Dinomaly(Method):
    """Bottleneck and decoder, and where they cannot give back the features of the backbone."""

    Params = DinomalyParams
    exports = True

    def __init__(self, params: DinomalyParams) -> None:
        from ..backbones.choice import Depths, WithTokens

        named = None if params.layers is None else tuple(params.layers)
        choice = WithTokens(Depths(_DEPTHS, normed=False), named)
        unnamed = params.model_copy(update={"layers": None})
        self.backbone: Backbone = open_backbone(unnamed, layers=choice, cached=False)
        steps = _STEPS[self.backbone.device.type] if params.steps is None else params.steps
        super().__init__(params.model_copy(update={"steps": steps}))
        others = (".class", ".registers")
        self._blocks = sum(not layer.endswith(others) for layer in self.backbone.layers)
        if params.groups > self._blocks:
            raise UsageError(
                f"groups={params.groups} is more than the {self._blocks} blocks that are given back"
            )

    def learn(self, images: TrainingImages) -> tuple[LearnedDinomaly, TrainingScores | None]:
        import torch

        from .pyramid import TeacherFeatures
        from .training import Task
        from .training.stable_adamw import StableAdamW

        params, training = self.params, NetworkTraining(self, images)
        encoder = TeacherFeatures(self.backbone, training, self._groups())
        network = self._drawn().to(self.backbone.device)
        counted = self.region.cells(network.grid)  # (k,), or None for all
        cells = None if counted is None else torch.from_numpy(counted).to(self.backbone.device)

        def loss(network: DinomalyNetwork, batch: Minibatch) -> Tensor:
            tokens, *wanted = encoder.of(batch)  # (B, T, C); for each group (B, C, h, w)
            noise, easy = None, 0.0
            if network.training:  # all looks at held-out images are alike
                noise, easy = batch.own_generator(), easy_share(batch.step, params.steps)
            return dinomaly_loss(wanted, network(tokens, noise), easy, cells)

        optimizer = StableAdamW(
            network.parameters(),
            params.learning_rate,
            betas=_BETAS,
            eps=_EPS,
            weight_decay=_WEIGHT_DECAY,
        )
        task = Task(network, optimizer, loss, rise_and_fall(params.steps))  # type: ignore[arg-type]
        learned = self._learned(network, training.train(task))
        return learned, training.scores(learned)

    def _groups(self) -> EncoderGroups:
        from .dinomaly_networks import EncoderGroups

        return EncoderGroups(self._blocks, self.params.groups)

    def _drawn(self) -> DinomalyNetwork:
        """Return bottleneck and decoder with random weights."""
        from .dinomaly_networks import DinomalyNetwork
        from .training import drawn

        _, width, *grid = self.backbone.shapes(self.region.size)[0]
        return drawn(
            lambda: DinomalyNetwork(
                width,
                (grid[0], grid[1]),
                blocks=self._blocks,
                groups=self.params.groups,
                dropout=self.params.dropout,
            ),
            self.params.random_seed,
        )

    def _learned(self, network: DinomalyNetwork, history: History) -> LearnedDinomaly:
        from ..backbones.network import FeatureGraph
        from .dinomaly_networks import DinomalyGraph
        from .pyramid import LevelMaps

        encoder = FeatureGraph(self.backbone.network, self.backbone.layers)
        maps = LevelMaps(
            [network.grid],
            self.region.size,
            sigma=_SIGMA,
            combine="sum",
            cells=[self.region.cells(network.grid)],
            inside=self.region.pixels(),
            top_share=self.params.top_share,
        )
        graph = DinomalyGraph(encoder, self._groups(), network, maps)
        return LearnedDinomaly(self.backbone, network, graph, history, self.region)

    def restore(self, saved: SavedState) -> LearnedDinomaly:
        return self._learned(*restored_network(saved, self._drawn, self.backbone))


@dataclass(eq=False)
class LearnedDinomaly(LearnedNetwork):
    """Bottleneck and decoder, and which pixels count."""

    network: DinomalyNetwork
    region: RegionCells

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import TrainedGraph, region_of

        require_exportable(self.backbone)
        region = region_of(self.region, self.network.grid, original_size)
        return TrainedGraph(self.scoring_graph, threshold, region).eval()


# ---- the loss, section 3.5


def dinomaly_loss(
    encoder: Sequence[Tensor], decoder: Sequence[Tensor], easy: float, cells: Tensor | None = None
) -> Tensor:
    """Return the loss, the mean over groups and images: a scalar.

    Parameters
    ----------
    encoder, decoder
        f_E and f_D of each group, (B, C, h, w).
    easy
        k: the share of the places of all images that pass on a tenth of their gradient.
    cells
        The cells r w + c that count, (k,); None for all.
    """
    from .reverse_distillation import cosine_loss

    passed = [hard_places(t, s, easy, cells) for t, s in zip(encoder, decoder)]
    return cosine_loss(encoder, passed, [cells] * len(passed)) / len(passed)


def hard_places(
    encoder: Tensor, decoder: Tensor, easy: float, cells: Tensor | None = None
) -> Tensor:
    """Return f_D (B, C, h, w) as it is, which passes on a tenth of its gradient where M is small.

    That is at the share `easy` of the places of all B images that have the smallest M.
    """
    from .reverse_distillation import cosine_distances

    away = cosine_distances(encoder, decoder.detach())  # M, (B, h, w)
    counted = (away.flatten(1) if cells is None else away.flatten(1)[:, cells]).flatten()
    number = int(easy * len(counted))
    if number == 0:
        return decoder
    cut = counted.kthvalue(number + 1).values  # `number` are below, or fewer where some are equal
    kept = (away >= cut)[:, None].to(decoder.dtype) * (1 - _PASSED_ON) + _PASSED_ON  # (B, 1, h, w)
    still = decoder.detach()
    return still + (decoder - still) * kept


def easy_share(step: int, steps: int) -> float:
    """Return the share k of the places that are easy in a step: it rises from 0 to 0.9."""
    return _EASY * min(1.0, step / max(1, min(_HARDENING, steps // 10)))


def rise_and_fall(steps: int) -> Callable[[int], float]:
    """Return the schedule of the learning rate, relative to its highest.

    It rises in equal parts over 100 steps, or a hundredth of fewer than 10,000, and then falls as a
    half cosine to a tenth.
    """
    rise = max(1, min(_RISE, steps // 100))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


@register_model(
    "vision_dinomaly",
    tags=("reconstruction", "trained", "pixel-map", "deep-features"),
    metadata={
        "paper": "Guo et al., Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised "
        "Anomaly Detection, CVPR 2025",
        "year": 2025,
        "link": "https://arxiv.org/abs/2405.14325",
        "weights": "yours: the authors' DINOv2 (Apache-2.0; `pyimgano weights fetch`) or DINOv3 "
        "(its own licence; ask its authors), by weights=",
        "authors_report": "ViT-B with registers, one network for all products: image AUROC 99.6 "
        "on MVTec AD, 98.7 on VisA (the paper's, not measured here)",
        "needs_training": "gradient steps on bottleneck and decoder, for a GPU; early stopping on "
        "held-out images",
        "calibration_method": "held-out-images: a tenth of the training images, at least 10",
    },
    presets={
        "industrial-fast": {"resize": (280, 280), "steps": 150},
        "industrial-balanced": {},
        "industrial-accurate": {"backbone": "dinov2_vitb14_reg", "steps": 10_000, "patience": 80},
    },
)
class VisionDinomaly(Detector):
    """Dinomaly: what a decoder with a noisy bottleneck cannot give back of a vision transformer.

    Attributes
    ----------
    history_
        What the loss did (`pyimgano.models.training.History`).

    Notes
    -----
    What is called the paper's beyond its abstract (schedule, shares, where there is dropout, how
    weights are drawn) was written from memory, without the text at hand.

    The optimizer is StableAdamW with the largest second moment (AMSGrad), betas 0.9 and 0.999,
    epsilon 1e-10 and weight decay 1e-4, as in the paper. The map is smoothed by a Gaussian of 4
    pixels; the score is the mean of its largest 1 %. With a region of interest loss and score are
    taken over what counts.

    Deviations: the default encoder is ViT-S with registers, where the paper has ViT-B; images are
    resized whole to 392 pixels, where the paper resizes to 448 and takes the 392 in the middle,
    because defects at the border count; the paper makes 10,000 steps on all products of a dataset
    together, and here it is one product and fewer steps; the state with the lowest loss on held-out
    good images is kept, where the authors take the last; gradients are not clipped, for the
    optimizer shortens its steps itself; maps are upsampled with half-pixel centres, and the score
    is taken at `resize`. On a CPU the loss sees 4 images at a time
    (`pyimgano.models.training.loop`), among whose places the easy ones are told; on a GPU all
    images of a step, as in the paper.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_dinomaly", weights="dinov2_vits14_reg4_pretrain.pth")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = Dinomaly
