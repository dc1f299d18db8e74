"""Other libraries, called so that their results depend on the data alone, and in silence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from ...threads import single_threaded

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


@contextmanager
def quietly() -> Iterator[None]:
    """One thread for BLAS and OpenMP, and no warnings.

    Sums split over several threads differ in their last bits from those of one; and what the
    libraries warn of, equal rows and clusters that do not converge, has its place in the notes
    and the documentation of a detector.
    """
    with single_threaded(_libraries()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _libraries() -> ThreadpoolController:
    import sklearn.neighbors  # noqa: F401 -- so that its OpenMP is among the libraries
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
