"""A bank of normal patch features: the nearest one of a query, and its neighbourhood."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ...memory import in_blocks, is_out_of_memory, release_memory
from ...precision import full_precision
from .exhaustive import ExhaustiveSearch
from .grouped_points import GroupedPoints
from .room import bank_does_not_fit
from .rounded import is_quick

_T = TypeVar("_T")

_PIVOTS = 64
_ROWS_PER_PIVOT = 32
# Queries searched together: enough to share the work, few enough to bound memory; and the least
# where memory is short.
_SLAB = 32768
_LEAST_SLAB = 256
# Rows whose neighbourhoods are found together, and the least.
_ROWS = 2048
_LEAST_ROWS = 4
# Up to so many queries all rows are compared.
_FEW = 8192
# Share of comparisons that pivots must leave at most for it to pay that they rule others out.
_MUCH = 0.3
# Of an image's queries, those that are looked at closely first where the farthest is wanted; and
# the part of the rows that bound distances before.
_PROMISING = 16
_ROWS_PER_PROBED = 16
# Every so many rows, one is looked at first, for upper bounds that rule most others out.
_STRIDE = 32


class MemoryBank:
    """Patch features in the order of their selection, and the image that each comes from.

    Where memory runs out, searches go on with half as many queries at a time, and so on; what
    is found does not depend on it, since sums of squared differences decide, whose value depends
    on the two vectors alone.

    Parameters
    ----------
    features
        (M, D) float32.
    image
        (M,) int64: number of the training image that a feature comes from.
    prune
        Whether it is tried to rule most comparisons out by the triangle inequality: in fewer
        dimensions, or else by pivots. Whitened features lie neither near a subspace nor in
        clusters, so that nothing would be ruled out.

    Raises
    ------
    NotEnoughMemoryError
        The bank does not fit; says how large a one would. Also of `search` and `neighbourhood`,
        where not even a few queries do.
    """

    def __init__(self, features: Tensor, image: Tensor, *, prune: bool = True) -> None:
        self.features = features
        self.image = image
        self._prune = prune
        self._fitting(self._prepare)

    def _prepare(self) -> None:
        features = self.features
        self._all = ExhaustiveSearch(features, project=self._prune)
        # Where comparing is quick, ruling out by pivots takes as long as it saves.
        self._groups = self._prune and not self._all.projects and not is_quick(features.device)
        count = min(_PIVOTS, max(1, len(features) // _ROWS_PER_PIVOT))
        # The first picks of a greedy selection lie far apart: good pivots, and good bounds.
        self._pivots = features[:count]
        self._first = self._all.beginning(len(self) // _ROWS_PER_PROBED)

    def _fitting(self, work: Callable[[], _T]) -> _T:
        """Do it; where memory runs out, the error says what would fit."""
        try:
            with full_precision(self.features.device):
                return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # here, where what the failed try held is gone with its error
        release_memory()
        raise bank_does_not_fit(len(self), self.features.shape[1], self.features.device)

    def __len__(self) -> int:
        return len(self.features)

    def search(self, queries: Tensor, query_image: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The nearest row of each query.

        Parameters
        ----------
        queries
            (Q, D) float32.
        query_image
            (Q,) int64: rows of the same training image are masked. At least one row of
            another image must be there.

        Returns
        -------
        distances, rows
            (Q,) float32 Euclidean distances and (Q,) int64 rows of the bank.
        """

        def search(start: int, stop: int) -> tuple[Tensor, Tensor]:
            own = None if query_image is None else query_image[start:stop]
            return self._search(queries[start:stop], own)

        def search_all() -> tuple[Tensor, Tensor]:
            found = in_blocks(search, len(queries), _SLAB, _LEAST_SLAB)
            return torch.cat([d for d, _ in found]), torch.cat([r for _, r in found])

        with torch.inference_mode():
            return self._fitting(search_all)

    def farthest(self, queries: Tensor, query_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image's queries the one that is farthest from its nearest row.

        As `search` and the largest of its distances, for a fraction of the work: the first rows
        bound every distance from above, and only queries whose bound exceeds what the most
        promising ones of their image really have are compared with all rows.

        Parameters
        ----------
        queries
            (N, k, D) float32, of N images.
        query_image
            (N,) int64: rows of the same training image are masked, as in `search`.

        Returns
        -------
        distances, which, rows
            (N,) float32, (N,) int64 the query's number in its image, the first of equals, and
            (N,) int64 its nearest row.
        """
        with torch.inference_mode():
            return self._fitting(lambda: self._farthest(queries, query_image))

    def _farthest(self, queries: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, k = queries.shape[:2]
        flat = queries.flatten(0, 1)
        mine, theirs = image.int().repeat_interleave(k), self.image[: len(self._first)].int()
        bounds = torch.cat(
            in_blocks(
                lambda i, j: self._first.near(flat[i:j], (mine[i:j], theirs)),
                len(flat),
                _SLAB,
                _LEAST_SLAB,
            )
        )
        bounds = bounds.sqrt_().view(count, k)  # (N, k)
        nearest = torch.full_like(bounds, -torch.inf)
        rows = torch.zeros_like(nearest, dtype=torch.int64)

        def look(chosen: Tensor) -> None:
            """At these (N, k) closely."""
            numbers = chosen.flatten().nonzero().squeeze(1)
            if len(numbers):
                # of one image after another, as masking is quickest
                found = self.search(flat[numbers], image[numbers // k])
                nearest.view(-1)[numbers], rows.view(-1)[numbers] = found

        promising = torch.zeros_like(bounds, dtype=torch.bool)
        promising.scatter_(1, bounds.topk(min(_PROMISING, k), dim=1).indices, True)
        look(promising)
        best = nearest.amax(dim=1, keepdim=True)
        look((bounds >= best) & ~promising)
        distances = nearest.amax(dim=1)
        which = (nearest == distances[:, None]).int().argmax(dim=1)  # the first of equals
        return distances, which, rows.gather(1, which[:, None]).squeeze(1)

    def _search(self, queries: Tensor, query_image: Tensor | None) -> tuple[Tensor, Tensor]:
        nearest = queries.new_full((len(queries),), torch.inf)  # squared
        winner = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        labels = None
        if query_image is not None:
            labels = (query_image.int(), self.image.int())
        if self._groups and len(queries) > _FEW:
            self._look_at_some(queries, nearest, winner, labels)
            groups = GroupedPoints(queries, self._pivots)
            order = groups.order
            grouped = None if labels is None else (labels[0][order], labels[1])
            bound, which = nearest[order], winner[order]
            much = groups.share_left(bound, self.features) > _MUCH
            if not much:
                groups.lower(bound, self._all, winner=which, labels=grouped)
                nearest[order], winner[order] = bound, which
                return nearest.sqrt_(), winner
        self._all.lower(queries, nearest, winner, labels)
        return nearest.sqrt_(), winner

    def _look_at_some(
        self,
        queries: Tensor,
        nearest: Tensor,
        winner: Tensor,
        labels: tuple[Tensor, Tensor] | None,
    ) -> None:
        some = torch.arange(0, len(self), _STRIDE, device=winner.device)
        first = torch.full_like(winner, -1)
        theirs = None if labels is None else (labels[0], labels[1][some])
        ExhaustiveSearch(self.features[some]).lower(queries, nearest, first, theirs)
        found = first >= 0  # masking can leave none of these few
        winner[found] = some[first[found]]

    def neighbourhood(
        self, rows: Tensor, size: int, row_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `size` nearest rows of each given row, itself among them.

        Parameters
        ----------
        rows
            (Q,) int64 rows of the bank.
        size
            How many; fewer are given where the bank has fewer.
        row_image
            (Q,) int64: rows of that training image are masked.

        Returns
        -------
        neighbours, valid
            (Q, K) int64 rows, nearest first, and (Q, K) bool: False where masking left
            fewer than K.
        """

        def find(start: int, stop: int) -> tuple[Tensor, Tensor]:
            own = None if row_image is None else row_image[start:stop]
            return self._neighbourhood(rows[start:stop], min(size, len(self)), own)

        def find_all() -> tuple[Tensor, Tensor]:
            found = in_blocks(find, len(rows), _ROWS, _LEAST_ROWS)
            return torch.cat([n for n, _ in found]), torch.cat([v for _, v in found])

        with torch.inference_mode():
            return self._fitting(find_all)

    def _neighbourhood(
        self, rows: Tensor, size: int, row_image: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        labels = None if row_image is None else (row_image.int(), self.image.int())
        found, distances = self._all.nearest_few(self.features[rows], size, labels)
        valid = distances.isfinite()
        # a row is its own nearest, also of copies of it, unless its image is masked
        counts = torch.ones_like(rows, dtype=torch.bool)
        if row_image is not None:
            counts = self.image[rows] != row_image
        again = (found == rows[:, None]) & valid & counts[:, None]
        again[:, -1] |= counts & ~again.any(dim=1)  # then the last is one too many
        kept = torch.cat([counts[:, None], ~again], dim=1)  # (q, size + 1)
        itself = torch.cat([rows[:, None], found], dim=1)
        valid = torch.cat([counts[:, None], valid], dim=1)
        return itself[kept].view(-1, size), valid[kept].view(-1, size)
