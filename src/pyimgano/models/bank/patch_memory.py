"""What good patches of one grid look like: a bank of them, whitened, and a scale for its distances.

A distance to the nearest good patch means little by itself. Where good images differ much it is
large without anything being wrong, and at the border of the frame, where a network sees its own
padding instead of an image, all distances are larger. Both are learned from the distances that
training images have to the patches of the others, and divided out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..spread import KeptVectors, Spread
from ..within_image import nearest_elsewhere
from .memory_bank import MemoryBank
from .pooled_coreset import FOLDS, PooledCoreset
from .whitening import Whitening

#: Patches that a bank is selected from, for each that it may hold; and their bytes, at most.
POOL = 6
POOL_BYTES = 2**29
# Rows of the bank, itself among them, whose distances tell how large they are around a row, and
# how many distances of the overall mean are added to theirs.
_AROUND = 10
_PRIOR = 5.0
# A row's scale is the root of the mean distance around it, relative to the overall one: half of
# what differs on a logarithmic scale is taken for the place, the other half for the image.
_POWER = 0.5
LEAST_SCALE, LARGEST_SCALE = 0.5, 2.0
# Pixels from the border of the frame within which its effect is measured.
_BORDER = 32
# What counts as a large distance in a part of an image: the mean plus so many deviations.
_DEVIATIONS = 2.0
# Images that it is measured on: of ten the odd one may be what a defect looks like.
_KEPT = 0.9


@dataclass
class PatchMemory:
    """A fitted memory of good patches.

    Attributes
    ----------
    bank
        (M, D) whitened features.
    whitening
        What makes patches comparable with them.
    scale
        (M,) float32, 0.5 to 2: what distances to a row are divided by.
    border
        (k,) float32, 1 to 2: what those at each cell that counts are divided by.
    indices
        (M,) int64: which training patches the bank holds, among those that count; None of a
        memory that was loaded.
    strength
        What the covariance of changes that are no defect counted in the whitening (`Nuisance`);
        None of a memory that was saved before there was one.
    """

    bank: MemoryBank
    whitening: Whitening
    scale: Tensor
    border: Tensor
    indices: Tensor | None
    strength: float | None

    def distances(self, patches: Tensor) -> Tensor:
        """(B, k) float32, scaled, of patches (B, k, D) as a backbone gives them."""
        white = self.whitening(patches)
        distances, rows = self.bank.search(white.flatten(0, 1))
        return (distances / self.scale[rows]).view(len(patches), -1) / self.border


class PatchMemoryLearner:
    """Gathers the patches of training images, and makes a memory of them.

    Parameters
    ----------
    grid
        (h, w) of the patches.
    size
        (H, W) pixels of the images that the grid covers.
    cells
        (k,) int64: cells r w + c that count, ascending; None for all.
    spread
        Which of the training images are kept to be compared with the others.
    like
        (k, D), the patches of one image.
    images
        How many are expected.
    max_rows
        Of the bank.
    facts
        `ratio`, `projection_dim`, `seed` and `progress` of `StreamedCoreset`.

    Attributes
    ----------
    kept
        Positions of the images that `unseen` is of, among all that were added.
    unseen
        (n, k) float32, after `finish`: the scaled distances of the images that were kept, each as
        if it were not among what was learned, but for the coreset's selection.
    several
        Whether the bank has patches of more than one image, copies not counted; if not, `unseen`
        compares patches of the one with others far away in it.
    numbers
        (n,) which images were kept, counted from 0.
    """

    unseen: Tensor
    several: bool
    numbers: npt.NDArray[np.int64]

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        size: tuple[int, int],
        cells: Tensor | None,
        spread: Spread,
        like: Tensor,
        images: int,
        max_rows: int,
        **facts: Any,
    ) -> None:
        self._grid, self._size = grid, size
        count = grid[0] * grid[1]
        self._where = torch.arange(count, device=like.device) if cells is None else cells  # (k,)
        self._spread = spread
        self._kept = KeptVectors(spread, like)
        self._seen = 0
        self._coreset = PooledCoreset(
            pool_size=min(POOL * max_rows, POOL_BYTES // (4 * like.shape[1])),
            max_rows=max_rows,
            cells=len(like),
            expected=images * len(like),
            **facts,
        )

    def add(self, patches: Tensor) -> None:
        """The patches (B, k, D) of the next images."""
        self._coreset.add(patches.flatten(0, 1))
        self._kept.add(patches)
        self._seen += len(patches)

    def group_copies(self, groups: npt.NDArray[np.int64]) -> None:
        """Note which images are copies of each other, after all were added.

        `groups` (n,) are equal for images that are copies: they are left out together.
        """
        self._coreset.groups = torch.from_numpy(np.unique(groups, return_inverse=True)[1])

    def kept_numbers(self) -> list[int]:
        """Which of the images that were added are kept, ascending."""
        return [n for n in range(self._seen) if self._spread.takes(n)]

    def disturbed(
        self,
        numbers: Sequence[int],
        kinds: Sequence[str],
        everyday: Sequence[bool],
        patches: Tensor,
    ) -> None:
        """Learn how far patches move when images are disturbed, after all images were added.

        `patches` (B, k, D) are those of copies of the images `numbers`, each of them one of
        `kept_numbers`, under the disturbances `kinds`, of which some are `everyday` (`Nuisance`).
        """
        place = {number: i for i, number in enumerate(self.kept_numbers())}
        clean = self._kept.all()[[place[number] for number in numbers]]
        self._coreset.disturbed(clean, patches, numbers, kinds, everyday)

    def everyday_is_enough(self) -> bool:
        """Whether copies under everyday disturbances, all added, tell all that is needed."""
        return self._coreset.everyday_is_enough()

    def finish(self) -> PatchMemory:
        """The memory; `unseen` and `several` are set."""
        if self._coreset.groups is None:
            self.group_copies(np.arange(self._seen))
        of_image = self._coreset.groups
        assert of_image is not None
        features, picked = self._coreset.finish()
        k = len(self._where)
        of_image = of_image.to(features.device)
        bank = MemoryBank(features, of_image[picked // k], prune=False)
        self.several = len(bank.image.unique()) > 1
        numbers = self.kept_numbers()
        self.numbers = np.array(numbers, np.int64)
        image = torch.tensor(numbers, device=features.device).repeat_interleave(k)  # (n k,)
        cell = torch.arange(k, device=features.device).repeat(len(numbers))
        fold = self._coreset.fold_of(image * k + cell)
        image = of_image[image]  # from here on, copies count as one
        distances, rows = self._compare(bank, picked, image, cell, fold)
        if not self.several:
            self.unseen = distances.view(-1, k)
            ones = torch.ones_like
            scale, border = ones(features[:, 0]), ones(distances[:k])
            return PatchMemory(
                bank, self._coreset.whitening, scale, border, picked, self._coreset.strength
            )
        around, _ = bank.neighbourhood(torch.arange(len(bank), device=image.device), _AROUND)
        scaling = _Scaling(
            distances.cpu().numpy(),
            rows.cpu().numpy(),
            fold.cpu().numpy(),
            around.cpu().numpy(),
            k,
            self._borders(),
        )
        unseen = np.empty_like(scaling.distances)
        for part in range(FOLDS):
            chosen = scaling.fold == part
            if chosen.any():
                by_row, by_cell = scaling.learned(without=part)
                flat = scaling.distances[chosen] / by_row[scaling.rows[chosen]]
                unseen[chosen] = (flat.reshape(-1, k) / by_cell).ravel()
        self.unseen = torch.from_numpy(unseen.reshape(-1, k)).to(features)
        scale, border = (torch.from_numpy(one).to(features) for one in scaling.learned())
        return PatchMemory(
            bank, self._coreset.whitening, scale, border, picked, self._coreset.strength
        )

    def in_sample(self, memory: PatchMemory) -> Tensor:
        """(n, k): distances of the images that were kept to all that was learned of them."""
        return torch.cat([memory.distances(some) for some in self._kept.all().split(8)])

    def _compare(
        self, bank: MemoryBank, picked: Tensor, image: Tensor, cell: Tensor, fold: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(n k,) distances to the nearest row of another image, and which.

        Whitened, the bank too, by what the patches of other folds say. A covariance knows what it
        is learned from: of twenty images, a new one lies farther away than each of them does,
        even from a bank without its own patches.
        """
        patches = self._kept.all().flatten(0, 1)  # (n k, D)
        distances = patches.new_empty(len(patches))
        rows = torch.empty_like(image)
        for part in range(FOLDS):
            chosen = torch.nonzero(fold == part).squeeze(1)
            if len(chosen) == 0:
                continue
            whitening = self._coreset.whitening_without(part)
            features, memory = patches[chosen], self._coreset.plain.clone()
            whitening.blocks(features)
            whitening.blocks(memory)
            if self.several:
                others = MemoryBank(memory, bank.image, prune=False)
                distances[chosen], rows[chosen] = others.search(features, image[chosen])
                continue
            distances[chosen], rows[chosen] = nearest_elsewhere(
                features,
                self._where[cell[chosen]],
                image[chosen] == bank.image[0],
                memory,
                self._where[picked % len(self._where)],
                self._grid,
            )
        return distances, rows

    def _borders(self) -> list[npt.NDArray[np.intp]]:
        """For each row of cells along the frame's border, numbers of those that count.

        The last are the others, which are compared with.
        """
        where = self._where.cpu().numpy()
        found, inner = [], np.ones(len(where), np.bool_)
        for axis, place in enumerate((where // self._grid[1], where % self._grid[1])):
            cells = self._grid[axis]
            for j in range(math.ceil(_BORDER * cells / self._size[axis])):
                for at in (j, cells - 1 - j):
                    found.append(np.flatnonzero(place == at))
                    inner &= place != at
        return [*(one for one in found if len(one)), np.flatnonzero(inner)]


class _Scaling:
    """What distances of good patches are divided by, learned from some of them.

    In numpy and double precision, so that it does not depend on threads.
    """

    def __init__(
        self,
        distances: npt.NDArray[np.float32],  # (n k,)
        rows: npt.NDArray[np.int64],  # (n k,)
        fold: npt.NDArray[np.int64],  # (n k,)
        around: npt.NDArray[np.int64],  # (M, A)
        cells: int,
        borders: list[npt.NDArray[np.intp]],
    ) -> None:
        self.distances, self.rows, self.fold = distances, rows, fold
        self._around, self._cells = around, cells
        self._borders = borders
        self._totals, self._counts = [], []
        for part in range(FOLDS):
            mine, m = fold == part, len(around)
            wide = distances[mine].astype(np.float64)
            self._totals.append(np.bincount(rows[mine], wide, minlength=m))
            self._counts.append(np.bincount(rows[mine], minlength=m))

    def learned(
        self, without: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scales (M,) of the rows and (k,) of the cells, from all folds but one."""
        parts = [part for part in range(FOLDS) if part != without]
        chosen = np.ones(len(self.fold), bool) if without is None else self.fold != without
        if not chosen.any():  # nothing to learn from
            return np.ones(len(self._around), np.float32), np.ones(self._cells, np.float32)
        scale = self._row_scale(parts)
        scaled = self.distances[chosen] / scale[self.rows[chosen]]
        return scale, self._border(scaled.reshape(-1, self._cells).astype(np.float64))

    def _row_scale(self, parts: list[int]) -> npt.NDArray[np.float32]:
        total = np.sum([self._totals[part] for part in parts], axis=0)
        count = np.sum([self._counts[part] for part in parts], axis=0)
        if not total.sum() > 0:
            return np.ones(len(total), np.float32)
        mean = total.sum() / count.sum()
        around = total[self._around].sum(axis=1) + _PRIOR * mean
        around /= (count[self._around].sum(axis=1) + _PRIOR) * mean
        bounded = np.clip(around**_POWER, LEAST_SCALE, LARGEST_SCALE)
        return np.asarray(bounded, np.float32)

    def _border(self, scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Of distances (n, k)."""
        border = np.ones(scaled.shape[1])
        *rows, inner = self._borders
        usual = _large(scaled[:, inner]) if len(inner) else 0.0
        if usual > 0:
            for cells in rows:
                border[cells] = np.maximum(border[cells], _large(scaled[:, cells]) / usual)
        return np.asarray(np.minimum(border, LARGEST_SCALE), np.float32)


def _large(distances: npt.NDArray[np.float64]) -> float:
    """Of the parts (n, c) of n images, without the tenth that is largest."""
    kept = math.ceil(_KEPT * len(distances))
    usual = distances[np.argsort(distances.mean(axis=1), kind="stable")[:kept]]
    return float(usual.mean() + _DEVIATIONS * usual.std())
