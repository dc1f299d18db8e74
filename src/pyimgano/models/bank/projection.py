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

# With the remainder and what `Rounded` adds, a multiple of 32.
_WIDTH = 89
# Of fewer dimensions than twice as many, or of fewer rows, nothing is gained.
_LEAST_WIDTH = 192
_LEAST_ROWS = 2048
# Rows that directions are learned from, at most, and rounds of the power iteration.
_SAMPLE = 4096
_ROUNDS = 3
# Rows that are tried, and the share of all that may seem nearer than the nearest: comparing one in
# all dimensions costs about as much as these many would cost less.
_TRIED = 64
_SHARE = 1 / 512
# Relative error of products and squared lengths in float32, with room.
_ROUNDING = 2.0**-17


class Projection:
    """x -> (U^T x, |x - U U^T x|) with orthonormal columns U.

    Parameters
    ----------
    directions
        U, (D, k) float32.
    """

    def __init__(self, directions: Tensor) -> None:
        self._directions = directions

    @classmethod
    def of(cls, rows: Tensor) -> Projection | None:
        """Onto the directions that rows (M, D) vary in most; None where it would not pay.

        Of a sample, by power iteration (Halko, Martinsson & Tropp, "Finding structure with
        randomness", SIAM Review 2011, algorithm 4.4).
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
        numbers = _evenly(len(rows), _TRIED, rows.device)
        itself = torch.arange(len(numbers), device=rows.device), numbers
        nearest = _squared_distances(rows[numbers], rows)
        nearest[itself] = torch.inf
        seeming = _squared_distances(self(rows[numbers])[0], self(rows)[0])
        seeming[itself] = torch.inf
        nearer = (seeming <= nearest.amin(dim=1, keepdim=True)).float().mean()
        return bool(nearer <= _SHARE)

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(n, k + 1) of vectors (n, D), and (n,) by how much each may be off for rounding."""
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
    wanted = min(count, most)
    return torch.arange(wanted, device=device) * count // wanted


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, B)."""
    products = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2.0)
    return products.add_(a.square().sum(dim=1)[:, None])
