"""STFPM: a student that learned a teacher's features on good images alone.

Wang, Han, Ding, Xu, "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021
(arXiv 2103.04257). Symbols follow the paper: F_t^l and F_s^l the features of teacher and
student at level l, normalised to unit length at each position (i, j); loss l^l(I)_ij = 1/2
||F_t^l - F_s^l||^2, the mean of it over the positions L^l, and L the sum over the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from .detector import Detector
from .parameters import Count, MinibatchSize, Positive, Share
from .pyramid_detector import PyramidDetector
from .registry import register_model
from .trained import TrainedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .training import KeptImages, Minibatch, Parts, Task


class STFPMParams(TrainedParams):
    """The keywords of STFPM."""

    steps: Count = Field(
        300,
        description=("Steps at most. The paper's 100 epochs of 209 images are 650 of 32 images."),
    )
    train_batch_size: MinibatchSize = Field(
        16,
        description=("Images of a step; the paper has 32, here 16: more steps in the same time."),
    )
    learning_rate: Positive = Field(
        0.4, description=("Of stochastic gradient descent; the paper's.")
    )
    momentum: Share = Field(0.9, description=("Of stochastic gradient descent; the paper's."))
    weight_decay: Share = Field(1e-4, description=("Of stochastic gradient descent; the paper's."))


class STFPM(PyramidDetector):
    """The method of `VisionSTFPM`."""

    Params = STFPMParams

    sigma = 0.0
    combine = "product"

    def _blank(self) -> nn.Module:
        from ..backbones.network import FeatureGraph
        from .pyramid import untrained_copy
        from .training import drawn

        layers = self._backbone.layers
        student = drawn(
            lambda: untrained_copy(self._backbone.network, layers), self._params.random_seed
        )
        return FeatureGraph(student, layers)

    def _task(self, images: KeptImages, parts: Parts) -> Task:
        import numpy as np
        import torch

        from .pyramid import TeacherFeatures
        from .training import Task

        teacher = TeacherFeatures(
            self._backbone, images, np.sort(np.concatenate([parts.learn, parts.watch]))
        )
        counted = self._counted_at()

        def loss(network: nn.Module, batch: Minibatch) -> Tensor:
            return pyramid_loss(teacher.of(batch), network(batch.pixels), counted)

        student = self._blank().to(self._backbone.device)
        optimizer = torch.optim.SGD(
            student.parameters(),
            self._params.learning_rate,
            momentum=self._params.momentum,
            weight_decay=self._params.weight_decay,
        )
        return Task(student, optimizer, loss)

    def _graph(self, network: nn.Module) -> nn.Module:
        from ..backbones.network import FeatureGraph
        from .pyramid import PyramidGraph

        teacher = FeatureGraph(self._backbone.network, self._backbone.layers)
        maps = self._level_maps()
        return PyramidGraph(teacher, network, half_squared_distances, maps, from_features=False)


@register_model(
    "vision_stfpm",
    tags=("student-teacher", "trained", "pixel-map", "deep-features"),
    metadata={
        "paper": "Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, "
        "BMVC 2021",
        "year": 2021,
        "link": "https://arxiv.org/abs/2103.04257",
        "needs_training": "gradient steps on a student network; early stopping on held-out images",
        "calibration_method": "held-out-images: a tenth of the training images, at least 10",
    },
    presets={
        "industrial-fast": {"steps": 150},
        "industrial-balanced": {},
        "industrial-accurate": {"steps": 1200, "patience": 16},
    },
)
class VisionSTFPM(Detector):
    """STFPM: where a student's pyramid of features differs from its teacher's.

    Notes
    -----
    The student is the teacher's network up to the deepest level, with random weights. An
    image's map is the product over the levels of l^l, each upsampled bilinearly (half-pixel
    centres); its score is the map's largest value. With a region of interest the loss and
    the score are taken over what counts.

    Deviations: training is shorter where 2 cores forbid 100 epochs (`history_` says what the
    loss was doing); a tenth of the images decides when it ends, where the paper takes a fifth;
    batch norm sees 4 images at a time (`pyimgano.models.training.loop`); the default backbone is
    not the paper's ResNet-18. The authors' program leaves the 1/2 out of the loss; here it is
    in, as in the paper.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_stfpm", backbone="resnet18")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = STFPM


def half_squared_distances(teacher: Tensor, student: Tensor) -> Tensor:
    """Equation 2 at each position: (N, h, w) of two (N, C, h, w), each scaled to unit length."""
    from torch.nn.functional import normalize

    return 0.5 * (normalize(teacher, dim=1) - normalize(student, dim=1)).square().sum(dim=1)


def pyramid_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    counted: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Equations 3 and 4, the mean over images: a scalar.

    `counted` names for each level the cells r w + c that the mean is taken over; None for all.
    """
    total: Tensor | None = None
    for level, (t, s) in enumerate(zip(teacher, student)):
        away = half_squared_distances(t, s).flatten(1)  # (N, hw)
        cells = None if counted is None else counted[level]
        one = (away if cells is None else away[:, cells]).mean()
        total = one if total is None else total + one
    assert total is not None
    return total
