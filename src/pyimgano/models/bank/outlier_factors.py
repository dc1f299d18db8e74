"""Local outlier factors of many small sets of points at once.

Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Neighbours compared exactly beyond those wanted.
_DOUBTFUL = 8
# Numbers in the differences that are computed together.
_NUMBERS = 2**24
# Of the mean reachability distance of all sets: added to each mean, so that among copies of a
# point a point that all but equals them is not an outlier without bounds.
_FLOOR = 1e-3
# Where all points are equal.
_LEAST = 1e-10


def local_outlier_factors(sets: Tensor, neighbours: int) -> Tensor:
    """How much sparser it is around a point than around its neighbours.

    Parameters
    ----------
    sets
        (S, n, D) float32: S sets of n points.
    neighbours
        MinPts of definition 3, at least 1; n - 1 where n is no larger.

    Returns
    -------
    torch.Tensor
        (S, n) float32, over 0: about 1 for a point inside a cluster, more outside. 1 where a
        set has one point.

    Notes
    -----
    Of points equally far, those with the lower index are the neighbours, exactly as many as
    wanted. The mean of the reachability distances has a thousandth of its mean over all sets
    added. What a matrix product proposes is decided by sums of squared differences, so that
    the result does not depend on how the work is cut up.
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
        edges = edge.gather(1, near.flatten(1)).view_as(distances)
        reach.append(torch.maximum(distances, edges).double().mean(dim=2))
        found.append(near)
    mean_reach = torch.cat(reach)  # (S, n)
    floor = max(float(mean_reach.mean()) * _FLOOR, _LEAST)
    density = 1.0 / (mean_reach + floor)  # definition 6
    near = torch.cat(found)
    around = density.gather(1, near.flatten(1)).view(near.shape).mean(dim=2)
    return (around / density).float()  # definition 7


def _nearest(points: Tensor, k: int, more: int) -> tuple[Tensor, Tensor]:
    """Distances (s, n, k), ascending, and indices of each point's nearest others."""
    centred = points - points.mean(dim=1, keepdim=True)
    norms = centred.square().sum(dim=2)  # (s, n)
    away = torch.baddbmm(norms[:, None, :], centred, centred.transpose(1, 2), alpha=-2.0)
    away.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near = away.topk(more, dim=2, largest=False).indices.sort(dim=2).values
    which = torch.arange(len(points), device=points.device)[:, None, None]
    exact = (points[:, :, None, :] - points[which, near]).square_().sum(dim=3)
    values, order = exact.sort(dim=2, stable=True)
    return values[:, :, :k].sqrt(), near.gather(2, order)[:, :, :k]
