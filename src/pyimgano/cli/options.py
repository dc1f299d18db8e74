"""Options of the commands: those of a benchmark are made from the classes that define them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from ..metric_names import COMPARED_METRICS
from .console import parse_keywords

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ..pipelines.config import Shown

#: What asks for models, and all that goes with it; no other option has to be known for that.
_ABOUT_MODELS = frozenset({"--list-models", "--model-info"})
_WITH_THESE = frozenset({"--tags", "--json"})


class Option(click.Option):
    """An option that stands in a section of `--help`."""

    def __init__(self, *names: Any, section: str = "Other", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


class SharedOption(click.Option):
    """An option of another command that means what it means to a benchmark."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from ..pipelines.config import BenchmarkConfig, options_of

        assert self.name is not None
        self.help = options_of(BenchmarkConfig)[self.name][0].description
        return super().get_help_record(ctx)


class OptionsCommand(click.Command):
    """A command that has the options of some classes in `pipelines.config`, and its own.

    The classes are imported when the options are asked for.
    """

    def __init__(self, *rest: Any, classes: tuple[str, ...], **settings: Any) -> None:
        super().__init__(*rest, **settings)
        self._classes = classes
        self._made: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        if ctx.meta.get(__name__) == "listing":
            return own
        if self._made is None:
            config = import_module("pyimgano.pipelines.config")
            known = config.options_of(*(getattr(config, name) for name in self._classes))
            declared = {one.name for one in own}
            self._made = [_flag(name, *one) for name, one in known.items() if name not in declared]
        return [*self._made, *own]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = {word.partition("=")[0] for word in args if word.startswith("-")}
        if words & _ABOUT_MODELS and words <= _ABOUT_MODELS | _WITH_THESE:
            ctx.meta[__name__] = "listing"
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(one, "section", "Other"), []).append(record)
        sections["Other"] = sections.pop("Other", [])  # last
        for title, records in sections.items():
            with formatter.section(f"{title} options"):
                formatter.write_dl(records)


class WholeNumbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A whole number, or several that are separated by commas, which become a list."""

    name = "integer"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | list[int]:
        if isinstance(value, (int, list)):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a valid integer", param, ctx)
        return numbers if len(numbers) > 1 else numbers[0]


def _flag(name: str, field: FieldInfo, shown: Shown) -> Option:
    """Return the flag of an option."""
    flag = f"--{name.replace('_', '-')}"
    kind, parts = _kind_of(field.annotation)
    default = None if field.is_required() or kind is dict else field.default
    settings: dict[str, Any] = {
        "section": shown.section,
        "help": field.description,
        "metavar": shown.metavar,
        "default": shown.default or default,
        "show_default": default is not None and default is not False,
    }
    if kind is bool:
        settings["is_flag"] = True
        if default or shown.negatable:
            flag += f"/--no-{flag[2:]}"
    elif shown.path is not None:
        settings["type"] = click.Path(
            path_type=Path, file_okay=shown.path != "folder", dir_okay=shown.path != "file"
        )
    elif kind is Literal:
        settings["type"] = click.Choice(parts)
    elif kind is tuple and shown.default is None:
        several = Ellipsis in parts
        settings |= {"multiple": True} if several else {"type": int, "nargs": len(parts)}
    elif shown.several:
        settings["type"] = WholeNumbers()
    elif kind in (int, float):
        settings["type"] = kind
    return Option([flag], **settings)


def _kind_of(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type of a field where it is not None, and what that type is made of."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return _kind_of(parts[0])
    return origin or annotation, parts


num_threads_option = click.option("--num-threads", cls=SharedOption, type=int, metavar="N")
max_pixels_option = click.option("--max-pixels", cls=SharedOption, type=int, metavar="N")
bit_depth_option = click.option("--bit-depth", cls=SharedOption, type=int, metavar="BITS")
calibration_tail_option = click.option(
    "--calibration-tail", cls=SharedOption, type=click.Choice(["exponential", "conformal"])
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON to a terminal too, instead of a table."
)
metric_option = click.option(
    "--metric",
    default="auroc",
    show_default=True,
    metavar="NAME",
    help=f"Rank by this metric: {', '.join(COMPARED_METRICS)}.",
)
output_option = click.option(
    "--output",
    cls=Option,
    section="Run",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the summary to this file.",
)


def checkpoint_option(
    also: str = "", **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option `--checkpoint-path`; `also` says what it may name besides a file of
    weights.
    """
    return click.option(
        "--checkpoint-path",
        type=click.Path(path_type=Path),
        help=" ".join(
            f"For older scripts: {also} a file of backbone weights, as 'weights' in "
            "--model-kwargs.".split()
        ),
        **settings,
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


_PIXELS: dict[str, Any] = {"type": int, "metavar": "PIXELS"}
#: Settings of `--pixel-postprocess`: `--pixel-post-*`, the keyword of `AnomalyMapPostprocess`, how
#: it is read, and what it does.
_POSTPROCESS: dict[str, tuple[str, dict[str, Any], str]] = {
    "norm": (
        "normalize_method",
        {"type": click.Choice(["minmax", "percentile", "none"])},
        "Scale each map by itself: from its smallest to its largest value (default), or by "
        "percentiles. Maps of good and of bad images then reach the same values.",
    ),
    "percentiles": (
        "percentile_range",
        {"type": float, "nargs": 2, "metavar": "LO HI"},
        "Percentiles that become 0 and 1 with --pixel-post-norm percentile.",
    ),
    "gaussian_sigma": (
        "gaussian_sigma",
        {"type": float, "metavar": "PIXELS"},
        "Blur the map with a Gaussian first.",
    ),
    "open_ksize": (
        "morph_open_ksize",
        _PIXELS,
        "Open the map with a square kernel of this side.",
    ),
    "close_ksize": (
        "morph_close_ksize",
        _PIXELS,
        "Close the map with a square kernel of this side.",
    ),
    "component_threshold": (
        "component_threshold",
        {"type": float, "metavar": "SCORE"},
        "Score from which on connected pixels form a region, for the smallest area.",
    ),
    "min_component_area": (
        "min_component_area",
        _PIXELS,
        "Set the pixels of smaller regions to 0.",
    ),
}


def pixel_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--pixel-postprocess` with its settings, and an option that older scripts pass."""
    for name, (_, settings, meaning) in reversed(_POSTPROCESS.items()):
        flag = f"--pixel-post-{name.replace('_', '-')}"
        command = click.option(flag, cls=Option, section="Metrics", help=meaning, **settings)(
            command
        )
    command = click.option(
        "--pixel-postprocess",
        cls=Option,
        section="Metrics",
        is_flag=True,
        help="Post-process each map before pixel metrics are computed. Scores stay as they are, "
        "and the model's own pixel threshold no longer applies.",
    )(command)
    return click.option(
        "--pixel-aupro-thresholds",
        cls=Option,
        section="Metrics",
        type=int,
        metavar="N",
        help="Accepted for older scripts and not used: AUPRO is exact, at every threshold.",
    )(command)


def take_postprocess(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options of post-processing out of `arguments`, and return its keywords.

    None without `--pixel-postprocess`.

    Raises
    ------
    click.UsageError
        One of them is given without `--pixel-postprocess`.
    """
    wanted = arguments.pop("pixel_postprocess")
    taken = {name: arguments.pop(f"pixel_post_{name}") for name in _POSTPROCESS}
    given = {name: value for name, value in taken.items() if value is not None}
    if not wanted:
        for name in given:
            flag = f"--pixel-post-{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} has no effect without --pixel-postprocess")
        return None
    keywords: dict[str, Any] = {
        _POSTPROCESS[name][0]: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
    }
    if "norm" in given:
        keywords = {"normalize": given["norm"] != "none", **keywords}
        if given["norm"] == "none":
            del keywords["normalize_method"]
    return keywords


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


def require_dataset(arguments: dict[str, Any]) -> None:
    """Raise `click.UsageError` where no dataset is given."""
    from ..pipelines.config import DATASETS

    if arguments["dataset"] is None:
        raise click.UsageError(f"--dataset is missing ({DATASETS})")


def require_writable(output: Path) -> None:
    """Found out before the run, not after it."""
    folder = output.parent
    if not output.name:
        raise click.UsageError("--output: give the name of a file, got ''")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise click.UsageError(
            f"--output {output}: {folder} is not a folder that can be written to"
        )
