"""Options that commands which fit and evaluate have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .console import ALLOW_OUTSIDE, DATASETS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _together(*options: Callable[[Any], Any]) -> Callable[[Decorated], Decorated]:
    """One decorator of several options; `--help` shows them in this order."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


num_threads_option = click.option(
    "--num-threads",
    type=int,
    metavar="N",
    help="At most as many as there are cores, which is the default; OMP_NUM_THREADS is another.",
)

max_pixels_option = click.option(
    "--max-pixels",
    type=int,
    metavar="N",
    help="Refuse images and masks that declare more, height times width. Default 2^28.",
)

calibration_tail_option = click.option(
    "--calibration-tail",
    type=click.Choice(["exponential", "conformal"]),
    help="How the threshold is estimated: by an exponential tail of the scores where that is "
    "believable (default), or at the rank of a score.",
)

#: Which dataset, and which part of it.
dataset_options = _together(
    click.option("--dataset", help=f"{DATASETS}; the demo needs no --root."),
    click.option(
        "--root",
        type=click.Path(path_type=Path),
        help="Folder that the dataset lies in; for custom also a manifest (.csv, .jsonl).",
    ),
    click.option(
        "--category", default="all", show_default=True, help="A name, several with commas, or all."
    ),
    click.option(
        "--split",
        help="visa: 1cls, 2cls_highshot, 2cls_fewshot; mvtec_ad2: test_public, test_private, "
        "test_private_mixed, or private for both of these.",
    ),
    click.option("--allow-outside", is_flag=True, help=ALLOW_OUTSIDE),
    click.option(
        "--limit-train", type=int, metavar="N", help="At most N training images a category."
    ),
    click.option("--limit-test", type=int, metavar="N", help="At most N test images a category."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of all that is drawn by chance."
    ),
)

#: Which detector, and how it is fitted and calibrated.
model_options = _together(
    click.option(
        "--model", default="vision_patchcore", show_default=True, help="See --list-models."
    ),
    click.option("--preset", help="industrial-fast, industrial-balanced or industrial-accurate."),
    click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--contamination",
        type=float,
        help="Share of training images above the threshold, (0, 0.5].",
    ),
    click.option(
        "--pretrained/--no-pretrained", default=True, show_default=True, help="Or random weights."
    ),
    click.option(
        "--model-kwargs", metavar="JSON", help="Further keywords of the model, an object."
    ),
    click.option(
        "--resize",
        type=int,
        nargs=2,
        metavar="H W",
        help="By default what the model looks at best; of most 256 256.",
    ),
    click.option(
        "--calibration",
        default="out-of-sample",
        show_default=True,
        help="Where the threshold's scores come from: out-of-sample, in-sample or validation.",
    ),
    click.option(
        "--calibration-quantile", type=float, help="Of the threshold, in (0, 1). Default 0.995."
    ),
    calibration_tail_option,
    click.option(
        "--exclude-suspects",
        is_flag=True,
        help="Fit a second time without the training images that decide the threshold or stand "
        "apart in the first fit; the report says what this does to the promise.",
    ),
    click.option(
        "--exclude",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Leave out the training images that this list names, one path a line, from --root.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep features of images there, for the next run on them.",
    ),
    click.option(
        "--roi",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Region of interest: a mask image, or a .json file of polygons. Only it counts.",
    ),
    num_threads_option,
    max_pixels_option,
)

#: What is measured.
measuring_options = _together(
    click.option(
        "--pixel/--no-pixel",
        default=True,
        show_default=True,
        help="Pixel metrics where masks exist.",
    ),
    click.option(
        "--pixel-aupro-limit",
        type=float,
        metavar="FPR",
        help="Of AUPRO and sPRO. Default that of the dataset: 0.3, or 0.05 for LOCO and AD 2.",
    ),
    click.option(
        "--on-error",
        default="error",
        show_default=True,
        help="Unreadable images: error, or skip (leave out and go on).",
    ),
)

#: What is left on disk, and going on with what is there.
run_options = _together(
    click.option(
        "--resume",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Go on with a run that stopped, as it was begun; no other option is needed.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="With --resume: although dataset, configuration or program are not what they were.",
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first category that fails."),
    click.option(
        "--output-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder that the run directory is made in. Default runs.",
    ),
    click.option("--save-run/--no-save-run", default=True, show_default=True),
    click.option("--per-image-jsonl/--no-per-image-jsonl", default=True, show_default=True),
    click.option(
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write the summary to this file.",
    ),
)


#: Options that may stand beside --resume and are not the run's.
_BESIDE_RESUME = ("resume", "force", "fail_fast", "num_threads", "output", "as_json")


def given_options() -> dict[str, Any]:
    """The options of the command under way that the user typed, but for those that say nothing
    of the run itself; `model_kwargs` is still text."""
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    return {
        name: value
        for name, value in context.params.items()
        if name not in _BESIDE_RESUME and context.get_parameter_source(name) is typed
    }


def require_writable(output: Path) -> None:
    """Found out before the run, not after it."""
    folder = output.parent
    if not output.name:
        raise click.UsageError("--output: the name of a file is wanted, got ''")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise click.UsageError(f"--output {output}: {folder} is no folder that can be written to")
