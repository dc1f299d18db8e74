"""A coreset of a bounded sample of the patches, whitened by what the sample says of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .nuisance import STRENGTHS, Nuisance
from .streamed_coreset import StreamedCoreset
from .whitening import Moments, Whitening

#: Parts of the training patches that are each scored by what the others say.
FOLDS = 10


class PooledCoreset(StreamedCoreset):
    """Gathers a pool of patches spread over all of them, and selects from it when it is whole.

    Of a hundred thousand patches next to each other hardly one in two says anything new: the
    coreset of a pool covers as well as that of all patches, for a fraction of the time and with
    memory that does not grow with the number of images. The pool holds one patch of each of
    `pool_size` equal stretches of all patches, at a random place in it.

    Parameters
    ----------
    pool_size
        Patches in the pool, at most.
    cells
        Patches an image.
    facts
        The keywords of `StreamedCoreset`; `ratio` is of all patches.

    Attributes
    ----------
    whitening
        Learned from the pool by `finish`, which gives whitened features.
    plain
        (M, D) float32: the features of the coreset as they came.
    groups
        (n,) int64 for each image the number of its group of copies, counted from 0, to be set
        before `finish` where there are copies.
    strength
        What the covariance of movements under disturbances counted in the whitening; 0 without any.
    """

    whitening: Whitening
    plain: Tensor
    strength: float

    def __init__(self, *, pool_size: int, cells: int, **facts: Any) -> None:
        super().__init__(**facts)
        self._cells = cells
        self._nuisance = Nuisance(FOLDS)
        self._moments: list[Moments] | None = None
        self._known_enough: dict[float, bool] = {}
        self.single = False
        self.groups: Tensor | None = None
        size = min(pool_size, self._expected)
        ends = np.arange(size + 1) * self._expected // size
        self._drawn = self._rng.integers(ends[:-1], ends[1:])  # (P,) ascending

    def add(self, patches: Tensor) -> None:
        if self._block is None:
            self._block = self._make_block(patches, len(self._drawn))
            self._first = patches[:1].clone()
        first, last = np.searchsorted(self._drawn, [self._before, self._before + len(patches)])
        rows = torch.from_numpy(self._drawn[first:last] - self._before).to(patches.device)
        self._block[self._filled : self._filled + len(rows)] = patches[rows]
        self._filled += len(rows)
        self._before += len(patches)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Whitened features (M, D) float32 of the coreset and their numbers (M,) int64."""
        pool = self._whole_pool()
        self.strength = self._choose_strength(pool)
        self._block = None
        self.whitening = self._whitening_of(range(FOLDS), self.strength)
        white = pool.clone()
        self.whitening.blocks(white)
        count = max(1, round(self._before * self._ratio))
        count = min(self._max_rows, count, len(pool))
        picked = self._select(white, count, int(self._rng.integers(len(pool))))
        self.plain = pool[picked]
        return white[picked], torch.from_numpy(self._drawn).to(picked.device)[picked]

    def everyday_is_enough(self) -> bool:
        """Whether the least strength discounts the everyday disturbances well.

        To be asked after all patches and copies under these were added. If not, copies under other
        disturbances are wanted too. True without any copies.
        """
        return not self._nuisance or self._enough(STRENGTHS[0], self._whole_pool())

    def _whole_pool(self) -> Tensor:
        """(P, D): the pool, after all patches were added; their moments are then known."""
        assert self._block is not None
        if self._moments is None:
            self._group_each()
            if self._filled == 0:  # far fewer came than were expected, and none was drawn
                self._block[:1], self._drawn[0], self._filled = self._first, 0, 1
            pool = self._block[: self._filled]
            self._like = pool[:0]
            fold = self.fold_of(torch.from_numpy(self._drawn[: self._filled])).to(pool.device)
            origin = pool.double().mean(dim=0).cpu().numpy()
            self._moments = [Moments.of(pool[fold == k], origin) for k in range(FOLDS)]
        return self._block[: self._filled]

    def _group_each(self) -> None:
        """Take every image for a group of its own, unless groups were set."""
        if self.groups is None:
            self.groups = torch.arange(max(1, self._before // self._cells))

    def fold_of(self, patches: Tensor) -> Tensor:
        """Which of `FOLDS` parts the patches with these numbers are in: images, or bands of one.

        All patches of an image and of its copies are in one part, unless there is no other. Parts
        are stretches, so that images that are evenly spread over all are over the parts too, and
        pictures taken one after another do not vouch for each other.
        """
        assert self.groups is not None
        count = int(self.groups.max()) + 1
        if count == 1:
            return patches % self._cells * FOLDS // self._cells
        return self.groups.to(patches.device)[patches // self._cells] * FOLDS // count

    def whitening_without(self, fold: int) -> Whitening:
        """What is learned, after `finish`, from the pool's patches of other folds."""
        return self._whitening_of([k for k in range(FOLDS) if k != fold], self.strength)

    def disturbed(
        self,
        clean: Tensor,
        disturbed: Tensor,
        images: Sequence[int],
        kinds: Sequence[str],
        everyday: Sequence[bool],
    ) -> None:
        """Learn how far patches move when their images are disturbed, after all were added.

        `clean` and `disturbed` (B, k, D) are all patches of the images with the numbers `images`,
        and of copies of them under the disturbances `kinds`, of which some are `everyday`.
        """
        self._group_each()
        cells = torch.arange(self._cells)
        numbers = torch.tensor(images)[:, None] * self._cells + cells
        fold = self.fold_of(numbers)
        assert self.groups is not None
        groups = self.groups[torch.tensor(images)].tolist()  # copies are left out together
        self._nuisance.add(clean, disturbed, fold, groups, kinds, everyday)

    def _choose_strength(self, pool: Tensor) -> float:
        """What the nuisance counts: the least of `STRENGTHS` that is enough, or the largest.

        `pool` (P, D) are the patches `_drawn`.
        """
        if not self._nuisance:
            return 0.0
        return next((one for one in STRENGTHS[:-1] if self._enough(one, pool)), STRENGTHS[-1])

    def _enough(self, strength: float, pool: Tensor) -> bool:
        # further copies change nothing at the first strength
        if strength not in self._known_enough:
            assert self.groups is not None
            images = self.groups[torch.from_numpy(self._drawn[: len(pool)]) // self._cells]
            whitening = self._whitening_of(range(FOLDS), strength)
            self._known_enough[strength] = self._nuisance.enough(whitening, pool, images)
        return self._known_enough[strength]

    def _whitening_of(self, folds: Sequence[int], strength: float) -> Whitening:
        """What the patches of these folds say, and how those of them moved that were disturbed."""
        nuisance = self._nuisance.covariance(folds, strength) if strength else None
        assert self._moments is not None
        moments = reduce(add, (self._moments[k] for k in folds))
        return Whitening.of(moments, self._like, nuisance=nuisance)
