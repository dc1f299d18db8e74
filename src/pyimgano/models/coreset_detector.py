"""What detectors with a coreset of patch features share: learning it, and comparing with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import SavedModelError
from ..images import NetworkInput
from ..threads import single_torch_thread
from .detector import Progress, TrainingScores
from .on_backbone import BackboneDetector
from .parameters import Count, Ratio
from .saved_state import SavedState, State
from .spread import Spread, evenly, spread_notes
from .within_image import nearest_elsewhere, within_image_note

if TYPE_CHECKING:
    from torch import Tensor

    from .neighbors import MemoryBank, StreamedCoreset


# Images whose patches are compared with the bank together, and the bytes of these: what is larger
# is asked of the system, and given back to it, each time.
_AT_ONCE = 64
_BYTES_AT_ONCE = 2**24
# Multiplications up to which one thread is as quick as several.
_FEW = 2**29


class CoresetDetector(BackboneDetector):
    """Base class of detectors that compare patches with a coreset of the training patches.

    Sections and symbols are those of PatchCore (Roth et al. 2022), which all of them build on.

    Parameters
    ----------
    coreset_sampling_ratio
        Share of the training patches that the memory bank keeps, in (0, 1].
    max_bank_size
        Bound of the memory bank, whatever the ratio. It binds above 320 training images at 256
        pixels, and keeps memory and the time to score an image in bounds.
    feature_projection_dim
        Width of the random projection in which the coreset is selected; None selects in
        the features themselves. Scores always use the features.
    shared
        The keywords of `BackboneDetector`; the layers that are joined are two by default.

    Attributes
    ----------
    coreset_indices_
        (M,) int64: which training patches the bank holds, in the order of their selection.
        Patch i of image n at grid row r and column c has the index (n h + r) w + c, where n
        counts the images that could be read.
    """

    patches = True  # equation 2 is part of the backbone's graph
    #: Training images whose maps the threshold for pixels comes from, at most; None for all.
    whole_maps: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        coreset_sampling_ratio: Ratio = 0.1,
        max_bank_size: Count = 32_768,
        feature_projection_dim: Count | None = 128,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.coreset_sampling_ratio = coreset_sampling_ratio
        self.max_bank_size: int | None = max_bank_size
        self.feature_projection_dim = feature_projection_dim

    # ---- what methods do differently

    def _new_coreset(self, **facts: Any) -> StreamedCoreset:
        """What gathers the patches and selects; `facts` are the keywords of `StreamedCoreset`.

        Patches come image by image, those of one image at once.
        """
        from .neighbors import StreamedCoreset

        return StreamedCoreset(**facts)

    def _weigh(self, distances: Tensor, rows: Tensor) -> Tensor:
        """Distances, of any shape, to the rows of the bank, as they count."""
        return distances

    def _image_scores(
        self, patches: Tensor, distances: Tensor, rows: Tensor, image: Tensor | None
    ) -> Tensor:
        """Scores (B,) float32 of B images: that of the patch that counts most.

        `patches` (B, hw, D); `distances` and `rows` (B, hw) to the nearest memory feature;
        `image` (B,) numbers the training image whose own memory features are masked.
        """
        return distances.max(dim=1).values

    def _trusted(
        self, scores: npt.NDArray[np.float64], images: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """(n,) which of the training images `images` (n,), with these scores, to calibrate on."""
        return np.ones(len(scores), np.bool_)

    # ---- patch features, section 3.1

    def _patches(self, images: list[NetworkInput]) -> Tensor:
        """P(x) of B images: (B, h, w, D) float32."""
        (patches,) = self._features(images)
        return patches

    # ---- the memory bank, section 3.2

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        from .neighbors import MemoryBank

        coreset: StreamedCoreset | None = None
        kept: list[Tensor] = []  # features of the images to calibrate on, (hw, D) each
        numbers: list[int] = []  # and which images these are
        seen = 0
        for images in batches:
            grid = self._patches(images)  # (B, h, w, D)
            if coreset is None:
                self._set_grid(int(grid.shape[1]), int(grid.shape[2]))
            patches = self._counted(grid.flatten(1, 2))  # (B, k, D)
            cells = patches.shape[1]
            if coreset is None:
                coreset = self._new_coreset(
                    expected=self._n_images * cells,
                    ratio=self.params_.coreset_sampling_ratio,
                    max_rows=self.params_.max_bank_size,
                    projection_dim=self.params_.feature_projection_dim,
                    seed=self.params_.random_seed,
                    progress=None if progress is None else lambda a, b: progress("coreset", a, b),
                )
                spread = Spread.of_images(self._n_images, patches[0].nbytes)
            coreset.add(patches.flatten(0, 1))
            for one in patches:
                if spread.takes(seen):
                    numbers.append(seen)
                    if not coreset.single:
                        kept.append(one.clone())
                seen += 1
        assert coreset is not None
        features, picked = coreset.finish()
        self._selections = coreset.selections
        self._n_seen = seen
        origin = picked // cells
        # copies of an image are masked with it
        groups = torch.from_numpy(self._copy_groups()).to(features.device)
        self._bank: MemoryBank = MemoryBank(features, groups[origin])
        self.coreset_indices_ = picked
        if self._cells is not None:
            whole = self.grid_[0] * self.grid_[1]
            self.coreset_indices_ = origin * whole + self._cells[picked % cells]
        image = torch.tensor(numbers, device=features.device)
        if coreset.whole is None:
            self._train_features = torch.cat(kept)
        elif len(numbers) == seen:
            self._train_features = coreset.whole
        else:
            self._train_features = coreset.whole.view(seen, cells, -1)[image].flatten(0, 1)
        self._train_numbers = image
        self._train_image = groups[image].repeat_interleave(cells)  # (n hw,)

    # ---- scores, section 3.3

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            patches = self._counted(self._patches(images).flatten(1, 2))  # (B, k, D)
            with single_torch_thread(self._few(patches)):
                distances, rows = self._bank.search(patches.flatten(0, 1))
                distances = self._weigh(distances, rows).view(len(images), -1)
                rows = rows.view(len(images), -1)
                scores = self._image_scores(patches, distances, rows, None)
                found = self._maps(distances) if maps else None
            return scores.double().cpu().numpy(), None if found is None else found.cpu().numpy()

    def _few(self, patches: Tensor) -> bool:
        """Whether it takes a processor little to compare patches (B, k, D) with the bank."""
        return patches.device.type == "cpu" and patches.numel() * len(self._bank) <= _FEW

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Each training image against the bank without its own patches.

        The coreset was selected with the image present and is not selected again without
        it. What is unusual about an image was therefore selected, is masked, and makes its
        score larger than a new image's would be: the threshold errs towards fewer false
        alarms, at the price of fewer defects found. The patches of all copies of an image are
        masked with its own.
        """
        import torch

        with torch.inference_mode():
            if not unseen:
                return self._scores_against_bank(None, "in-sample")
            if len(self._bank.image.unique()) > 1:
                return self._scores_against_bank(self._train_image, "leave-one-image-out")
            return self._scores_without_others()

    def _finish(self) -> None:
        # a bank's size many times over
        del self._train_features, self._train_image, self._train_numbers

    def _scores_against_bank(self, image: Tensor | None, method: str) -> TrainingScores:
        import torch

        cells = self._n_cells()
        patches = self._train_features.view(-1, cells, self._train_features.shape[1])  # (n, k, D)
        owner = None if image is None else image[::cells]  # (n,)
        at_once = min(_AT_ONCE, max(1, _BYTES_AT_ONCE // patches[0].nbytes))
        scores, maps = [], []
        for i in range(0, len(patches), at_once):
            some = patches[i : i + at_once]  # (b, k, D)
            own = None if owner is None else owner[i : i + at_once]  # (b,)
            distances, rows = self._bank.search(
                some.flatten(0, 1), None if own is None else own.repeat_interleave(cells)
            )  # (b k,)
            maps.append(self._weigh(distances, rows).view(-1, cells))  # (b, k)
            scores.append(self._image_scores(some, maps[-1], rows.view(-1, cells), own))
        grids = torch.cat(maps)  # (n, k)
        found = torch.cat(scores).double().cpu().numpy()
        whole = np.arange(len(patches))
        if self.whole_maps is not None and owner is not None:
            whole = evenly(whole, self.whole_maps)
        numbers_of = self._train_numbers.cpu().numpy()
        trusted = self._trusted(found, numbers_of)
        return TrainingScores(
            found[trusted],
            method,
            image is not None,
            notes=spread_notes(len(patches), self._n_seen),
            maps=self._statistics(grids[torch.from_numpy(whole[trusted[whole]]).to(grids.device)]),
            images=numbers_of[trusted],
        )

    def _scores_without_others(self) -> TrainingScores:
        """All of the bank comes from one image, so no other is left to compare it with."""
        import torch

        height, width = self.grid_
        cells = self._n_cells()
        n = len(self._train_image) // cells
        memory = self.coreset_indices_ % (height * width)
        where = torch.arange(height * width, device=memory.device)
        if self._cells is not None:
            where = self._cells
        nearest, rows = nearest_elsewhere(
            self._train_features,
            where.repeat(n),
            self._train_image == self._bank.image[0],
            self._bank.features,
            memory,
            self.grid_,
        )
        winner = rows.view(n, cells)
        grids = self._weigh(nearest.view(n, cells), winner)
        scores = self._image_scores(self._train_features.view(n, cells, -1), grids, winner, None)
        return TrainingScores(
            scores.double().cpu().numpy(),
            "within-image",
            unseen=False,
            notes=(within_image_note(n),),
            maps=self._statistics(grids),
        )

    # ---- saving

    def _state(self) -> State:
        return State(
            arrays={
                "features": self._bank.features.cpu().numpy(),
                "coreset_indices": self.coreset_indices_.cpu().numpy(),
            },
            facts={"grid": list(self.grid_), "selections": self._selections},
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        from .neighbors import MemoryBank

        self._restore_backbone(saved)
        device = self._backbone.device
        (_, *grid, dimension), *_ = self._backbone.shapes(self._size())
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        features = saved.array("features", "float32", (None, dimension))
        indices = saved.array("coreset_indices", "int64", (len(features),))
        cells = grid[0] * grid[1]
        if indices.min() < 0 or indices.max() >= self.n_train_ * cells:
            raise SavedModelError("the array 'coreset_indices' names patches that do not exist")
        if len(features) > self.params_.max_bank_size:
            raise SavedModelError("the array 'features' has more rows than max_bank_size")
        self._selections = saved.fact("selections", Count)
        self._set_grid(grid[0], grid[1])
        self.coreset_indices_ = torch.from_numpy(indices).to(device)
        self._bank = MemoryBank(
            torch.from_numpy(features).to(device),
            self.coreset_indices_ // cells,
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "memory_bank": {
                "size": len(self._bank),
                "dimension": int(self._bank.features.shape[1]),
                "selections": self._selections,
            },
        }
