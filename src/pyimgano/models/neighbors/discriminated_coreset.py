"""A coreset without the patches that look like noise, which knows how noisy the others are.

Jiang et al., "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS 2022,
sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .coreset import random_projection
from .local_outlier_factor import local_outlier_factors
from .streamed_coreset import StreamedCoreset


class DiscriminatedCoreset(StreamedCoreset):
    """Gather patches of whole images, and leave the noisiest out of each selection.

    A patch's noise is its local outlier factor among the patches at the same position of the
    other images of its block. Blocks hold about equally many whole images.

    Parameters
    ----------
    cells
        How many patches an image has.
    neighbours
        k of the local outlier factor.
    threshold
        tau, in [0, 1), the share of a block's patches that are left out, those with the highest
        noise.
    facts
        The keywords of `StreamedCoreset`.

    Attributes
    ----------
    noise
        (N,) float32, the noise of all patches; set by `finish`.
    discarded
        (N,) bool, whether a patch was left out; set by `finish`.
    weights
        (M,) float32, the noise of the patches of the coreset; set by `finish`.
    """

    noise: Tensor
    discarded: Tensor
    weights: Tensor

    def __init__(self, *, cells: int, neighbours: int, threshold: float, **facts: Any) -> None:
        super().__init__(**facts)
        self._cells = cells
        self._neighbours = neighbours
        self._threshold = threshold
        self._noise: list[Tensor] = []
        self._discarded: list[Tensor] = []

    def _block_rows(self, width: int) -> int:
        images = self._expected // self._cells
        at_most = max(1, super()._block_rows(width) // self._cells)  # images in a block
        blocks = -(-images // at_most)
        return -(-images // blocks) * self._cells

    def _candidates(self, block: Tensor) -> Tensor:
        reduced = random_projection(block, self._projection_dim, self._seed)  # (n cells, d)
        positions = reduced.view(-1, self._cells, reduced.shape[1]).transpose(0, 1)  # (cells, n, d)
        noise = local_outlier_factors(positions, self._neighbours).T.flatten()  # (n cells,)
        # the reference program's quantile; torch's own takes no more than 2^24 numbers
        place = (1.0 - self._threshold) * (len(noise) - 1)
        ascending = noise.sort().values.double()
        low = int(place)
        bar = ascending[low]
        if low + 1 < len(noise):
            bar = bar + (place - low) * (ascending[low + 1] - bar)
        discarded = noise > bar
        self._noise.append(noise)
        self._discarded.append(discarded)
        return (~discarded).nonzero().squeeze(1)

    def finish(self) -> tuple[Tensor, Tensor]:
        features, indices = super().finish()
        self.noise, self.discarded = torch.cat(self._noise), torch.cat(self._discarded)
        self.weights = self.noise[indices]
        return features, indices
