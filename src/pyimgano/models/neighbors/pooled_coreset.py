"""A coreset of a bounded sample of the patches, whitened by the moments of the sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from .coreset import Progress, projected_coreset
from .nuisance_covariance import STRENGTHS, NuisanceCovariance
from .streamed_coreset import new_block
from .whitening import Moments, Whitening

#: The training patches are divided into this many parts, each scored with what the others taught.
FOLDS = 10


class PooledCoreset:
    """Gather a pool of patches spread over all of them, and select a coreset from it.

    Of a hundred thousand patches next to each other hardly one in two says anything new. The
    coreset of a pool covers as well as that of all patches, for a fraction of the time and with
    memory that does not grow with the number of images. All patches are divided into `pool_size`
    equal stretches, and the pool holds one patch of each, drawn at random.

    Parameters
    ----------
    pool_size
        The most patches that the pool may have.
    cells
        How many patches an image has.
    expected, ratio, max_rows, projection_dim, seed, progress
        As in `StreamedCoreset`. `ratio` is a share of all patches, not of the pool; `seed` is
        that of the draws too.

    Attributes
    ----------
    whitening
        Learned from the pool by `finish`, which returns whitened features.
    plain
        (M, D) float32, the features of the coreset as they came; set by `finish`.
    groups
        (n,) int64, for each image the number of its group of copies, counted from 0. It has to be
        set before `finish` where there are copies.
    strength
        The factor of the nuisance covariance in the whitening, 0 without any; set by `finish`.
    """

    whitening: Whitening
    plain: Tensor
    strength: float

    def __init__(
        self,
        *,
        pool_size: int,
        cells: int,
        expected: int,
        ratio: float,
        max_rows: int,
        projection_dim: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._cells = cells
        self._ratio = ratio
        self._max_rows = max_rows
        self._projection_dim = projection_dim
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._progress = progress
        self._nuisance = NuisanceCovariance(FOLDS)
        self._moments: list[Moments] | None = None
        self._known_enough: dict[float, bool] = {}
        self.groups: Tensor | None = None
        size = min(pool_size, expected)
        ends = np.arange(size + 1) * expected // size
        self._drawn = self._rng.integers(ends[:-1], ends[1:])  # (P,) ascending
        self._pool: Tensor | None = None  # (P, D), filled from the start
        self._filled = 0
        self._seen = 0  # patches that were added

    def add(self, patches: Tensor) -> None:
        """Add patches (n, D) float32, the next ones in their numbering.

        Raises
        ------
        NotEnoughMemoryError
            The pool does not fit.
        """
        if self._pool is None:
            self._pool = new_block(patches, len(self._drawn))
            self._first = patches[:1].clone()
        first, last = np.searchsorted(self._drawn, [self._seen, self._seen + len(patches)])
        rows = torch.from_numpy(self._drawn[first:last] - self._seen).to(patches.device)
        self._pool[self._filled : self._filled + len(rows)] = patches[rows]
        self._filled += len(rows)
        self._seen += len(patches)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return whitened features (M, D) float32 of the coreset and their numbers (M,) int64.

        Raises
        ------
        NotEnoughMemoryError
            What the selection takes does not fit.
        """
        pool = self._whole_pool()  # (P, D)
        self.strength = self._choose_strength(pool)
        self._pool = None
        self.whitening = self._whitening_of(range(FOLDS), self.strength)
        white = pool.clone()
        self.whitening.whiten_(white)
        picked = projected_coreset(  # (M,)
            white,
            min(self._max_rows, max(1, round(self._seen * self._ratio)), len(pool)),
            start=int(self._rng.integers(len(pool))),
            projection_dim=self._projection_dim,
            seed=self._seed,
            progress=self._progress,
        )
        self.plain = pool[picked]
        return white[picked], torch.from_numpy(self._drawn).to(picked.device)[picked]

    def everyday_is_enough(self) -> bool:
        """Return whether the least strength discounts the everyday disturbances well.

        This is asked after all patches and all copies under these disturbances were added. If
        not, copies under other disturbances are wanted too. It is true without any copies.
        """
        return not self._nuisance or self._enough(STRENGTHS[0], self._whole_pool())

    def _whole_pool(self) -> Tensor:
        """Return the pool (P, D) after all patches were added, and compute its moments."""
        assert self._pool is not None
        if self._moments is None:
            self._group_each()
            if self._filled == 0:  # far fewer came than were expected, and none was drawn
                self._pool[:1], self._drawn[0], self._filled = self._first, 0, 1
            pool = self._pool[: self._filled]
            self._like = pool[:0]
            drawn = torch.from_numpy(self._drawn[: self._filled])
            fold = self.fold_of(drawn).to(pool.device)  # (P,)
            origin = pool.double().mean(dim=0).cpu().numpy()
            self._moments = [Moments.of(pool[fold == k], origin) for k in range(FOLDS)]
        return self._pool[: self._filled]

    def _group_each(self) -> None:
        """Make every image a group of its own, unless groups were set."""
        if self.groups is None:
            self.groups = torch.arange(max(1, self._seen // self._cells))

    def fold_of(self, patches: Tensor) -> Tensor:
        """Return which of `FOLDS` parts the patches with these numbers are in.

        All patches of an image and of its copies are in one part; where there is one image alone,
        parts are bands of it. Parts are stretches, so that images that are evenly spread over all
        are evenly spread over the parts too, and pictures taken one after another do not vouch
        for each other.
        """
        assert self.groups is not None
        count = int(self.groups.max()) + 1
        if count == 1:
            return patches % self._cells * FOLDS // self._cells
        return self.groups.to(patches.device)[patches // self._cells] * FOLDS // count

    def whitening_without(self, fold: int) -> Whitening:
        """Return what is learned, after `finish`, from the pool's patches of the other folds."""
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

        `clean` (B, k, D) are all patches of the images with the numbers `images`, and `disturbed`
        (B, k, D) those of copies of them under the disturbances `kinds`, of which some are
        `everyday`.
        """
        self._group_each()
        cells = torch.arange(self._cells)
        numbers = torch.tensor(images)[:, None] * self._cells + cells  # (B, k)
        fold = self.fold_of(numbers)
        assert self.groups is not None
        groups = self.groups[torch.tensor(images)].tolist()  # copies are left out together
        self._nuisance.add(clean, disturbed, fold, groups, kinds, everyday)

    def _choose_strength(self, pool: Tensor) -> float:
        """Return the least of `STRENGTHS` that is enough for the pool (P, D), or the largest."""
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
        """Return what the patches of these folds, and how they move when disturbed, teach."""
        nuisance = self._nuisance.covariance(folds, strength) if strength else None
        assert self._moments is not None
        moments = reduce(add, (self._moments[k] for k in folds))
        return Whitening.of(moments, self._like, nuisance=nuisance)
