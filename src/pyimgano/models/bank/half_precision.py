"""Squared distances from one bfloat16 matrix product, with bounds of what rounding did.

Vectors are rounded to bfloat16, and each carries its squared length in three further numbers
of that kind, so that the product is the squared distance of the rounded vectors itself:

    [-2 a, |a|^2, 1] . [b, 1, |b|^2] = |a - b|^2

Rounding moves a vector by a known length, so by the triangle inequality the true distance is
within e = |a - round(a)| + |b - round(b)| of the distance of the rounded ones. That is enough
to rule out all but a few candidates, which are then compared in float32.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# The product is rounded to bfloat16 once more, relative to its value,
_RELATIVE = 2.0**-8
# and its terms are summed in float32: relative to the squared lengths.
_ABSOLUTE = 2.0**-15
# Columns are filled up to a multiple of this, which products are quick at.
_FILL = 32


@cache
def is_quick(device: torch.device) -> bool:
    """Whether the device has units for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, c, bool)() for c in checks)


class Rounded:
    """Vectors (n, D) float32 as one side of the product.

    Attributes
    ----------
    factors
        (n, K) bfloat16.
    moved
        (n,) float32: how far rounding moved each vector, at most.
    lengths
        (n,) float32: squared lengths.
    """

    def __init__(self, vectors: Tensor, *, left: bool) -> None:
        rounded = vectors.bfloat16()
        exact = rounded.float()
        self.moved = (vectors - exact).square_().sum(dim=1).sqrt_() * (1 + 1e-5)
        self.lengths = exact.square_().sum(dim=1)
        high = self.lengths.bfloat16()
        rest = self.lengths - high.float()
        middle = rest.bfloat16()
        low = (rest - middle.float()).bfloat16()
        count, width = vectors.shape
        columns = -(-(width + 6) // _FILL) * _FILL
        self.factors = rounded.new_zeros((count, columns))
        self.factors[:, :width] = -2 * rounded if left else rounded
        own, other = (width, width + 3) if left else (width + 3, width)
        self.factors[:, own] = high
        self.factors[:, own + 1] = middle
        self.factors[:, own + 2] = low
        self.factors[:, other : other + 3] = 1

    def part(self, rows: slice) -> Rounded:
        """Some of the vectors."""
        part = object.__new__(Rounded)
        part.factors, part.moved = self.factors[rows], self.moved[rows]
        part.lengths = self.lengths[rows]
        return part


def bounds(queries: Rounded, candidates: Rounded, least: Tensor) -> tuple[Tensor, Tensor]:
    """What the least approximate squared distance of each query (q,) says of the true ones.

    Entries may have been set to infinity before: those candidates do not count.

    Returns
    -------
    floor
        (q,) float32: no candidate's true squared distance is less.
    limit
        (q,) bfloat16: the nearest candidate's entry is not more.
    """
    least = least.float().clamp(min=0.0)
    error = queries.moved + candidates.moved.amax()
    sums = _ABSOLUTE * (queries.lengths + candidates.lengths.amax())
    low = (least * (1 - _RELATIVE) - sums).clamp_(min=0.0).sqrt_()
    high = (least * (1 + _RELATIVE) + sums).sqrt_()
    floor = (low - error).clamp_(min=0.0).square_()
    limit = ((high + 2 * error).square_() + sums) * (1 + _RELATIVE)
    # rounding to bfloat16 may go down by as much as a relative 2^-9
    return floor, (limit * (1 + _RELATIVE)).bfloat16()
