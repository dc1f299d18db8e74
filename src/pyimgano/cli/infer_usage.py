"""What `pyimgano-infer` can find out about its arguments before anything is read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import click

from .caller import current_caller
from .console import parse_keywords
from .options import with_weights


def sides(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | tuple[int, int] | None:
    """Read `512`, `512x768` or `512,768`: height, then width."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:[x,](\d{1,6}))?", value)
    if found is None:
        raise click.BadParameter(
            f"give a number of pixels, or height and width, got {value!r}", ctx, param
        )
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))


#: The sections of `--help`, with the options that stand in each; the others stand last.
_SECTIONS = {
    "A detector that is there": "from_run category model_dir checkpoint_path allow_outside",
    "A detector to fit first": "train_dir model preset contamination pretrained model_kwargs "
    "resize roi bit_depth save_model",
    "Its threshold": "calibrate_on calibration_quantile calibration_tail threshold",
    "Images to score": "inputs product watch watch_interval settle only_new stop_when_idle "
    "on_error",
    "Large images": "tile_size tile_stride tile_score_reduce tile_score_topk tile_map_reduce",
    "What is left of each image": "save_jsonl quiet html include_maps save_maps map_format "
    "map_size save_overlays save_masks postprocess regions pixel_threshold min_area",
}


class SidesCommand(click.Command):
    """Takes `--tile-size 512 768` as two numbers, which click's options cannot.

    Its help has the options in sections.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        section_of = {name: title for title, some in _SECTIONS.items() for name in some.split()}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_SECTIONS, "Other")}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                rows[section_of.get(one.name or "", "Other")].append(record)
        for title, some in rows.items():
            with formatter.section(title):
                formatter.write_dl(some)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        for argument in args:
            pair = len(joined) > 1 and joined[-2] in ("--tile-size", "--tile-stride")
            if pair and argument.isdecimal() and joined[-1].isdecimal():
                joined[-1] += f"x{argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


def check_usage(given: dict[str, Any]) -> None:
    """Check all that can be found out before anything is read."""
    sources = [name for name in ("from_run", "model_dir", "train_dir") if given[name] is not None]
    by_caller = wants_detector_of_caller(given)
    if len(sources) != 1 and not by_caller:
        found = " and ".join(_option(name) for name in sources) or "none"
        raise click.UsageError(
            f"the detector: give exactly one of --from-run, --model-dir and --train-dir, "
            f"got {found}"
        )
    needs = {
        "category": "from_run",
        **dict.fromkeys(
            ("model", "preset", "contamination", "pretrained", "model_kwargs", "resize", "roi"),
            "model" if by_caller else "train_dir",
        ),
        **dict.fromkeys(("only_new", "stop_when_idle"), "watch"),
        **dict.fromkeys(("map_format",), "save_maps"),
        **dict.fromkeys(
            ("tile_stride", "tile_score_reduce", "tile_score_topk", "tile_map_reduce"), "tile_size"
        ),
    }
    for name, other in needs.items():
        absent = (None,) if name == "pretrained" else (None, False)
        if given[name] not in absent and given[other] is None:
            raise click.UsageError(f"{_option(name)} has no effect without {_option(other)}")
    if given["tile_score_topk"] is not None and given["tile_score_reduce"] != "topk_mean":
        raise click.UsageError("--tile-score-topk goes with --tile-score-reduce topk_mean")
    if given["calibration_quantile"] is not None:
        if not 0 < given["calibration_quantile"] < 1:
            raise click.UsageError(
                f"--calibration-quantile must lie in (0, 1), got {given['calibration_quantile']!r}"
            )
        if given["train_dir"] is None and given["calibrate_on"] is None:
            raise click.UsageError(
                "--calibration-quantile has no effect on a saved model without --calibrate-on"
            )
    if given["calibration_tail"] and given["train_dir"] is None and given["calibrate_on"] is None:
        raise click.UsageError(
            "--calibration-tail has no effect on a saved model without --calibrate-on"
        )
    if given["save_model"] and given["train_dir"] is None and given["calibrate_on"] is None:
        raise click.UsageError("--save-model has no effect without --train-dir or --calibrate-on")
    if given["threshold"] is not None and not math.isfinite(given["threshold"]):
        raise click.UsageError(f"--threshold must be finite, got {given['threshold']!r}")
    if given["allow_outside"] and given["train_dir"] is not None:
        raise click.UsageError("--allow-outside has no effect with --train-dir")
    if given["map_size"] is not None and not (given["save_maps"] or given["include_maps"]):
        raise click.UsageError("--map-size has no effect without --save-maps or --include-maps")
    if given["postprocess"] and not (given["save_maps"] or given["include_maps"]):
        raise click.UsageError("--postprocess has no effect without --save-maps or --include-maps")
    if given["pixel_threshold"] is not None:
        if not math.isfinite(given["pixel_threshold"]):
            raise click.UsageError(
                f"--pixel-threshold must be finite, got {given['pixel_threshold']!r}"
            )
        if not any(given[name] for name in ("regions", "save_masks", "save_overlays", "html")):
            raise click.UsageError(
                "--pixel-threshold has no effect without --regions, --save-masks, --save-overlays "
                "or --html"
            )
    if (given["watch"] is None) == (not given["inputs"]):
        raise click.UsageError("give --input at least once, or --watch")
    if given["inputs"].count("-") > 1:
        raise click.UsageError("--input - can be given once: stdin is read once")
    _check_outputs(given)


def wants_detector_of_caller(given: dict[str, Any]) -> bool:
    """Return whether the detector is one that the calling script makes, and may have fitted
    already.
    """
    sources = ("from_run", "model_dir", "train_dir")
    return (
        current_caller().makes_its_own
        and given["model"] is not None
        and all(given[name] is None for name in sources)
    )


def take_checkpoint(given: dict[str, Any]) -> None:
    """Put what `--checkpoint-path` names in its place: a folder is a saved model.

    A file is weights of the backbone. A script that makes its own detector is given the path.

    Raises
    ------
    click.UsageError
        The same is given in another way too, or a file of weights without a model to fit.
    """
    path = given.pop("checkpoint_path")
    if path is None:
        return
    if current_caller().makes_its_own:
        keywords = parse_keywords(given["model_kwargs"])
        given["model_kwargs"] = json.dumps({**keywords, "checkpoint_path": str(path)})
    elif not path.is_dir():
        if given["train_dir"] is None:
            raise click.UsageError(
                f"--checkpoint-path {path}: a file is weights of the backbone, for a model to fit "
                "(--train-dir); a saved model is a folder"
            )
        given["model_kwargs"] = with_weights(given["model_kwargs"], path)
    elif given["model_dir"] is not None:
        raise click.UsageError("--checkpoint-path and --model-dir both name a saved model")
    else:
        given["model_dir"] = path


def _check_outputs(given: dict[str, Any]) -> None:
    from ..inference.records import require_folder_of

    if given["save_jsonl"] is not None:
        complaint = require_folder_of(given["save_jsonl"], "--save-jsonl")
        if complaint is not None:
            raise click.UsageError(complaint)
        _check_written(given["save_jsonl"], given["inputs"], "--save-jsonl", "records")
    if given["html"] is not None:
        complaint = require_folder_of(given["html"], "--html")
        if complaint is not None:
            raise click.UsageError(complaint)
        _check_written(given["html"], given["inputs"], "--html", "a page")
        if given["html"].resolve() == (given["save_jsonl"] or Path()).resolve():
            raise click.UsageError("--html and --save-jsonl name the same file")
    _check_models(given)
    read = [Path(one) for one in given["inputs"] if one != "-"]
    read += [given[name] for name in ("watch", "train_dir", "calibrate_on") if given[name]]
    folders = [path.resolve() for path in read if path.is_dir()]
    for name in ("save_maps", "save_overlays", "save_masks"):
        if given[name] is None:
            continue
        target = given[name].resolve()
        for folder in folders:
            if target == folder or target in folder.parents:
                raise click.UsageError(
                    f"{_option(name)} {given[name]}: images are read from {folder}; give "
                    "a folder of its own"
                )


def _check_written(target: Path, inputs: list[str], option: str, what: str) -> None:
    """It is written from its beginning: not over an image, nor over a list of images."""
    from ..images import IMAGE_SUFFIXES

    read = {Path(one.removeprefix("@")).resolve() for one in inputs}
    if target.suffix.lower() in IMAGE_SUFFIXES or target.resolve() in read:
        raise click.UsageError(
            f"{option} {target}: is an image or an input, not a place for {what}"
        )


def _check_models(given: dict[str, Any]) -> None:
    """Nothing is written into the folder of a model: it would not be one any more."""
    models = [given[name].resolve() for name in ("save_model", "model_dir") if given[name]]
    if given["from_run"]:
        models += [path.resolve() for path in given["from_run"].glob("categories/*/model")]
    for name in ("save_jsonl", "html", "save_maps", "save_overlays", "save_masks"):
        if given[name] is None:
            continue
        target = given[name].resolve()
        for folder in models:
            if target == folder or folder in target.parents:
                raise click.UsageError(
                    f"{_option(name)} {given[name]}: {folder} is the folder of a model, which "
                    "holds nothing else"
                )


def output_folders(given: dict[str, Any]) -> list[Path]:
    names = ("save_maps", "save_overlays", "save_masks")
    return [given[name] for name in names if given[name] is not None]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
