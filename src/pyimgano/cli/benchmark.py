"""`pyimgano-benchmark`: parse, call `run_benchmark`, print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from .console import DATASETS, parse_keywords, print_document, print_text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", help=f"{DATASETS}; the demo needs no --root.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that the dataset lies in; for custom also a manifest (.csv, .jsonl).",
)
@click.option(
    "--category", default="all", show_default=True, help="A name, several with commas, or all."
)
@click.option(
    "--split",
    help="visa: 1cls, 2cls_highshot, 2cls_fewshot; mvtec_ad2: test_public, test_private, "
    "test_private_mixed, or private for both of these.",
)
@click.option("--allow-outside", is_flag=True, help="Follow a manifest's paths out of its folder.")
@click.option("--model", default="vision_patchcore", show_default=True, help="See --list-models.")
@click.option("--preset", help="industrial-fast, industrial-balanced or industrial-accurate.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--contamination", type=float, help="Share of training images above the threshold, (0, 0.5]."
)
@click.option(
    "--pretrained/--no-pretrained", default=True, show_default=True, help="Or random weights."
)
@click.option("--model-kwargs", metavar="JSON", help="Further keywords of the model, an object.")
@click.option("--resize", type=int, nargs=2, metavar="H W", help="Default 256 256.")
@click.option(
    "--calibration",
    default="out-of-sample",
    show_default=True,
    help="Where the threshold's scores come from: out-of-sample, in-sample or validation.",
)
@click.option(
    "--calibration-quantile", type=float, help="Of the threshold, in (0, 1). Default 0.995."
)
@click.option("--limit-train", type=int, metavar="N", help="At most N training images a category.")
@click.option("--limit-test", type=int, metavar="N", help="At most N test images a category.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--pixel/--no-pixel", default=True, show_default=True, help="Pixel metrics where masks exist."
)
@click.option(
    "--pixel-aupro-limit",
    type=float,
    metavar="FPR",
    help="Of AUPRO and sPRO. Default that of the dataset: 0.3, or 0.05 for LOCO and AD 2.",
)
@click.option(
    "--on-error",
    default="error",
    show_default=True,
    help="Unreadable images: error, or skip (leave out and go on).",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the run directory is made in. Default runs.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep features of images there, for the next run on them.",
)
@click.option("--save-run/--no-save-run", default=True, show_default=True)
@click.option("--per-image-jsonl/--no-per-image-jsonl", default=True, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the summary to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Lists as JSON; the summary always is.")
@click.option("--list-models", is_flag=True, help="Print the models and exit.")
@click.option("--model-info", metavar="NAME", help="Print all about a model and exit.")
@click.option("--list-categories", is_flag=True, help="Print the dataset's categories and exit.")
def command(
    *,
    dataset: str | None,
    model_kwargs: str | None,
    output: Path | None,
    as_json: bool,
    list_models: bool,
    model_info: str | None,
    list_categories: bool,
    **arguments: Any,
) -> int:
    """Run a detector over a dataset's categories and leave a run directory.

    The summary is one JSON document on stdout; progress and tables go to stderr.

    Exit status: 0 done; 1 a category failed, or a test image could not be read; 2 usage.
    """
    if list_models:
        from ..models import list_models as names

        _print_list(names(), as_json)
        return 0
    if model_info is not None:
        from ..models import model_info as info

        print_document(info(model_info))
        return 0
    if dataset is None:
        raise click.UsageError(f"--dataset is missing ({DATASETS})")
    if list_categories:
        from ..pipelines import list_dataset_categories

        names_found = list_dataset_categories(
            dataset=dataset,
            root=arguments["root"],
            split=arguments["split"],
            allow_outside=arguments["allow_outside"],
        )
        _print_list(names_found, as_json)
        return 0
    keywords = parse_keywords(model_kwargs)
    if output is not None:
        _require_writable(output)

    from ..pipelines import run_benchmark
    from .console import Console, complain_of_problems

    with Console() as console:
        report = run_benchmark(
            dataset=dataset, model_kwargs=keywords, listener=console, **arguments
        )
    print_document(report)
    console.table(report)
    status = complain_of_problems(report, skip=arguments["on_error"] == "skip")
    if output is not None:
        from ..runs import write_text

        write_text(output, json.dumps(report, indent=2) + "\n")
    return status


def _require_writable(output: Path) -> None:
    """Found out before the run, not after it."""
    folder = output.parent
    if not output.name:
        raise click.UsageError("--output: the name of a file is wanted, got ''")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise click.UsageError(f"--output {output}: {folder} is no folder that can be written to")


def _print_list(names: list[str], as_json: bool) -> None:
    if as_json:
        print_document(names)
    else:
        print_text("\n".join(names))
