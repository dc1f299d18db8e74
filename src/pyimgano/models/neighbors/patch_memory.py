"""A memory of the good patches of one grid: a whitened bank, and a scale for its distances.

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

from ..evenly_spread import EvenlySpread, KeptVectors
from ..within_image import nearest_elsewhere
from .memory_bank import MemoryBank
from .pooled_coreset import FOLDS, PooledCoreset
from .whitening import Whitening

#: A bank is selected from this many patches for each that it may hold, of at most so many bytes.
POOL = 6
POOL_BYTES = 2**29
# How large distances are around a row is learned from those to this many rows of the bank, itself
# among them, with so many distances of the overall mean added.
_AROUND = 10
_PRIOR = 5.0
# A row's scale is the root of the mean distance around it, relative to the overall one: half of
# what differs on a logarithmic scale is taken for the place, the other half for the image.
_POWER = 0.5
LEAST_SCALE, LARGEST_SCALE = 0.5, 2.0
# The effect of the border of the frame is measured within this many pixels from it.
_BORDER = 32
# A distance is large in a part of an image where it is the mean plus so many deviations.
_DEVIATIONS = 2.0
# That is measured on this share of the images, since the odd one of ten may look like a defect.
_KEPT = 0.9


@dataclass
class PatchMemory:
    """Hold what was learned of good patches, and measure how far others are from it.

    Attributes
    ----------
    bank
        The bank of (M, D) whitened features.
    whitening
        Makes patches comparable with them.
    scale
        (M,) float32, 0.5 to 2, what distances to each row are divided by.
    border
        (k,) float32, 1 to 2, what distances at each cell that counts are divided by.
    indices
        (M,) int64, which training patches the bank holds, among those that count; None if the
        memory was loaded.
    strength
        The factor of the nuisance covariance in the whitening (`NuisanceCovariance`); None if the
        memory was saved by a version that had none.
    """

    bank: MemoryBank
    whitening: Whitening
    scale: Tensor
    border: Tensor
    indices: Tensor | None
    strength: float | None

    def distances(self, patches: Tensor) -> Tensor:
        """Return the scaled distances (B, k) float32 of patches (B, k, D) from a backbone."""
        white = self.whitening(patches)  # (B, k, D)
        distances, rows = self.bank.search(white.flatten(0, 1))  # (B k,)
        return (distances / self.scale[rows]).view(len(patches), -1) / self.border


class PatchMemoryLearner:
    """Gather the patches of training images, and make a memory of them.

    Parameters
    ----------
    grid
        (h, w) of the patches.
    size
        (H, W) pixels of the images that the grid covers.
    cells
        (k,) int64, the cells r w + c that count, ascending; None for all.
    spread
        Which of the training images are kept to be compared with the others.
    like
        (k, D), the patches of one image.
    images
        How many images are expected.
    max_rows
        The most rows that the bank may have.
    facts
        The keywords `ratio`, `projection_dim`, `seed` and `progress` of `PooledCoreset`.

    Attributes
    ----------
    unseen
        (n, k) float32, set by `finish`: the scaled distances of the images that were kept, each
        as if it were not among what was learned, but for the coreset's selection.
    several
        Whether the bank has patches of more than one image, copies not counted; set by `finish`.
        If not, `unseen` compares patches of the one image with others far away in it.
    numbers
        (n,) which images were kept, counted from 0; set by `finish`.
    unseen_copies
        (c, k) float32, set by `finish`: as `unseen`, the distances of the disturbed copies that
        are not everyday. None without any, or where `several` is not so.
    copied
        Of which image each of these is a copy, by its number, and what was done to it.
    """

    unseen: Tensor
    several: bool
    numbers: npt.NDArray[np.int64]
    unseen_copies: Tensor | None = None

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        size: tuple[int, int],
        cells: Tensor | None,
        spread: EvenlySpread,
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
        self._copies: list[Tensor] = []
        self.copied: list[tuple[int, str]] = []
        self._coreset = PooledCoreset(
            pool_size=min(POOL * max_rows, POOL_BYTES // (4 * like.shape[1])),
            max_rows=max_rows,
            cells=len(like),
            expected=images * len(like),
            **facts,
        )

    def add(self, patches: Tensor) -> None:
        """Add the patches (B, k, D) of the next images."""
        self._coreset.add(patches.flatten(0, 1))
        self._kept.add(patches)
        self._seen += len(patches)

    def group_copies(self, groups: npt.NDArray[np.int64]) -> None:
        """Note which images are copies of each other, after all were added.

        `groups` (n,) are equal for images that are copies: they are left out together.
        """
        self._coreset.groups = torch.from_numpy(np.unique(groups, return_inverse=True)[1])

    def kept_numbers(self) -> list[int]:
        """Return which of the images that were added are kept, ascending."""
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
        `kept_numbers`, under the disturbances `kinds`, of which some are `everyday`.
        """
        place = {number: i for i, number in enumerate(self.kept_numbers())}
        clean = self._kept.all()[[place[number] for number in numbers]]
        self._coreset.disturbed(clean, patches, numbers, kinds, everyday)
        # what counts only where the others are not enough also says how high a threshold has to be
        drift = [i for i, one in enumerate(everyday) if not one]
        if drift:
            self._copies.append(patches[drift])
            self.copied += [(numbers[i], kinds[i]) for i in drift]

    def everyday_is_enough(self) -> bool:
        """Return whether copies under everyday disturbances, all added, are all that is needed."""
        return self._coreset.everyday_is_enough()

    def finish(self) -> PatchMemory:
        """Return the memory, and set `unseen`, `several` and `numbers`."""
        if self._coreset.groups is None:
            self.group_copies(np.arange(self._seen))
        of_image = self._coreset.groups
        assert of_image is not None
        features, picked = self._coreset.finish()
        k = len(self._where)
        of_image = of_image.to(features.device)
        bank = MemoryBank(features, of_image[picked // k])
        self.several = len(bank.image.unique()) > 1
        numbers = self.kept_numbers()
        self.numbers = np.array(numbers, np.int64)
        image = torch.tensor(numbers, device=features.device).repeat_interleave(k)  # (n k,)
        cell = torch.arange(k, device=features.device).repeat(len(numbers))
        fold = self._coreset.fold_of(image * k + cell)
        image = of_image[image]  # from here on, copies count as one
        patches = self._kept.all().flatten(0, 1)  # (n k, D)
        distances, rows = self._compare(patches, bank, picked, image, cell, fold)
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
        unseen = scaling.apart(scaling.distances, scaling.rows, scaling.fold)
        self.unseen = torch.from_numpy(unseen).to(features)
        if self._copies:
            self.unseen_copies = self._scaled_copies(bank, picked, scaling)
        scale, border = (torch.from_numpy(one).to(features) for one in scaling.learned())
        return PatchMemory(
            bank, self._coreset.whitening, scale, border, picked, self._coreset.strength
        )

    def in_sample(self, memory: PatchMemory) -> Tensor:
        """Return the distances (n, k) of the images that were kept to all that was learned."""
        return torch.cat([memory.distances(some) for some in self._kept.all().split(8)])

    def _compare(
        self,
        patches: Tensor,
        bank: MemoryBank,
        picked: Tensor,
        image: Tensor,
        cell: Tensor,
        fold: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return distances of patches (m k, D) to the nearest rows of other images, and which rows.

        Both are (m k,), as are the number of each patch's image, its cell, and its fold.

        The patches, and the bank too, are whitened by what the patches of other folds teach. A
        covariance knows what it is learned from: a new image lies farther away than each of the
        twenty that it was learned from, even from a bank without its own patches.
        """
        distances = patches.new_empty(len(patches))
        rows = torch.empty_like(image)
        for part in range(FOLDS):
            chosen = torch.nonzero(fold == part).squeeze(1)
            if len(chosen) == 0:
                continue
            whitening = self._coreset.whitening_without(part)
            features, memory = patches[chosen], self._coreset.plain.clone()
            whitening.whiten_(features)
            whitening.whiten_(memory)
            if self.several:
                others = MemoryBank(memory, bank.image)
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

    def _scaled_copies(self, bank: MemoryBank, picked: Tensor, scaling: _Scaling) -> Tensor:
        """Return the scaled distances (c, k) of the disturbed copies, as `unseen` has them."""
        k = len(self._where)
        numbers = torch.tensor([number for number, _ in self.copied], device=bank.features.device)
        cell = torch.arange(k, device=numbers.device).repeat(len(numbers))
        numbers = numbers.repeat_interleave(k)  # (c k,)
        fold = self._coreset.fold_of(numbers * k + cell)
        assert self._coreset.groups is not None
        image = self._coreset.groups.to(numbers.device)[numbers]
        patches = torch.cat(self._copies).flatten(0, 1)
        distances, rows = self._compare(patches, bank, picked, image, cell, fold)
        found = scaling.apart(distances.cpu().numpy(), rows.cpu().numpy(), fold.cpu().numpy())
        return torch.from_numpy(found).to(bank.features)

    def _borders(self) -> list[npt.NDArray[np.intp]]:
        """Return the numbers of the cells that count in each line along the frame's border.

        The last numbers are those of the inner cells, which the lines are compared with.
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
    """Learn what distances of good patches are divided by, from some of them.

    It computes in numpy and double precision, so that nothing depends on threads.
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
        """Return scales (M,) of the rows and (k,) of the cells, from all folds but one."""
        parts = [part for part in range(FOLDS) if part != without]
        chosen = np.ones(len(self.fold), bool) if without is None else self.fold != without
        if not chosen.any():  # nothing to learn from
            return np.ones(len(self._around), np.float32), np.ones(self._cells, np.float32)
        scale = self._row_scale(parts)
        scaled = self.distances[chosen] / scale[self.rows[chosen]]
        return scale, self._border(scaled.reshape(-1, self._cells).astype(np.float64))

    def apart(
        self,
        distances: npt.NDArray[np.float32],  # (m k,)
        rows: npt.NDArray[np.int64],  # (m k,)
        fold: npt.NDArray[np.int64],  # (m k,)
    ) -> npt.NDArray[np.float32]:
        """Return distances (m, k), each scaled by what the folds but its own teach."""
        scaled = np.empty_like(distances)
        for part in range(FOLDS):
            chosen = fold == part
            if chosen.any():
                by_row, by_cell = self.learned(without=part)
                flat = distances[chosen] / by_row[rows[chosen]]
                scaled[chosen] = (flat.reshape(-1, self._cells) / by_cell).ravel()
        return scaled.reshape(-1, self._cells)

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
        """Return the scales (k,) of the cells, from distances (n, k)."""
        border = np.ones(scaled.shape[1])
        *rows, inner = self._borders
        usual = _large(scaled[:, inner]) if len(inner) else 0.0
        if usual > 0:
            for cells in rows:
                border[cells] = np.maximum(border[cells], _large(scaled[:, cells]) / usual)
        return np.asarray(np.minimum(border, LARGEST_SCALE), np.float32)


def _large(distances: npt.NDArray[np.float64]) -> float:
    """Return what a large distance is in the parts (n, c) of n images, but for a tenth of them."""
    kept = math.ceil(_KEPT * len(distances))
    usual = distances[np.argsort(distances.mean(axis=1), kind="stable")[:kept]]
    return float(usual.mean() + _DEVIATIONS * usual.std())
