"""`run_sweep`: the whole story of a sweep, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import UsageError
from ..runs.sweep_schema import CellOutcome, PlannedCell, SweepDocument, SweepFile
from .cell import Job, run_cell
from .executors import Executor, InProcess, Processes, places
from .folder import SweepFolder, open_sweep
from .plan import import_modules, make_plan
from .report import SweepReport
from .shards import parse_shard
from .table import make_table
from .table_forms import write_table

ExecutorName = Literal["processes", "in-process", "ray"]
# Between two looks at cells that other processes are at.
_POLL_SECONDS = 2.0


class SweepListener(Protocol):
    """Told how a sweep goes on; what the command line's progress bar is."""

    def cell_finished(self, outcome: CellOutcome, done: int, total: int) -> None: ...

    def waiting(self, cells: int) -> None: ...


def run_sweep(
    sweep: str | Path | Mapping[str, Any] | SweepFile | None = None,
    *,
    executor: ExecutorName = "processes",
    workers: int | None = None,
    address: str | None = None,
    dashboard: bool = False,
    shard: str | None = None,
    claim: bool = False,
    output_dir: str | Path | None = None,
    runs_dir: str | Path | None = None,
    resume: str | Path | None = None,
    modules: Sequence[str] = (),
    metric: str = "auroc",
    listener: SweepListener | None = None,
    **how: Any,
) -> SweepReport:
    """Run every cell of a sweep: datasets and categories times models, settings and seeds.

    Each cell leaves a run directory, as `run_benchmark` does. A cell that is complete is not run
    again; one that fails is a row of the table that says why, and costs the others nothing.
    Results do not depend on the executor, on the number of processes, or on the order.

    Parameters
    ----------
    sweep
        The path of a sweep file (.yaml, .yml or .json), or what stands in one. May be left out
        beside `resume`.
    executor
        `processes`: in new processes on this machine. `in-process`: one after another in this one.
        `ray`: on a Ray cluster (extra `pyimgano[ray]`).
    workers
        How many cells run at a time. By default as many as cores and memory allow, given the
        sweep's `resources`; on Ray as many as the cluster has room for.
    address
        Of a Ray cluster that runs already. By default one is started on this machine.
    dashboard
        Whether a Ray cluster that is started here has its dashboard.
    shard
        `k/n`: run only the k-th of n equal parts of the cells, which `merge_sweeps` joins.
    claim
        Share the cells of one directory with other processes, on other machines too: each takes a
        cell by a lock that ends with its process.
    output_dir
        Write the sweep into this folder itself, which has to be empty or missing.
    runs_dir
        Make a named directory in this folder, where `output_dir` is not given. Default runs.
    resume
        Go on with the sweep in this directory. Where `sweep` is given too, it may have further
        cells, and the directory may not be there yet.
    modules
        Python modules that are imported first, here and in other processes, since they register
        models.
    metric
        Which metric ranks the methods.
    listener
        Object whose methods are called as the sweep advances.
    how
        For the executor `in-process`: the arguments `listener` and `create` of `run_benchmark`, as
        `cell_listener` and `create`.

    Returns
    -------
    SweepReport
        The table as plain JSON values; its files lie in `sweep_dir`.

    Raises
    ------
    UsageError
        Something that a sweep file must not hold, an unknown name, a value out of range.
    DataError
        A dataset is not there; the directory is no sweep, or another process runs it.
    """
    part = parse_shard(shard)
    plan = None if sweep is None else make_plan(sweep, modules=modules)
    name = Path(sweep).stem if isinstance(sweep, (str, Path)) else "grid"
    opened = open_sweep(
        plan,
        name=name if part is None else f"{name}_shard{part.number}of{part.of}",
        shard=shard if part is None else str(part),
        output_dir=output_dir,
        runs_dir=runs_dir,
        resume=resume,
        claim=claim,
    )
    with opened as (folder, document):
        import_modules(document.modules)
        own = parse_shard(document.shard)
        cells = document.cells if own is None else own.take(document.cells)
        pending = [one for one in cells if not folder.is_complete(one.name)]
        if pending:
            room = places(document.resources) if workers is None else workers
            room = max(1, min(room, len(pending)))
            given = _executor(executor, room, workers, address, dashboard, folder, document, how)
            before = len(cells) - len(pending)
            with given as running:
                ended = _finished(running, _spread(pending), folder, document, claim, listener)
                for done, outcome in enumerate(ended, start=before + 1):
                    if listener is not None:
                        listener.cell_finished(outcome, done, len(cells))
        table = make_table(
            cells, {one.name: folder for one in cells}, metric=metric, notes=document.notes
        )
        write_table(table, folder.path)
        if not table.unfinished:
            folder.drop_features()
    return SweepReport(table, folder.path)


def _finished(
    executor: Executor,
    cells: Sequence[PlannedCell],
    folder: SweepFolder,
    document: SweepDocument,
    claim: bool,
    listener: SweepListener | None,
) -> Iterator[CellOutcome]:
    """Yield how each cell ended, and see that this is written.

    A cell that another process is at is looked at again when the others are done: it is complete by
    then, or that process has died and let go of it.
    """
    place = str(folder.path.absolute())
    waiting = list(cells)
    while waiting:
        jobs = [
            Job(
                cell=one, folder=place, modules=document.modules, threads=None, locks_required=claim
            )
            for one in waiting
        ]
        elsewhere = set()
        for outcome in executor.run(jobs):
            if outcome.status == "running":
                elsewhere.add(outcome.cell)
                continue
            if folder.outcome(outcome.cell) != outcome:  # its process could not write it
                folder.keep_outcome(outcome)
            yield outcome
        waiting = [one for one in waiting if one.name in elsewhere]
        if waiting:
            if listener is not None:
                listener.waiting(len(waiting))
            time.sleep(_POLL_SECONDS)


def _spread(cells: Iterable[PlannedCell]) -> list[PlannedCell]:
    """Return cells in the order in which they begin: first one of each category, then the others.

    The first on some images extracts their features, which the others find.
    """
    counted: dict[tuple[str, str], int] = {}
    numbered = []
    for one in cells:
        key = one.dataset, one.category
        numbered.append((counted.get(key, 0), one))
        counted[key] = counted.get(key, 0) + 1
    return [one for _, one in sorted(numbered, key=lambda pair: pair[0])]


def _executor(
    kind: str,
    room: int,
    workers: int | None,
    address: str | None,
    dashboard: bool,
    folder: SweepFolder,
    document: SweepDocument,
    how: Mapping[str, Any],
) -> Executor:
    if address is not None and kind != "ray":
        raise UsageError("address names a Ray cluster; the executor is not ray")
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    if kind == "in-process":
        named = {"cell_listener": "listener", "create": "create"}
        return InProcess(partial(run_cell, **{named[name]: one for name, one in how.items()}))
    if how:
        raise UsageError(f"{', '.join(how)}: only for the executor in-process")
    if kind == "processes":
        return Processes(room, folder.path / "logs")
    if kind == "ray":
        from .executors.ray_cluster import RayCluster

        return RayCluster(
            document.resources, folder.path, address=address, workers=workers, dashboard=dashboard
        )
    raise UsageError(f"executor must be processes, in-process or ray, got {kind!r}")
