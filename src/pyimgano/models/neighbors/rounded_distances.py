"""Squared distances from one matrix product, with bounds of how far off they are.

The product is computed in bfloat16 where the machine is quick at it. Each vector carries its
squared length in further numbers of that kind, so that the product is the squared distance of the
rounded vectors itself:

    [-2 a, |a|^2, 1] . [b, 1, |b|^2] = |a - b|^2

Rounding moves a vector by a known length, so by the triangle inequality the true distance is
within e = |a - round(a)| + |b - round(b)| of the distance of the rounded vectors. That is enough
to rule out all but a few rows, which are then compared in float32. Where the product is computed
in float32, no vector moves, and only the product's own rounding has to be bounded. Wide vectors
are projected to fewer dimensions before, where that pays, which moves them a little too
(`projection`).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...precision import full_precision
from .projection import Projection

# The product is rounded to its dtype once more, which changes it by this share of its value.
_RELATIVE = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}
# Its terms are summed in float32, which changes it by this share of the squared lengths.
_ABSOLUTE = {torch.bfloat16: 2.0**-15, torch.float32: 2.0**-17}
# How many numbers carry a squared length.
_PARTS = {torch.bfloat16: 3, torch.float32: 1}
# Sums of squared differences in float32, which decide, may be off by this share.
_DECIDED = 2.0**-16
# Products are quick where the number of columns is a multiple of this.
_FILL = {torch.bfloat16: 32, torch.float32: 8}


@cache
def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device has units for products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, c, bool)() for c in checks)


class RoundedVectors(NamedTuple):
    """Vectors as one side of the product.

    Attributes
    ----------
    factors
        (n, K) bfloat16 or float32, the vectors with their squared lengths.
    moved
        (n,) float32, how far rounding moved each vector at most.
    lengths
        (n,) float32, squared lengths of the rounded vectors.
    """

    factors: Tensor
    moved: Tensor
    lengths: Tensor


def round_vectors(
    vectors: Tensor, off: Tensor | None, dtype: torch.dtype, *, left: bool
) -> RoundedVectors:
    """Return vectors (n, D) float32 as the left or the right side of the product.

    `off` (n,) is how far they are off already, at most; None stands for 0.
    """
    rounded = vectors.to(dtype)  # (n, D)
    exact = rounded.float()
    moved = (vectors - exact).square_().sum(dim=1).sqrt_() * (1 + 1e-5)  # (n,), 0 in float32
    moved = moved if off is None else moved + off
    lengths = exact.square().sum(dim=1)
    (count, width), parts = vectors.shape, _PARTS[dtype]
    columns = -(-(width + 2 * parts) // _FILL[dtype]) * _FILL[dtype]
    factors = rounded.new_zeros((count, columns))  # (n, K)
    factors[:, :width] = -2 * rounded if left else rounded
    own, other = (width, width + parts) if left else (width + parts, width)
    rest = lengths
    for column in range(own, own + parts):
        factors[:, column] = rest
        rest = rest - factors[:, column].float()
    factors[:, other : other + parts] = 1
    return RoundedVectors(factors, moved, lengths)


class RoundedDistances:
    """Squared distances of some queries to all rows, as the product gives them.

    Attributes
    ----------
    entries
        (q, M') bfloat16 or float32. Infinite entries belong to rows that do not count.
    """

    def __init__(self, entries: Tensor, moved: Tensor, lengths: Tensor) -> None:
        self.entries = entries
        self._moved = moved  # (q,) how far the distance of the vectors is off at most
        self._relative = _RELATIVE[entries.dtype]
        self._absolute = _ABSOLUTE[entries.dtype] * lengths  # (q,)

    def lower_bounds(self, least: Tensor) -> Tensor:
        """Return (q,) float32: no row is nearer, in squared distance, if `least` (q,) is the least
        entry of each query."""
        least = least.float().clamp(min=0.0)
        low = (least * (1 - self._relative) - self._absolute).clamp_(min=0.0).sqrt_()
        floor = (low - self._moved).clamp_(min=0.0).square_()
        # of infinity, where nothing counts, nothing is subtracted that would make it NaN
        return torch.where(least.isfinite(), floor, torch.inf)

    def limits(self, bound: Tensor) -> Tensor:
        """Return (q,) of the entries' dtype, finite: rows within the squared distance `bound` (q,)
        have no larger entries."""
        high = (bound * (1 + _DECIDED)).sqrt() + self._moved
        limit = (high.square_() + self._absolute) * (1 + self._relative)
        # rounding to the dtype may go down by half of this
        rounded = (limit * (1 + self._relative)).to(self.entries.dtype)
        return rounded.clamp_(max=torch.finfo(rounded.dtype).max)  # infinite ones do not count


class RoundedRows:
    """Rows (M, D) float32, made ready to be multiplied with queries.

    Parameters
    ----------
    rows
        (M, D) float32.
    fill
        The rows are filled up to a multiple of this with rows that are infinitely far away.
    project
        Whether it is tried to compare in fewer dimensions.
    """

    def __init__(self, rows: Tensor, *, fill: int, project: bool = False) -> None:
        self._dtype = torch.bfloat16 if has_bfloat16_units(rows.device) else torch.float32
        # Products of vectors around their mean cancel as little as possible.
        self._centre = rows.mean(dim=0)  # (D,)
        self._projection = None
        if project:
            with full_precision(rows.device):
                self._projection = Projection.of(rows - self._centre)
        vectors, off = self._projected(rows)
        right = round_vectors(vectors, off, self._dtype, left=False)
        count, width = vectors.shape
        self._factors = right.factors.new_zeros((-(-count // fill) * fill, right.factors.shape[1]))
        self._factors[:count] = right.factors  # (M', K)
        self._factors[count:, width + _PARTS[self._dtype]] = torch.inf
        self._farthest_moved, self._longest = right.moved.amax(), right.lengths.amax()

    def __len__(self) -> int:
        """Return M', the number of rows with those that fill up."""
        return len(self._factors)

    def distances(self, queries: Tensor) -> RoundedDistances:
        """Return the rounded squared distances of queries (q, D) to all rows."""
        left = round_vectors(*self._projected(queries), self._dtype, left=True)
        with full_precision(queries.device):
            entries = left.factors @ self._factors.T  # (q, M')
        moved, lengths = left.moved + self._farthest_moved, left.lengths + self._longest
        return RoundedDistances(entries, moved, lengths)

    def _projected(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return vectors (n, D) as they are multiplied, (n, k), and how far off they are, (n,)."""
        centred = vectors - self._centre
        if self._projection is None:
            return centred, None
        with full_precision(vectors.device):
            return self._projection(centred)
