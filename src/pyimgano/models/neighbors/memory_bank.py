"""A bank of normal patch features, which finds the nearest one of a query, and its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ...memory import in_blocks, is_out_of_memory, release_memory
from ...precision import full_precision
from .out_of_memory import bank_does_not_fit
from .search import ExhaustiveSearch

_T = TypeVar("_T")

# Queries that are searched for together, which bounds memory, and the least where it is short.
_QUERIES = 32768
_LEAST_QUERIES = 256
# Rows whose neighbourhoods are found together, and the least.
_ROWS = 2048
_LEAST_ROWS = 4


class MemoryBank:
    """Hold patch features in the order of their selection, and the image that each comes from.

    Where memory runs out, searches go on with half as many queries at a time, and so on. What is
    found does not depend on it (`search`).

    Parameters
    ----------
    features
        (M, D) float32.
    image
        (M,) int64, the number of the training image that each feature comes from.

    Raises
    ------
    NotEnoughMemoryError
        The bank does not fit. The message says how large a bank would. `search` and
        `neighbourhood` raise it too, where not even a few queries fit.
    """

    def __init__(self, features: Tensor, image: Tensor) -> None:
        self.features = features
        self.image = image
        self._rows = self._fitting(lambda: ExhaustiveSearch(features, project=True))

    def _fitting(self, work: Callable[[], _T]) -> _T:
        """Return the result of `work`, or raise an error that says how large a bank would fit."""
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
        """Return the nearest row of each query.

        Parameters
        ----------
        queries
            (Q, D) float32.
        query_image
            (Q,) int64, the training image that each query comes from: rows of the same image are
            masked. There must be at least one row of another image.

        Returns
        -------
        distances, rows
            (Q,) float32 Euclidean distances and (Q,) int64 rows of the bank.
        """

        def search(start: int, stop: int) -> tuple[Tensor, Tensor]:
            own = None if query_image is None else query_image[start:stop]
            return self._search(queries[start:stop], own)

        def search_all() -> tuple[Tensor, Tensor]:
            found = in_blocks(search, len(queries), _QUERIES, _LEAST_QUERIES)
            return torch.cat([d for d, _ in found]), torch.cat([r for _, r in found])

        with torch.inference_mode():
            return self._fitting(search_all)

    def _search(self, queries: Tensor, query_image: Tensor | None) -> tuple[Tensor, Tensor]:
        nearest = queries.new_full((len(queries),), torch.inf)  # (Q,) squared
        winner = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        labels = None if query_image is None else (query_image, self.image)
        self._rows.update(queries, nearest, winner, labels)
        return nearest.sqrt_(), winner

    def neighbourhood(
        self, rows: Tensor, size: int, row_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the `size` nearest rows of each given row, itself among them.

        Parameters
        ----------
        rows
            (Q,) int64 rows of the bank.
        size
            How many; the bank's number of rows where it has fewer.
        row_image
            (Q,) int64, rows of this training image are masked.

        Returns
        -------
        neighbours, valid
            (Q, K) int64 rows, nearest first, and (Q, K) bool, which is False where masking left
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
        labels = None if row_image is None else (row_image, self.image)
        found, distances = self._rows.nearest_few(self.features[rows], size, labels)
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
