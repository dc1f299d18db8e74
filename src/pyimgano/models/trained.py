"""What methods share that train a network of their own beside a frozen backbone.

Images are kept at `resize`, as many as take 1 GiB, evenly spread where there are more (5,461 of
256 x 256). A tenth of them, at least 10 or a third if that is less, is set aside for the
threshold; of the others, where there are 10 images, another tenth (at most 32) to look at the
loss. So the images of the threshold decide nothing in the training. With `calibration_images` or
`calibration="in-sample"` none are set aside for the threshold.

On a CPU the same images, keywords and versions give the same network to the bit, whatever the
number of threads (`pyimgano.models.training.loop`). On a GPU this was not measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..calibration import MapStatistics
from ..errors import during
from ..images import NetworkInput
from .evenly_spread import EvenlySpread
from .method import Learned, Method, TrainingScores
from .parameters import BackboneParams, Count
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import nn

    from ..backbones import Backbone
    from .training import Checkpoint, History, Task
    from .training_images import TrainingImages

_N = TypeVar("_N", bound="nn.Module")

# How many images are scored at most where the threshold comes from images learned from.
_IN_SAMPLE = 512
# Keywords that do not change what is learned, and the region, which has a hash of its own.
_OTHERS = {"checkpoint_dir", "cache_dir", "roi"}
_OTHERS |= {"contamination", "calibration_quantile", "calibration_tail"}

#: The meaning of `steps`, to which a method may add.
STEPS = (
    "The largest number of steps of the optimizer. Training ends earlier where the loss on "
    "held-out good images no longer falls."
)


class TrainedParams(BackboneParams):
    """The keywords of methods that train a network."""

    steps: Count = Field(400, description=STEPS)
    train_batch_size: Count = Field(16, description="How many images a step of the training has.")
    patience: Count = Field(
        8,
        description=(
            "Training ends after this many looks at the held-out loss, one every 25 steps, "
            "without a lower one. The state with the lowest loss is kept."
        ),
    )
    checkpoint_dir: str | None = Field(
        None,
        description=(
            "A folder to keep the state of the training in, every 25 steps. A fit that was "
            "interrupted goes on where it stopped, to the same bits, if its images, "
            "keywords and versions are the same; otherwise it is refused. The folder is removed "
            "when the fit is done."
        ),
    )


class NetworkTraining:
    """The training in a fit: which images it has, what each is for, and its checkpoints.

    Parameters
    ----------
    method
        Whose keywords and backbone are used.
    images
        Read to their end here.
    files
        By name, the files that keywords name and that the training reads: a checkpoint of a
        training with other contents is refused.

    Attributes
    ----------
    kept
        The pixels (`pyimgano.models.training.KeptImages`).
    parts
        What each of the kept images is for (`pyimgano.models.training.Parts`). What is learned
        comes from `parts.learn` alone.
    """

    def __init__(
        self,
        method: Method,
        images: TrainingImages,
        files: Mapping[str, Sequence[Path]] | None = None,
    ) -> None:
        from .training import KeptImages, divide

        self._method, self._images, self._files = method, images, files or {}
        self._checkpoints: list[Checkpoint] = []
        self.kept = KeptImages(len(images), images.region.size)
        for batch in images.batches():
            self.kept.add(batch)
        self.parts = divide(
            len(self.kept),
            calibrate=images.calibrate == "out-of-sample",
            groups=images.copy_groups()[self.kept.numbers],
        )

    def train(self, task: Task) -> History:
        """Train the network of a task, as long as the keywords say, and return what the loss did.

        Raises
        ------
        DataError
            The loss is not finite, or a checkpoint cannot be written or is of another training.
        """
        from .training import Plan, train

        own, told = self._method.params, self._images.progress
        plan = Plan(own.steps, own.train_batch_size, own.random_seed, patience=own.patience)
        kept = self.checkpoint()
        return train(task, self.kept, self.parts, plan, checkpoint=kept, progress=told)

    def checkpoint(self, part: str = "") -> Checkpoint | None:
        """Return where the state of a training is kept; None if `checkpoint_dir` is None.

        `part` is a folder below that for another training of the same fit.
        """
        params, backbone, images = self._method.params, self._method.backbone, self._images
        if params.checkpoint_dir is None:
            return None
        import torch

        from ..backbones.programs import code_hash
        from .training import Checkpoint

        assert backbone is not None
        roi, apart = images.region.roi, images.calibrate == "held-out-images"
        keywords = {k: repr(v) for k, v in vars(params).items() if k not in _OTHERS}
        identity = {
            **keywords,
            "detector": type(self._method).__name__,
            "images": self.kept.digest(),
            "calibration_images": "given" if apart else "none",
            "roi": "none" if roi is None else roi.sha256,
            "weights": str(backbone.state_sha256),
            "device": str(backbone.device),
            "engine": backbone.engine,
            "program": code_hash("backbones", "images", "models", "models/training"),
            "torch": torch.__version__,
            **{name: files_sha256(paths) for name, paths in self._files.items()},
        }
        folder = Path(params.checkpoint_dir).expanduser().absolute()
        self._checkpoints.append(Checkpoint(folder / part, identity))
        return self._checkpoints[-1]

    def scores(self, learned: Learned) -> TrainingScores | None:
        """Return the scores of the images set aside to calibrate on, and remove the checkpoints.

        Without such images they are of those learned from. None if other images are scored.
        """
        found = None
        if self._images.calibrate != "held-out-images":
            with during("calibration"):
                found = self._scores(learned)
        for checkpoint in self._checkpoints:  # the fit is done
            checkpoint.remove()
        return found

    def _scores(self, learned: Learned) -> TrainingScores:
        kept, numbers, notes = self.kept, self.parts.calibrate, []
        method, unseen = "held-out-images", len(numbers) > 0
        if unseen:
            notes.append(
                f"{len(numbers)} of the {kept.seen} training images were set aside to "
                "calibrate on, and not learned from"
            )
        else:
            method, spread = "in-sample", EvenlySpread(len(kept), _IN_SAMPLE)
            numbers = np.array([i for i in range(len(kept)) if spread.takes(i)])
        if len(kept) < kept.seen:
            notes.append(f"{len(kept)} of the {kept.seen} training images were kept, evenly spread")
        counted = self._images.counted_pixels()  # (H, W)
        scores: list[npt.NDArray[np.float64]] = []
        statistics = MapStatistics()
        size = self._method.batch_size
        for start in range(0, len(numbers), size):
            some, maps = learned.score(list(kept.pixels[numbers[start : start + size]]), maps=True)
            scores.append(some)
            if maps is not None:  # (B, H, W)
                statistics.add(maps if counted is None else maps[:, counted])
        return TrainingScores(
            np.concatenate(scores),
            method,
            unseen,
            tuple(notes),
            statistics,
            images=np.array(kept.numbers, np.int64)[numbers],
        )


@dataclass(eq=False)
class LearnedNetwork(Learned):
    """A network that was trained, and what scores images with it.

    Attributes
    ----------
    backbone
        The frozen network beside it.
    network
        What was trained.
    graph
        What gives scores (N,) and maps (N, H, W), 0 or more, float32, for images (N, H, W, 3)
        uint8. It is traced for OpenVINO, so it is a fixed sequence of operations.
    history_
        What the loss did (`pyimgano.models.training.History`).
    """

    backbone: Backbone
    network: nn.Module
    graph: InitVar[nn.Module]
    history_: History

    def __post_init__(self, graph: nn.Module) -> None:
        from .training import Program

        self._program = Program(graph, self.backbone)

    @property
    def scoring_graph(self) -> nn.Module:
        """Return the graph that gives scores and maps."""
        return self._program.graph

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        scores, found = self._program.run(images)  # (B,), (B, H, W)
        return scores.double().cpu().numpy(), found.cpu().numpy() if maps else None

    def state(self) -> State:
        from .training import network_arrays

        return State(network_arrays(self.network, "network."), self.history_.facts())

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "training": self.history_.describe()}


def restored_network(
    saved: SavedState, blank: Callable[[], _N], backbone: Backbone
) -> tuple[_N, History]:
    """Return the network and the history that `LearnedNetwork.state` saved.

    `blank` makes a network of its shape on the CPU, whose weights are of no account. The network
    comes on the device of the backbone, in evaluation mode.
    """
    from .training import History, restore_network

    history = History(
        losses=saved.fact("losses", list[float]),
        checks=saved.fact("checks", list[int]),
        held_out=saved.fact("held_out", list[float]),
        best_step=saved.fact("best_step", int),
        stopped_early=saved.fact("stopped_early", bool),
    )
    history.require_sound()
    network = blank()
    restore_network(network, saved, "network.")
    return network.to(backbone.device).eval(), history


def files_sha256(paths: Sequence[Path]) -> str:
    """Return one hash of the contents of files, in their order; their names are of no account."""
    whole = hashlib.sha256()
    for path in paths:
        own = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                own.update(block)
        whole.update(own.digest())
    return whole.hexdigest()
