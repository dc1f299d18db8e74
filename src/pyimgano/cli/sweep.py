"""`pyimgano sweep`: parse, call `run_sweep`, print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import (
    Bar,
    for_people,
    plain,
    print_document,
    print_error,
    print_for_people,
    print_summary,
)
from .options import json_option, metric_option, output_option, require_writable

if TYPE_CHECKING:
    from ..runs.sweep_schema import CellOutcome, SweepDocument

# Cells that are not complete and that are listed by name.
_MOST_LISTED = 20
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--dry-run", is_flag=True, help="Show the cells and the work expected, and run nothing."
)
@click.option(
    "--executor",
    type=click.Choice(["processes", "in-process", "ray"]),
    default="processes",
    show_default=True,
    help="Run cells in processes on this machine, one after another in this one, or on Ray.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run N cells at a time. By default as many as cores and memory allow.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Use the Ray cluster at this address, or auto. By default one is started on this machine.",
)
@click.option("--dashboard", is_flag=True, help="Start Ray's dashboard with a cluster made here.")
@click.option(
    "--shard", metavar="K/N", help="Run only the K-th of N equal parts; pyimgano merge joins them."
)
@click.option(
    "--claim",
    is_flag=True,
    help="Share the cells with other processes that work in the same directory, on other machines "
    "too.",
)
@click.option(
    "--output-dir",
    type=_FOLDER,
    help="Write the sweep into this folder itself, which has to be empty or missing.",
)
@click.option(
    "--runs-dir",
    type=_FOLDER,
    help="Make a named directory in this folder, where --output-dir is not given. Default runs.",
)
@click.option(
    "--resume",
    type=_FOLDER,
    metavar="DIR",
    help="Go on with the sweep in this directory; with FILE, begin it if it is not there yet.",
)
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import this Python module first, since it registers models; repeatable.",
)
@metric_option
@output_option
@json_option
def command(
    *,
    file: Path | None,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Run every combination of datasets, categories, models, settings and seeds.

    \b
      pyimgano sweep sweep.yaml --dry-run
      pyimgano sweep sweep.yaml --output-dir runs/paper
      pyimgano sweep --resume runs/paper

    FILE is YAML or JSON; docs/cluster.md says what stands in it. Each cell leaves a run directory,
    and the sweep one table: table.json, cells.csv, table.csv, table.md and leaderboard.html. A cell
    that fails is a row that says why. A cell that is complete is not run again.

    A terminal shows the table; elsewhere, and with --json, stdout is one JSON document.

    Exit status: 0 every cell is complete; 1 one is not, or a test image could not be read; 2 usage.
    """
    if file is None and arguments["resume"] is None:
        raise click.UsageError("give a sweep file, or --resume with the directory of a sweep")
    if output is not None:
        require_writable(output)
    if dry_run:
        return _show_work(file, arguments, as_json)
    from ..sweep import run_sweep

    with _Progress() as progress, _told_how_to_go_on(arguments):
        report = run_sweep(file, listener=progress, **arguments)
    print_summary(report, output)
    return show_table(report)


class _Progress(Bar):
    """A bar of the cells, and a line for each that fails."""

    def cell_finished(self, outcome: CellOutcome, done: int, total: int) -> None:
        """Show that another cell has ended."""
        if outcome.why is not None:
            print_error(f"{outcome.cell}: {outcome.status}: {outcome.why}")
        self.show("cells", done, total)

    def waiting(self, cells: int) -> None:
        """Show that the cells that are left are run elsewhere."""
        self.show(f"waiting for {cells} cells that other processes are at", 0, None)


@contextlib.contextmanager
def _told_how_to_go_on(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Say how a sweep goes on that is interrupted, as far as its directory was given."""
    try:
        yield
    except KeyboardInterrupt:
        place = arguments["resume"] or arguments["output_dir"]
        if place is not None:
            print_error(f"to go on: pyimgano sweep --resume {place}")
        raise


def show_table(report: Mapping[str, Any]) -> int:
    """Print a table for people and what is wrong, and return the exit status."""
    from rich.table import Table
    from rich.text import Text

    from ..comparison.leaderboard import with_deviation
    from ..comparison.run_facts import METRICS

    rows = report["methods"]
    names = [name for name in METRICS if any(one["means"][name] is not None for one in rows)]
    shown = Table(title="percent; mean \N{PLUS-MINUS SIGN} standard deviation over the seeds")
    for head in ("dataset", "category", "method"):
        shown.add_column(head)
    for head in ("seeds", *(METRICS[name] for name in names), "rank"):
        shown.add_column(head, justify="right")
    for one in rows:
        cells = [one["dataset"], one["category"] or "mean", one["method"]]
        cells.append(f"{one['seeds']} of {one['asked']}")
        cells += [with_deviation(one["means"][name], one["deviations"][name]) for name in names]
        cells.append("" if one["rank"] is None else f"{one['rank']:.2f}")
        shown.add_row(*(Text(plain(cell)) for cell in cells))
    lines = []
    if report["sweep_dir"]:
        lines = [plain(f"sweep: {report['sweep_dir']}")]
        lines.append(plain(f"page: {Path(report['sweep_dir']) / 'leaderboard.html'}"))
    print_for_people([shown, *lines], on_stdout=for_people())
    left = [one for one in report["cells"] if one["status"] != "complete"]
    for one in left[:_MOST_LISTED]:
        why = f": {one['why']}" if one["why"] else ""
        log = f" (log: {one['log']})" if one["log"] else ""
        print_error(f"{one['cell']}: {one['status']}{why}{log}")
    if len(left) > _MOST_LISTED:
        print_error(f"and {len(left) - _MOST_LISTED} more, all in the table")
    for note in report["notes"]:
        print_error(note)
    return 1 if left or any(one["unreadable"] for one in report["cells"]) else 0


def _show_work(file: Path | None, arguments: Mapping[str, Any], as_json: bool) -> int:
    """Print what a sweep would do."""
    from rich.table import Table
    from rich.text import Text

    from ..runs.sweep_schema import SweepResources
    from ..sweep import expected_work, make_plan
    from ..sweep.executors import places
    from ..sweep.folder import SweepFolder, read_sweep
    from ..sweep.shards import parse_shard

    shard = parse_shard(arguments["shard"])
    resume = arguments["resume"]
    known: SweepDocument | None = None
    if file is None:
        known = read_sweep(resume)
        shard = shard or parse_shard(known.shard)
    plan = known or make_plan(file or "", modules=arguments["modules"])
    cells = plan.cells if shard is None else shard.take(plan.cells)
    folder = None if resume is None else SweepFolder(resume)
    work = expected_work(cells, folder)
    resources: SweepResources = plan.resources
    room = arguments["workers"] or places(resources)
    left = sum(one.cells - one.complete for one in work)
    total = {
        "cells": len(cells),
        "complete": len(cells) - left,
        "images": sum(one.images for one in work),
        "at_a_time_here": max(1, min(room, left)),
    }
    if not for_people(as_json):
        names = [one.name for one in cells]
        print_document(
            {**total, "work": [w.document() for w in work], "names": names, "notes": plan.notes}
        )
    tables = []
    heads = ("dataset", "category", "cells", "complete", "training images", "test images", "all")
    counts = Table(title="all: images that the cells that are left learn from and score")
    for head in heads:
        counts.add_column(head, justify="left" if head in ("dataset", "category") else "right")
    for w in work:
        numbers = (w.cells, w.complete, w.train, w.test, w.images)
        counts.add_row(*(Text(plain(t)) for t in (w.dataset, w.category)), *map(str, numbers))
    tables.append(counts)
    listed = Table(title="cells")
    listed.add_column("cell")
    for one in cells:
        listed.add_row(Text(plain(one.name)))
    said = (
        f"{total['cells']} cells, {total['complete']} of them complete; {total['images']} images; "
        f"{total['at_a_time_here']} at a time on this machine"
    )
    print_for_people([listed, counts, said], on_stdout=for_people(as_json))
    for note in plan.notes:
        print_error(note)
    return 0
