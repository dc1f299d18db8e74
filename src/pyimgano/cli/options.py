"""Options that commands which fit and evaluate have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .console import ALLOW_OUTSIDE, DATASETS, parse_keywords

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
    help="Use this many threads, at most one a core. By default OMP_NUM_THREADS, or else all "
    "cores.",
)

max_pixels_option = click.option(
    "--max-pixels",
    type=int,
    metavar="N",
    help="Refuse images and masks whose header declares more pixels (height times width). "
    "Default 2^28.",
)

calibration_tail_option = click.option(
    "--calibration-tail",
    type=click.Choice(["exponential", "conformal"]),
    help="Estimate the threshold by an exponential tail of the scores where a test of fit accepts "
    "one (default), or take the score at the conformal rank.",
)

bit_depth_option = click.option(
    "--bit-depth",
    type=int,
    metavar="BITS",
    help="Number of bits, 9 to 16, that the camera uses of 16-bit images. By default what each "
    "file declares, or else all 16.",
)


def checkpoint_option(also: str = "") -> Callable[[Decorated], Decorated]:
    """`--checkpoint-path`; `also` says what it may name besides a file of weights."""
    return click.option(
        "--checkpoint-path",
        type=click.Path(path_type=Path),
        help=" ".join(
            f"For older scripts: {also} a file of backbone weights, as 'weights' in "
            "--model-kwargs.".split()
        ),
    )


def with_weights(model_kwargs: str | None, path: Path) -> str:
    """Return the `--model-kwargs` with the file of weights that `--checkpoint-path` names.

    Raises
    ------
    click.UsageError
        They name weights already, or are no JSON object.
    """
    keywords = parse_keywords(model_kwargs)
    if "weights" in keywords:
        raise click.UsageError("--checkpoint-path: weights stand in --model-kwargs too")
    return json.dumps({**keywords, "weights": str(path)})


#: Which dataset, and which part of it.
dataset_options = _together(
    click.option("--dataset", help=f"Layout of the dataset: {DATASETS}; demo needs no --root."),
    click.option(
        "--root",
        type=click.Path(path_type=Path),
        help="Folder of the dataset; for custom also a manifest (.csv, .jsonl).",
    ),
    click.option(
        "--category",
        default="all",
        show_default=True,
        help="Run one category, several separated by commas, or all.",
    ),
    click.option(
        "--split",
        help="Which of the authors' splits to use. visa: 1cls, 2cls_highshot, 2cls_fewshot; "
        "mvtec_ad2: test_public, test_private, test_private_mixed, or private for the last two.",
    ),
    click.option("--allow-outside", is_flag=True, help=ALLOW_OUTSIDE),
    click.option(
        "--limit-train",
        type=int,
        metavar="N",
        help="Use at most N training images of each category.",
    ),
    click.option(
        "--limit-test", type=int, metavar="N", help="Use at most N test images of each category."
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed of the random number generators.",
    ),
)

#: Which detector, and how it is fitted and calibrated.
model_options = _together(
    click.option(
        "--model",
        default="vision_patchcore",
        show_default=True,
        help="Name of the detector; pyimgano benchmark --list-models prints them.",
    ),
    click.option(
        "--preset",
        help="Settings of the model: industrial-fast, industrial-balanced or industrial-accurate.",
    ),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        help="Run the model on auto, cpu, cuda or cuda:N.",
    ),
    click.option(
        "--contamination",
        type=float,
        help="Share of the training images that may lie above the threshold, in (0, 0.5]. It gives "
        "the quantile 1 - share.",
    ),
    click.option(
        "--pretrained/--no-pretrained",
        default=True,
        show_default=True,
        help="Use random instead of ImageNet weights with --no-pretrained (for timing only).",
    ),
    click.option(
        "--model-kwargs", metavar="JSON", help="Further keywords of the model, as a JSON object."
    ),
    click.option(
        "--resize",
        type=int,
        nargs=2,
        metavar="H W",
        help="Height and width that the model sees images at. By default the model chooses; most "
        "take 256 256.",
    ),
    click.option(
        "--calibration",
        default="out-of-sample",
        show_default=True,
        help="Calibrate the threshold on out-of-sample scores of the training images, on in-sample "
        "ones (which promise nothing), or on the dataset's validation images.",
    ),
    click.option(
        "--calibration-quantile",
        type=float,
        help="Quantile of the good images' scores that becomes the threshold, in (0, 1). "
        "Default 0.995.",
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
        help="Leave out the training images that this list names, one path a line, relative to "
        "--root.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep the features of images in this folder, for the next run on the same images.",
    ),
    click.option(
        "--roi",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Score only this region of interest: a mask image, or a .json file of polygons.",
    ),
    bit_depth_option,
    num_threads_option,
    max_pixels_option,
)

#: What is measured.
measuring_options = _together(
    click.option(
        "--pixel/--no-pixel",
        default=True,
        show_default=True,
        help="Compute pixel metrics where masks exist.",
    ),
    click.option(
        "--pixel-aupro-limit",
        type=float,
        metavar="FPR",
        help="Largest false-positive rate to which AUPRO and sPRO are integrated. Default that of "
        "the dataset: 0.3, or 0.05 for LOCO and AD 2.",
    ),
    click.option(
        "--on-error",
        default="error",
        show_default=True,
        help="With error, an unreadable training image fails its category and an unreadable test "
        "image makes the exit status 1; with skip, both are left out and listed.",
    ),
)

#: The threshold of pixels, and what is done to maps before they are measured.
pixel_options = _together(
    click.option(
        "--pixel-aupro-thresholds",
        type=int,
        metavar="N",
        help="Accepted for older scripts and not used: AUPRO is exact, at every threshold.",
    ),
    click.option(
        "--pixel-segf1/--no-pixel-segf1",
        default=False,
        help="Report pixel_segf1 and bg_fpr too, which count pixels strictly above the pixel "
        "threshold.",
    ),
    click.option(
        "--pixel-threshold-strategy",
        type=click.Choice(["normal_pixel_quantile"]),
        help="Take the pixel threshold from maps of training images that are held out for it.",
    ),
    click.option(
        "--pixel-normal-quantile",
        type=float,
        default=0.999,
        show_default=True,
        help="Quantile of those maps' pixels that becomes the pixel threshold, in (0, 1).",
    ),
    click.option(
        "--pixel-calibration-fraction",
        type=float,
        default=0.2,
        show_default=True,
        help="Share of the training images that is held out for it, in (0, 1).",
    ),
    click.option(
        "--pixel-calibration-seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed of the choice of these images.",
    ),
    click.option(
        "--pixel-postprocess",
        is_flag=True,
        help="Post-process each map before pixel metrics are computed. Scores stay as they are, "
        "and the model's own pixel threshold no longer applies.",
    ),
    click.option(
        "--pixel-post-norm",
        type=click.Choice(["minmax", "percentile", "none"]),
        help="Scale each map by itself: from its smallest to its largest value (default), or by "
        "percentiles. Maps of good and of bad images then reach the same values.",
    ),
    click.option(
        "--pixel-post-percentiles",
        type=float,
        nargs=2,
        metavar="LO HI",
        help="Percentiles that become 0 and 1 with --pixel-post-norm percentile.",
    ),
    click.option(
        "--pixel-post-gaussian-sigma",
        type=float,
        metavar="PIXELS",
        help="Blur the map with a Gaussian first.",
    ),
    click.option(
        "--pixel-post-open-ksize",
        type=int,
        metavar="PIXELS",
        help="Open the map with a square kernel of this side.",
    ),
    click.option(
        "--pixel-post-close-ksize",
        type=int,
        metavar="PIXELS",
        help="Close the map with a square kernel of this side.",
    ),
    click.option(
        "--pixel-post-component-threshold",
        type=float,
        metavar="SCORE",
        help="Score from which on connected pixels form a region, for the smallest area.",
    ),
    click.option(
        "--pixel-post-min-component-area",
        type=int,
        metavar="PIXELS",
        help="Set the pixels of smaller regions to 0.",
    ),
)

#: Options of `--pixel-postprocess`, and keywords of `AnomalyMapPostprocess`.
_POSTPROCESS = {
    "pixel_post_percentiles": "percentile_range",
    "pixel_post_gaussian_sigma": "gaussian_sigma",
    "pixel_post_open_ksize": "morph_open_ksize",
    "pixel_post_close_ksize": "morph_close_ksize",
    "pixel_post_component_threshold": "component_threshold",
    "pixel_post_min_component_area": "min_component_area",
}


def take_postprocess(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options of post-processing out of `arguments`, and return its keywords.

    None without `--pixel-postprocess`.

    Raises
    ------
    click.UsageError
        One of them is given without `--pixel-postprocess`.
    """
    wanted = arguments.pop("pixel_postprocess")
    norm = arguments.pop("pixel_post_norm")
    taken = {option: arguments.pop(option) for option in _POSTPROCESS}
    given = {option: value for option, value in taken.items() if value is not None}
    if not wanted:
        for option in ["pixel_post_norm"] * (norm is not None) + list(given):
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} has no effect without --pixel-postprocess")
        return None
    keywords: dict[str, Any] = {_POSTPROCESS[option]: value for option, value in given.items()}
    if norm is not None:
        keywords["normalize"] = norm != "none"
        if norm != "none":
            keywords["normalize_method"] = norm
    return {name: list(v) if isinstance(v, tuple) else v for name, v in keywords.items()}


#: What is left on disk, and going on with what is there.
run_options = _together(
    click.option(
        "--resume",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Continue a run that stopped, with the options it was started with.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Resume even if the dataset, the configuration or the program has changed since.",
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first category that fails."),
    click.option(
        "--output-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Write the run into this folder itself, which has to be empty or missing.",
    ),
    click.option(
        "--runs-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Make a named run directory in this folder, where --output-dir is not given. "
        "Default runs.",
    ),
    click.option(
        "--save-run/--no-save-run",
        default=True,
        show_default=True,
        help="Write a run directory.",
    ),
    click.option(
        "--per-image-jsonl/--no-per-image-jsonl",
        default=True,
        show_default=True,
        help="Write a record of each test image to per_image.jsonl.",
    ),
    click.option(
        "--html/--no-html",
        default=True,
        show_default=True,
        help="Write report.html into the run directory, a page to look at in a browser.",
    ),
    click.option(
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Also write the summary to this file.",
    ),
)


#: Options that may stand beside --resume and are not the run's.
_BESIDE_RESUME = (
    *("resume", "force", "fail_fast", "num_threads", "output", "as_json"),
    *("input_mode", "pixel_aupro_thresholds"),
)


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
