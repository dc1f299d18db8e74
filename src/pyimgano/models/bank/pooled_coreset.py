"""A coreset of a bounded sample of the patches, whitened by what the sample says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .streamed_coreset import StreamedCoreset
from .whitening import Group, Whitening


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
    groups
        Of features that are whitened together, as in `Whitening.of`.
    facts
        The keywords of `StreamedCoreset`; `ratio` is of all patches.

    Attributes
    ----------
    whitening
        Learned from the pool by `finish`, which gives whitened features.
    """

    whitening: Whitening

    def __init__(self, *, pool_size: int, groups: Sequence[Group] | None = None, **facts: Any):
        super().__init__(**facts)
        self._groups = groups
        self.single = False
        size = min(pool_size, self._expected)
        ends = np.arange(size + 1) * self._expected // size
        self._drawn = self._rng.integers(ends[:-1], ends[1:])  # (P,) ascending

    def add(self, patches: Tensor) -> None:
        if self._block is None:
            self._block = self._make_block(patches, len(self._drawn))
        first, last = np.searchsorted(self._drawn, [self._before, self._before + len(patches)])
        rows = torch.from_numpy(self._drawn[first:last] - self._before).to(patches.device)
        self._block[self._filled : self._filled + len(rows)] = patches[rows]
        self._filled += len(rows)
        self._before += len(patches)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Whitened features (M, D) float32 of the coreset and their numbers (M,) int64."""
        assert self._block is not None
        pool = self._block[: self._filled]
        self._block = None
        self.whitening = Whitening.of(pool, self._groups)
        self.whitening.blocks(pool)
        count = max(1, round(self._before * self._ratio))
        count = min(self._max_rows, count, len(pool))
        picked = self._select(pool, count, int(self._rng.integers(len(pool))))
        return pool[picked], torch.from_numpy(self._drawn).to(picked.device)[picked]
