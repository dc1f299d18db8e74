"""Detectors whose network is trained here: what they share besides the loop itself."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..calibration import MapStatistics
from ..images import NetworkInput
from .hooks import BackboneDetector
from .method import TrainingScores
from .on_backbone import open_backbone
from .parameters import BackboneParams, Count, DetectorParams
from .saved_state import SavedState, State
from .spread import Spread
from .training_images import Progress

if TYPE_CHECKING:
    from torch import nn

    from ..backbones import Backbone
    from .training import Checkpoint, History, KeptImages, Parts, Program, Task

# Of a calibration on the images that were learned from (`calibration="in-sample"`).
_IN_SAMPLE = 512


class TrainedParams(BackboneParams):
    """The keywords of TrainedDetector."""

    steps: Count = Field(
        400,
        description=(
            "Steps of the optimizer, at most: fewer where the loss on held-out good images "
            "no longer falls."
        ),
    )
    train_batch_size: Count = Field(16, description=("Images of a step."))
    patience: Count = Field(
        8,
        description=(
            "Training ends after so many looks at the held-out loss, one every 25 steps, "
            "without a lower one; the state with the lowest is kept."
        ),
    )
    checkpoint_dir: str | None = Field(
        None,
        description=(
            "A folder to keep the state of the training in, every 25 steps. A fit that was "
            "interrupted goes on where it stopped, to the same bits, if its images, "
            "keywords and versions are the same; it is refused if not. Removed when the fit "
            "is done."
        ),
    )


class TrainedDetector(BackboneDetector):
    """Base class of detectors that train a network of their own beside a frozen backbone.

    A method implements `_task`, `_blank` and `_graph`.

    Attributes
    ----------
    history_
        What the loss did (`pyimgano.models.training.History`).

    Notes
    -----
    Images are kept at `resize`, as many as take 1 GiB, evenly spread where there are more
    (5,461 of 256 x 256). A tenth of them, at least 10 or a third if that is less, is set
    aside for the threshold; of the others, where there are 10 images, another tenth (at most
    32) to look at the loss. So the images of the threshold decide nothing in the training.
    With `calibration_images` or `calibration="in-sample"` none are set aside for the threshold.

    On a CPU the same images, keywords and versions give the same network to the bit, whatever
    the number of threads (`pyimgano.models.training.loop`). On a GPU: not measured.
    """

    Params: ClassVar[type[DetectorParams]] = TrainedParams

    history_: History

    #: Steps between two looks at the held-out loss, and between two checkpoints.
    check_every: ClassVar[int] = 25

    # ---- what a method implements

    @abstractmethod
    def _task(self, images: KeptImages, parts: Parts) -> Task:
        """What is trained, its network drawn from the seed; `_backbone` and `params_` are there.

        What comes from images comes from `parts.learn` alone.
        """

    @abstractmethod
    def _blank(self) -> nn.Module:
        """A network of the shape of the task's, on the CPU, whose weights are of no account."""

    @abstractmethod
    def _graph(self, network: nn.Module) -> nn.Module:
        """What scores images: (N, H, W, 3) uint8 to scores (N,) and maps (N, H, W), 0 or more.

        float32; traced for OpenVINO, so a fixed sequence of operations. A method without maps
        gives scores alone.
        """

    # ---- learning

    def _start(self, params: Any, n_images: int) -> None:
        super()._start(params, n_images)
        self._params = params

    def _make_backbone(self, params: Any) -> Backbone:
        # pixels are wanted, and not what a cache keeps of images
        return open_backbone(
            params, layers=self._layer_choice(), patches=self.patches, cached=False
        )

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        from .training import KeptImages, Plan, divide, train

        params = self._params
        images = KeptImages(self._n_images, self._size())
        for batch in batches:
            images.add(batch)
        apart = params.calibration != "in-sample" and not self._calibrates_apart
        groups = self._copy_groups()[images.numbers]
        parts = divide(len(images), calibrate=apart, groups=groups)
        task = self._task(images, parts)
        self._checkpoint = self._checkpoint_of(images)
        plan = Plan(
            steps=params.steps,
            batch_size=params.train_batch_size,
            seed=params.random_seed,
            check_every=self.check_every,
            patience=params.patience,
        )
        self.history_ = train(
            task, images, parts, plan, checkpoint=self._checkpoint, progress=progress
        )
        self._network = task.network
        self._images, self._parts = images, parts
        self._made_ready()

    def _made_ready(self) -> None:
        from .training import Program

        self._program: Program = Program(self._graph(self._network), self._backbone)

    def _checkpoint_of(self, images: KeptImages, part: str = "") -> Checkpoint | None:
        """Where a training is kept; `part` is a folder below for another one of the same fit."""
        if self._params.checkpoint_dir is None:
            return None
        import torch

        from ..backbones.programs import code_hash
        from .training import Checkpoint

        silent = (
            "checkpoint_dir",
            "cache_dir",
            "contamination",
            "calibration_quantile",
            "calibration_tail",
        )
        keywords = {k: v for k, v in vars(self._params).items() if k not in (*silent, "roi")}
        identity = {name: repr(value) for name, value in keywords.items()}
        identity |= {
            "detector": type(self).__name__,
            "images": images.digest(),
            "calibration_images": "given" if self._calibrates_apart else "none",
            "roi": "none" if self.roi_ is None else self.roi_.sha256,
            "weights": self._backbone.state_sha256,
            "device": str(self._backbone.device),
            "engine": self._backbone.engine,
            "program": code_hash("backbones", "images", "models", "models/training"),
            "torch": torch.__version__,
            **self._outside_files(),
        }
        folder = Path(self._params.checkpoint_dir).expanduser().absolute()
        return Checkpoint(folder / part, identity)

    def _outside_files(self) -> dict[str, str]:
        """By name, the hashes of files that keywords name and that the training reads."""
        return {}

    # ---- scores

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        scores, *found = self._program.run(images)
        plain = scores.double().cpu().numpy()
        if not maps or not found:
            return plain, None
        return plain, found[0].cpu().numpy()

    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Scores of the images set aside for it, which nothing was learned from."""
        numbers = self._parts.calibrate
        method, notes = "held-out-images", []
        if unseen and len(numbers):
            notes.append(
                f"{len(numbers)} of the {self._images.seen} training images were set aside to "
                "calibrate on, and not learned from"
            )
        else:
            unseen, method = False, "in-sample"
            spread = Spread(len(self._images), _IN_SAMPLE)
            numbers = np.array([i for i in range(len(self._images)) if spread.takes(i)])
        if len(self._images) < self._images.seen:
            notes.append(
                f"{len(self._images)} of the {self._images.seen} training images were kept, "
                "evenly spread"
            )
        counted = self._counted_in_training()
        scores: list[npt.NDArray[np.float64]] = []
        statistics = MapStatistics()
        for start in range(0, len(numbers), self.batch_size):
            some = list(self._images.pixels[numbers[start : start + self.batch_size]])
            found, maps = self._score_batch(some, self.has_maps)
            scores.append(found)
            if maps is not None:
                statistics.add(maps if counted is None else maps[:, counted])
        self._scored = True
        kept = np.array(self._images.numbers, np.int64)[numbers]
        return TrainingScores(
            np.concatenate(scores), method, unseen, tuple(notes), statistics, images=kept
        )

    def _is_done(self) -> bool:
        """Whether the fit needs no checkpoint any more."""
        return self._calibrates_apart or bool(vars(self).get("_scored"))

    def _finish(self) -> None:
        if self._checkpoint is not None and self._is_done():
            self._checkpoint.remove()
        for name in ("_images", "_parts", "_checkpoint", "_scored"):
            vars(self).pop(name, None)

    # ---- saving

    def _state(self) -> State:
        from .training import network_arrays

        return State(
            arrays=network_arrays(self._network, "network."),
            facts=self.history_.facts(),
        )

    def _restore(self, saved: SavedState) -> None:
        from .training import History, restore_network

        self._params = self.params_
        self.history_ = History(
            losses=saved.fact("losses", list[float]),
            checks=saved.fact("checks", list[int]),
            held_out=saved.fact("held_out", list[float]),
            best_step=saved.fact("best_step", int),
            stopped_early=saved.fact("stopped_early", bool),
        )
        self.history_.require_sound()
        self._check_shapes(saved)
        network = self._blank()
        restore_network(network, saved, "network.")
        self._network = network.to(self._backbone.device).eval()
        self._made_ready()

    def _check_shapes(self, saved: SavedState) -> None:
        """Refuse arrays of other shapes before `_blank`, if what was saved decides its size."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "training": self.history_.describe()}


def files_sha256(paths: Sequence[Path]) -> str:
    """One hash of the contents of files, in their order; their names are of no account."""
    whole = hashlib.sha256()
    for path in paths:
        own = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                own.update(block)
        whole.update(own.digest())
    return whole.hexdigest()
