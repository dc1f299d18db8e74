"""Squared distances from one matrix product, with bounds of what rounding did.

Vectors are rounded to bfloat16 where the machine is quick at it, and each carries its squared
length in further numbers of that kind, so that the product is the squared distance of the rounded
vectors itself:

    [-2 a, |a|^2, 1] . [b, 1, |b|^2] = |a - b|^2

Rounding moves a vector by a known length, so by the triangle inequality the true distance is
within e = |a - round(a)| + |b - round(b)| of the distance of the rounded ones. That is enough
to rule out all but a few candidates, which are then compared in float32. In float32 nothing is
moved, and the product's own rounding is what is bounded.
"""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

# The product is rounded to its dtype once more, relative to its value,
_RELATIVE = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}
# and its terms are summed in float32: relative to the squared lengths.
_ABSOLUTE = {torch.bfloat16: 2.0**-15, torch.float32: 2.0**-17}
# Numbers that carry a squared length.
_PARTS = {torch.bfloat16: 3, torch.float32: 1}
# Sums of squared differences in float32, which decide, may be off by as much.
_DECIDED = 2.0**-16
# Columns are filled up to a multiple of this, which products are quick at.
_FILL = {torch.bfloat16: 32, torch.float32: 8}


@cache
def is_quick(device: torch.device) -> bool:
    """Whether the device has units for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, c, bool)() for c in checks)


class Rounded:
    """Vectors (n, D) float32 as one side of the product.

    Parameters
    ----------
    vectors
        (n, D) float32.
    left
        Which side.
    dtype
        bfloat16 or float32.
    moved
        (n,) float32: by how much the vectors are off already, at most; None for not at all.

    Attributes
    ----------
    factors
        (n, K) of that dtype.
    moved
        (n,) float32: how far rounding moved each vector, at most.
    lengths
        (n,) float32: squared lengths.
    """

    def __init__(
        self, vectors: Tensor, *, left: bool, dtype: torch.dtype, moved: Tensor | None = None
    ) -> None:
        rounded = vectors.to(dtype)
        exact = rounded.float()
        self.moved = vectors.new_zeros(len(vectors)) if moved is None else moved
        if dtype != torch.float32:
            self.moved = self.moved + (vectors - exact).square_().sum(dim=1).sqrt_() * (1 + 1e-5)
        self.lengths = exact.square().sum(dim=1)
        count, width = vectors.shape
        parts = _PARTS[dtype]
        columns = -(-(width + 2 * parts) // _FILL[dtype]) * _FILL[dtype]
        self.factors = rounded.new_zeros((count, columns))
        self.factors[:, :width] = -2 * rounded if left else rounded
        own, other = (width, width + parts) if left else (width + parts, width)
        rest = self.lengths
        for part in range(parts):
            self.factors[:, own + part] = rest
            rest = rest - self.factors[:, own + part].float()
        self.factors[:, other : other + parts] = 1

    def __len__(self) -> int:
        return len(self.factors)

    def part(self, rows: slice) -> Self:
        """Some of the vectors."""
        part = copy(self)
        part.factors, part.moved = self.factors[rows], self.moved[rows]
        part.lengths = self.lengths[rows]
        return part


class RoundedRows(Rounded):
    """The right side, filled up with rows that are infinitely far from everything.

    Parameters
    ----------
    vectors, dtype, moved
        As `Rounded`.
    fill
        What the number of rows of `factors` is a multiple of.
    """

    def __init__(
        self, vectors: Tensor, *, dtype: torch.dtype, fill: int, moved: Tensor | None = None
    ) -> None:
        super().__init__(vectors, left=False, dtype=dtype, moved=moved)
        self._relative, self._absolute = _RELATIVE[dtype], _ABSOLUTE[dtype]
        self._farthest_moved, self._longest = self.moved.amax(), self.lengths.amax()
        count, width = vectors.shape
        factors = self.factors.new_zeros((-(-count // fill) * fill, self.factors.shape[1]))
        factors[:count] = self.factors
        factors[count:, width + _PARTS[dtype]] = torch.inf
        self.factors = factors

    def floor(self, queries: Rounded, least: Tensor) -> Tensor:
        """(q,) float32: no row's true squared distance is less, if no entry is below `least` (q,).

        An entry is the product of a query and a row; infinite ones are of rows that do not count.
        """
        least = least.float().clamp(min=0.0)
        low = (least * (1 - self._relative) - self._sums(queries)).clamp_(min=0.0).sqrt_()
        floor = (low - self._error(queries)).clamp_(min=0.0).square_()
        # of infinity, where nothing counts, nothing is subtracted that would make it NaN
        return torch.where(least.isfinite(), floor, torch.inf)

    def limit(self, queries: Rounded, bound: Tensor) -> Tensor:
        """(q,) finite, of the factors' dtype: entries of rows within the squared distance `bound`
        (q,) are not more."""
        high = (bound * (1 + _DECIDED)).sqrt() + self._error(queries)
        limit = (high.square_() + self._sums(queries)) * (1 + self._relative)
        # rounding to the dtype may go down by half of this
        rounded = (limit * (1 + self._relative)).to(self.factors.dtype)
        return rounded.clamp_(max=torch.finfo(rounded.dtype).max)  # infinite ones do not count

    def _error(self, queries: Rounded) -> Tensor:
        return queries.moved + self._farthest_moved

    def _sums(self, queries: Rounded) -> Tensor:
        return self._absolute * (queries.lengths + self._longest)
