"""Gaussians of features: moments that are streamed, shrinkage, whitening.

Everything is computed in double precision. Products are batched matrix products, whose result
does not depend on the number of threads, or run on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Of a block of positions, matrices of double precision: 32 MiB.
_BLOCK_BYTES = 2**25
# Images whose products are summed at once, and those that are scored at once.
_CHUNK = 32
TOGETHER = 8
# Rounding may take a variance below 0; its inverse root stays a number in single precision.
_LEAST_VARIANCE = 1e-24


class Moments:
    """Mean and scatter of vectors at P positions, from batches of images.

    Parameters
    ----------
    origin
        (P, d), anything near the vectors, such as those of the first image: sums are of
        differences from it, so that little is lost where the mean is large. Means and scatters
        agree with those of two passes in double precision to about 1e-12 of the largest.

    Attributes
    ----------
    count
        Images taken in.
    """

    def __init__(self, origin: Tensor) -> None:
        positions, d = origin.shape
        self._origin = origin.double()
        self._sums = self._origin.new_zeros((positions, d))
        self._products = self._origin.new_zeros((positions, d, d))
        self._waiting: list[Tensor] = []
        self.count = 0

    def add(self, vectors: Tensor) -> None:
        """Take in (B, P, d) of B images."""
        for one in vectors:
            self._waiting.append(one.clone())  # not a view that keeps the whole batch
            self.count += 1
            if len(self._waiting) == _CHUNK:
                self._sum_up()

    def _sum_up(self) -> None:
        import torch

        if not self._waiting:
            return
        chunk = torch.stack(self._waiting, dim=1)  # (P, n, d)
        self._waiting.clear()
        for block in self.blocks():
            away = chunk[block].double() - self._origin[block, None]
            self._sums[block] += away.sum(dim=1)
            self._products[block].baddbmm_(away.mT, away)

    def blocks(self) -> Iterator[slice]:
        """Yield positions, as many at a time as keep memory small."""
        positions, d = self._sums.shape
        size = max(1, _BLOCK_BYTES // (8 * d * d))
        return (slice(start, start + size) for start in range(0, positions, size))

    def mean(self, block: slice = slice(None)) -> Tensor:
        """Return the mean (p, d) float64."""
        self._sum_up()
        return self._origin[block] + self._sums[block] / self.count

    def scatter(self, block: slice) -> Tensor:
        """Return the sum of outer products of differences from the mean, (p, d, d) float64."""
        self._sum_up()
        sums = self._sums[block]
        return self._products[block] - sums[:, :, None] * sums[:, None, :] / self.count


def whitening(covariance: Tensor) -> Tensor:
    """Return the inverses of Cholesky factors, (P, d, d) lower triangular, of positive matrices.

    With W of covariance C, |W x| is the Mahalanobis length of x: W^T W is the inverse of C.
    Found by halves, all positions together, with nothing but batched products.
    """
    d = covariance.shape[-1]
    if d == 1:
        return covariance.clamp(min=_LEAST_VARIANCE).rsqrt()
    half = d // 2
    upper = whitening(covariance[:, :half, :half])
    across = covariance[:, half:, :half] @ upper.mT  # the factor's lower left quarter
    lower = whitening(covariance[:, half:, half:] - across @ across.mT)
    found = covariance.new_zeros(covariance.shape)
    found[:, :half, :half] = upper
    found[:, half:, half:] = lower
    found[:, half:, :half] = -lower @ (across @ upper)
    return found


def left_out_squared(q: Tensor, n: int, weight: Tensor | float = 1.0) -> Tensor:
    """Squared Mahalanobis lengths of vectors under Gaussians that were fitted without them.

    Let d = x - m be the difference of one of n vectors from their mean m, S their scatter. Without
    it, the mean is m - d / (n - 1), so that the vector is n / (n - 1) d away, and the scatter is
    S - c d d^T with c = n / (n - 1). For a covariance a (S - c d d^T) + r I put A = a S + r I;
    then, by Sherman and Morrison, with q = d^T A^-1 d,

        c d^T (A - a c d d^T)^-1 d c = c^2 q / (1 - a c q).

    Parameters
    ----------
    q
        d^T A^-1 d, of any shape.
    n
        How many vectors there are, the one that is left out included; at least 2.
    weight
        a, a number or of a shape that goes with q's.
    """
    import torch

    c = n / (n - 1)
    # the covariance without the vector is positive, and so is this, but for rounding
    rest = (1.0 - weight * c * q).clamp(min=torch.finfo(q.dtype).eps)
    return c * c * q / rest


def group_left_out(z: Tensor, n: int, count: int, *, scattered: bool = True) -> Tensor:
    """Squared Mahalanobis lengths of vectors under Gaussians fitted without them and their copies.

    With D the differences of a group's vectors from the mean of all n, w how often each counts,
    and m their sum, the mean without them is moved by D w / (n - m), and the scatter is
    S - D M D^T with M = diag(w) + w w^T / (n - m). With A = S + r I and Q = D^T A^-1 D, Woodbury's
    identity gives for a vector D u, u = e_i + w / (n - m),

        u^T D^T (A - D M D^T)^-1 D u = u^T Q (I - M Q)^-1 u.

    Parameters
    ----------
    z
        (p, d, k): what a whitening of A makes of D, of the k vectors of a group that are known.
    n
        How many vectors there are.
    count
        m, how many of them are of the group; those that are not known are taken for copies of
        those that are.
    scattered
        Whether A holds the scatter S; else it is r I alone, and nothing is taken from it.

    Returns
    -------
    torch.Tensor
        (k, p) of z's dtype.
    """
    import torch

    k = z.shape[2]
    identity = torch.eye(k, dtype=z.dtype, device=z.device)
    weights = torch.full((k,), count / k, dtype=z.dtype, device=z.device)
    u = identity + weights[:, None] / (n - count)  # a column for each vector
    q = z.mT @ z  # (p, k, k)
    if scattered:
        m = torch.diag(weights) + weights[:, None] * weights / (n - count)
        q = q @ torch.linalg.inv(identity - m @ q)
    found: Tensor = (u * (q @ u)).sum(dim=1).clamp(min=0.0)
    return found.T


class Shrunk(NamedTuple):
    """A shrunk covariance: (1 - shrinkage) E + ridge I."""

    shrinkage: Tensor
    ridge: Tensor


def ledoit_wolf(
    d: int, count: int, trace: Tensor, frobenius: Tensor, fourth: Tensor, floor: Tensor
) -> Shrunk:
    """Shrinkage of covariances after Ledoit and Wolf.

    O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    J. Multivariate Analysis 88, 2004: E is shrunk towards m I, where m is its mean variance.

    Parameters
    ----------
    d, count
        Dimension, and the number of vectors.
    trace, frobenius
        Of E, the mean outer product of the centred vectors: its trace, and the sum of its squares.
    fourth
        The sum over the vectors of the fourth power of their lengths.
    floor
        The ridge is at least this: of one vector, two, or equal ones nothing would be left.
    """
    import torch

    m = trace / d
    spread = ((frobenius - d * m * m) / d).clamp(min=0.0)  # d^2 of the paper
    noise = ((fourth / count - frobenius) / (d * count)).clamp(min=0.0)  # b^2
    shrinkage = torch.where(spread > noise, noise / spread, torch.ones_like(spread))
    shrinkage = torch.where(noise > 0, shrinkage, torch.zeros_like(spread))
    return Shrunk(shrinkage, torch.maximum(shrinkage * m, floor))


def by_eights(vectors: Tensor) -> Iterator[Tensor]:
    """Yield (B, P, d) as (P, d, 8) at a time, the last filled up with zeros.

    Products of one shape round alike: what comes out for an image depends neither on how many
    images there are nor on its place among them.
    """
    for some in vectors.split(TOGETHER):
        filled = some.new_zeros((some.shape[1], some.shape[2], TOGETHER))
        filled[:, :, : len(some)] = some.permute(1, 2, 0)
        yield filled


def cells_beside(grid: tuple[int, int], cells: Tensor | None) -> Tensor:
    """Return for each cell that counts the place of the one to its right, else to its left.

    Of a cell without either its own. What an image would look like that is moved by a cell: all
    that one image alone tells of how good images differ.
    """
    import torch

    height, width = grid
    number = torch.arange(height * width)
    counted = number if cells is None else cells.cpu()
    place = torch.full((height * width,), -1)
    place[counted] = torch.arange(len(counted))
    padded = torch.full((height, width + 2), -1)
    padded[:, 1:-1] = place.view(height, width)
    right = padded[:, 2:].reshape(-1)[counted]
    left = padded[:, :-2].reshape(-1)[counted]
    beside = torch.where(right >= 0, right, left)
    beside = torch.where(beside >= 0, beside, torch.arange(len(counted)))
    return beside if cells is None else beside.to(cells.device)


#: Said where there is one training image.
ONE_IMAGE = (
    "1 training image: the threshold is the score of that image moved by a cell, and no "
    "false-alarm rate is promised"
)
