"""`pyimgano-compare`: parse, call `compare_runs`, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import for_people, plain, print_document, print_error, print_for_people
from .options import require_writable

if TYPE_CHECKING:
    from rich.table import Table

    from ..comparison.compare import Comparison

_MOST_CHANGES = 30
# Columns that hold words, not numbers.
_OF_WORDS = ("category", "metric", "cost", "setting", "image", "kind", "what")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with the images whose decision changed, and both maps beside each other.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON to a terminal too; elsewhere it is always."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random number generator."
)
def command(*, runs: tuple[Path, ...], html: Path | None, as_json: bool, seed: int) -> int:
    """Put runs side by side: metrics, their differences from the first run, changed decisions.

    \b
      pyimgano compare runs/monday runs/tuesday

    RUN is a run directory of pyimgano benchmark or robust-benchmark, of this version or an earlier
    one, finished or not; at least two. Differences of image metrics have 95 % intervals by a paired
    bootstrap over the images that both runs have scored. What is not finished, failed, or measured
    on other data is said.

    A terminal shows tables; elsewhere stdout is one JSON document and the tables go to stderr.

    Exit status: 0 done; 1 one of them is not a run directory, or a file cannot be written; 2 usage.
    """
    if html is not None:
        require_writable(html)
    from ..comparison import compare_runs

    found = compare_runs(runs, seed=seed)
    if html is not None:
        from ..comparison.page import comparison_page
        from ..runs import write_text

        write_text(html, comparison_page(found))
    people = for_people(as_json)
    if not people:
        print_document(found.document())
    print_for_people([*_tables(found), *_lines(found, html)], on_stdout=people)
    return 0


def _lines(found: Comparison, html: Path | None) -> list[str]:
    compared = sum(found.images.values())
    said = [f"{len(found.changes)} of {compared} images are decided differently"]
    if len(found.changes) > _MOST_CHANGES:
        where = "the page has more" if html is not None else "--html shows more, --json all"
        said[0] += f"; {_MOST_CHANGES} of them stand above, {where}"
    if html is not None:
        said.append(f"page: {html}")
    return [plain(line) for line in said]


def _tables(found: Comparison) -> list[Any]:
    from ..comparison.compare import COSTS
    from ..comparison.page import cost

    for note in found.notes:
        print_error(note)
    several = len({one["category"] for one in found.rows}) > 1
    tables: list[Any] = []
    if found.settings:
        settings = _new("settings that differ", ["setting", *found.labels])
        for name, values in found.settings.items():
            settings.add_row(name, *(plain(str(value)) for value in values))
        tables.append(settings)
    tables.append(_metrics(found, several))
    if found.costs:
        costs = _new("time and memory", [*["category"] * several, "cost", *found.labels])
        for row in found.costs:
            cells = [COSTS[row["cost"]], *(cost(row["cost"], value) for value in row["values"])]
            costs.add_row(*[plain(row["category"])] * several, *cells)
        tables.append(costs)
    if found.changes:
        changes = _new("changed decisions", ["image", "kind", "what", *found.labels])
        for change in found.changes[:_MOST_CHANGES]:
            decided = [
                f"{_multiple(ratio)} {'defective' if decision else 'good'}"
                for ratio, decision in zip(change.ratios, change.decisions, strict=True)
            ]
            cells = [change.image, change.defect, change.what, *decided]
            changes.add_row(*(plain(cell) for cell in cells))
        tables.append(changes)
    return tables


def _metrics(found: Comparison, several: bool) -> Table:
    from ..comparison.run_facts import METRICS

    columns = ["metric", found.labels[0]]
    for label in found.labels[1:]:
        columns += [label, "difference"]
    title = f"percent; differences from {found.labels[0]}, with 95 % intervals over the images"
    table = _new(title, [*["category"] * several, *columns])
    for row in found.rows:
        cells = [METRICS[row["metric"]], _percent(row["values"][0])]
        for value, difference, interval in zip(
            row["values"][1:], row["differences"], row["intervals"], strict=True
        ):
            said = "-" if difference is None else f"{100 * difference:+.2f}"
            if interval is not None:
                said += f" [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
            cells += [_percent(value), said]
        table.add_row(*[plain(row["category"])] * several, *cells)
    return table


def _new(title: str, columns: list[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(title)))
    for column in columns:
        table.add_column(Text(plain(column)), justify="left" if column in _OF_WORDS else "right")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _multiple(ratio: float | None) -> str:
    from ..pages.words import multiple

    return f"{multiple(ratio)} x"
