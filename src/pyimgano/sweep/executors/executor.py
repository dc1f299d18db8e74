"""What an executor is: it is given jobs, and yields how each ended, in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from ...errors import PyimganoError
from ...memory import available_bytes, one_line
from ...runs.sweep_schema import CellOutcome, SweepResources
from ...threads import available_cores
from ..cell import Job, is_full, outcome_of

if TYPE_CHECKING:
    from typing_extensions import Self

#: Does a job. Executors in other processes import it by its name, `module:function`.
DoJob = Callable[[Job], CellOutcome]
RUN_CELL = "pyimgano.sweep.cell:run_cell"
#: How often a cell is begun whose process dies.
ATTEMPTS = 3


class Executor(Protocol):
    """Runs jobs somewhere; what it holds is open within its `with` block.

    A job that raises, or whose process dies too often, is an outcome with the status `failed`.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def run(self, jobs: Iterable[Job]) -> Iterator[CellOutcome]:
        """Yield the outcome of each job, once, as they end."""
        ...


def places(resources: SweepResources) -> int:
    """Return how many cells fit on this machine at a time: by its cores, and by free memory."""
    by_cores = math.floor(available_cores() / resources.cpus)
    free = available_bytes()
    by_memory = by_cores if free is None else int(free // (resources.memory_gib * 2**30))
    return max(1, min(by_cores, by_memory))


def attempt(work: DoJob, job: Job) -> CellOutcome:
    """Do a job; what it raises is an outcome that says so."""
    try:
        return work(job)
    except Exception as error:  # a disk that is full, most likely
        why = str(error) if isinstance(error, PyimganoError) else one_line(error)
        return outcome_of(job.cell.name, "failed", why, trouble="disk" if is_full(error) else None)


def find_work(name: str) -> DoJob:
    """Import what `module:function` names."""
    from importlib import import_module

    module, _, function = name.partition(":")
    work: DoJob = getattr(import_module(module), function)
    return work
