"""`pyimgano-benchmark`: parse, call `run_benchmark`, print."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from .caller import current_caller, detector_of_caller
from .console import (
    Console,
    parse_keywords,
    plain,
    print_document,
    print_problems,
    print_summary,
    print_text,
    require_report,
)
from .options import (
    Option,
    OptionsCommand,
    checkpoint_option,
    given_options,
    json_option,
    output_option,
    pixel_options,
    require_dataset,
    require_writable,
    take_postprocess,
    with_weights,
)


@click.command(
    cls=OptionsCommand,
    classes=("BenchmarkConfig", "Execution"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@checkpoint_option(cls=Option, section="Model")
@pixel_options
@output_option
@json_option
@click.option("--list-models", is_flag=True, help="Print the models and exit.")
@click.option("--tags", metavar="A,B", help="List only models that have all of these tags.")
@click.option(
    "--model-info", metavar="NAME", help="Print a model's keywords, defaults and papers, and exit."
)
@click.option("--list-categories", is_flag=True, help="Print the dataset's categories and exit.")
def command(
    *,
    output: Path | None,
    as_json: bool,
    list_models: bool,
    tags: str | None,
    model_info: str | None,
    list_categories: bool,
    checkpoint_path: Path | None,
    **arguments: Any,
) -> int:
    """Run a detector over a dataset's categories and leave a run directory.

    \b
      pyimgano benchmark --dataset demo
      pyimgano benchmark --dataset custom --root photos --save-model
      pyimgano benchmark --dataset demo --model vision_patchcore,vision_padim --seed 0,1

    A terminal shows the summary as a table, and where the page of the run is; elsewhere, and with
    --json, stdout is one JSON document. Progress and messages go to stderr, in plain lines where it
    is a file.
    --list-models and --model-info print tables to a terminal, and text or JSON elsewhere.

    Exit status: 0 done; 1 a category failed, or a test image could not be read; 2 usage.
    """
    if tags is not None and not list_models:
        raise click.UsageError("--tags goes with --list-models")
    if list_models and model_info is not None:
        raise click.UsageError("--list-models and --model-info exclude each other; give one")
    if list_models:
        from .models_table import print_models

        print_models(tags, as_json)
        return 0
    if model_info is not None:
        from .models_table import print_model

        print_model(model_info, as_json)
        return 0
    arguments["pixel_postprocess"] = take_postprocess(arguments)
    del arguments["pixel_aupro_thresholds"]  # AUPRO is exact
    if arguments["resume"] is not None and not list_categories:
        return _resume(arguments, output)
    require_dataset(arguments)
    if list_categories:
        from ..pipelines import list_dataset_categories

        asked = ("dataset", "root", "split", "allow_outside")
        names_found = list_dataset_categories(**{name: arguments[name] for name in asked})
        _print_list(names_found, as_json)
        return 0
    if checkpoint_path is not None:
        if checkpoint_path.is_dir():
            raise click.UsageError(
                f"--checkpoint-path {checkpoint_path}: is a folder, as a saved model is; a "
                "benchmark fits its models, and pyimgano infer --model-dir uses a saved one"
            )
        arguments["model_kwargs"] = with_weights(arguments["model_kwargs"], checkpoint_path)
    arguments["model_kwargs"] = parse_keywords(arguments["model_kwargs"])
    if output is not None:
        require_writable(output)

    from ..pipelines import run_benchmark

    with Console(current_caller().interruption) as console:
        run = partial(
            run_benchmark,
            listener=console,
            **arguments,
            **detector_of_caller(arguments),
        )
        report = require_report(run, output)
    return _show(report, console, output, skip=arguments["on_error"] == "skip")


def _resume(arguments: dict[str, Any], output: Path | None) -> int:
    from ..pipelines import run_benchmark
    from ..pipelines.report import BenchmarkRun
    from .resume import begin_again

    if output is not None:
        require_writable(output)
    given = given_options()
    checkpoint = given.pop("checkpoint_path", None)
    if checkpoint is not None:
        given["model_kwargs"] = with_weights(given.get("model_kwargs"), checkpoint)
    post = [name for name in given if name.startswith("pixel_post")]
    for name in post:
        del given[name]
    if post:
        given["pixel_postprocess"] = arguments["pixel_postprocess"]
    again = begin_again(BenchmarkRun, arguments["resume"], given)
    with Console(current_caller().interruption) as console:
        run = partial(
            run_benchmark,
            resume=arguments["resume"],
            force=arguments["force"],
            fail_fast=arguments["fail_fast"],
            num_threads=arguments["num_threads"],
            listener=console,
            **detector_of_caller(arguments),
        )
        report = require_report(run, output)
    status = _show(report, console, output, skip=again.skip)
    return 0 if again.complete else status


def _show(report: dict[str, Any], console: Console, output: Path | None, *, skip: bool) -> int:
    print_summary(report, output)
    if report.get("kind") == "sweep-table":  # of a grid
        from .sweep import show_table

        return show_table(report)
    console.table(report)
    return print_problems(report, skip=skip)


def _print_list(names: list[str], as_json: bool) -> None:
    if as_json:
        print_document(names)
    else:
        print_text("\n".join(plain(name) for name in names))
