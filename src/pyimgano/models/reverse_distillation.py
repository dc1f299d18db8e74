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
from .parameters import Count, MinibatchSize, Positive
from .pyramid_detector import PyramidDetector
from .registry import register_model
from .trained import TrainedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .training import KeptImages, Minibatch, Parts, Task

_BETAS = (0.5, 0.999)


class ReverseDistillationParams(TrainedParams):
    """The keywords of ReverseDistillation."""

    steps: Count = Field(
        400,
        description=("Steps at most. The paper's 200 epochs of 209 images are 2,600 of 16 images."),
    )
    train_batch_size: MinibatchSize = Field(16, description=("Images of a step; the paper has 16."))
    learning_rate: Positive = Field(
        0.005, description=("Of Adam, whose betas are the paper's 0.5 and 0.999.")
    )
    loss: Literal["flattened", "per-position"] = Field(
        "flattened",
        description=(
            "`flattened`: of each level one cosine between all features of an image as one "
            "vector, as the authors' program has it, with which the published figures were "
            "made. `per-position`: the mean of M^k over the positions, as the paper's "
            "equation 2."
        ),
    )


class ReverseDistillation(PyramidDetector):
    """The method of `VisionReverseDistillation`."""

    Params = ReverseDistillationParams

    sigma = 4.0
    combine = "sum"

    def _blank(self) -> nn.Module:
        from .reverse_networks import Reverse, initialise_reverse
        from .training import drawn

        channels = [c for c, _, _ in self._levels()]
        return drawn(
            lambda: initialise_reverse(Reverse(self._backbone.network, channels)),
            self._params.random_seed,
        )

    def _task(self, images: KeptImages, parts: Parts) -> Task:
        import numpy as np
        import torch

        from .pyramid import TeacherFeatures
        from .training import Task

        teacher = TeacherFeatures(
            self._backbone, images, np.sort(np.concatenate([parts.learn, parts.watch]))
        )
        counted = self._counted_at()
        flattened = self._params.loss == "flattened"

        def loss(network: nn.Module, batch: Minibatch) -> Tensor:
            features = teacher.of(batch)
            return cosine_loss(features, network(features), counted, flattened=flattened)

        network = self._blank().to(self._backbone.device)
        optimizer = torch.optim.Adam(network.parameters(), self._params.learning_rate, _BETAS)
        return Task(network, optimizer, loss)

    def _graph(self, network: nn.Module) -> nn.Module:
        from ..backbones.network import FeatureGraph
        from .pyramid import PyramidGraph

        teacher = FeatureGraph(self._backbone.network, self._backbone.layers)
        maps = self._level_maps()
        return PyramidGraph(teacher, network, cosine_distances, maps, from_features=True)


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


def cosine_distances(teacher: Tensor, student: Tensor) -> Tensor:
    """Equation 1: (N, h, w) of two (N, C, h, w); 0 or more, 1 where one of them is 0."""
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
    """The sum over the levels of the distillation loss, the mean over images: a scalar.

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
