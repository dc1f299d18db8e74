"""Runs cells one after another in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...runs.sweep_schema import CellOutcome
from ..cell import Job
from .executor import DoJob, attempt

if TYPE_CHECKING:
    from typing_extensions import Self


class InProcess:
    """Runs cells one after another in this process."""

    def __init__(self, work: DoJob) -> None:
        self._work = work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, jobs: Iterable[Job]) -> Iterator[CellOutcome]:
        """Yield the outcome of each job in their order."""
        return (attempt(self._work, job) for job in jobs)
