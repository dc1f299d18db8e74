"""What a benchmark is asked for: checked before any image is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from ..errors import UsageError, invalid_value
from ..models.parameters import CalibrationSource, Contamination, Flag, Quantile, Seed, Size
from ..models.registry import create_model, default_keywords, preset_keywords

#: Images are brought to this (height, width) unless the user or a preset says otherwise.
DEFAULT_RESIZE = (256, 256)

_Limit = Annotated[int, Strict(), Field(ge=1)]


class BenchmarkConfig(BaseModel):
    """The checked arguments of `run_benchmark`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    dataset: str
    category: str
    model: str
    device: str
    preset: str | None
    pretrained: Flag
    contamination: Contamination | None
    resize: Size | None
    model_kwargs: dict[str, Any]
    calibration: CalibrationSource
    calibration_quantile: Quantile | None
    limit_train: _Limit | None
    limit_test: _Limit | None
    seed: Seed
    pixel: Flag
    pixel_aupro_limit: Annotated[float, Strict(), Field(gt=0, le=1)]
    on_error: Literal["error", "skip"]
    save_run: Flag
    per_image_jsonl: Flag

    @classmethod
    def check(cls, **values: Any) -> BenchmarkConfig:
        """Raise `UsageError`, one line, for the first value that will not do."""
        values["model_kwargs"] = values["model_kwargs"] or {}
        try:
            return cls(**values)
        except ValidationError as error:
            raise invalid_value(error, values) from None

    def detector_keywords(self) -> dict[str, Any]:
        """The detector's keywords: what the user gives beats the preset, that the default.

        Raises
        ------
        UsageError
            An unknown model, preset or keyword, a value out of range, or a keyword that is
            also given as an argument of its own with another value.
        """
        accepted = default_keywords(self.model)
        preset = preset_keywords(self.model, self.preset)
        given: dict[str, Any] = {
            "device": self.device,
            "calibration": self.calibration,
            "pretrained": self.pretrained,
            "random_seed": self.seed,
        }
        optional = {
            "resize": self.resize,
            "contamination": self.contamination,
            "calibration_quantile": self.calibration_quantile,
        }
        given.update({name: value for name, value in optional.items() if value is not None})
        for name in ("pretrained", "random_seed"):  # not every method has a network, or chance
            if name not in accepted:
                del given[name]
        if not self.pretrained and "pretrained" not in accepted:
            raise UsageError(f"pretrained=False means nothing to model {self.model!r}")
        arguments = {**optional, "device": self.device if self.device != "cpu" else None}
        for name, value in self.model_kwargs.items():
            twice = arguments.get(name)
            if twice is not None and list_or_same(twice) != list_or_same(value):
                raise UsageError(f"{name} is given twice: {twice!r}, and {value!r} in model_kwargs")
        keywords = {"resize": DEFAULT_RESIZE, **preset, **given, **self.model_kwargs}
        create_model(self.model, **keywords)  # checks names, types and ranges
        return keywords


def list_or_same(value: Any) -> Any:
    """Tuples as lists, since JSON knows only those."""
    return list(value) if isinstance(value, tuple) else value
