"""The options of a benchmark, each said once: name, type, range, default and meaning.

The flags of the commands, the docstrings of `run_benchmark` and `run_robust_benchmark`, config.json
and its schema are made from the classes here. A new option is a field here, an argument of these
functions, and the code that uses it.

The commands import this module for `--help`, so what is heavy is imported where it is used.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    Strict,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from ..errors import UsageError, invalid_value, unknown_name
from ..models.ranges import BitDepth, Contamination, Count, Flag, Quantile, Seed, Size

if TYPE_CHECKING:
    from typing_extensions import Self

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: The built-in datasets, for messages and help texts.
DATASETS = "mvtec, mvtec_loco, mvtec_ad2, visa, btad, custom or demo"
#: Keywords of detectors that are paths.
PATH_KEYWORDS = ("weights", "roi", "teacher", "penalty_images", "checkpoint_dir")

# Keywords of detectors that are options of their own, and these options.
_OF_DETECTORS = {
    "device": "device",
    "pretrained": "pretrained",
    "random_seed": "seed",
    "resize": "resize",
    "contamination": "contamination",
    "calibration": "calibration",
    "calibration_quantile": "calibration_quantile",
    "calibration_tail": "calibration_tail",
    "cache_dir": "cache_dir",
    "roi": "roi",
    "bit_depth": "bit_depth",
}


@dataclass(frozen=True)
class Shown:
    """How the commands show an option, where its type does not tell.

    Attributes
    ----------
    section
        The part of `--help` that it stands in.
    metavar
        What stands for its value.
    path
        What its path names.
    negatable
        Whether there is a `--no-` flag too; there always is one for what is on by default.
    default
        The default as text, where the command reads the value from text.
    several
        Whether the command takes several whole numbers, separated by commas.
    """

    section: str
    metavar: str | None = None
    path: Literal["any", "file", "folder"] | None = None
    negatable: bool = False
    default: str | None = None
    several: bool = False


class _Options(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True
    )


class Options(_Options):
    """What `run_benchmark` and `run_robust_benchmark` have in common; config.json holds it."""

    dataset: Annotated[str, Shown("Dataset")] = Field(
        description=f"Layout of the dataset: {DATASETS}; demo needs no root."
    )
    root: Annotated[SkipValidation[str | Path | None], Shown("Dataset", path="any")] = Field(
        None, description="Folder of the dataset; for custom also a manifest (.csv, .jsonl)."
    )
    category: Annotated[str | list[str], Shown("Dataset")] = Field(
        "all", description="Run one category, several separated by commas, or all."
    )
    split: Annotated[str | None, Shown("Dataset")] = Field(
        None,
        description="Which of the authors' splits to use. visa: 1cls, 2cls_highshot, 2cls_fewshot; "
        "mvtec_ad2: test_public, test_private, test_private_mixed, or private for the last two. "
        "Images of a split without labels are scored, and their maps saved for the server.",
    )
    allow_outside: Annotated[Flag, Shown("Dataset")] = Field(
        False, description="Follow links and a manifest's paths out of the dataset's folder."
    )
    limit_train: Annotated[Count | None, Shown("Dataset", metavar="N")] = Field(
        None, description="Use at most N training images of each category, evenly spread."
    )
    limit_test: Annotated[Count | None, Shown("Dataset", metavar="N")] = Field(
        None,
        description="Use at most N test images of each category; every kind of defect is kept.",
    )
    seed: Annotated[Seed, Shown("Dataset")] = Field(
        0, description="Seed of the random number generators."
    )

    model: Annotated[str, Shown("Model")] = Field(
        "vision_patchcore",
        description="Name of the detector; pyimgano benchmark --list-models prints them.",
    )
    preset: Annotated[str | None, Shown("Model")] = Field(
        None,
        description="Settings of the model: industrial-fast, industrial-balanced or "
        "industrial-accurate. What is given besides beats the preset.",
    )
    model_kwargs: Annotated[dict[str, Any], Shown("Model", metavar="JSON")] = Field(
        default_factory=dict, description="Further keywords of the model, as a JSON object."
    )
    device: Annotated[str, Shown("Model")] = Field(
        "cpu", description="Run the model on auto, cpu, cuda or cuda:N."
    )
    pretrained: Annotated[Flag, Shown("Model")] = Field(
        True,
        description="Use ImageNet weights; with --no-pretrained random ones (for timing only).",
    )
    resize: Annotated[Size | None, Shown("Model", metavar="H W")] = Field(
        None,
        description="Height and width that the model sees images at. By default the model chooses; "
        "most take 256 256.",
    )
    roi: Annotated[str | None, Shown("Model", metavar="FILE", path="any")] = Field(
        None,
        description="Score only this region of interest: a mask image, or a .json file of "
        "polygons. What lies outside counts in no score and in no pixel metric.",
    )
    bit_depth: Annotated[BitDepth | None, Shown("Model", metavar="BITS")] = Field(
        None,
        description="Number of bits, 9 to 16, that the camera uses of 16-bit images. By default "
        "what each file declares, or else all 16.",
    )
    max_pixels: Annotated[Count | None, Shown("Model", metavar="N")] = Field(
        None,
        description="Refuse images and masks whose header declares more pixels (height times "
        "width). Default 2^28.",
    )
    cache_dir: Annotated[str | None, Shown("Model", path="folder")] = Field(
        None,
        description="Keep the features of images in this folder (at most 20 GiB), for the next "
        "run on the same images.",
    )
    num_threads: Annotated[Count | None, Shown("Model", metavar="N")] = Field(
        None,
        description="Use this many threads, at most one a core. By default OMP_NUM_THREADS, or "
        "else all cores. Results do not depend on it.",
    )

    contamination: Annotated[Contamination | None, Shown("Threshold")] = Field(
        None,
        description="Share of the training images that may lie above the threshold, in (0, 0.5]. "
        "It gives the quantile 1 - share.",
    )
    calibration: Annotated[
        Literal["out-of-sample", "in-sample", "validation"], Shown("Threshold")
    ] = Field(
        "out-of-sample",
        description="Calibrate the threshold on out-of-sample scores of the training images, on "
        "in-sample ones (which promise nothing), or on the dataset's validation images.",
    )
    calibration_quantile: Annotated[Quantile | None, Shown("Threshold")] = Field(
        None,
        description="Quantile of the good images' scores that becomes the threshold, in (0, 1). "
        "Default 0.995.",
    )
    calibration_tail: Annotated[Literal["exponential", "conformal"] | None, Shown("Threshold")] = (
        Field(
            None,
            description="Estimate the threshold by an exponential tail of the scores where a test "
            "of fit accepts one (default), or take the score at the conformal rank.",
        )
    )
    exclude_suspects: Annotated[Flag, Shown("Threshold")] = Field(
        False,
        description="Fit a second time without the training images that decide the threshold or "
        "stand apart in the first fit; the report says what this does to the promise.",
    )
    exclude: Annotated[str | None, Shown("Threshold", metavar="FILE", path="file")] = Field(
        None,
        description="Leave out the training images that this list names, one path a line, relative "
        "to the root.",
    )

    pixel: Annotated[Flag, Shown("Metrics")] = Field(
        True, description="Compute pixel metrics where masks exist."
    )
    pixel_aupro_limit: Annotated[
        Annotated[float, Strict(), Field(gt=0, le=1)] | None, Shown("Metrics", metavar="FPR")
    ] = Field(
        None,
        description="Largest false-positive rate to which AUPRO and sPRO are integrated. Default "
        "that of the dataset: 0.3, or 0.05 for LOCO and AD 2.",
    )
    pixel_segf1: Annotated[Flag, Shown("Metrics", negatable=True)] = Field(
        False,
        description="Report pixel_segf1 and bg_fpr too, which count pixels strictly above the "
        "pixel threshold.",
    )
    on_error: Annotated[Literal["error", "skip"], Shown("Metrics")] = Field(
        "error",
        description="With error, an unreadable training image fails its category and an unreadable "
        "test image makes the exit status 1; with skip, both are left out and listed.",
    )

    save_run: Annotated[Flag, Shown("Run")] = Field(True, description="Write a run directory.")
    per_image_jsonl: Annotated[Flag, Shown("Run")] = Field(
        True, description="Write a record of each test image to per_image.jsonl."
    )
    html: Annotated[Flag, Shown("Run")] = Field(
        True,
        description="Write report.html into the run directory, a page to look at in a browser; the "
        "maps of a few images are kept for it.",
    )
    track: Annotated[Literal["mlflow", "tensorboard", "wandb"] | None, Shown("Run")] = Field(
        None,
        description="Log parameters, metrics, report and pictures to this experiment tracker when "
        "the run has ended. It writes into a folder and sends nothing.",
    )
    track_dir: Annotated[str | None, Shown("Run", path="folder")] = Field(
        None,
        description="Folder that the tracker writes into; several runs may share it. By default a "
        "folder in the run directory.",
    )

    @classmethod
    def check(cls, **values: Any) -> Self:
        """Return the options with these values and the defaults, or raise `UsageError`.

        The error is one line about the first value that will not do.
        """
        from ..models.parameters import plain_value

        values = {name: plain_value(value) for name, value in values.items()}
        if values.get("model_kwargs") is None:
            values["model_kwargs"] = {}
        _make_absolute(values, ("cache_dir", "roi", "exclude", "track_dir"))
        if isinstance(values["model_kwargs"], dict):
            values["model_kwargs"] = dict(values["model_kwargs"])
            _make_absolute(values["model_kwargs"], PATH_KEYWORDS)
        try:
            config = cls(**values)
        except ValidationError as error:
            raise invalid_value(error, values) from None
        config.check_together()
        return config

    def check_together(self) -> None:
        """Raise `UsageError` for options that do not go together."""
        if self.track is not None and not self.save_run:
            raise UsageError("track logs the files of a run directory; save_run is False")
        if self.track_dir is not None and self.track is None:
            raise UsageError("track_dir is for a tracker to write into; track names none")

    def detector_keywords(self, *, ours: bool = True) -> dict[str, Any]:
        """Return the detector's keywords: what the user gives beats the preset, that the default.

        Where the detector is not one of `ours`, what was given is passed on as it is.

        Raises
        ------
        UsageError
            An unknown model or preset, an option that the model has no keyword for, or a keyword
            in `model_kwargs` that is an option of its own. Unknown keywords and values out of
            range are `create_model`'s to find.
        """
        from ..models.parameters import understand
        from ..models.registry import default_keywords, preset_keywords

        if not ours:
            given = {name: getattr(self, name) for name in ("device", "contamination")}
            known = {name: v for name, v in given.items() if v is not None}
            return {**known, "pretrained": self.pretrained, **self.model_kwargs}
        accepted = default_keywords(self.model)
        preset = preset_keywords(self.model, self.preset)
        options = {keyword: getattr(self, option) for keyword, option in _OF_DETECTORS.items()}
        given = {keyword: value for keyword, value in options.items() if value is not None}
        if self.calibration == "validation":
            # validation images are held out, whatever the training images are scored by
            given["calibration"] = "out-of-sample"
        if "random_seed" not in accepted:  # not every method draws random numbers
            del given["random_seed"]
        if "pretrained" not in accepted:  # nor has a network
            if not self.pretrained:
                raise UsageError(f"pretrained=False does not apply to model {self.model!r}")
            del given["pretrained"]
        for name in ("calibration_tail", "cache_dir", "roi", "bit_depth"):
            if name in given and name not in accepted:
                raise UsageError(f"{name} does not apply to model {self.model!r}")
        for name in self.model_kwargs:
            if name in ("roi", "bit_depth"):  # polygons of a region can stand there alone
                if name in given:
                    raise UsageError(f"{name} stands in model_kwargs too; give it once")
            elif name in _OF_DETECTORS:
                raise UsageError(
                    f"{name} in model_kwargs: it is an argument of its own "
                    f"({_OF_DETECTORS[name]}), give it there"
                )
        further = understand(self.model_kwargs, accepted)
        if self.resize is not None and "resize" in further:
            raise UsageError("image_size in model_kwargs is another name of resize; give it once")
        return {**preset, **given, **further}

    def plain_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return a detector's keywords as documents have them: plain JSON values.

        `calibration` is the run's word for where the threshold comes from, which a detector does
        not know.
        """
        plain: dict[str, Any] = json.loads(json.dumps(dict(parameters), default=_in_words))
        return {**plain, "calibration": self.calibration}

    def further_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of a detector's parameters that are neither options nor `model_kwargs`."""
        given = {*_OF_DETECTORS, *self.model_kwargs}
        return {name: value for name, value in parameters.items() if name not in given}


class BenchmarkConfig(Options):
    """The options of `run_benchmark` that config.json holds."""

    model: Annotated[str, Shown("Model")] = Field(
        "vision_patchcore",
        description="Name of the detector; pyimgano benchmark --list-models prints them. Several, "
        "separated by commas, run a grid.",
    )
    seed: Annotated[Seed, Shown("Dataset", metavar="N", several=True)] = Field(
        0,
        description="Seed of the random number generators. Several, separated by commas, run a "
        "grid.",
    )
    pixel_threshold_strategy: Annotated[
        Literal["normal_pixel_quantile"] | None, Shown("Metrics")
    ] = Field(
        None,
        description="Take the pixel threshold from maps of training images that are held out for "
        "it. By default it is the detector's own.",
    )
    pixel_normal_quantile: Annotated[Quantile, Shown("Metrics")] = Field(
        0.999,
        description="Quantile of those maps' pixels that becomes the pixel threshold, in (0, 1).",
    )
    pixel_calibration_fraction: Annotated[
        Annotated[float, Strict(), Field(gt=0, lt=1)], Shown("Metrics")
    ] = Field(0.2, description="Share of the training images that is held out for it, in (0, 1).")
    pixel_calibration_seed: Annotated[Seed, Shown("Metrics")] = Field(
        0, description="Seed of the choice of these images."
    )
    pixel_postprocess: Annotated[dict[str, Any] | None, Shown("Metrics")] = Field(
        None,
        description="Post-process each map before pixel metrics are computed. Scores stay as they "
        "are, and the model's own pixel threshold no longer applies.",
    )
    save_model: Annotated[Flag, Shown("Run")] = Field(
        False, description="Keep each category's detector in the run directory."
    )

    def check_together(self) -> None:
        super().check_together()
        if self.save_model and not self.save_run:
            raise UsageError("save_model needs a run directory to save to; save_run is False")
        if self.pixel_postprocess is not None:
            make_postprocess(self.pixel_postprocess)


class RobustnessConfig(Options):
    """The options of `run_robust_benchmark` that config.json holds."""

    pixel_segf1: Annotated[Flag, Shown("Metrics")] = Field(
        True, description="Report SegF1 among the pixel metrics."
    )
    corruptions: Annotated[tuple[str, ...], Shown("Corruptions", metavar="NAMES")] = Field(
        None,
        validate_default=True,
        description="Corruptions to apply, separated by commas, or the option several times. "
        "Default all of --list-corruptions.",
    )
    severities: Annotated[tuple[int, ...], Shown("Corruptions", metavar="LIST", default="1..5")] = (
        Field(
            (1, 2, 3, 4, 5),
            description="Severities to apply, from 1 (mild) to 5 (severe), as 1,3,5 or 1..5 "
            "or 1-5.",
        )
    )

    @field_validator("corruptions", mode="before")
    @classmethod
    def _known(cls, given: Any) -> tuple[str, ...]:
        """Return each once, in the order in which they were given; by default all."""
        from ..images import CORRUPTIONS, get_corruption

        if given is None:
            return tuple(CORRUPTIONS)
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
        if not isinstance(names, (list, tuple)) or not names:
            raise ValueError("must be names, as a list or with commas")
        return tuple(dict.fromkeys(get_corruption(name).name for name in names))

    @field_validator("severities", mode="before")
    @classmethod
    def _in_range(cls, given: Any) -> tuple[int, ...]:
        """Return each once, from the mildest to the worst."""
        from ..images import SEVERITIES

        if isinstance(given, range):
            given = list(given)
        if not isinstance(given, (list, tuple)) or not given:
            raise ValueError("must be a list of integers from 1 to 5")
        for one in given:
            if isinstance(one, bool) or not isinstance(one, int) or one not in SEVERITIES:
                raise ValueError(f"must be integers from 1 to 5, {one!r} is not")
        return tuple(sorted(set(given)))


class Execution(_Options):
    """Where and how this call runs; a resumed run has its own, so config.json does not hold it."""

    resume: Annotated[
        SkipValidation[str | Path | None], Shown("Run", metavar="RUN", path="any")
    ] = Field(
        None, description="Continue a run that stopped, with the options it was started with."
    )
    force: Annotated[Flag, Shown("Run")] = Field(
        False,
        description="Resume even if the dataset, the configuration or the program has changed "
        "since; environment.json then says what has.",
    )
    fail_fast: Annotated[Flag, Shown("Run")] = Field(
        False, description="Stop at the first category that fails."
    )
    output_dir: Annotated[SkipValidation[str | Path | None], Shown("Run", path="folder")] = Field(
        None,
        description="Write the run into this folder itself, which has to be empty or missing.",
    )
    runs_dir: Annotated[SkipValidation[str | Path | None], Shown("Run", path="folder")] = Field(
        None,
        description="Make a named run directory in this folder, where --output-dir is not given. "
        "Default runs.",
    )


def options_of(*classes: type[BaseModel]) -> dict[str, tuple[FieldInfo, Shown]]:
    """Return the options of these classes by name, with how the commands show them."""
    found = {}
    for cls in classes:
        for name, field in cls.model_fields.items():
            found[name] = field, next(one for one in field.metadata if isinstance(one, Shown))
    return found


def describes(*classes: type[BaseModel]) -> Callable[[_Function], _Function]:
    """Decorate a function that takes these options: `{options}` in its docstring becomes them."""

    def decorate(function: _Function) -> _Function:
        known = options_of(*classes)
        lines = []
        for name in inspect.signature(function).parameters:
            if name in known:
                text = known[name][0].description or ""
                lines += [
                    name,
                    textwrap.fill(text, 92, initial_indent="    ", subsequent_indent="    "),
                ]
        options = textwrap.indent("\n".join(lines), "    ").strip()
        function.__doc__ = (function.__doc__ or "").replace("{options}", options)
        return function

    return decorate


def make_postprocess(keywords: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return what post-processes anomaly maps, by keywords of `AnomalyMapPostprocess`.

    Raises
    ------
    UsageError
        An unknown keyword, or a value that it does not take.
    """
    from ..postprocess.anomaly_map import AnomalyMapPostprocess

    known = inspect.signature(AnomalyMapPostprocess).parameters
    for name in keywords:
        if name not in known:
            raise UsageError(unknown_name("keyword of pixel_postprocess", name, known))
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in keywords.items()  # JSON knows no tuples
    }
    try:
        return AnomalyMapPostprocess(**given)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"pixel_postprocess: {error}") from None


def as_json(value: Any) -> Any:
    """Return a value as JSON holds it; None where JSON cannot."""
    try:
        return json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except (TypeError, ValueError):
        return None


def _in_words(value: Any) -> str:
    """Return text for what JSON does not know; never an address, which differs by run."""
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:  # a number of numpy's
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _make_absolute(values: dict[str, Any], names: Sequence[str]) -> None:
    """Resolve relative paths from where we are now, so that they hold wherever a run is resumed."""
    for name in names:
        value = values.get(name)
        if isinstance(value, (str, Path)) and str(value):
            values[name] = str(Path(value).expanduser().absolute())
