"""Local outlier factors of many small sets of points at once.

Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How many neighbours beyond those wanted are compared exactly.
_DOUBTFUL = 8
# How many numbers the differences that are computed together have.
_NUMBERS = 2**24
# This share of the mean reachability distance of all sets is added to each mean, so that among
# copies of a point one that all but equals them is not an outlier without bounds.
_FLOOR = 1e-3
# What is added where all points are equal.
_LEAST = 1e-10


def local_outlier_factors(sets: Tensor, neighbours: int) -> Tensor:
    """Return how much sparser it is around each point than around its neighbours.

    Parameters
    ----------
    sets
        (S, n, D) float32, S sets of n points.
    neighbours
        MinPts of definition 3, at least 1. It is n - 1 where a set has no more points.

    Returns
    -------
    torch.Tensor
        (S, n) float32 above 0: about 1 for a point inside a cluster, more outside, and 1 where a
        set has one point.

    Notes
    -----
    Every point has exactly as many neighbours as are wanted: of points that are equally far,
    those with the lower indices. A thousandth of the mean over all sets is added to the mean of
    the reachability distances. A matrix product proposes neighbours and sums of squared
    differences decide, so that the result does not depend on how the work is cut up.
    """
    count, size, width = sets.shape
    if size < 2:
        return sets.new_ones((count, size))
    k = min(neighbours, size - 1)
    more = min(k + _DOUBTFUL, size - 1)
    together = max(1, _NUMBERS // (size * max(size, more * width)))
    reach, found = [], []
    for points in sets.split(together):
        distances, near = _nearest(points, k, more)  # (s, n, k)
        edge = distances[:, :, -1]  # k-distance, definition 3
        edges = edge.gather(1, near.flatten(1)).view_as(distances)  # (s, n, k)
        reach.append(torch.maximum(distances, edges).double().mean(dim=2))
        found.append(near)
    mean_reach = torch.cat(reach)  # (S, n)
    floor = max(float(mean_reach.mean()) * _FLOOR, _LEAST)
    density = 1.0 / (mean_reach + floor)  # definition 6
    near = torch.cat(found)  # (S, n, k)
    around = density.gather(1, near.flatten(1)).view(near.shape).mean(dim=2)  # (S, n)
    return (around / density).float()  # definition 7


def _nearest(points: Tensor, k: int, more: int) -> tuple[Tensor, Tensor]:
    """Return the distances (s, n, k), ascending, and indices of each point's nearest others."""
    centred = points - points.mean(dim=1, keepdim=True)
    norms = centred.square().sum(dim=2)  # (s, n)
    # (s, n, n) squared distances, less the squared length of the point itself
    away = torch.baddbmm(norms[:, None, :], centred, centred.transpose(1, 2), alpha=-2.0)
    away.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near = away.topk(more, dim=2, largest=False).indices.sort(dim=2).values  # (s, n, more)
    which = torch.arange(len(points), device=points.device)[:, None, None]
    exact = (points[:, :, None, :] - points[which, near]).square_().sum(dim=3)  # (s, n, more)
    values, order = exact.sort(dim=2, stable=True)
    return values[:, :, :k].sqrt(), near.gather(2, order)[:, :, :k]
