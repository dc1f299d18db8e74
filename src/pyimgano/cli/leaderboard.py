"""`pyimgano-leaderboard`: parse, call `make_leaderboard`, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import for_people, plain, print_error, print_for_people, print_text
from .options import metric_option, require_writable

if TYPE_CHECKING:
    from ..comparison.leaderboard import Leaderboard


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@metric_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "csv", "html", "json"]),
    help="Print the leaderboard in this form. By default a table to a terminal, and Markdown "
    "elsewhere.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the leaderboard to this file (.md, .csv, .html or .json) too; repeatable.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the leaderboard as a page to look at to this file too.",
)
def command(
    *,
    runs: tuple[Path, ...],
    metric: str,
    form: str | None,
    as_json: bool,
    outputs: tuple[Path, ...],
    html: Path | None,
) -> int:
    """Make a leaderboard of runs: a line for each model, means over the categories, ranks.

    \b
      pyimgano leaderboard runs/*

    RUN is a run directory of any version, finished or not. Runs of one model with the same settings
    that have no category in common count as one. A run that lacks a category of the others is
    listed without a rank, and what it lacks is said.

    Exit status: 0 done; 1 something named is no run, or a file cannot be written; 2 usage.
    """
    from ..comparison.leaderboard import make_leaderboard
    from ..comparison.leaderboard_forms import form_of, render_leaderboard, write_leaderboard
    from ..runs import write_text

    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other; give one")
    for output in outputs:
        form_of(output)
    files = [*outputs, *([html] if html else [])]
    for file in files:
        require_writable(file)
    board = make_leaderboard(runs, metric=metric)
    for output in outputs:
        write_leaderboard(board, output)
    if html is not None:
        write_text(html, render_leaderboard(board, "html"))
    chosen: Any = "json" if as_json else form
    if chosen is None and for_people(False):
        print_for_people([*_tables(board), *(f"written: {one}" for one in files)], on_stdout=True)
    else:
        print_text(render_leaderboard(board, chosen or "markdown").rstrip("\n"))
    for one in board.unread:
        print_error(one)
    return 1 if board.unread else 0


def _tables(board: Leaderboard) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from ..comparison.leaderboard import caption, cells_of, head_of

    found: list[Any] = []
    for table in board.tables:
        shown = Table(title=Text(plain(table.dataset)), caption=Text(plain(caption(board, table))))
        for name in head_of(board):
            shown.add_column(name, justify="left" if name == "model" else "right")
        for one in table.entries:
            shown.add_row(*(Text(plain(cell)) for cell in cells_of(board, one)))
        found += [shown, *map(plain, table.notes)]
    return found
