"""`pyimgano-export`: parse, load a detector, call `export_detector`, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import ALLOW_WEIGHTS, Bar, print_error, print_facts
from .options import json_option, max_pixels_option


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--from-run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Export the detector that a run kept.",
)
@click.option("--category", help="Category of the run, where it has several.")
@click.option(
    "--model-dir", type=click.Path(path_type=Path), metavar="DIR", help="Export a saved detector."
)
@click.option("--product", metavar="NAME", help="Product, of a detector of many products.")
@click.option(
    "--format",
    "form",
    default="openvino",
    show_default=True,
    help="Format to write: openvino, onnx or torch (TorchScript).",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option(
    "--check",
    "check",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE_OR_FOLDER...",
    help="Images on which the export is compared with the detector, good and defective ones if "
    "possible. Default up to 16 images that the run has scored.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Run the detector that the export is compared with on auto, cpu, cuda or cuda:N.",
)
@max_pixels_option
@click.option("--allow-outside", is_flag=True, help=ALLOW_WEIGHTS)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that folder.")
@json_option
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="")
def command(
    *,
    from_run: Path | None,
    category: str | None,
    model_dir: Path | None,
    product: str | None,
    form: str,
    output: Path,
    check: tuple[Path, ...],
    device: str,
    max_pixels: int | None,
    allow_outside: bool,
    overwrite: bool,
    as_json: bool,
    more: tuple[Path, ...],
) -> int:
    """Export a saved detector to one folder that runs without pyimgano.

    \b
      pyimgano export --model-dir models/lid --format openvino --output lid

    The model holds everything but decoding and resizing; metadata.json says how to resize, and
    example.py does it. The written model is checked against the detector, image by image.

    The summary is a table on a terminal, and else one JSON document on stdout.

    Exit status: 0 exported and checked; 1 the export differs from the detector, or an error of
    the run, and nothing is left; 2 usage.
    """
    if more and not check:
        raise click.UsageError(f"unexpected argument {str(more[0])!r}")
    if not output.name:
        raise click.UsageError(f"--output: give the name of a folder, got {str(output)!r}")

    from ..images import limited_pixels
    from ..pipelines.export import (
        check_images_in,
        check_images_of_run,
        export_detector,
        find_format,
        load_detector,
        require_free,
    )

    # what can be found out before a model is loaded
    find_format(form)
    require_free(output, overwrite)
    detector_from: dict[str, Any] = {
        "from_run": from_run,
        "category": category,
        "model_dir": model_dir,
        "product": product,
    }
    given = [*check, *more]
    if given:
        images = check_images_in(given)
    elif from_run is not None:
        images = check_images_of_run(from_run, category)
    else:
        raise click.UsageError("--check is missing: an export is checked on at least one image")
    detector = load_detector(**detector_from, device=device, allow_outside=allow_outside)
    with limited_pixels(max_pixels), Bar() as bar:
        metadata = export_detector(
            detector,
            output,
            format=form,
            check_images=images,
            overwrite=overwrite,
            progress=bar.show,
        )
    if metadata.check.labels_differ:
        print_error(
            f"{metadata.check.labels_differ} of {metadata.check.images} images lie within rounding "
            "of the threshold, and the export decides them differently from the detector"
        )
    facts = metadata.model_dump()
    chosen = ("format", "threshold", "pixel_threshold", "engine_settings", "files", "check")
    print_facts({"folder": str(output), **{name: facts[name] for name in chosen}}, as_json)
    return 0
