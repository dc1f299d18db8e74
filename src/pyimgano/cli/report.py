"""`pyimgano-report`: parse, call `write_report_page`, print where the page is."""

from __future__ import annotations

from pathlib import Path

import click

from .console import print_text
from .options import require_writable


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the page to this file instead of report.html in the run.",
)
def command(*, run: Path, output: Path | None) -> int:
    """Make the page of a run and print where it is.

    \b
      pyimgano report runs/20260105_101500_mvtec_vision_patchcore

    RUN is a run directory of pyimgano benchmark or robust-benchmark, complete or not. The images
    are read again from where they lie.

    Exit status: 0 done; 1 no run, or the page cannot be written; 2 usage.
    """
    if output is not None:
        require_writable(output)
    from ..pages import write_report_page

    print_text(str(write_report_page(run, output)))
    return 0
