"""Whitening of patch features: directions that good patches hardly vary in count too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...threads import single_blas_thread

if TYPE_CHECKING:
    from torch import Tensor

#: This share of the mean variance is added to the variance of every direction.
SHRINKAGE = 0.01
# How many rows' products are summed together, in double precision.
_ROWS = 16384
# How many rows are whitened together: what this takes stays in the processor's caches.
_WHITENED = 1024


@dataclass(frozen=True)
class Moments:
    """Hold sums over some rows, in double precision; the moments of parts can be added.

    Attributes
    ----------
    count
        How many rows.
    origin
        (D,) what is subtracted from each row; it lies near their mean, so that nothing cancels.
    total, products
        (D,) and (D, D), the sum of what is left, and of its outer products.
    """

    count: int
    origin: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    products: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: Tensor, origin: npt.NDArray[np.float64] | None = None) -> Moments:
        """Return the moments of rows (N, D), which do not depend on the number of threads.

        `origin` is the mean of the rows if it is None.
        """
        if origin is None:
            origin = rows.double().mean(dim=0).cpu().numpy()
        total, products = np.zeros(len(origin)), np.zeros((len(origin), len(origin)))
        with single_blas_thread():
            for some in rows.split(_ROWS):
                away = some.cpu().numpy().astype(np.float64) - origin
                total += away.sum(axis=0)
                products += away.T @ away
        return cls(len(rows), origin, total, products)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.origin,
            self.total + other.total,
            self.products + other.products,
        )

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Return the mean (D,) of the rows."""
        return np.asarray(self.origin + self.total / max(1, self.count))

    @property
    def covariance(self) -> npt.NDArray[np.float64]:
        """Return the covariance (D, D) of the rows, divided by their number."""
        away = self.total / max(1, self.count)
        return np.asarray(self.products / max(1, self.count) - np.outer(away, away))


class Whitening:
    """Map x to (x - centre) @ matrix, which is decorrelated, each direction scaled by its spread.

    Principal components divided by the root of their variance, which has `SHRINKAGE` of the mean
    variance added (Friedman, "Regularized Discriminant Analysis", JASA 1989, equation 18, the
    pull towards a multiple of the identity). Euclidean distances between whitened features are
    Mahalanobis distances with that covariance.

    Parameters
    ----------
    centre
        (D,) float32.
    matrix
        (D, D) float32.
    """

    def __init__(self, centre: Tensor, matrix: Tensor) -> None:
        self.centre = centre
        self.matrix = matrix
        wide = matrix.double()
        self._wide = -(centre.double() @ wide), wide

    @classmethod
    def of(
        cls,
        moments: Moments,
        like: Tensor,
        shrinkage: float = SHRINKAGE,
        nuisance: npt.NDArray[np.float64] | None = None,
    ) -> Whitening:
        """Return what whitens rows with these moments, on the device of `like` and of its dtype.

        `nuisance` (D, D) is added to their covariance: in directions in which features move though
        nothing is wrong, distances count less. Rows without any spread are left as they are.
        """
        import torch

        covariance = moments.covariance
        if nuisance is not None:
            covariance = covariance + nuisance
        matrix = _whitener(covariance, shrinkage)
        return cls(torch.from_numpy(moments.mean).to(like), torch.from_numpy(matrix).to(like))

    def __call__(self, features: Tensor) -> Tensor:
        """Return features (N, ..., D) float32 whitened, in the same shape.

        Each of the N is computed by itself in double precision, so that the result depends
        neither on what else is in the batch nor on how many threads sum.
        """
        import torch

        shift, matrix = self._wide
        whitened = torch.empty_like(features)
        for one, out in zip(features, whitened, strict=True):
            rows = one.double().flatten(0, -2)  # (n, D)
            out.copy_(torch.addmm(shift, rows, matrix).view(one.shape))
        return whitened

    def whiten_(self, rows: Tensor) -> None:
        """Whiten rows (N, D) in place, some at a time."""
        for some in rows.split(_WHITENED):
            some.copy_(self(some[None])[0])


def _whitener(covariance: npt.NDArray[np.float64], shrinkage: float) -> npt.NDArray[np.float64]:
    """Return the matrix (D, D) that whitens vectors with this covariance (D, D)."""
    with single_blas_thread():
        variances, directions = np.linalg.eigh(covariance)
    # the largest first, each with a sign that does not depend on the linear algebra library
    variances, directions = variances[::-1].clip(min=0.0), directions[:, ::-1]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(len(largest))])
    floor = shrinkage * variances.mean()
    if floor <= np.finfo(np.float32).tiny:
        return np.eye(len(variances))
    return np.asarray(directions / np.sqrt(variances + floor))
