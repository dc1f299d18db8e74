"""Reverse distillation: a decoder that learned to give back an encoder's features.

Deng & Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022
(arXiv 2201.10703). Symbols follow the paper: E the teacher encoder, OCBE the one-class
bottleneck embedding, D the student decoder; M^k(h, w) = 1 - cos(f_E^k, f_D^k) at each position
of level k (equation 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .detector import Detector
from .method import Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import Count, MinibatchSize, Positive
from .registry import register_model
from .saved_state import SavedState
from .trained import STEPS, LearnedNetwork, NetworkTraining, TrainedParams, restored_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from .training import History, Minibatch
    from .training_images import TrainingImages

# The paper's, of Adam.
_BETAS = (0.5, 0.999)
# Deviation of the Gaussian that smooths the map, in pixels.
_SIGMA = 4.0


class ReverseDistillationParams(TrainedParams):
    """The keywords of reverse distillation."""

    steps: Count = Field(
        400,
        description=f"{STEPS} The paper's 200 epochs of 209 images are 2,600 steps of 16 images.",
    )
    train_batch_size: MinibatchSize = Field(
        16, description="How many images a step has. 16 is the paper's."
    )
    learning_rate: Positive = Field(
        0.005,
        description="The learning rate of Adam, whose betas are the paper's 0.5 and 0.999.",
    )
    loss: Literal["flattened", "per-position"] = Field(
        "flattened",
        description=(
            "What the loss of a level is. `flattened` takes one cosine between all features of an "
            "image as one vector, as the authors' program does, with which the published figures "
            "were made. `per-position` takes the mean of M^k over the positions, as the paper's "
            "equation 2 does."
        ),
    )


class ReverseDistillation(Method):
    """OCBE and D, and where they cannot give back the features of the backbone, which is E."""

    Params = ReverseDistillationParams

    def __init__(self, params: ReverseDistillationParams) -> None:
        from ..backbones import LastOfStrides

        super().__init__(params)
        # the paper's conv2_x, conv3_x and conv4_x of a ResNet; one level is no pyramid
        layers = LastOfStrides((4, 8, 16), least=2)
        self.backbone: Backbone = open_backbone(params, layers=layers, cached=False)

    def learn(self, images: TrainingImages) -> tuple[LearnedNetwork, TrainingScores | None]:
        import torch

        from .pyramid import TeacherFeatures, counted_cells
        from .training import Task

        params, training = self.params, NetworkTraining(self, images)
        encoder = TeacherFeatures(self.backbone, training)
        counted = counted_cells(self.backbone, self.region)
        flattened = params.loss == "flattened"
        network = self._bottleneck_and_decoder().to(self.backbone.device)

        def loss(network: nn.Module, batch: Minibatch) -> Tensor:
            features = encoder.of(batch)  # f_E^k, for each level k (B, C_k, h_k, w_k)
            return cosine_loss(features, network(features), counted, flattened=flattened)

        optimizer = torch.optim.Adam(network.parameters(), params.learning_rate, _BETAS)
        learned = self._learned(network, training.train(Task(network, optimizer, loss)))
        return learned, training.scores(learned)

    def _bottleneck_and_decoder(self) -> nn.Module:
        """Return OCBE and D with random weights."""
        from .reverse_networks import Reverse, initialise_reverse
        from .training import drawn

        channels = [c for _, c, _, _ in self.backbone.shapes(self.region.size)]
        return drawn(
            lambda: initialise_reverse(Reverse(self.backbone.network, channels)),
            self.params.random_seed,
        )

    def _learned(self, network: nn.Module, history: History) -> LearnedNetwork:
        from ..backbones.network import FeatureGraph
        from .pyramid import LevelMaps, PyramidGraph

        encoder = FeatureGraph(self.backbone.network, self.backbone.layers)
        # the sum over the levels, section 3.3
        maps = LevelMaps.of(self.backbone, self.region, sigma=_SIGMA, combine="sum")
        graph = PyramidGraph(encoder, network, cosine_distances, maps, from_features=True)
        return LearnedNetwork(self.backbone, network, graph, history)

    def restore(self, saved: SavedState) -> LearnedNetwork:
        return self._learned(*restored_network(saved, self._bottleneck_and_decoder, self.backbone))


# ---- distances and loss, section 3.1


def cosine_distances(teacher: Tensor, student: Tensor) -> Tensor:
    """Return M^k (equation 1), (N, h, w), of f_E^k and f_D^k (N, C, h, w).

    It is 0 or more, and 1 where one of them is 0.
    """
    from torch.nn.functional import normalize

    cosine = (normalize(teacher, dim=1) * normalize(student, dim=1)).sum(dim=1)
    return (1.0 - cosine).clamp(min=0.0)


def cosine_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    counted: Sequence[Tensor | None] | None = None,
    *,
    flattened: bool = True,
) -> Tensor:
    """Return the sum over the levels of the distillation loss, the mean over images: a scalar.

    `counted` names for each level the cells r w + c that count; None for all.
    """
    from torch.nn.functional import cosine_similarity

    total: Tensor | None = None
    for level, pair in enumerate(zip(teacher, student)):
        t, s = (features.flatten(2) for features in pair)  # (N, C, hw)
        cells = None if counted is None else counted[level]
        if cells is not None:
            t, s = t[:, :, cells], s[:, :, cells]
        if flattened:
            t, s = t.flatten(1), s.flatten(1)
        one = (1.0 - cosine_similarity(t, s, dim=1)).mean()
        total = one if total is None else total + one
    assert total is not None
    return total


@register_model(
    "vision_reverse_distillation",
    tags=("student-teacher", "trained", "pixel-map", "deep-features"),
    metadata={
        "paper": "Deng & Li, Anomaly Detection via Reverse Distillation from One-Class "
        "Embedding, CVPR 2022",
        "year": 2022,
        "link": "https://arxiv.org/abs/2201.10703",
        "needs_training": "gradient steps on bottleneck and decoder; early stopping on held-out "
        "images",
        "calibration_method": "held-out-images: a tenth of the training images, at least 10",
    },
    presets={
        "industrial-fast": {"steps": 150},
        "industrial-balanced": {},
        "industrial-accurate": {"steps": 2000, "patience": 16},
    },
)
class VisionReverseDistillation(Detector):
    """Reverse distillation: what a decoder cannot give back of an encoder's features.

    Attributes
    ----------
    history_
        What the loss did (`pyimgano.models.training.History`).

    Notes
    -----
    An image's map is the sum over the levels of M^k, each upsampled bilinearly, smoothed by a
    Gaussian of 4 pixels; its score is the map's largest value. With a region of interest the
    loss and the score are taken over what counts.

    Deviations: training is shorter where 2 cores forbid 200 epochs (`history_` says what the
    loss was doing), and the state with the lowest loss on held-out good images is kept, where
    the authors take the last; upsampling has half-pixel centres (the authors' program aligns
    corners); batch norm sees 4 images at a time (`pyimgano.models.training.loop`); the
    default backbone is not the paper's WideResNet-50. For the ResNet family the decoder has
    the encoder's residual blocks and their number at each level, with transposed convolutions
    of 2x2; the embedding has twice the deepest level's channels, as a ResNet's last stage has.
    For EfficientNet-Lite and timm's models it is light: two inverted residual blocks a level,
    expanded fourfold. Where a side of a grid is odd, features are resized to it.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_reverse_distillation", backbone="wide_resnet50_2")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = ReverseDistillation
