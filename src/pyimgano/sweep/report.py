"""What `run_sweep` returns: the document of its table, with a face in Python and in notebooks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..comparison.leaderboard import with_deviation
from ..comparison.run_facts import METRICS
from .table import SweepTable


class SweepReport(dict[str, Any]):
    """The table of a sweep as plain values by name, as `json.dumps` takes it.

    Beside what table.json holds, `sweep_dir` says where the sweep lies; None if it was not kept.

    Attributes
    ----------
    table
        The same as an object.
    """

    def __init__(self, table: SweepTable, folder: Path | None) -> None:
        plain = json.loads(table.document().model_dump_json())
        super().__init__({"sweep_dir": None if folder is None else str(folder), **plain})
        self.table = table

    @property
    def complete(self) -> bool:
        """Return whether every cell is complete."""
        return not self.table.unfinished

    def without_places(self) -> SweepReport:
        """Return the report of a sweep whose directory is not kept."""
        gone = {"run_dir": None, "log": None}
        cells = [one.model_copy(update=gone) for one in self.table.cells]
        return SweepReport(replace(self.table, cells=cells), None)

    def __repr__(self) -> str:
        total, left = len(self.table.cells), len(self.table.unfinished)
        place = self["sweep_dir"]
        return f"<SweepReport: {total - left} of {total} cells complete; {place}>"

    def _repr_html_(self) -> str:
        from ..notebook import table

        names = {name: METRICS[name] for name in self._known()}
        rows = [
            [
                *(one.dataset, one.category or "mean", one.method, f"{one.seeds} of {one.asked}"),
                *(with_deviation(one.means[name], one.deviations[name]) for name in names),
                "" if one.rank is None else f"{one.rank:.2f}",
            ]
            for one in self.table.methods
        ]
        head = ["dataset", "category", "method", "seeds", *names.values(), "rank"]
        return table("Sweep, in percent", rows, head)

    def to_frame(self) -> Any:
        """Return the cells as a `pandas.DataFrame`, one row for each.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from ..notebook import to_frame

        rows = [
            {**{k: v for k, v in one.items() if not isinstance(v, dict)}, **one["metrics"]}
            for one in self["cells"]
        ]
        return to_frame(rows, "cell")

    def _known(self) -> list[str]:
        rows = self.table.methods
        return [name for name in METRICS if any(one.means[name] is not None for one in rows)]
