"""The table of a sweep in its forms: JSON, CSV, Markdown and the page of a leaderboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..comparison import render_leaderboard
from ..comparison.leaderboard import Entry, Leaderboard, Table
from ..comparison.run_facts import METRICS
from ..runs import csv_text, write_document, write_text
from ..runs.sweep_schema import SweepCellRow, SweepMethodRow
from .table import SweepTable

_COSTS = ("fit_seconds", "milliseconds_per_image", "peak_memory_bytes", "bank_rows")
# Cells that are not complete and that Markdown lists; table.json and cells.csv have all.
_MOST_LISTED = 50


def write_table(table: SweepTable, folder: Path) -> dict[str, Path]:
    """Write a table into a folder in all its forms, and return the files by form.

    `json` has everything, `cells` (CSV) a line for each cell, `csv` a line for each method and
    category, `markdown` and `html` are for people.

    Raises
    ------
    DataError
        A file cannot be written.
    """
    names = {"json": "table.json", "cells": "cells.csv", "csv": "table.csv"}
    names |= {"markdown": "table.md", "html": "leaderboard.html"}
    files = {form: folder / name for form, name in names.items()}
    board = as_leaderboard(table)
    write_document(files["json"], table.document())
    write_text(files["cells"], cells_csv(table))
    write_text(files["csv"], methods_csv(table))
    write_text(files["markdown"], render_leaderboard(board, "markdown"))
    write_text(files["html"], render_leaderboard(board, "html"))
    return files


def cells_csv(table: SweepTable) -> str:
    """Return the cells as CSV, those that failed among them."""
    facts = ["dataset", "category", "method", "model", "preset", "backbone", "seed", "status"]
    rows: list[list[str | int | float | None]] = [
        [*facts, "why", *METRICS, *_COSTS, "host", "run_dir", "log"]
    ]
    for one in table.cells:
        rows.append(
            [
                *(getattr(one, name) for name in (*facts, "why")),
                *(one.metrics.get(name) for name in METRICS),
                *(one.costs.get(name) for name in _COSTS),
                *(one.host, one.run_dir, one.log),
            ]
        )
    return csv_text(rows)


def methods_csv(table: SweepTable) -> str:
    """Return means, deviations and ranks as CSV; the category `mean` is over all categories."""
    rows: list[list[str | int | float | None]] = [
        [
            *("dataset", "category", "method", "seeds", "asked", "rank"),
            *(f"{name}_{what}" for name in METRICS for what in ("mean", "deviation")),
        ]
    ]
    for one in table.methods:
        values = [found.get(name) for name in METRICS for found in (one.means, one.deviations)]
        category = "mean" if one.category is None else one.category
        rows.append([one.dataset, category, one.method, one.seeds, one.asked, one.rank, *values])
    return csv_text(rows)


def as_leaderboard(table: SweepTable) -> Leaderboard:
    """Return the methods as a leaderboard: a line for each, means over seeds and categories."""
    tables: list[Table] = []
    for dataset in dict.fromkeys(one.dataset for one in table.cells):
        categories = list(dict.fromkeys(c.category for c in table.cells if c.dataset == dataset))
        rows = [one for one in table.methods if one.dataset == dataset]
        entries = []
        for method in dict.fromkeys(one.method for one in rows):
            own = {one.category: one for one in rows if one.method == method}
            cells = [c for c in table.cells if (c.dataset, c.method) == (dataset, method)]
            whole = own.get(None) or own[categories[0]]
            entries.append(_entry(table.metric, method, whole, own, cells))
        entries.sort(key=lambda one: np.inf if one.rank is None else one.rank)
        notes = [
            f"{one.method} on {one.category}, seed {one.seed}: {one.status}"
            + (f": {one.why}" if one.why else "")
            for one in table.unfinished
            if one.dataset == dataset
        ]
        more = [f"and {len(notes) - _MOST_LISTED} more, all in cells.csv"]
        notes = notes[:_MOST_LISTED] + more * (len(notes) > _MOST_LISTED)
        notes += table.notes if not tables else []
        tables.append(Table(dataset, categories, entries, notes))
    known = {
        name for one in table.methods for name, value in one.means.items() if value is not None
    }
    return Leaderboard(table.metric, [m for m in METRICS if m in known], tables, [])


def _entry(
    metric: str,
    method: str,
    whole: SweepMethodRow,
    own: dict[str | None, SweepMethodRow],
    cells: list[SweepCellRow],
) -> Entry:
    milliseconds = [c.costs.get("milliseconds_per_image") for c in cells]
    known = [value for value in milliseconds if value is not None]
    return Entry(
        label=method,
        paths=[c.run_dir for c in cells if c.run_dir is not None],
        means=whole.means,
        per_category={name: one.means[metric] for name, one in own.items() if name is not None},
        rank=whole.rank,
        missing={f"{c.category}, seed {c.seed}": c.status for c in cells if c.status != "complete"},
        milliseconds=float(np.mean(known)) if known else None,
        deviations=whole.deviations if whole.asked > 1 else {},
    )
