"""`pyimgano merge`: parse, call `merge_sweeps`, print."""

from __future__ import annotations

from pathlib import Path

import click

from .console import print_summary
from .options import json_option, metric_option, output_option, require_writable


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the table into this folder too, which has to be empty or missing.",
)
@metric_option
@output_option
@json_option
def command(
    *,
    runs: tuple[Path, ...],
    output_dir: Path | None,
    metric: str,
    output: Path | None,
    as_json: bool,
) -> int:
    """Join the directories of a sweep's shards to one table.

    \b
      pyimgano merge runs/shard-* --output-dir runs/merged

    RUNS are directories that pyimgano sweep has made, finished or not; of one alone the table is
    made anew. Run directories stay where they lie. A cell that no shard has begun is a row that
    says so.

    Exit status: 0 every cell is complete; 1 one is not, or something named is no sweep; 2 usage.
    """
    if output is not None:
        require_writable(output)
    from ..sweep import merge_sweeps
    from .sweep import show_table

    report = merge_sweeps(runs, output_dir=output_dir, metric=metric)
    print_summary(report, output)
    return show_table(report)
