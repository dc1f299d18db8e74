"""Other libraries, called so that their results depend on the data alone, and in silence."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...threads import single_threaded

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


@contextmanager
def quietly() -> Iterator[None]:
    """Leave one thread to BLAS and OpenMP, and let no warning through.

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

    _tell_joblib_how_many_cores()
    return ThreadpoolController()


def _tell_joblib_how_many_cores() -> None:
    """Spare joblib the process (`lscpu`, `sysctl`) by which it counts cores for scikit-learn.

    One thread is used here whatever the number is. Windows needs no process for it.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(ImportError):  # another joblib counts as it likes
        from joblib.externals.loky.backend import context

        if getattr(context, "physical_cores_cache", 0) is None:
            context.physical_cores_cache = _physical_cores()


def _physical_cores() -> int:
    """Return how many cores there are, as Linux tells it; elsewhere, how many it can run at once.

    Two threads of one core count once.
    """
    cores = set()
    for core in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/core_id"):
        with contextlib.suppress(OSError):
            package = core.with_name("physical_package_id").read_text()
            cores.add((package, core.read_text()))
    return len(cores) or os.cpu_count() or 1
