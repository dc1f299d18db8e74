"""`pyimgano-robust-benchmark`: parse, call `run_robust_benchmark`, print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from .caller import current_caller, detector_of_caller
from .console import (
    Console,
    parse_keywords,
    print_document,
    print_problems,
    print_summary,
    print_text,
    require_report,
)
from .options import (
    Option,
    OptionsCommand,
    given_options,
    json_option,
    output_option,
    require_dataset,
    require_writable,
)


@click.command(
    cls=OptionsCommand,
    classes=("RobustnessConfig", "Execution"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--input-mode",
    cls=Option,
    section="Model",
    type=click.Choice(["numpy", "paths"]),
    help="Give images to a script's own detector as arrays or as paths. The models of pyimgano "
    "read both alike.",
)
@output_option
@json_option
@click.option(
    "--list-corruptions", is_flag=True, help="Print the corruptions with their parameters and exit."
)
def command(
    *,
    output: Path | None,
    as_json: bool,
    list_corruptions: bool,
    input_mode: str | None,
    **arguments: Any,
) -> int:
    """Measure what drift on the line does to a detector that was fitted without it.

    \b
      pyimgano robust-benchmark --dataset custom --root photos --severities 1,3

    The detector is fitted once for each category on clean images, its threshold stays as it is,
    and the test images are scored clean and under each corruption at each severity. --seed also
    seeds the corruptions.

    A terminal shows the summary as a table, and where the page of the run is; elsewhere, and with
    --json, stdout is one JSON document. Progress and messages go to stderr, in plain lines where it
    is a file.

    Exit status: 0 done; 1 a category failed, or a test image could not be read; 2 usage.
    """
    if list_corruptions:
        _print_corruptions(as_json)
        return 0
    if arguments["resume"] is not None:
        return _resume(arguments, output, input_mode)
    require_dataset(arguments)
    arguments["model_kwargs"] = parse_keywords(arguments["model_kwargs"])
    arguments["corruptions"] = parse_names(arguments["corruptions"])
    arguments["severities"] = parse_severities(arguments["severities"])
    if output is not None:
        require_writable(output)

    from ..pipelines import run_robust_benchmark

    with Console(current_caller().interruption) as console:
        run = partial(
            run_robust_benchmark,
            listener=console,
            **arguments,
            **detector_of_caller(arguments, input_mode),
        )
        report = require_report(run, output)
    return _show(report, output, skip=arguments["on_error"] == "skip")


def _resume(arguments: dict[str, Any], output: Path | None, input_mode: str | None) -> int:
    from ..pipelines import run_robust_benchmark
    from ..pipelines.robustness_report import RobustnessRun
    from .resume import begin_again

    if output is not None:
        require_writable(output)
    given = given_options()
    if "corruptions" in given:
        given["corruptions"] = parse_names(given["corruptions"])
    if "severities" in given:
        given["severities"] = parse_severities(given["severities"])
    again = begin_again(RobustnessRun, arguments["resume"], given)
    with Console(current_caller().interruption) as console:
        run = partial(
            run_robust_benchmark,
            resume=arguments["resume"],
            force=arguments["force"],
            fail_fast=arguments["fail_fast"],
            num_threads=arguments["num_threads"],
            listener=console,
            **detector_of_caller(arguments, input_mode),
        )
        report = require_report(run, output)
    status = _show(report, output, skip=again.skip)
    return 0 if again.complete else status


def _show(report: dict[str, Any], output: Path | None, *, skip: bool) -> int:
    from .robust_table import print_table

    print_summary(report, output)
    print_table(report)
    return print_problems(report, skip=skip)


def parse_names(given: Sequence[str]) -> list[str] | None:
    """Read names from `a,b` and `c`, in order; None if none were given."""
    names = [name.strip() for one in given for name in one.split(",")]
    if not all(names):
        raise click.UsageError(f"--corruptions: a name is empty in {', '.join(map(repr, given))}")
    return names or None


def parse_severities(text: str) -> list[int]:
    """Severities from `1,3,5`, `1..5`, `1-5` or a mixture, sorted, each once.

    Raises
    ------
    click.UsageError
        Something else, a severity outside 1 to 5, or a range that runs backwards.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-5])\s*(?:(?:\.\.|-)\s*([1-5])\s*)?", part, re.ASCII)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        if not match or last < first:
            raise click.UsageError(
                f"--severities takes numbers from 1 to 5, as 1,3,5 or 1..5 or 1-5, got {text!r}"
            )
        found.update(range(first, last + 1))
    return sorted(found)


def _print_corruptions(as_json: bool) -> None:
    from ..images import CORRUPTIONS

    if as_json:
        print_document(
            {
                name: {
                    "about": one.about,
                    "source": one.source,
                    "moves_masks": one.moves,
                    "parameters": {key: list(values) for key, values in one.parameters.items()},
                }
                for name, one in CORRUPTIONS.items()
            }
        )
        return
    lines = []
    for name, one in CORRUPTIONS.items():
        lines.append(f"{name}: {one.about}")
        for key, values in one.parameters.items():
            lines.append(f"    {key:<10}" + "".join(f"{value:>8g}" for value in values))
    print_text("\n".join(lines))
