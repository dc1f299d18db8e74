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
from .method import Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import Count, MinibatchSize, Positive, Share
from .registry import register_model
from .saved_state import SavedState
from .trained import STEPS, LearnedNetwork, NetworkTraining, TrainedParams, restored_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from ..backbones.network import FeatureGraph
    from .training import History, Minibatch
    from .training_images import TrainingImages


class STFPMParams(TrainedParams):
    """The keywords of STFPM."""

    steps: Count = Field(
        300,
        description=f"{STEPS} The paper's 100 epochs of 209 images are 650 steps of 32 images.",
    )
    train_batch_size: MinibatchSize = Field(
        16,
        description=(
            "How many images a step has. The paper has 32; 16 are more steps in the same time."
        ),
    )
    learning_rate: Positive = Field(
        0.4, description="The learning rate of stochastic gradient descent. 0.4 is the paper's."
    )
    momentum: Share = Field(
        0.9, description="The momentum of stochastic gradient descent. 0.9 is the paper's."
    )
    weight_decay: Share = Field(
        1e-4, description="The weight decay of stochastic gradient descent. 1e-4 is the paper's."
    )


class STFPM(Method):
    """A student of the backbone, and where its features differ from the backbone's."""

    Params = STFPMParams

    def __init__(self, params: STFPMParams) -> None:
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
        teacher = TeacherFeatures(self.backbone, training)
        counted = counted_cells(self.backbone, self.region)
        student = self._student().to(self.backbone.device)

        def loss(student: nn.Module, batch: Minibatch) -> Tensor:
            # for each level l of both (B, C_l, h_l, w_l)
            return pyramid_loss(teacher.of(batch), student(batch.pixels), counted)

        optimizer = torch.optim.SGD(
            student.parameters(),
            params.learning_rate,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
        )
        learned = self._learned(student, training.train(Task(student, optimizer, loss)))
        return learned, training.scores(learned)

    def _student(self) -> FeatureGraph:
        """Return the backbone's network up to the deepest level, with random weights."""
        from ..backbones.network import FeatureGraph
        from .pyramid import untrained_copy
        from .training import drawn

        network, layers = self.backbone.network, self.backbone.layers
        student = drawn(lambda: untrained_copy(network, layers), self.params.random_seed)
        return FeatureGraph(student, layers)

    def _learned(self, student: nn.Module, history: History) -> LearnedNetwork:
        from ..backbones.network import FeatureGraph
        from .pyramid import LevelMaps, PyramidGraph

        teacher = FeatureGraph(self.backbone.network, self.backbone.layers)
        # the product over the levels, section 3.3
        maps = LevelMaps.of(self.backbone, self.region, sigma=0.0, combine="product")
        graph = PyramidGraph(teacher, student, half_squared_distances, maps, from_features=False)
        return LearnedNetwork(self.backbone, student, graph, history)

    def restore(self, saved: SavedState) -> LearnedNetwork:
        return self._learned(*restored_network(saved, self._student, self.backbone))


# ---- distances and loss, section 3.2


def half_squared_distances(teacher: Tensor, student: Tensor) -> Tensor:
    """Return l^l (equation 2) at each position, (N, h, w), of F_t^l and F_s^l (N, C, h, w)."""
    from torch.nn.functional import normalize

    return 0.5 * (normalize(teacher, dim=1) - normalize(student, dim=1)).square().sum(dim=1)


def pyramid_loss(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    counted: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Return L (equations 3 and 4), the mean over images: a scalar.

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

    Attributes
    ----------
    history_
        What the loss did (`pyimgano.models.training.History`).

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
