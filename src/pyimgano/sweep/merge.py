"""Joins the directories of shards, or of one sweep that was run in several places, to one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, UsageError
from ..runs import require_empty
from ..runs.sweep_schema import PlannedCell
from .folder import SweepFolder, read_sweep
from .report import SweepReport
from .table import make_table
from .table_forms import write_table

# In what order two directories have a say about a cell that neither has completed.
_TELLING = ("failed", "interrupted", "running")


def merge_sweeps(
    paths: Sequence[str | Path], *, output_dir: str | Path | None = None, metric: str = "auroc"
) -> SweepReport:
    """Return one table of the sweeps in several directories, such as the shards of one.

    The run directories stay where they lie, and the table names them. A cell of the plan that no
    directory has begun is a row that says so. Of a cell that is complete in several the first
    counts, and where the results differ a note says so.

    Parameters
    ----------
    paths
        Directories of sweeps; one alone gives the table of a sweep that was not finished.
    output_dir
        Write the table into this folder, which has to be empty or missing. By default nothing is
        written.
    metric
        Which metric ranks the methods.

    Raises
    ------
    UsageError
        No directory, one that is named twice, or an unknown metric.
    DataError
        One of them holds no sweep, or the table cannot be written.
    """
    if not paths:
        raise UsageError("give the directories of one sweep or more")
    if len({Path(one).resolve() for one in paths}) < len(paths):
        raise UsageError("a directory is named twice")
    if output_dir is not None:
        require_empty(output_dir)
    cells: dict[str, PlannedCell] = {}
    places: dict[str, list[SweepFolder]] = {}
    notes: list[str] = []
    for path in paths:
        document, folder = read_sweep(path), SweepFolder(path)
        notes += [one for one in document.notes if one not in notes]
        for one in document.cells:
            cells.setdefault(one.name, one)
            if folder.is_complete(one.name) or folder.outcome(one.name) is not None:
                places.setdefault(one.name, []).append(folder)
    ordered = list(cells.values())
    chosen = {name: _choose(name, found) for name, found in places.items()}
    notes += _differences(ordered, places, metric)
    table = make_table(ordered, chosen, metric=metric, notes=notes)
    if output_dir is not None:
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{output_dir}: cannot be made ({error.strerror})") from error
        write_table(table, Path(output_dir))
    return SweepReport(table, None if output_dir is None else Path(output_dir))


def _choose(cell: str, folders: Sequence[SweepFolder]) -> SweepFolder:
    """Return the directory that says most of a cell: a complete run, or else what went wrong."""

    def order(folder: SweepFolder) -> int:
        outcome = folder.outcome(cell)
        if folder.is_complete(cell) or outcome is None:
            return -1
        return _TELLING.index(outcome.status) if outcome.status in _TELLING else len(_TELLING)

    return min(folders, key=order)


def _differences(
    cells: Sequence[PlannedCell], places: dict[str, list[SweepFolder]], metric: str
) -> list[str]:
    """Say which cells are complete in several directories with other results."""
    said = []
    for one in cells:
        complete = [f for f in places.get(one.name, []) if f.is_complete(one.name)]
        if len(complete) < 2:
            continue
        found = [make_table([one], {one.name: f}, metric=metric).cells[0] for f in complete]
        for folder, other in zip(complete[1:], found[1:]):
            if other.metrics != found[0].metrics:
                said.append(
                    f"{one.name}: {complete[0].path} and {folder.path} have other results; the "
                    "first count"
                )
    return said
