"""Exact nearest rows, by comparing every query with every row.

A matrix product gives the distances of a block of queries to all rows, rounded
(`rounded_distances`). How far off they are is known, and the few rows that may be the nearest are
compared again by sums of squared differences in float32. Such a sum depends on the two vectors
alone, so that what is found depends neither on the machine's units nor on how the work is cut up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .rounded_distances import RoundedDistances, RoundedRows

# Entries of one product, and queries, at most: so many that they stay in a processor's caches.
_ON_CPU = 2**22, 2048
# And so many that a GPU is busy.
_ON_GPU = 2**27, 16384
# The number of queries is a multiple of this, which products are quick at.
_QUERIES = 64
# Rows are dealt to this many classes, and of each class the least entry is found first. A
# processor finds these side by side, and then needs to look at few classes only.
_CLASSES = 256
# Bytes of the vectors whose differences are computed together. More would be asked of the system,
# and given back to it, each time.
_PAIR_BYTES = 2**21


class ExhaustiveSearch:
    """Rows that queries are compared with.

    Parameters
    ----------
    rows
        (M, D) float32.
    project
        Whether it is tried to compare in fewer dimensions first, which pays for wide rows that
        many queries are compared with (`projection`).
    """

    def __init__(self, rows: Tensor, *, project: bool = False) -> None:
        self._rows = rows
        self._rounded = RoundedRows(rows, fill=_CLASSES, project=project)
        entries, queries = _ON_GPU if rows.device.type == "cuda" else _ON_CPU
        at_once = min(entries // len(self._rounded), queries) // _QUERIES * _QUERIES
        self._at_once = max(at_once, _QUERIES)

    def update(
        self,
        queries: Tensor,
        nearest: Tensor,
        winner: Tensor,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Update the minimum distances of the queries, in place.

        Parameters
        ----------
        queries
            (Q, D) float32.
        nearest
            (Q,) float32 squared distances known so far; infinite where none is known.
        winner
            (Q,) int64, is set to the number of a row that is nearer, the first of equals.
        labels
            Labels of the queries (Q,) and of the rows (M,): a query is never compared with a row
            of its own label. This is quick where queries of one label follow each other.
        """
        for block, rounded in self._blocks(queries, labels):
            self._update(queries[block], rounded, nearest[block], winner[block])

    def nearest_few(
        self, queries: Tensor, size: int, labels: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the `size` nearest rows of each query.

        Parameters
        ----------
        queries, labels
            As in `update`.
        size
            1 to M.

        Returns
        -------
        rows, distances
            (Q, size) int64 and float32, squared, nearest first and the lowest row of equals.
            Where labels leave fewer rows, the last distances are infinite and their rows have no
            meaning.
        """
        rows = torch.zeros((len(queries), size), dtype=torch.int64, device=queries.device)
        distances = queries.new_full((len(queries), size), torch.inf)
        for block, rounded in self._blocks(queries, labels):
            rows[block], distances[block] = self._nearest_few(queries[block], rounded, size)
        return rows, distances

    def _blocks(
        self, queries: Tensor, labels: tuple[Tensor, Tensor] | None
    ) -> Iterator[tuple[slice, RoundedDistances]]:
        """Yield blocks of queries with their rounded distances to all rows."""
        for start in range(0, len(queries), self._at_once):
            block = slice(start, start + self._at_once)
            rounded = self._rounded.distances(queries[block])
            if labels is not None:
                _mask_own(rounded.entries, labels[0][block], labels[1])
            yield block, rounded

    def _update(
        self, queries: Tensor, rounded: RoundedDistances, nearest: Tensor, winner: Tensor
    ) -> None:
        classes = rounded.entries.unflatten(1, (-1, _CLASSES))  # (q, m, classes)
        least_of_class = classes.amin(dim=1)  # (q, classes)
        least, which = least_of_class.min(dim=1)  # (q,)
        floor = rounded.lower_bounds(least)
        # most queries are not nearer to any of these rows, where much is known already
        asked = ((floor <= nearest) & floor.isfinite()).nonzero().squeeze(1)  # (a,)
        if len(asked) == 0:
            return
        # the true distance to the row that seems nearest says how near the nearest one is
        which = which[asked]
        seeming = classes[asked, :, which].argmin(dim=1) * _CLASSES + which  # (a,)
        distance = squared_distances(queries, self._rows, asked, seeming)
        bound = nearest.scatter_reduce(0, asked, distance, "amin")  # (q,)
        query, row = _within(classes, least_of_class, rounded.limits(bound), asked)  # (p,)
        distance = squared_distances(queries, self._rows, query, row)
        _keep_nearest(nearest, winner, query, row, distance)

    def _nearest_few(
        self, queries: Tensor, rounded: RoundedDistances, size: int
    ) -> tuple[Tensor, Tensor]:
        classes = rounded.entries.unflatten(1, (-1, _CLASSES))  # (q, m, classes)
        least_of_class = classes.amin(dim=1)  # (q, classes)
        largest = torch.finfo(classes.dtype).max  # infinite entries do not count
        limit = torch.full_like(least_of_class[:, 0], largest)  # (q,)
        if size <= _CLASSES:  # so many classes have a row within this
            limit = least_of_class.kthvalue(size, dim=1).values.clamp(max=largest)
        rows, distances = self._sorted(queries, classes, least_of_class, limit, size)
        # the farthest of the rows that seem nearest says how near the nearest ones are
        wider = rounded.limits(distances[:, -1])
        if bool((wider > limit).any()):
            limit = torch.maximum(limit, wider)
            rows, distances = self._sorted(queries, classes, least_of_class, limit, size)
        return rows, distances

    def _sorted(
        self, queries: Tensor, classes: Tensor, least_of_class: Tensor, limit: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest rows (q, size) of those with entries up to `limit` (q,), and their
        squared distances (q, size)."""
        numbers = torch.arange(len(queries), device=queries.device)
        query, row = _within(classes, least_of_class, limit, numbers)  # (p,)
        order = (query * (classes.shape[1] * _CLASSES) + row).argsort()
        query, row = query[order], row[order]
        count = torch.bincount(query, minlength=len(queries))  # (q,)
        place = torch.arange(len(query), device=row.device) - (count.cumsum(0) - count)[query]
        distances = queries.new_full((len(queries), max(size, int(count.max()))), torch.inf)
        distances[query, place] = squared_distances(queries, self._rows, query, row)
        rows = torch.zeros_like(distances, dtype=torch.int64)
        rows[query, place] = row
        distances, order = distances.sort(dim=1, stable=True)  # the lowest row of equals first
        return rows.gather(1, order)[:, :size], distances[:, :size]


def _mask_own(entries: Tensor, mine: Tensor, theirs: Tensor) -> None:
    """Set the entries (q, M') of rows of a query's own label to infinity, in place."""
    start = 0
    labels, counts = mine.unique_consecutive(return_counts=True)
    for label, count in zip(labels.tolist(), counts.tolist()):
        own = (theirs == label).nonzero().squeeze(1)
        entries[start : start + count].index_fill_(1, own, torch.inf)
        start += count


def _within(
    classes: Tensor, least_of_class: Tensor, limit: Tensor, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the pairs of a query and a row whose entries (q, m, classes) are up to `limit` (q,).

    Only the queries with the numbers `queries` (a,) are looked at. The numbers of the pairs'
    queries (p,) ascend; their rows are (p,).
    """
    among, which = (least_of_class[queries] <= limit[queries, None]).nonzero(as_tuple=True)  # (n,)
    query = queries[among]
    entries = classes[query, :, which]  # (n, m)
    found, member = (entries <= limit[query, None]).nonzero(as_tuple=True)  # (p,)
    return query[found], member * _CLASSES + which[found]


def _keep_nearest(
    nearest: Tensor, winner: Tensor, query: Tensor, row: Tensor, distance: Tensor
) -> None:
    """Update `nearest` and `winner` (q,) by pairs of a query and a row (p,), in place.

    Among rows that are equally near the one with the lowest number wins.
    """
    best = nearest.scatter_reduce(0, query, distance, "amin")  # (q,)
    # a winner so far goes on against rows that are as near, and gives way to nearer ones
    candidates = torch.where(best < nearest, torch.iinfo(winner.dtype).max, winner)
    at_best = distance == best[query]
    winner.copy_(candidates.scatter_reduce(0, query[at_best], row[at_best], "amin"))
    nearest.copy_(best)


def squared_distances(points: Tensor, centres: Tensor, point: Tensor, centre: Tensor) -> Tensor:
    """Return the squared distances (p,) of pairs, each by a sum of squared differences.

    Parameters
    ----------
    points, centres
        (N, D) and (C, D) float32.
    point, centre
        (p,) and (p,) int64, which of them each pair is.
    """
    at_once = max(1, _PAIR_BYTES // (4 * points.shape[1]))
    found = [
        points.index_select(0, p).sub_(centres.index_select(0, c)).square_().sum(dim=1)
        for p, c in zip(point.split(at_once), centre.split(at_once))
    ]
    return torch.cat(found)
