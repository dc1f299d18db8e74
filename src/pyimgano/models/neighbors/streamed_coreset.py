"""A coreset of more patches than fit in memory, selected block by block, merged and reduced.

Patches come image by image. They are gathered in a block; when it is full, greedy selection
picks the block's share, the picks join the bank, and a bank that has outgrown its bound is
brought back to it by greedy selection among its own rows. What fits in one block, as all
categories of the published datasets do, is selected at once: then the result is that of the
textbook loop over all patches.

With several blocks it is not, but it stays a cover: a patch lies within r of a pick of its
block, and that pick within R of a row of the bank, where r and R are the radii of the two
selections, so within r + R of the bank (the merge-and-reduce scheme of Har-Peled & Mazumdar,
"On coresets for k-means and k-median clustering", STOC 2004, with k-centre covers). Each
reduction adds its radius once more. Memory is that of a block and the bank, whatever the
number of images; time grows in proportion to it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...memory import is_out_of_memory, release_memory
from .coreset import Progress, projected_coreset
from .out_of_memory import patches_do_not_fit, surely_does_not_fit

#: A block has at most this many rows, and this many bytes of features.
BLOCK_ROWS = 2**19
BLOCK_BYTES = 2**31


class StreamedCoreset:
    """Gather patch features and keep a coreset of them.

    Parameters
    ----------
    expected
        How many patches there will be, at most.
    ratio
        Share of them to keep, in (0, 1].
    max_rows
        The most rows that the coreset may have.
    projection_dim
        Width of the random projection that selections are made in; None makes them in the
        features themselves.
    seed
        Seed of the projection and of each block's first pick.
    progress
        Called after each selection with (picked, to pick).

    Raises
    ------
    NotEnoughMemoryError
        `add` and `finish` raise it where a block, or what selecting from it takes, does not fit.
        Blocks are never made smaller without being asked for, since what is selected depends on
        them.

    Attributes
    ----------
    single
        Whether all patches fit in one block, known after the first `add`.
    selections
        How many selections were made; 1 means that the coreset is the textbook's.
    whole
        All patches (N, D), if they fit in one block; set by `finish`.
    """

    def __init__(
        self,
        *,
        expected: int,
        ratio: float,
        max_rows: int,
        projection_dim: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._expected = expected
        self._ratio = ratio
        self._max_rows = max_rows
        self._projection_dim = projection_dim
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._progress = progress
        self._block: Tensor | None = None  # (B, D), filled from the start
        self._filled = 0
        self._before = 0  # patches of earlier blocks
        self._bank: Tensor | None = None  # (M, D) picks of earlier blocks
        self._indices: Tensor | None = None  # (M,) their numbers among all patches
        self.single = True
        self.selections = 0
        self.whole: Tensor | None = None

    def add(self, patches: Tensor) -> None:
        """Add patches (n, D) float32, the next ones in their numbering."""
        if self._block is None:
            rows = self._block_rows(patches.shape[1])
            self.single = self._expected <= rows
            self._block = new_block(patches, min(rows, self._expected))
        while len(patches):
            free = len(self._block) - self._filled
            some = patches[:free]
            self._block[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            patches = patches[len(some) :]
            if len(patches):  # more to come, and the block is full
                self._reduce_block()

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return features (M, D) float32 of the coreset and their numbers (M,) int64."""
        if self._before == 0 and self._block is not None:
            self.whole = self._block[: self._filled]
        if self._filled:
            self._reduce_block()
        self._block = None
        assert self._bank is not None and self._indices is not None
        count = min(self._max_rows, max(1, round(self._before * self._ratio)))
        if len(self._bank) > count:
            self._reduce_bank(count)
        return self._bank, self._indices

    def _block_rows(self, width: int) -> int:
        """Return how many patches of `width` features a block holds."""
        return min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * width)))

    def _candidates(self, block: Tensor) -> Tensor | None:
        """Return (C,) int64, the rows of the block that may be picked, or None for all."""
        return None

    def _reduce_block(self) -> None:
        assert self._block is not None
        block = self._block[: self._filled]
        candidates = self._candidates(block)
        points = block if candidates is None else block[candidates]
        count = min(self._max_rows, max(1, round(len(block) * self._ratio)), len(points))
        picked = self._select(points, count, int(self._rng.integers(len(points))))
        if candidates is not None:
            picked = candidates[picked]
        features, indices = block[picked], picked + self._before
        if self._bank is not None and self._indices is not None:
            features = torch.cat([self._bank, features])
            indices = torch.cat([self._indices, indices])
        self._bank, self._indices = features, indices
        self._before += self._filled
        self._filled = 0
        if len(features) > self._max_rows:
            self._reduce_bank(self._max_rows)

    def _reduce_bank(self, count: int) -> None:
        assert self._bank is not None and self._indices is not None
        kept = self._select(self._bank, count, 0)
        self._bank, self._indices = self._bank[kept], self._indices[kept]

    def _select(self, features: Tensor, count: int, start: int) -> Tensor:
        self.selections += 1
        return projected_coreset(
            features,
            count,
            start=start,
            projection_dim=self._projection_dim,
            seed=self._seed,
            progress=self._progress,
        )


def new_block(patches: Tensor, rows: int) -> Tensor:
    """Return room (rows, D) for patches like `patches` (n, D).

    Raises
    ------
    NotEnoughMemoryError
        It does not fit.
    """
    dimension, device = patches.shape[1], patches.device
    if not surely_does_not_fit(4 * rows * dimension, device):
        try:
            return patches.new_empty((rows, dimension))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    release_memory()
    raise patches_do_not_fit(rows, dimension, device)
