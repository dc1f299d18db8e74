"""Vectors in fewer dimensions, whose distances are never larger than the true ones.

An orthonormal projection shortens distances. With the length of what it leaves out as one more
coordinate it shortens them less: by the triangle inequality two remainders of lengths r and s are
at least |r - s| apart. Features of wide networks lie close to far fewer dimensions than they have,
so that hardly any row seems nearer than the nearest one is; only those that do need comparing in
all dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Directions. With the remainder, and what rounding to bfloat16 adds, these are 96 columns, a
# multiple of 32.
_WIDTH = 89
# With fewer dimensions than about twice as many, or fewer rows, nothing is gained.
_LEAST_WIDTH = 256
_LEAST_ROWS = 2048
# Directions are learned from at most so many rows, in so many rounds of the power iteration.
_SAMPLE = 4096
_ROUNDS = 3
# So many rows are tried, and at most this share of all rows may seem nearer than the nearest one:
# comparing these in all dimensions costs about what the projection saves.
_TRIED = 64
_SHARE = 1 / 512
# Products and squared lengths in float32 are off by at most this share.
_ROUNDING = 2.0**-17


class Projection:
    """Map x to (U^T x, |x - U U^T x|), where U has orthonormal columns.

    Parameters
    ----------
    directions
        U, (D, k) float32.
    """

    def __init__(self, directions: Tensor) -> None:
        self._directions = directions

    @classmethod
    def of(cls, rows: Tensor) -> Projection | None:
        """Return the projection to the directions that rows (M, D) vary in most.

        It is None where it would not pay. The directions are those of a sample, found by power
        iteration (Halko, Martinsson & Tropp, "Finding structure with randomness", SIAM Review
        2011, algorithm 4.4).
        """
        count, width = rows.shape
        if width < _LEAST_WIDTH or count < _LEAST_ROWS:
            return None
        sample = rows[_evenly(count, _SAMPLE, rows.device)]
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn((width, _WIDTH), generator=generator).to(rows)
        for _ in range(_ROUNDS):
            products = sample.T @ (sample @ directions)
            directions = torch.linalg.qr(products.double()).Q.float()
        found = cls(directions)
        return found if bool(directions.isfinite().all()) and found._pays(rows) else None

    def _pays(self, rows: Tensor) -> bool:
        """Return whether hardly any row (M, D) seems nearer to another than its nearest one is."""
        numbers = _evenly(len(rows), _TRIED, rows.device)
        itself = torch.arange(len(numbers), device=rows.device), numbers
        nearest = _squared_distances(rows[numbers], rows)  # (n, M)
        nearest[itself] = torch.inf
        seeming = _squared_distances(self(rows[numbers])[0], self(rows)[0])
        seeming[itself] = torch.inf
        nearer = (seeming <= nearest.amin(dim=1, keepdim=True)).float().mean()
        return bool(nearer <= _SHARE)

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (n, D) projected, (n, k + 1), and how far rounding moves each, (n,)."""
        lengths = torch.linalg.vector_norm(vectors, dim=1).square_()
        projected = vectors @ self._directions  # (n, k)
        inside = torch.linalg.vector_norm(projected, dim=1).square_()
        rest = (lengths - inside).clamp_(min=0.0)
        remainder = rest.sqrt()  # (n,)
        # |sqrt(a + e) - sqrt(a)| is at most sqrt(e), and at most e / sqrt(a)
        doubt = _ROUNDING * lengths
        off = torch.minimum(doubt.sqrt(), doubt / remainder.clamp(min=torch.finfo().tiny))
        off += _ROUNDING * lengths.sqrt()
        return torch.cat([projected, remainder[:, None]], dim=1), off


def _evenly(count: int, most: int, device: torch.device) -> Tensor:
    """Return at most `most` of `count` numbers, evenly spread."""
    wanted = min(count, most)
    return torch.arange(wanted, device=device) * count // wanted


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (A, B) between the rows of `a` and `b`, by a product."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2.0)
    return products.add_(a.square().sum(dim=1)[:, None])
