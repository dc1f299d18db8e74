"""The table of a sweep: a row for each cell; means, deviations and ranks of the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from ..comparison.run_facts import METRICS, report_costs, report_metrics
from ..errors import UsageError, unknown_name
from ..metric_names import LOW_IS_GOOD
from ..runs.sweep_schema import (
    CellStatus,
    PlannedCell,
    SweepCellRow,
    SweepMethodRow,
    SweepTableDocument,
)
from ..untrusted_files import parse_json, read_regular
from .folder import SweepFolder

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SweepTable:
    """Every cell of a sweep, and what they come to.

    Attributes
    ----------
    metric
        Which ranks.
    cells
        A row for each cell, in the order of the plan, whatever became of it.
    methods
        For every dataset and method a row for each category, and where there are several one of
        their mean (`category` is None).
    notes
        What a reader has to know.
    """

    metric: str
    cells: list[SweepCellRow]
    methods: list[SweepMethodRow]
    notes: list[str]

    def document(self) -> SweepTableDocument:
        """Return table.json."""
        return SweepTableDocument(
            metric=self.metric, cells=self.cells, methods=self.methods, notes=self.notes
        )

    @property
    def unfinished(self) -> list[SweepCellRow]:
        """Return the rows of cells that are not complete."""
        return [one for one in self.cells if one.status != "complete"]

    def values(self, dataset: str, method: str, metric: str) -> Floats:
        """Return a metric as (categories, seeds), NaN where a cell has none.

        Categories and seeds are in the order of the dataset's cells.
        """
        cells = [one for one in self.cells if one.dataset == dataset]
        return _values(cells, method, metric)


def make_table(
    cells: Sequence[PlannedCell],
    folders: Mapping[str, SweepFolder],
    *,
    metric: str = "auroc",
    notes: Sequence[str] = (),
) -> SweepTable:
    """Return the table of the cells, from what their run directories hold.

    Parameters
    ----------
    cells
        In the order of the rows.
    folders
        By the name of a cell the sweep directory that it lies in; cells without one were not begun.
    metric
        Which ranks, of those that leaderboards know.
    notes
        Stand before those of the table itself.

    Raises
    ------
    UsageError
        An unknown metric.
    """
    if metric not in METRICS:
        raise UsageError(unknown_name("metric", metric, METRICS))
    found = [_read(one, folders.get(one.name)) for one in cells]
    rows = [row for row, _ in found]
    said = list(notes)
    versions = sorted({version for _, version in found if version is not None})
    if len(versions) > 1:
        said.append(f"cells were run by different versions of pyimgano: {', '.join(versions)}")
    unreadable = [one.cell for one in rows if one.unreadable]
    if unreadable:
        some = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        said.append(f"test images of {len(unreadable)} cells could not be read: {some}")
    methods: list[SweepMethodRow] = []
    for dataset in dict.fromkeys(one.dataset for one in rows):
        methods += _method_rows([one for one in rows if one.dataset == dataset], metric)
    return SweepTable(metric, rows, methods, said)


def _read(cell: PlannedCell, folder: SweepFolder | None) -> tuple[SweepCellRow, str | None]:
    """Return the row of a cell, and the version of the program that it was run by."""
    outcome = None if folder is None else folder.outcome(cell.name)
    report: dict[str, Any] = {}
    if folder is not None:
        try:
            report = parse_json(read_regular(folder.run_dir(cell.name) / "report.json"))
        except (OSError, ValueError):
            report = {}
    known = isinstance(report, dict) and bool(report)
    status: CellStatus = "not begun"
    why = None
    if known and report.get("status") == "complete":
        status = "complete"
    elif outcome is not None:
        status, why = outcome.status, outcome.why
    elif known:  # whoever was at it has died, or is at it still
        status = "running"
    counts = report.get("counts") or {}
    whole = status == "complete"
    log = None if folder is None else folder.log(cell.name)
    row = SweepCellRow(
        cell=cell.name,
        **cell.model_dump(
            include={"dataset", "category", "method", "model", "preset", "backbone", "seed"}
        ),
        status=status,
        why=why,
        host=None if outcome is None else outcome.host,
        run_dir=str(folder.run_dir(cell.name)) if folder is not None and known else None,
        log=None if log is None or not log.exists() else str(log),
        unreadable=int(counts.get("test_unreadable") or 0) if whole else 0,
        metrics=report_metrics(report) if whole else {},
        costs=report_costs(report) if whole else {},
    )
    return row, report.get("pyimgano_version") if whole else None


def _method_rows(cells: Sequence[SweepCellRow], metric: str) -> list[SweepMethodRow]:
    """Return the rows of the methods on one dataset."""
    categories = list(dict.fromkeys(one.category for one in cells))
    methods = list(dict.fromkeys(one.method for one in cells))
    asked = {name: len({one.seed for one in cells if one.method == name}) for name in methods}
    values = {  # by method and metric (categories, seeds)
        name: {one: _values(cells, name, one) for one in METRICS} for name in methods
    }
    ranks = _ranks([values[name][metric] for name in methods], metric)  # (methods, categories)
    rows = []
    for number, name in enumerate(methods):
        facts = {"dataset": cells[0].dataset, "method": name, "asked": asked[name]}
        for at, category in enumerate(categories):
            of_one = {one: found[at] for one, found in values[name].items()}  # (seeds,)
            rows.append(_row(of_one, ranks[number, at], metric, category=category, **facts))
        if len(categories) > 1:
            # of a seed the mean over the categories, where it has them all
            over = {one: found.mean(axis=0) for one, found in values[name].items()}
            rows.append(_row(over, ranks[number].mean(), metric, category=None, **facts))
    return rows


def _row(of_seeds: Mapping[str, Floats], rank: float, metric: str, **facts: Any) -> SweepMethodRow:
    """Return a row, given the (seeds,) values of every metric."""
    means: dict[str, float | None] = {}
    deviations: dict[str, float | None] = {}
    for name, found in of_seeds.items():
        known = found[~np.isnan(found)]
        means[name] = float(known.mean()) if len(known) else None
        deviations[name] = float(known.std(ddof=1)) if len(known) > 1 else None
    return SweepMethodRow(
        seeds=int((~np.isnan(of_seeds[metric])).sum()),
        means=means,
        deviations=deviations,
        rank=None if np.isnan(rank) else float(rank),
        **facts,
    )


def _ranks(values: Sequence[Floats], metric: str) -> Floats:
    """Return (methods, categories): the rank of each mean over seeds; NaN of incomplete methods."""
    means = np.stack([one.mean(axis=1) for one in values])  # NaN where a cell has no value
    ranks = np.full(means.shape, np.nan)
    whole = ~np.isnan(means).any(axis=1)
    if whole.any():
        better = means[whole] if metric in LOW_IS_GOOD else -means[whole]
        ranks[whole] = rankdata(better, method="average", axis=0)
    return ranks


def _values(cells: Sequence[SweepCellRow], method: str, metric: str) -> Floats:
    """Return (categories, seeds) of a method and its own seeds."""
    categories = list(dict.fromkeys(one.category for one in cells))
    own = [one for one in cells if one.method == method]
    seeds = list(dict.fromkeys(one.seed for one in own))
    found = np.full((len(categories), len(seeds)), np.nan)
    for one in own:
        value = one.metrics.get(metric)
        if value is not None:
            found[categories.index(one.category), seeds.index(one.seed)] = value
    return found
