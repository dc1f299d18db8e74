"""Runs of several models as one table, with ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..errors import DataError, UsageError, unknown_name
from ..metric_names import LOW_IS_GOOD
from .compare import SCHEMA_VERSION, short_labels
from .run_facts import METRICS, RunFacts, read_run_facts, settings_that_differ


@dataclass(frozen=True)
class Entry:
    """A line of a leaderboard: one run.

    Attributes
    ----------
    label
        The model, with the settings that tell it from other runs of the same model.
    paths
        The run directory; several where each holds other categories.
    means
        By metric, over the categories that the run has measured; None where it is known of none.
    per_category
        Of the metric that ranks, by category; None where it is not known.
    rank
        Mean over the categories of the run's rank in each, 1 the best, ties shared; None where it
        lacks a category that another run has.
    missing
        The categories that it lacks, with what became of them.
    milliseconds
        Of scoring an image, mean over the categories.
    deviations
        Of the means, over the seeds of a sweep, by metric; empty for a single run.
    """

    label: str
    paths: list[str]
    means: dict[str, float | None]
    per_category: dict[str, float | None]
    rank: float | None
    missing: dict[str, str]
    milliseconds: float | None
    deviations: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The runs on one dataset, the best first.

    Attributes
    ----------
    dataset
        With its split, where it has several.
    categories
        All that any of the runs was asked for.
    entries
        Those with a rank first, by it.
    notes
        What a reader has to know.
    """

    dataset: str
    categories: list[str]
    entries: list[Entry]
    notes: list[str]


@dataclass(frozen=True)
class Leaderboard:
    """Tables of runs, one for each dataset.

    Attributes
    ----------
    metric
        Which ranks.
    metrics
        The columns.
    tables
        By dataset.
    unread
        Folders that are no run directories, with the reason.
    """

    metric: str
    metrics: list[str]
    tables: list[Table]
    unread: list[str]

    def document(self) -> dict[str, Any]:
        """Return everything as plain values that `json.dumps` takes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "leaderboard",
            "metric": self.metric,
            "tables": [
                {
                    "dataset": table.dataset,
                    "categories": table.categories,
                    "notes": table.notes,
                    "entries": [vars(one) for one in table.entries],
                }
                for table in self.tables
            ],
            "unread": self.unread,
        }


def make_leaderboard(paths: Sequence[str | Path], *, metric: str = "auroc") -> Leaderboard:
    """Rank runs by the mean of their ranks in each category (Demsar, JMLR 7, 2006).

    Parameters
    ----------
    paths
        Run directories of any version, finished or not. What cannot be read stands in `unread`.
    metric
        Which ranks, of `METRICS`.

    Raises
    ------
    UsageError
        An unknown metric.
    DataError
        No run can be read.
    """
    if metric not in METRICS:
        raise UsageError(unknown_name("metric", metric, METRICS))
    runs, unread = [], []
    for path in paths:
        try:
            runs.append(read_run_facts(path))
        except DataError as error:
            unread.append(str(error))
    if not runs:
        raise DataError("; ".join(unread) or "no run directory was named")
    groups: dict[str, list[RunFacts]] = {}
    for run in _joined(runs):
        name = f"{run.dataset}, {run.split}" if run.split else run.dataset
        groups.setdefault(name, []).append(run)
    tables = [_table(dataset, group, metric) for dataset, group in groups.items()]
    known = {
        name
        for table in tables
        for one in table.entries
        for name, value in one.means.items()
        if value is not None
    }
    return Leaderboard(metric, [name for name in METRICS if name in known], tables, unread)


def _joined(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Join runs of one model with the same settings that have no category in common.

    So a leaderboard takes one run of all categories, or one run for each of them.
    """
    found: list[RunFacts] = []
    for run in runs:
        for at, other in enumerate(found):
            if _same_method(run, other) and not run.categories.keys() & other.categories.keys():
                found[at] = replace(
                    other,
                    status=run.status if other.status == "complete" else other.status,
                    categories={**other.categories, **run.categories},
                    notes=[*other.notes, *run.notes],
                    others=(*other.others, run.path),
                )
                break
        else:
            found.append(run)
    return found


def _same_method(one: RunFacts, other: RunFacts) -> bool:
    if any(getattr(one, name) != getattr(other, name) for name in ("dataset", "split", "model")):
        return False
    return one.kind == other.kind and not set(settings_that_differ([one, other])) - set(_MACHINE)


def _table(dataset: str, runs: Sequence[RunFacts], metric: str) -> Table:
    categories = list(dict.fromkeys(name for run in runs for name in run.categories))
    labels = _labels(runs)
    values = np.array(
        [
            [
                np.nan if (found := _metric(run, name, metric)) is None else found
                for name in categories
            ]
            for run in runs
        ],
        np.float64,
    ).reshape(len(runs), len(categories))
    whole = ~np.isnan(values).any(axis=1) & (len(categories) > 0)
    ranks = np.full(len(runs), np.nan)
    if whole.any():
        better = values[whole] if metric in LOW_IS_GOOD else -values[whole]
        ranks[whole] = rankdata(better, method="average", axis=0).mean(axis=1)
    entries, notes = [], []
    for run, label, rank in zip(runs, labels, ranks, strict=True):
        missing = {
            name: run.categories[name].status if name in run.categories else "not asked for"
            for name in categories
            if name not in run.measured
        }
        notes += [f"{label}: {note}" for note in run.notes]
        if np.isnan(rank) and run.status == "complete":
            why = ", ".join(f"{name} {what}" for name, what in missing.items())
            notes.append(f"{label}: has no rank: {why or METRICS[metric] + ' is not defined'}")
        entries.append(
            Entry(
                label,
                [str(one) for one in (run.path, *run.others)],
                {name: _mean(run, name) for name in METRICS},
                {name: _metric(run, name, metric) for name in categories},
                None if np.isnan(rank) else float(rank),
                missing,
                _mean_cost(run, "milliseconds_per_image"),
            )
        )
    notes += _different_images(runs, labels, categories)
    sign = 1.0 if metric in LOW_IS_GOOD else -1.0

    def order(one: Entry) -> tuple[float, float]:
        mean = one.means[metric]
        return (
            np.inf if one.rank is None else one.rank,
            np.inf if mean is None else sign * mean,
        )

    return Table(dataset, categories, sorted(entries, key=order), notes)


def _labels(runs: Sequence[RunFacts]) -> list[str]:
    """Return what tells runs apart: the model, its settings where they differ, else the folder."""
    found = []
    for run in runs:
        same = [one for one in runs if one.model == run.model]
        differing = [
            f"{name}={_short(run.settings.get(name))}"
            for name in settings_that_differ(same)
            if name not in _NO_LABEL
        ]
        found.append(f"{run.model} ({', '.join(differing)})" if differing else run.model)
    folders = short_labels(runs)
    return [
        f"{label} [{folder}]" if found.count(label) > 1 else label
        for label, folder in zip(found, folders, strict=True)
    ]


# They say on what machine a run was made.
_MACHINE = ("cpu", "engine", "cache_dir")
# They follow from others besides.
_NO_LABEL = (*_MACHINE, "weights_sha256", "weights")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _different_images(
    runs: Sequence[RunFacts], labels: Sequence[str], categories: Sequence[str]
) -> list[str]:
    said = []
    for name in categories:
        seen: dict[frozenset[Any], str] = {}
        for run, label in zip(runs, labels, strict=True):
            one = run.categories.get(name)
            if one is None or one.files is None:
                continue
            files = frozenset((*key, sha) for key, sha in one.files.items())
            seen.setdefault(files, label)
        if len(seen) > 1:
            said.append(
                f"{name}: {' and '.join(seen.values())} were not measured on the same files; "
                "pyimgano compare says what differs"
            )
    return said


def _metric(run: RunFacts, category: str, metric: str) -> float | None:
    one = run.categories.get(category)
    return None if one is None else one.metrics.get(metric)


def _mean(run: RunFacts, metric: str) -> float | None:
    known = [one.metrics.get(metric) for one in run.measured.values()]
    numbers = [value for value in known if value is not None]
    return float(np.mean(numbers)) if numbers and len(numbers) == len(known) else None


def _mean_cost(run: RunFacts, name: str) -> float | None:
    numbers = [one.costs.get(name) for one in run.measured.values()]
    found = [value for value in numbers if value is not None]
    return float(np.mean(found)) if found else None


# ---- what the forms have in common


def head_of(board: Leaderboard) -> list[str]:
    """Return what the columns of a table for people are called."""
    return ["rank", "model", *(METRICS[name] for name in board.metrics), "ms an image"]


def cells_of(board: Leaderboard, one: Entry) -> list[str]:
    """Return the cells of a run in such a table."""
    rank = "" if one.rank is None else f"{one.rank:.2f}"
    speed = "" if one.milliseconds is None else f"{one.milliseconds:.1f}"
    model = one.label + ("*" if one.missing else "")
    return [rank, model, *(mean_of(one, name) for name in board.metrics), speed]


def mean_of(one: Entry, metric: str) -> str:
    """Return the mean of a metric as a percentage, with its deviation over seeds if it has one."""
    return with_deviation(one.means[metric], one.deviations.get(metric))


def with_deviation(mean: float | None, deviation: float | None) -> str:
    """Return a mean as a percentage with its deviation, if it has one; nothing for None."""
    more = "" if deviation is None else f" \N{PLUS-MINUS SIGN} {100 * deviation:.2f}"
    return percent(mean) + more


def percent(value: float | None) -> str:
    """Return a share as a percentage with two digits; nothing for None."""
    return "" if value is None else f"{100 * value:.2f}"


def best_of(board: Leaderboard, table: Table) -> Mapping[str, float]:
    """Return the best mean of each metric among the runs that have every category."""
    found = {}
    for name in board.metrics:
        values = [one.means[name] for one in table.entries if one.rank is not None]
        numbers = [value for value in values if value is not None]
        if len(numbers) > 1:
            found[name] = min(numbers) if name in LOW_IS_GOOD else max(numbers)
    return found


def caption(board: Leaderboard, table: Table) -> str:
    """Say what the numbers are."""
    several = len(table.categories) > 1
    over = f"mean over {len(table.categories)} categories" if several else table.categories[0]
    said = f"{table.dataset}, {over}, in percent; rank by {METRICS[board.metric]}"
    if several:
        said += ", mean over the categories"
    if any(one.deviations for one in table.entries):
        said += "; \N{PLUS-MINUS SIGN} standard deviation over the seeds"
    if any(one.missing for one in table.entries):
        said += "; * without some of the categories"
    return said
