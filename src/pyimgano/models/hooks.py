"""The four steps that methods were made of before `Method.learn`; it goes with the last of them.

A class here is method and learned value in one. What it learns stands on `self`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..calibration import MapStatistics
from ..errors import during
from ..images import NetworkInput, RegionOfInterest
from .anomaly_map import SIGMA, smooth_maps
from .method import Learned, Method, TrainingScores
from .on_backbone import open_backbone
from .parameters import BackboneParams, DetectorParams
from .saved_state import SavedState, State
from .training_images import Progress, TrainingImages

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone, LayerChoice


class HookMethod(Method, Learned):
    """A method of four steps: `_start`, `_learn`, `_training_scores`, `_score_batch`."""

    n_train_: int
    _calibrates_apart = False
    _images_read: TrainingImages

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.params_ = params

    @property
    def roi_(self) -> RegionOfInterest | None:
        roi: RegionOfInterest | None = self.params.roi
        return roi

    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        self._images_read = images
        self._calibrates_apart = images.calibrate == "held-out-images"
        self._start(self.params, len(images))
        self._learn(images.batches(), images.progress)
        found = None
        try:
            if not self._calibrates_apart:
                with during("calibration"):
                    found = self._training_scores(images.calibrate != "in-sample")
        finally:
            self._finish()
            del self._images_read
        return self, found

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        return self._score_batch(images, maps)

    def state(self) -> State:
        return self._state()

    def restore(self, saved: SavedState) -> Learned:
        self.n_train_ = saved.n_train
        self._restore(saved)
        return self

    def _start(self, params: Any, n_images: int) -> None:
        """Get ready to learn from at most `n_images` images."""

    @abstractmethod
    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None: ...

    @abstractmethod
    def _training_scores(self, unseen: bool) -> TrainingScores: ...

    @abstractmethod
    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]: ...

    @abstractmethod
    def _state(self) -> State: ...

    @abstractmethod
    def _restore(self, saved: SavedState) -> None: ...

    def _finish(self) -> None:
        """Let go of what only `_training_scores` needs."""

    def _size(self) -> tuple[int, int]:
        height, width = self.params.resize
        return height, width

    def counted_pixels(self, original_size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        return self.region.pixels(original_size)

    def counted_cells(self, grid: tuple[int, int]) -> npt.NDArray[np.int64] | None:
        return self.region.cells(grid)

    def _counted_in_training(self) -> npt.NDArray[np.bool_] | None:
        return self._images_read.counted_pixels()

    def _copy_groups(self) -> npt.NDArray[np.int64]:
        return self._images_read.copy_groups()


class BackboneDetector(HookMethod):
    """A method of four steps on the features of a frozen backbone."""

    Params: ClassVar[type[DetectorParams]] = BackboneParams
    patches: ClassVar[Literal["fine"] | None] = None

    grid_: tuple[int, int]

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.backbone = self._backbone = self._make_backbone(params)

    def _make_backbone(self, params: Any) -> Backbone:
        return open_backbone(params, layers=self._layer_choice(), patches=self.patches)

    def _layer_choice(self) -> LayerChoice | None:
        """What chooses the layers where none are named; None for the backbone's own choice."""
        return None

    def _start(self, params: Any, n_images: int) -> None:
        self._n_images = n_images

    def _features(self, images: list[NetworkInput]) -> list[Tensor]:
        """Of B images, for each layer (B, C_l, H_l, W_l) float32; of patches one (B, h, w, D)."""
        import torch

        with torch.inference_mode():
            return self._backbone.features(images)

    # ---- the grid of cells

    def _set_grid(self, height: int, width: int) -> None:
        """Note the grid that images are scored on, and which of its cells count."""
        import torch

        self.grid_ = (height, width)
        cells = self.counted_cells(self.grid_)
        self._cells: Tensor | None = None
        if cells is not None:
            self._cells = torch.from_numpy(cells).to(self._backbone.device)

    def _n_cells(self) -> int:
        """How many cells of an image count."""
        return self.grid_[0] * self.grid_[1] if self._cells is None else len(self._cells)

    def _counted(self, cells: Tensor) -> Tensor:
        """Those of (B, hw, ...) that count, (B, k, ...); all of them without a region."""
        return cells if self._cells is None else cells[:, self._cells]

    def _sigma(self) -> float:
        """Of the Gaussian that smooths maps, in pixels."""
        return SIGMA

    def _maps(self, scores: Tensor) -> Tensor:
        """Maps (B, H, W) of the scores (B, k) of the cells that count, 0 or more."""
        size, sigma = self._size(), self._sigma()
        if self._cells is None:
            return smooth_maps(scores.view(-1, *self.grid_), size, sigma)
        grids = scores.new_zeros((len(scores), self.grid_[0] * self.grid_[1]))
        counted = scores.new_zeros(grids.shape[1])
        grids[:, self._cells] = scores
        counted[self._cells] = 1.0
        return smooth_maps(
            grids.view(-1, *self.grid_), size, sigma, counted=counted.view(self.grid_)
        )

    def _statistics(self, scores: Tensor) -> MapStatistics:
        """Of the maps of training images whose cells have the scores (N, k)."""
        found = MapStatistics()
        counted = self._counted_in_training()
        for some in scores.split(64):
            maps = self._maps(some).cpu().numpy()
            found.add(maps if counted is None else maps[:, counted])
        return found
