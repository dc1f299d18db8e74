"""EfficientAD: a student of a small teacher, and an autoencoder for what is wrong as a whole.

Batzner, Heckler, Koenig, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024. Symbols follow the paper: T, S and A are teacher, student and
autoencoder, L_hard, L_ST, L_AE and L_STAE the losses, q_a and q_b the quantiles of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError
from .detector import Detector
from .evenly_spread import evenly
from .method import Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import Count, Size
from .registry import register_model
from .saved_state import SavedState, State
from .trained import STEPS, LearnedNetwork, NetworkTraining, TrainedParams, restored_network

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .efficientad_networks import EfficientAdNetwork
    from .efficientad_teacher import Teacher
    from .training import History, Minibatch
    from .training_images import Progress, TrainingImages

_P_HARD = 0.999
_Q_A, _Q_B = 0.9, 0.995
# Images that the teacher's channels are measured on, and maps where none are held out, at most.
_MEASURED = 64
# The least deviation of a channel of a distilled teacher. It learned to give deviations of 1; a
# channel far below has not been learned, and its noise is not to be made as loud as what was.
_LEAST_DEVIATION = 0.3
# The loss of a distilled teacher on held-out images from which on it is as good as none: saying
# the mean has a loss of 1.
_LEARNED_NOTHING = 0.95

_Rate = Annotated[float, Strict(), Field(gt=0, le=1)]


class EfficientAdParams(TrainedParams):
    """The keywords of EfficientAD."""

    model_size: Literal["S", "M"] = Field(
        "S", description="The size of the patch description networks: `S` or `M`."
    )
    teacher: str | None = Field(
        None,
        description=(
            "A file with the weights of the teacher T, for pixels normalised as ImageNet's: "
            "safetensors, or a torch file of tensors; `pyimgano distill-teacher` writes "
            "one. Without one T is distilled from `backbone` on the training images."
        ),
    )
    teacher_steps: Count = Field(
        250, description="The largest number of steps of that distillation."
    )
    penalty_images: str | None = Field(
        None,
        description=(
            "A folder of other natural images, on which the student is to say nothing of "
            "the teacher (the paper takes ImageNet). None trains without this penalty."
        ),
    )
    learning_rate: _Rate = Field(
        1e-3,
        description=(
            "The learning rate of all three networks at its highest. It rises over a twentieth "
            "of the steps, and falls as a half cosine."
        ),
    )
    steps: Count = Field(300, description=f"{STEPS} They are those of student and autoencoder.")
    train_batch_size: Count = Field(8, description="How many images a step of the training has.")
    resize: Size = Field(
        (128, 128),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class EfficientAd(Method):
    """T, S and A, and where S cannot follow T or A."""

    Params = EfficientAdParams

    def __init__(self, params: EfficientAdParams) -> None:
        super().__init__(params)
        # T is distilled from its patches
        self.backbone: Backbone = open_backbone(params, patches="fine", cached=False)

    def prepare(self) -> None:
        _files_read(self.params)
        if self.params.teacher is not None:
            from .efficientad_teacher import read_teacher

            read_teacher(self.params.teacher, self.params.model_size)

    def learn(self, images: TrainingImages) -> tuple[LearnedEfficientAd, TrainingScores | None]:
        import itertools

        import torch

        from .efficientad_teacher import rise_and_fall
        from .training import Task, drawn

        params, training = self.params, NetworkTraining(self, images, _files_read(self.params))
        teacher, taught = self._teacher(training, images.progress)  # section 3.1
        network = drawn(self._blank(teacher.channels), params.random_seed)
        network.teacher.load_state_dict(teacher.network.state_dict())
        _normalise_teacher(
            network,
            training.kept.pixels[evenly(training.parts.learn, _MEASURED)],
            _LEAST_DEVIATION if taught["source"] == "distilled" else 0.0,
        )
        network.to(self.backbone.device)
        penalty = None
        if params.penalty_images is not None:
            from .efficientad_penalty import PenaltyImages

            penalty = PenaltyImages(params.penalty_images, self.region.size)

        def loss(network: EfficientAdNetwork, batch: Minibatch) -> Tensor:
            # all looks at held-out images have the paper's, so that they can be compared
            p_hard = p_hard_at(batch.step, params.steps) if network.training else _P_HARD
            return efficientad_loss(network, batch, penalty, p_hard)

        learning = itertools.chain(network.student.parameters(), network.autoencoder.parameters())
        optimizer = torch.optim.Adam(learning, lr=params.learning_rate, weight_decay=1e-5)
        task = Task(network, optimizer, loss, rise_and_fall(params.steps))  # type: ignore[arg-type]
        history = training.train(task)
        quantiles, of = self._quantiles(network, training)
        taught = {**taught, "quantiles_from": of}
        learned = self._learned(network, history, quantiles, taught)
        return learned, _noted(training.scores(learned), taught)

    def _teacher(
        self, training: NetworkTraining, progress: Progress | None
    ) -> tuple[Teacher, dict[str, Any]]:
        """Return T, from a file or distilled, and what a report says of it."""
        from .efficientad_teacher import distill, read_teacher
        from .training import Plan

        params = self.params
        if params.teacher is not None:
            known = {"source": "file", "detail": Path(params.teacher).name}
            return read_teacher(params.teacher, params.model_size), known
        teacher = distill(
            self.backbone,
            training.kept,
            training.parts,
            model_size=params.model_size,
            plan=Plan(params.teacher_steps, 8, params.random_seed, patience=params.patience),
            learning_rate=params.learning_rate,
            checkpoint=training.checkpoint("teacher"),
            progress=progress,
        )
        assert teacher.history is not None
        return teacher, {"source": "distilled", **teacher.history.describe()}

    def _blank(self, channels: int) -> Callable[[], EfficientAdNetwork]:
        """Return what makes T, S and A for so many channels of T, untrained."""
        from .efficientad_networks import EfficientAdNetwork

        return lambda: EfficientAdNetwork(self.params.model_size, channels, self.region.size)

    def _grid(self) -> tuple[int, int]:
        """Return the grid (h, w) over the whole image, with the cells at its border."""
        from .efficientad_networks import BORDER, described, working_size

        height, width = described(working_size(self.region.size))
        return height + 2 * BORDER, width + 2 * BORDER

    def _quantiles(
        self, network: EfficientAdNetwork, training: NetworkTraining
    ) -> tuple[list[tuple[float, float]], str]:
        """Return (q_a, q_b) of the local and of the global map, and what images they are of.

        These are good images that were not learned from, where there are any (section 3.4).
        """
        from .efficientad_networks import BORDER
        from .training import Program

        program, parts = Program(network, self.backbone), training.parts
        unseen = len(parts.watch) > 0
        inner = self.region.cell_mask(self._grid())
        if inner is not None:
            inner = inner[BORDER:-BORDER, BORDER:-BORDER]
            if not inner.any():  # a region at the border alone
                inner = None
        found: list[list[npt.NDArray[np.float32]]] = [[], []]
        for number in evenly(parts.watch if unseen else parts.learn, _MEASURED):
            for values, maps in zip(found, program.run([training.kept.pixels[number]])):
                one = maps[0].cpu().numpy()  # (h, w) without the border
                values.append(one.ravel() if inner is None else one[inner])
        pairs = []
        for values in found:
            exact = np.quantile(np.concatenate(values).astype(np.float64), (_Q_A, _Q_B))
            pairs.append((float(exact[0]), float(exact[1])))
        return pairs, "held-out images" if unseen else "images learned from"

    def _learned(
        self,
        network: EfficientAdNetwork,
        history: History,
        quantiles: list[tuple[float, float]],
        taught: dict[str, Any],
    ) -> LearnedEfficientAd:
        import torch

        from .efficientad_networks import EfficientAdGraph, Normalization

        grid = self._grid()
        mask = self.region.cell_mask(grid)
        counted = None if mask is None else torch.from_numpy(mask.ravel().astype(np.float32))
        graph = EfficientAdGraph(network, Normalization(quantiles), self.region.size, counted)
        return LearnedEfficientAd(self.backbone, network, graph, history, grid, quantiles, taught)

    def restore(self, saved: SavedState) -> LearnedEfficientAd:
        from .training import require_shapes

        channels = saved.fact("channels", Annotated[int, Field(ge=1, le=4096)])
        pairs = saved.fact("quantiles", list[list[float]])
        good = len(pairs) == 2 and all(
            len(pair) == 2 and np.isfinite(pair).all() and 0 <= pair[0] <= pair[1] for pair in pairs
        )
        if not good:
            raise SavedModelError("state.quantiles: must be two pairs of 0 <= q_a <= q_b")
        taught = saved.fact("teacher", dict[str, str | int | float | bool | None])
        blank = self._blank(channels)
        require_shapes(blank, saved, "network.")  # `channels` comes from a file
        network, history = restored_network(saved, blank, self.backbone)
        return self._learned(network, history, [(pair[0], pair[1]) for pair in pairs], taught)


@dataclass(eq=False)
class LearnedEfficientAd(LearnedNetwork):
    """T, S and A, and the quantiles that their maps are normalised by.

    Attributes
    ----------
    grid_
        The grid (h, w) over the whole image.
    quantiles
        (q_a, q_b) of the local map, then of the global map.
    taught
        What is known of T, plain JSON values.
    """

    network: EfficientAdNetwork
    grid_: tuple[int, int]
    quantiles: list[tuple[float, float]]
    taught: dict[str, Any]

    def state(self) -> State:
        state = super().state()
        facts = {
            "channels": self.network.channels,
            "quantiles": [list(pair) for pair in self.quantiles],
            "teacher": self.taught,
        }
        return State(state.arrays, {**state.facts, **facts})

    def describe(self) -> dict[str, Any]:
        local, whole = self.quantiles
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "teacher": {**self.taught, "channels": self.network.channels},
            "quantiles": {"student_teacher": list(local), "student_autoencoder": list(whole)},
        }


def _files_read(params: EfficientAdParams) -> dict[str, list[Path]]:
    """Return by name the files that keywords name and that the training reads."""
    found = {}
    if params.teacher is not None:
        found["teacher_sha256"] = [Path(params.teacher)]
    if params.penalty_images is not None:
        from .efficientad_penalty import penalty_files

        found["penalty_sha256"] = penalty_files(params.penalty_images)
    return found


def _normalise_teacher(
    network: EfficientAdNetwork, pixels: npt.NDArray[np.uint8], least: float
) -> None:
    """Set the mean and the deviation, `least` at least, of T's channels over good images."""
    import torch

    from .efficientad_networks import as_input, enlarged
    from .efficientad_teacher import safe_deviation

    mean: Any = 0
    square: Any = 0
    with torch.no_grad():
        for image in pixels:
            found = network.teacher(as_input(enlarged(torch.from_numpy(image[None])))).double()
            mean = mean + found.mean(dim=(0, 2, 3)) / len(pixels)  # (C,)
            square = square + found.square().mean(dim=(0, 2, 3)) / len(pixels)
        network.mean.copy_(mean.view(1, -1, 1, 1))
        network.std.copy_(safe_deviation(mean, square, least).view(1, -1, 1, 1))


def _noted(training: TrainingScores | None, taught: dict[str, Any]) -> TrainingScores | None:
    """Return scores with a note, if T was distilled and learned nothing."""
    loss = taught.get("best_held_out_loss")
    if training is None or loss is None or loss < _LEARNED_NOTHING:
        return training
    note = (
        f"the teacher learned nothing (its loss on held-out images is {loss:.2f}, and "
        "predicting the mean has 1): raise teacher_steps, or give a file as teacher"
    )
    return replace(training, notes=(*training.notes, note))


# ---- the loss, sections 3.2 and 3.3


def p_hard_at(step: int, steps: int) -> float:
    """Return the share of elements that L_hard leaves out in a step: 0 at first, up to 0.999.

    The share that counts falls by the same factor each step, for three fifths of the steps.
    The last two fifths are the paper's, and comparable: so it can be said of the loss whether
    it still falls.
    """
    counted: float = (1.0 - _P_HARD) ** min(1.0, step / (0.6 * steps))
    return 1.0 - counted


def efficientad_loss(
    network: EfficientAdNetwork,
    batch: Minibatch,
    penalty: Any = None,
    p_hard: float = _P_HARD,
) -> Tensor:
    """Return L = L_hard + penalty + L_AE + L_STAE (section 3.3) on a crop of each image."""
    import torch

    from .efficientad_networks import as_input, enlarged, hard_feature_loss
    from .efficientad_teacher import crop_side, crops, jittered

    pixels = jittered(enlarged(batch.pixels), batch.generator)  # (B, H, W, 3)
    whole = network.autoencoder(as_input(pixels))  # A, (B, C, h, w)
    side = crop_side(pixels.shape[1:3])
    found = crops(pixels, side, batch.generator)
    seen = as_input(torch.stack([crop for crop, _ in found]))  # (B, 3, side, side)
    with torch.no_grad():
        taught = network.taught(seen)  # T, (B, C, h', w')
    of_teacher, of_autoencoder = network.studied(seen)  # S, two of this shape
    height, width = taught.shape[-2:]
    rebuilt = torch.stack(
        [
            one[:, row : row + height, column : column + width]
            for one, (_, (row, column)) in zip(whole, found)
        ]
    )
    loss = hard_feature_loss((taught - of_teacher).square(), p_hard)
    loss = loss + (taught - rebuilt).square().mean() + (rebuilt - of_autoencoder).square().mean()
    if penalty is not None:
        others, _ = network.studied(as_input(penalty.draw(len(pixels), side, batch)))
        loss = loss + others.square().mean()
    return loss


@register_model(
    "vision_efficientad",
    tags=("student-teacher", "autoencoder", "pixel-map", "trained"),
    metadata={
        "paper": "Batzner et al., EfficientAD: Accurate Visual Anomaly Detection at "
        "Millisecond-Level Latencies, WACV 2024",
        "year": 2024,
        "link": "https://arxiv.org/abs/2303.14535",
        "needs_training": "gradient steps; without teacher= a teacher is distilled first",
        "calibration_method": "held-out-images: a tenth of the training images is not learned from",
    },
    presets={
        "industrial-fast": {"steps": 200, "teacher_steps": 150},
        "industrial-balanced": {},
        "industrial-accurate": {
            "model_size": "M",
            "resize": (256, 256),
            "steps": 70_000,
            "teacher_steps": 60_000,
            "learning_rate": 1e-4,
            "patience": 400,
        },
    },
)
class VisionEfficientAd(Detector):
    """EfficientAD: where a student cannot follow its teacher, or an autoencoder the image.

    Attributes
    ----------
    history_
        What the loss of S and A did (`pyimgano.models.training.History`).

    Notes
    -----
    After the paper and a public program of it: PDN-S and PDN-M without padding, p_hard 0.999,
    L = L_hard (and the penalty) + L_AE + L_STAE, Adam with weight decay 1e-5, maps normalised
    by their quantiles 0.9 and 0.995 on good images that were not learned from, the score the
    largest value of their mean.

    What differs, each for minutes on two cores instead of a day on a GPU:

    - T is distilled on the images at hand: 8 crops of 96 pixels a step, a few hundred steps;
      the paper has 60,000 steps of 16 ImageNet images. Such a T knows the user's images and
      little else, and is the main reason for being less accurate than published figures: give
      a `teacher` that was trained longer where there is one. It has as many channels as the
      backbone's layers together, at most 384, the paper's number. What it learns to say of a
      crop is what the backbone says there of the whole, unchanged image.
    - Images of 128 pixels instead of 256: a step takes less time, so that more can be made.
    - A step has `train_batch_size` images instead of one, of which T and S see a crop of 96
      pixels, and a few hundred steps are made instead of 70,000; the learning rate is higher,
      and falls all the time instead of once.
    - p_hard rises from 0 to 0.999 over three fifths of the steps. With 0.999 from the start a
      thousandth of the elements teaches S, which takes thousands of steps. The loss on
      held-out images always has 0.999.
    - A map is divided by q_b - q_a, but by no less than q_a: the errors of a student that has
      not learned enough are large and equal, and its map would drown the other one.
    - S and T see the image as A does, with changed brightness, contrast or saturation; in the
      paper L_hard is computed on the unchanged image, in a second pass.
    - A channel of a distilled T is divided by its deviation over good images, but by no less than
      0.3 of what it was to learn: one that T did not learn is not blown up. One of a file is
      divided by its deviation, as in the paper. A T whose loss on held-out images stays at 0.95
      or above (1 is that of saying the mean) is noted in the calibration.
    - No dropout in A. Without `penalty_images` no penalty.
    - The outermost 16 pixels, which no patch of 33 pixels is centred on, take the value of the
      nearest cell instead of 0, and maps are shifted so that their least possible value is 0.
    - Images below 64 pixels are enlarged to 64.

    The quantiles are taken over the images that the loss is watched on. The images of the
    threshold are others, so that they have part in nothing that was learned. Of fewer than 10
    training images none are watched: then the quantiles come from the images learned from.
    """

    method = EfficientAd
