"""EfficientAD: a student of a small teacher, and an autoencoder for what is wrong as a whole.

Batzner, Heckler, Koenig, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024. Symbols follow the paper: T, S and A are teacher, student and
autoencoder, L_hard, L_ST, L_AE and L_STAE the losses, q_a and q_b the quantiles of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError
from ..images import NetworkInput
from .detector import Detector
from .method import TrainingScores
from .parameters import Count, Size
from .registry import register_model
from .saved_state import SavedState, State
from .spread import evenly
from .trained import TrainedDetector, TrainedParams, files_sha256
from .training_images import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .efficientad_networks import EfficientAdNetwork
    from .efficientad_teacher import Teacher
    from .training import KeptImages, Minibatch, Parts, Task

_P_HARD = 0.999
_Q_A, _Q_B = 0.9, 0.995
# Images that the teacher's channels are measured on, and maps where none are held out, at most.
_MEASURED = 64
# Of a channel of a distilled teacher. It learned to give deviations of 1; a channel far below
# has not been learned, and its noise is not to be made as loud as what was.
_LEAST_DEVIATION = 0.3
# Of a distilled teacher's loss on held-out images, from which on it is as good as none: saying
# the mean has a loss of 1.
_LEARNED_NOTHING = 0.95

_Rate = Annotated[float, Strict(), Field(gt=0, le=1)]


class EfficientAdParams(TrainedParams):
    """The keywords of EfficientAd."""

    model_size: Literal["S", "M"] = Field(
        "S", description=("Of the patch description networks: `S` or `M`.")
    )
    teacher: str | None = Field(
        None,
        description=(
            "A file with the weights of T, for pixels normalised as ImageNet's "
            "(safetensors, or a torch file of tensors; `pyimgano distill-teacher` writes "
            "one). Without one T is distilled from `backbone` on the training images."
        ),
    )
    teacher_steps: Count = Field(250, description=("Steps of that distillation."))
    penalty_images: str | None = Field(
        None,
        description=(
            "A folder of other natural images, on which the student is to say nothing of "
            "the teacher (the paper: ImageNet). None: without this penalty."
        ),
    )
    learning_rate: _Rate = Field(
        1e-3,
        description=(
            "Of all three networks at its highest: it rises over a twentieth of the steps, "
            "and falls as a half cosine."
        ),
    )
    steps: Count = Field(
        300, description=("As in `TrainedDetector`; of the student and the autoencoder.")
    )
    train_batch_size: Count = Field(
        8, description=("As in `TrainedDetector`; of the student and the autoencoder.")
    )
    resize: Size = Field(
        (128, 128),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class EfficientAd(TrainedDetector):
    """The method of `VisionEfficientAd`."""

    Params = EfficientAdParams

    patches = "fine"

    def prepare(self) -> None:
        params = self.params
        if params.teacher is not None:
            from .efficientad_teacher import read_teacher

            read_teacher(params.teacher, params.model_size)
        if params.penalty_images is not None:
            from .efficientad_penalty import penalty_files

            penalty_files(params.penalty_images)

    # ---- learning

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        self._progress = progress
        self._quantiles: list[tuple[float, float]] = []
        super()._learn(batches, progress)

    def _task(self, images: KeptImages, parts: Parts) -> Task:
        import itertools

        import torch

        from .efficientad_teacher import rise_and_fall
        from .training import Task, drawn

        params = self._params
        teacher = self._teacher_for(images, parts)
        self._channels = teacher.channels
        network = drawn(self._blank, params.random_seed)
        network.teacher.load_state_dict(teacher.network.state_dict())
        self._normalise_teacher(network, images.pixels[evenly(parts.learn, _MEASURED)])
        network.to(self._backbone.device)
        learning = itertools.chain(network.student.parameters(), network.autoencoder.parameters())
        optimizer = torch.optim.Adam(learning, lr=params.learning_rate, weight_decay=1e-5)
        penalty = None
        if params.penalty_images is not None:
            from .efficientad_penalty import PenaltyImages

            penalty = PenaltyImages(params.penalty_images, self._size())

        def loss(network: nn.Module, batch: Minibatch) -> Tensor:
            # all looks at held-out images have the paper's, so that they can be compared
            p_hard = p_hard_at(batch.step, params.steps) if network.training else _P_HARD
            return efficientad_loss(network, batch, penalty, p_hard)  # type: ignore[arg-type]

        return Task(network, optimizer, loss, rise_and_fall(params.steps))

    def _teacher_for(self, images: KeptImages, parts: Parts) -> Teacher:
        from .efficientad_teacher import distill, read_teacher
        from .training import Plan

        params = self._params
        self._taught: dict[str, Any]
        if params.teacher is not None:
            self._taught = {"source": "file", "detail": Path(params.teacher).name}
            return read_teacher(params.teacher, params.model_size)
        checkpoint = self._teacher_checkpoint = self._checkpoint_of(images, "teacher")
        teacher = distill(
            self._backbone,
            images,
            parts,
            model_size=params.model_size,
            plan=Plan(
                steps=params.teacher_steps,
                batch_size=8,
                seed=params.random_seed,
                check_every=self.check_every,
                patience=params.patience,
            ),
            learning_rate=params.learning_rate,
            checkpoint=checkpoint,
            progress=self._progress,
        )
        assert teacher.history is not None
        self._taught = {"source": "distilled", **teacher.history.describe()}
        return teacher

    def _normalise_teacher(
        self, network: EfficientAdNetwork, pixels: npt.NDArray[np.uint8]
    ) -> None:
        """Set mean and deviation of T's channels over good images."""
        import torch

        from .efficientad_networks import as_input, enlarged
        from .efficientad_teacher import safe_deviation

        least = _LEAST_DEVIATION if self._taught["source"] == "distilled" else 0.0
        mean: Any = 0
        square: Any = 0
        with torch.no_grad():
            for image in pixels:
                found = network.teacher(as_input(enlarged(torch.from_numpy(image[None])))).double()
                mean = mean + found.mean(dim=(0, 2, 3)) / len(pixels)
                square = square + found.square().mean(dim=(0, 2, 3)) / len(pixels)
            network.mean.copy_(mean.view(1, -1, 1, 1))
            network.std.copy_(safe_deviation(mean, square, least).view(1, -1, 1, 1))

    def _blank(self) -> EfficientAdNetwork:
        from .efficientad_networks import EfficientAdNetwork

        return EfficientAdNetwork(self._params.model_size, self._channels, self._size())

    def _outside_files(self) -> dict[str, str]:
        from .efficientad_penalty import penalty_files

        params = self._params
        found = {}
        if params.teacher is not None:
            found["teacher_sha256"] = files_sha256([Path(params.teacher)])
        if params.penalty_images is not None:
            found["penalty_sha256"] = files_sha256(penalty_files(params.penalty_images))
        return found

    def _training_scores(self, unseen: bool) -> TrainingScores:
        found = super()._training_scores(unseen)
        loss = self._taught.get("best_held_out_loss")
        if loss is None or loss < _LEARNED_NOTHING:
            return found
        note = (
            f"the teacher learned nothing (its loss on held-out images is {loss:.2f}, and "
            "predicting the mean has 1): raise teacher_steps, or give a file as teacher"
        )
        return replace(found, notes=(*found.notes, note))

    # ---- maps

    def _made_ready(self) -> None:
        from .efficientad_networks import BORDER, described, working_size

        height, width = described(working_size(self._size()))
        self._set_grid(height + 2 * BORDER, width + 2 * BORDER)
        if not self._quantiles:
            self._measure_maps()
        super()._made_ready()

    def _measure_maps(self) -> None:
        """q_a and q_b of both maps, over good images that were not learned from."""
        from .efficientad_networks import BORDER
        from .training import Program

        program = Program(self._network, self._backbone)
        unseen = len(self._parts.watch) > 0
        numbers = evenly(self._parts.watch if unseen else self._parts.learn, _MEASURED)
        self._taught["quantiles_from"] = "held-out images" if unseen else "images learned from"
        found: list[list[npt.NDArray[np.float32]]] = [[], []]
        counted = np.ones(self.grid_, bool)
        if self._cells is not None:
            counted = np.zeros(self.grid_, bool)
            counted.flat[self._cells.cpu().numpy()] = True
        inner = counted[BORDER:-BORDER, BORDER:-BORDER]
        if not inner.any():  # a region at the border alone
            inner = np.ones_like(inner)
        for number in numbers:
            for values, maps in zip(found, program.run([self._images.pixels[number]])):
                values.append(maps[0].cpu().numpy()[inner])
        for values in found:
            exact = np.quantile(np.concatenate(values).astype(np.float64), (_Q_A, _Q_B))
            self._quantiles.append((float(exact[0]), float(exact[1])))

    def _graph(self, network: nn.Module) -> nn.Module:
        import torch

        from .efficientad_networks import EfficientAdGraph, Normalization

        counted = None
        if self._cells is not None:
            counted = torch.zeros(self.grid_[0] * self.grid_[1])
            counted[self._cells.cpu()] = 1.0
        graph = EfficientAdGraph(
            network,  # type: ignore[arg-type]
            Normalization(self._quantiles),
            self._size(),
            counted,
        )
        return graph.to(self._backbone.device)

    def _finish(self) -> None:
        checkpoint = vars(self).pop("_teacher_checkpoint", None)
        if checkpoint is not None and self._is_done():
            checkpoint.remove()
        vars(self).pop("_progress", None)
        super()._finish()

    # ---- saving

    def _state(self) -> State:
        state = super()._state()
        facts = {
            "channels": self._channels,
            "quantiles": [list(pair) for pair in self._quantiles],
            "teacher": self._taught,
        }
        return State(state.arrays, {**state.facts, **facts})

    def _restore(self, saved: SavedState) -> None:
        self._channels = saved.fact("channels", Annotated[int, Field(ge=1, le=4096)])
        pairs = saved.fact("quantiles", list[list[float]])
        good = len(pairs) == 2 and all(
            len(pair) == 2 and np.isfinite(pair).all() and 0 <= pair[0] <= pair[1] for pair in pairs
        )
        if not good:
            raise SavedModelError("state.quantiles: two pairs of 0 <= q_a <= q_b are wanted")
        self._quantiles = [(pair[0], pair[1]) for pair in pairs]
        self._taught = saved.fact("teacher", dict[str, str | int | float | bool | None])
        super()._restore(saved)

    def _check_shapes(self, saved: SavedState) -> None:
        from .training import require_shapes

        require_shapes(self._blank, saved, "network.")

    def describe(self) -> dict[str, Any]:
        local, whole = self._quantiles
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "teacher": {**self._taught, "channels": self._channels},
            "quantiles": {"student_teacher": list(local), "student_autoencoder": list(whole)},
        }


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


def p_hard_at(step: int, steps: int) -> float:
    """The share of elements that L_hard leaves out in a step: 0 at first, then up to 0.999.

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
    """L = L_hard + penalty + L_AE + L_STAE (section 3.3) on a crop of each image."""
    import torch

    from .efficientad_networks import as_input, enlarged, hard_feature_loss
    from .efficientad_teacher import crop_side, crops, jittered

    pixels = jittered(enlarged(batch.pixels), batch.generator)
    whole = network.autoencoder(as_input(pixels))
    side = crop_side(pixels.shape[1:3])
    found = crops(pixels, side, batch.generator)
    seen = as_input(torch.stack([crop for crop, _ in found]))
    with torch.no_grad():
        taught = network.taught(seen)
    of_teacher, of_autoencoder = network.studied(seen)
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
