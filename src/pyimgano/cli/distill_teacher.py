"""`pyimgano-distill-teacher`: parse, list images, call `distill_teacher`, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import Bar, print_error, print_facts
from .options import json_option, max_pixels_option


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="FILE_OR_FOLDER",
    help="Images to learn from: a file, a folder, a pattern or @list; repeatable.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The .safetensors file to write; its facts go to the .json beside it.",
)
@click.option("--model-size", default="S", show_default=True, help="Size of the teacher: S or M.")
@click.option(
    "--backbone",
    default="efficientnet_lite0",
    show_default=True,
    help="Backbone to learn from.",
)
@click.option("--weights", help="Weights file of the backbone.")
@click.option(
    "--resize",
    nargs=2,
    type=int,
    default=(128, 128),
    show_default=True,
    metavar="H W",
    help="Height and width that images are resized to.",
)
@click.option(
    "--steps",
    type=int,
    default=2000,
    show_default=True,
    help="Stop after so many steps at the latest.",
)
@click.option(
    "--learning-rate",
    type=float,
    default=1e-3,
    show_default=True,
    help="Step size of the optimizer.",
)
@click.option(
    "--device", default="auto", show_default=True, help="Train on auto, cpu, cuda or cuda:N."
)
@click.option(
    "--seed",
    "random_seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the random number generators.",
)
@max_pixels_option
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@json_option
def command(
    *,
    inputs: tuple[str, ...],
    output: Path,
    max_pixels: int | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Distil a teacher for vision_efficientad from a backbone, on your own images.

    \b
      pyimgano distill-teacher --input photos --output teacher.safetensors

    Says on stderr how long it will take once the first steps are measured. The facts of the
    teacher are a table on a terminal, and else one JSON document on stdout. Use the file with
    --model-kwargs '{"teacher": "FILE"}'.

    Exit status: 0 written; 1 an error of the run, and nothing is written; 2 usage.
    """
    from ..errors import DataError
    from ..images import limited_pixels
    from ..inference.inputs import list_input
    from ..models.distillation import distill_teacher

    paths: list[str] = []
    for given in inputs:
        listing = list_input(given)
        if listing.problems:
            raise DataError(listing.problems[0])
        paths += listing.paths
    with limited_pixels(max_pixels), Bar() as bar:
        facts = distill_teacher(
            list(dict.fromkeys(paths)),
            output,
            **settings,
            estimated=lambda one: print_error(f"distilling: {one}"),
            progress=bar.show,
        )
    shown = {k: v for k, v in facts.items() if k not in ("channel_mean", "channel_std")}
    print_facts({"teacher": str(output), **shown}, as_json)
    return 0
