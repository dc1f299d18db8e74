"""What a benchmark is asked for: checked before any image is read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from ..calibration import CalibrationTail
from ..errors import UsageError, invalid_value, unknown_name
from ..images import CORRUPTIONS, SEVERITIES, get_corruption
from ..models.parameters import (
    BitDepth,
    Contamination,
    Flag,
    Quantile,
    Seed,
    Size,
    plain_value,
    understand,
)
from ..models.registry import default_keywords, preset_keywords

if TYPE_CHECKING:
    from typing_extensions import Self

#: Keywords of detectors that the benchmark has arguments for, and those arguments.
_OWN_ARGUMENTS = {
    "device": "device",
    "pretrained": "pretrained",
    "random_seed": "seed",
    "resize": "resize",
    "contamination": "contamination",
    "calibration": "calibration",
    "calibration_quantile": "calibration_quantile",
    "calibration_tail": "calibration_tail",
    "cache_dir": "cache_dir",
}

_Limit = Annotated[int, Strict(), Field(ge=1)]


class BenchmarkConfig(BaseModel):
    """The checked arguments of `run_benchmark`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dataset: str
    category: str | list[str]
    split: str | None
    allow_outside: Flag
    model: str
    device: str
    preset: str | None
    pretrained: Flag
    contamination: Contamination | None
    resize: Size | None
    model_kwargs: dict[str, Any]
    calibration: Literal["out-of-sample", "in-sample", "validation"]
    calibration_quantile: Quantile | None
    # those with defaults here were not arguments of earlier runs, which can still be resumed
    calibration_tail: CalibrationTail | None = None
    exclude_suspects: Flag = False
    exclude: str | None = None
    limit_train: _Limit | None
    limit_test: _Limit | None
    seed: Seed
    pixel: Flag
    pixel_aupro_limit: Annotated[float, Strict(), Field(gt=0, le=1)] | None
    on_error: Literal["error", "skip"]
    save_run: Flag
    per_image_jsonl: Flag
    cache_dir: str | None
    num_threads: _Limit | None
    max_pixels: _Limit | None
    save_model: Flag
    roi: str | None
    pixel_segf1: Flag = False
    pixel_threshold_strategy: Literal["normal_pixel_quantile"] | None = None
    pixel_normal_quantile: Quantile = 0.999
    pixel_calibration_fraction: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.2
    pixel_calibration_seed: Seed = 0
    pixel_postprocess: dict[str, Any] | None = None
    bit_depth: BitDepth | None = None  # runs of earlier versions have none
    html: Flag = True

    @classmethod
    def check(cls, **values: Any) -> Self:
        """Raise `UsageError`, one line, for the first value that will not do."""
        values = {name: plain_value(value) for name, value in values.items()}
        if values.get("model_kwargs") is None:
            values["model_kwargs"] = {}
        _locate(values, ("cache_dir", "roi", "exclude"))
        if isinstance(values["model_kwargs"], dict):
            values["model_kwargs"] = dict(values["model_kwargs"])
            _locate(values["model_kwargs"], PATH_KEYWORDS)
        try:
            config = cls(**values)
        except ValidationError as error:
            raise invalid_value(error, values) from None
        if config.save_model and not config.save_run:
            raise UsageError("save_model needs a run directory to save to; save_run is False")
        if config.pixel_postprocess is not None:
            make_postprocess(config.pixel_postprocess)
        return config

    def as_json(self) -> dict[str, Any] | None:
        """All arguments as plain JSON values, which `check` takes back; None if they have none."""
        try:
            text = json.dumps(self.model_dump(), default=_as_json, allow_nan=False)
        except (TypeError, ValueError):
            return None
        plain: dict[str, Any] = json.loads(text)
        return plain

    def detector_keywords(self, *, ours: bool = True) -> dict[str, Any]:
        """The detector's keywords: what the user gives beats the preset, that the default.

        Where the detector is not one of `ours`, what was given is passed on as it is.

        Raises
        ------
        UsageError
            An unknown model or preset, or a keyword in `model_kwargs` that is an argument
            of its own. Unknown keywords and values out of range are `create_model`'s to find.
        """
        if not ours:
            given_to_others = {
                "device": self.device,
                "contamination": self.contamination,
                "pretrained": self.pretrained,
            }
            known = {name: v for name, v in given_to_others.items() if v is not None}
            return {**known, **self.model_kwargs}
        accepted = default_keywords(self.model)
        preset = preset_keywords(self.model, self.preset)
        given: dict[str, Any] = {
            "device": self.device,
            # validation images are held out, whatever the training images are scored by
            "calibration": "in-sample" if self.calibration == "in-sample" else "out-of-sample",
            "pretrained": self.pretrained,
            "random_seed": self.seed,
        }
        optional = {
            "resize": self.resize,
            "contamination": self.contamination,
            "calibration_quantile": self.calibration_quantile,
            "calibration_tail": self.calibration_tail,
            "cache_dir": self.cache_dir,
        }
        given.update({name: value for name, value in optional.items() if value is not None})
        for name in ("pretrained", "random_seed"):  # not every method has a network, or chance
            if name not in accepted:
                del given[name]
        if not self.pretrained and "pretrained" not in accepted:
            raise UsageError(f"pretrained=False does not apply to model {self.model!r}")
        if self.calibration_tail is not None and "calibration_tail" not in accepted:
            raise UsageError(f"calibration_tail does not apply to model {self.model!r}")
        if self.cache_dir is not None and "cache_dir" not in accepted:
            raise UsageError(f"cache_dir does not apply to model {self.model!r}")
        if self.roi is not None:
            if "roi" not in accepted:
                raise UsageError(f"roi does not apply to model {self.model!r}")
            if "roi" in self.model_kwargs:
                raise UsageError("roi stands in model_kwargs too; give it once")
            given["roi"] = self.roi
        if self.bit_depth is not None:
            if "bit_depth" not in accepted:
                raise UsageError(f"bit_depth does not apply to model {self.model!r}")
            if "bit_depth" in self.model_kwargs:
                raise UsageError("bit_depth stands in model_kwargs too; give it once")
            given["bit_depth"] = self.bit_depth
        for name in self.model_kwargs:
            if name in _OWN_ARGUMENTS:
                raise UsageError(
                    f"{name} in model_kwargs: it is an argument of its own "
                    f"({_OWN_ARGUMENTS[name]}), give it there"
                )
        further = understand(self.model_kwargs, accepted)
        if self.resize is not None and "resize" in further:
            raise UsageError("image_size in model_kwargs is another name of resize; give it once")
        return {**preset, **given, **further}


def make_postprocess(keywords: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What post-processes anomaly maps, by keywords of `AnomalyMapPostprocess`.

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


class RobustnessConfig(BenchmarkConfig):
    """The checked arguments of `run_robust_benchmark`."""

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    pixel_segf1: Flag = True

    @classmethod
    def check(cls, **values: Any) -> Self:
        return super().check(**{**values, "corruptions": _names(values.get("corruptions"))})

    @field_validator("severities", mode="before")
    @classmethod
    def _in_range(cls, given: Any) -> tuple[int, ...]:
        """Each once, from the mildest to the worst."""
        if isinstance(given, range):
            given = list(given)
        if not isinstance(given, (list, tuple)) or not given:
            raise ValueError("must be a list of integers from 1 to 5")
        for one in given:
            if isinstance(one, bool) or not isinstance(one, int) or one not in SEVERITIES:
                raise ValueError(f"must be integers from 1 to 5, {one!r} is not")
        return tuple(sorted(set(given)))


#: Keywords of detectors that are paths.
PATH_KEYWORDS = ("weights", "roi", "teacher", "penalty_images", "checkpoint_dir")


def _locate(values: dict[str, Any], names: tuple[str, ...]) -> None:
    """Relative paths from where we are now, so that they hold wherever a run is resumed."""
    for name in names:
        value = values.get(name)
        if isinstance(value, (str, Path)) and str(value):
            values[name] = str(Path(value).expanduser().absolute())


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _names(given: Any) -> tuple[str, ...]:
    """Corruptions, each once, in the order in which they were given; by default all."""
    if given is None:
        return tuple(CORRUPTIONS)
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not names:
        raise UsageError(f"corruptions must be names, as a list or with commas, got {given!r}")
    return tuple(dict.fromkeys(get_corruption(name).name for name in names))
