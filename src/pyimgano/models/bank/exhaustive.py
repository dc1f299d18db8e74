"""Exact nearest rows by comparing queries with all rows, most of them only roughly.

Matrix products in half precision (`rounded`), and of wide vectors in fewer dimensions
(`projection`), bound all distances; sums of squared differences in float32 decide among the rows
that the bounds leave. Their value depends on the two vectors alone, so that what is found depends
neither on the machine's units nor on how the work was cut up.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...precision import full_precision
from .projection import Projection
from .rounded import Rounded, RoundedRows, is_quick

# Rows are filled up to a multiple of this. Of each class of rows whose numbers leave the same
# remainder the least entry is looked at first: the processor finds these side by side.
_CLASSES = 256
_LEAST_QUERIES = 64
# What comparing a query with one of all rows costs, relative to one that was picked out: measured.
_COST = {torch.bfloat16: 0.4, torch.float32: 1.5}
# Where labels change more often than this, they are compared pair by pair.
_SHORT_RUN = 64
# Bytes of the vectors whose distances are computed together: more would be asked of the system, and
# given back to it, each time.
_PAIR_BYTES = 2**21


class _AtOnce(NamedTuple):
    """How much is compared together.

    Attributes
    ----------
    entries
        Of one product, so many that they stay in a processor's caches.
    queries, query_bytes
        That are rounded together, at most.
    """

    entries: int
    queries: int
    query_bytes: int


_ON_CPU = _AtOnce(2**22, 2048, 2**22)
_ON_GPU = _AtOnce(2**27, 16384, 2**27)


class ExhaustiveSearch:
    """Rows (M, D) float32, made ready to be compared with queries.

    Parameters
    ----------
    rows
        (M, D) float32.
    project
        Whether it is tried to look at fewer dimensions first.

    Attributes
    ----------
    rows
        As given.
    projects
        Whether it does.
    cost
        Of comparing a query with one of all rows, relative to one that was picked out.
    """

    def __init__(self, rows: Tensor, *, project: bool = False) -> None:
        self.rows = rows
        self._dtype = torch.bfloat16 if is_quick(rows.device) else torch.float32
        self.cost = _COST[self._dtype]
        # Products are those of vectors around their mean: they cancel as little as possible.
        self._centre = rows.mean(dim=0)
        centred = rows - self._centre
        with full_precision(rows.device):
            self._projection = Projection.of(centred) if project else None
        self.projects = self._projection is not None
        vectors, moved = self._projected(centred)
        self._rounded = RoundedRows(vectors, dtype=self._dtype, fill=_CLASSES, moved=moved)
        most = _ON_GPU if rows.device.type == "cuda" else _ON_CPU
        together = min(most.queries, most.query_bytes // (4 * max(1, rows.shape[1])))
        self._prepared = max(_LEAST_QUERIES, together)
        at_once = min(self._prepared, most.entries // len(self._rounded))
        self._at_once = max(_LEAST_QUERIES, at_once // _LEAST_QUERIES * _LEAST_QUERIES)

    def _projected(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._projection is None:
            return vectors, None
        with full_precision(vectors.device):
            return self._projection(vectors)

    def beginning(self, rows: int) -> ExhaustiveSearch:
        """A search of at least the first `rows` rows."""
        first = slice(0, max(1, -(-rows // _CLASSES)) * _CLASSES)
        found = copy(self)
        found.rows, found._rounded = self.rows[first], self._rounded.part(first)
        return found

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def lower(
        self,
        queries: Tensor,
        nearest: Tensor,
        winner: Tensor,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Lower `nearest` by the distances to the rows, in place.

        Parameters
        ----------
        queries
            (Q, D).
        nearest
            (Q,) squared distances, upper bounds; `inf` where none is known.
        winner
            (Q,) int64: gets the row's number where one is nearer, the first of equals.
        labels
            Labels of the queries (Q,) and of the rows (M,), int32: a query is never compared with
            a row of its own label. Quickest where the queries' stand in runs.
        """
        for block, rounded, entries in self._compared(queries, labels):
            self._decide(queries[block], rounded, entries, nearest[block], winner[block])

    def near(self, queries: Tensor, labels: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(Q,) squared distances of queries to the rows that seem nearest, of which few are not.

        For a part of the work of `lower`; `inf` where none counts.
        """
        found = queries.new_empty(len(queries))
        for block, _, entries in self._compared(queries, labels):
            classes = entries.unflatten(1, (-1, _CLASSES))  # (q, m, classes)
            least, which = classes.amin(dim=1).min(dim=1)
            numbers = torch.arange(len(which), device=which.device)
            row = _seeming(classes, which, numbers).clamp_(max=len(self) - 1)  # where none counts
            distances = squared_distances(queries[block], self.rows, numbers, row)
            found[block] = distances.where(least.isfinite(), torch.inf)
        return found

    def nearest_few(
        self, queries: Tensor, size: int, labels: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `size` nearest rows of each query.

        Parameters
        ----------
        queries, labels
            As `lower`.
        size
            1 to M.

        Returns
        -------
        rows, distances
            (Q, size) int64 and float32, squared, nearest first and the first of equals; `inf`
            where masking left fewer, with rows of no meaning.
        """
        rows = torch.zeros((len(queries), size), dtype=torch.int64, device=queries.device)
        distances = queries.new_full((len(queries), size), torch.inf)
        for block, rounded, entries in self._compared(queries, labels):
            self._choose(queries[block], rounded, entries, rows[block], distances[block])
        return rows, distances

    def _compared(
        self, queries: Tensor, labels: tuple[Tensor, Tensor] | None
    ) -> Iterator[tuple[slice, Rounded, Tensor]]:
        """Some queries (q, D) after others, with their entries (q, M')."""
        runs = _Runs(None if labels is None else labels[0])
        for first in range(0, len(queries), self._prepared):
            some = queries[first : first + self._prepared]
            vectors, moved = self._projected(some - self._centre)
            rounded = Rounded(vectors, left=True, dtype=self._dtype, moved=moved)
            for start, stop in runs.blocks(first, first + len(some), self._at_once):
                part = rounded.part(slice(start - first, stop - first))
                with full_precision(queries.device):
                    entries = part.factors @ self._rounded.factors.T  # (q, M')
                block = slice(start, stop)
                if labels is not None:
                    _mask(entries, labels[0][block], labels[1], one=runs.long)
                yield block, part, entries

    def _decide(
        self, queries: Tensor, rounded: Rounded, entries: Tensor, nearest: Tensor, winner: Tensor
    ) -> None:
        """Lower `nearest` (q,) by the rows whose entries (q, M') say that they may be nearer."""
        classes = entries.unflatten(1, (-1, _CLASSES))  # (q, m, classes)
        least_of_class = classes.amin(dim=1)  # (q, classes)
        least, which = least_of_class.min(dim=1)
        floor = self._rounded.floor(rounded, least)
        # most are not nearer to any row, where much is known already
        asked = ((floor <= nearest) & floor.isfinite()).nonzero().squeeze(1)  # (a,)
        if len(asked) == 0:
            return
        first = _seeming(classes, which[asked], asked)  # (a,)
        closest = squared_distances(queries, self.rows, asked, first)
        bound = torch.minimum(closest, nearest[asked])
        limit = self._rounded.limit(rounded, nearest.scatter(0, asked, bound))[asked]
        among, row = _within(classes, least_of_class, limit, asked)  # (p,)
        others = row != first[among]
        among, row = among[others], row[others]
        chosen = first
        if len(row):
            exact = squared_distances(queries, self.rows, asked[among], row)
            numbers = torch.arange(len(asked), device=row.device)
            closest, chosen = least_of_pairs(
                torch.cat([numbers, among]),
                torch.cat([first, row]),
                torch.cat([closest, exact]),
                len(asked),
            )
        keep_nearer(nearest, winner, asked, closest, chosen)

    def _choose(
        self, queries: Tensor, rounded: Rounded, entries: Tensor, rows: Tensor, distances: Tensor
    ) -> None:
        """Set `rows` and `distances` (q, k) to the nearest."""
        size = rows.shape[1]
        classes = entries.unflatten(1, (-1, _CLASSES))  # (q, m, classes)
        least_of_class = classes.amin(dim=1)  # (q, classes)
        finite = torch.finfo(entries.dtype).max
        # as many classes have a row up to this
        limit = torch.full_like(least_of_class[:, 0], finite)
        if size <= _CLASSES:
            limit = least_of_class.kthvalue(size, dim=1).values.clamp(max=finite)
        found = self._sorted(queries, classes, least_of_class, limit, size)
        bound = found[1][:, -1]  # of the rows that seem nearest the farthest
        wider = self._rounded.limit(rounded, bound)
        if bool((wider > limit).any()):
            limit = torch.maximum(limit, wider)
            found = self._sorted(queries, classes, least_of_class, limit, size)
        rows.copy_(found[0])
        distances.copy_(found[1])

    def _sorted(
        self, queries: Tensor, classes: Tensor, least_of_class: Tensor, limit: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """(q, size) rows and squared distances, nearest first, of those with entries up to
        `limit` (q,)."""
        numbers = torch.arange(len(queries), device=queries.device)
        query, row = _within(classes, least_of_class, limit, numbers)  # (p,)
        order = (query * (classes.shape[1] * _CLASSES) + row).argsort()
        query, row = query[order], row[order]
        count = torch.bincount(query, minlength=len(queries))
        place = torch.arange(len(query), device=row.device) - (count.cumsum(0) - count)[query]
        width = max(size, int(count.max()))
        distances = queries.new_full((len(queries), width), torch.inf)
        distances[query, place] = squared_distances(queries, self.rows, query, row)
        rows = torch.zeros_like(distances, dtype=torch.int64)
        rows[query, place] = row
        distances, order = distances.sort(dim=1, stable=True)
        return rows.gather(1, order)[:, :size], distances[:, :size]


class _Runs:
    """Where labels stand in runs of equal ones, so that a block of queries has one label."""

    def __init__(self, labels: Tensor | None) -> None:
        self._starts: list[int] = []
        if labels is not None:
            starts = (labels[1:] != labels[:-1]).nonzero().squeeze(1) + 1
            if (len(starts) + 1) * _SHORT_RUN <= len(labels):
                self._starts = starts.tolist()
        #: Whether blocks have one label each.
        self.long = labels is not None and (
            bool(self._starts) or bool((labels == labels[:1]).all())
        )

    def blocks(self, first: int, last: int, most: int) -> list[tuple[int, int]]:
        """(start, stop) from `first` to `last`, up to `most` each."""
        ends = [first, *(start for start in self._starts if first < start < last), last]
        found = []
        for start, stop in pairwise(ends):
            even = -(-(stop - start) // -(-(stop - start) // most))
            found += [(i, min(i + even, stop)) for i in range(start, stop, even)]
        return found


def _mask(entries: Tensor, mine: Tensor, theirs: Tensor, *, one: bool) -> None:
    """Set entries (q, M') of rows of a query's own label to infinity; `one`: all have the same."""
    if one:
        entries.index_fill_(1, (theirs == mine[0]).nonzero().squeeze(1), torch.inf)
    else:
        entries[:, : len(theirs)].masked_fill_(mine[:, None] == theirs, torch.inf)


def _seeming(classes: Tensor, which: Tensor, queries: Tensor) -> Tensor:
    """Of queries (a,), the row with the least of the entries (q, m, classes) of its class (a,)."""
    return classes[queries, :, which].argmin(dim=1) * _CLASSES + which


def _within(
    classes: Tensor, least_of_class: Tensor, limit: Tensor, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """Of queries (a,), the rows whose entries (q, m, classes) are not above their limits (a,).

    Which of the (a,) each is of, ascending, and its number, both (p,).
    """
    among, which = (least_of_class[queries] <= limit[:, None]).nonzero(as_tuple=True)
    entries = classes[queries[among], :, which]  # (n, m)
    found, member = (entries <= limit[among, None]).nonzero(as_tuple=True)
    return among[found], member * _CLASSES + which[found]


def squared_distances(points: Tensor, centres: Tensor, point: Tensor, centre: Tensor) -> Tensor:
    """(p,) by differences, of points (N, D) and centres (C, D) with the numbers given, both (p,).

    A value depends on the two vectors alone.
    """
    at_once = max(1, _PAIR_BYTES // (4 * points.shape[1]))
    found = [
        points.index_select(0, p).sub_(centres.index_select(0, c)).square_().sum(dim=1)
        for p, c in zip(point.split(at_once), centre.split(at_once))
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def least_of_pairs(
    point: Tensor, centre: Tensor, distance: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The least distance of each of `count` points (count,), and the first centre that has it.

    Of pairs (p,), at least one for each point.
    """
    closest = distance.new_full((count,), torch.inf)
    closest.scatter_reduce_(0, point, distance, "amin")
    best = (distance == closest[point]).nonzero().squeeze(1)
    chosen = centre.new_full((count,), torch.iinfo(torch.int64).max)
    chosen.scatter_reduce_(0, point[best], centre[best], "amin")
    return closest, chosen


def keep_nearer(
    nearest: Tensor, winner: Tensor, points: Tensor, closest: Tensor, chosen: Tensor
) -> None:
    """Set `nearest` and `winner` (N,) of `points` (p,) to `closest` and `chosen` (p,), in place.

    Where these are nearer, or as near and of a lower number.
    """
    known, which = nearest[points], winner[points]
    nearer = (closest < known) | ((closest == known) & (chosen < which))
    winner[points] = torch.where(nearer, chosen, which)
    nearest[points] = torch.minimum(known, closest)
