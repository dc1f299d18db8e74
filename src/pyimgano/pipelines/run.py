"""config.json of a run."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from ..runs import Plain, Text, shown_within
from .config import BenchmarkConfig, RobustnessConfig

#: Options of which config.json holds the value that they came to, by preset and defaults.
_SETTLED = (
    *("category", "resize", "contamination", "calibration_quantile", "calibration_tail"),
    *("pixel_aupro_limit", "max_pixels"),
)


class _Settled(BaseModel):
    """What config.json adds to the options, and the values that they came to."""

    #: Versions of config.json that are read.
    readable: ClassVar[tuple[int, ...]] = (1, 2)

    schema_version: int = 2
    pyimgano_version: str
    started_at: str = Field(description="ISO 8601 with offset")
    root: Text
    category: Text = Field(description="one, several separated by commas, or all")
    categories: list[Text] = Field(description="the names that this came to")
    own_metrics: list[str] = Field(description="the metrics that the dataset's authors report")
    model_kwargs: Plain | None = Field(
        description="null if they hold something that JSON cannot; such a run cannot be resumed"
    )
    detector_parameters: Plain = Field(
        description="the model's other keywords, by preset and defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_is_now(cls, document: Any) -> Any:
        """Read the first version too, and write no text that JSON cannot hold."""
        if isinstance(document, dict) and document.get("schema_version") == 1:
            document = cls._from_first_version(document)
        return shown_within(document)

    @classmethod
    def _from_first_version(cls, document: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of now from a config.json that held most options twice.

        At its top were some options as they came to, and under `arguments` all as they were given.
        """
        known = {name: value for name, value in document.items() if name in cls.model_fields}
        arguments = document.get("arguments") or {"model_kwargs": None}
        if "corruptions" in known:  # had no say there
            no_options = BenchmarkConfig.model_fields.keys() - RobustnessConfig.model_fields.keys()
            arguments = {name: v for name, v in arguments.items() if name not in no_options}
        given = {name: v for name, v in arguments.items() if name not in _SETTLED}
        keywords = given.get("model_kwargs")
        if keywords and known.get("resize"):  # which image_size came to
            given["model_kwargs"] = {k: v for k, v in keywords.items() if k != "image_size"}
        return {**known, **given, "schema_version": 2}


class RunConfig(_Settled, BenchmarkConfig):  # type: ignore[misc]
    """config.json: the options of the run with the values that they came to, each once."""


class RobustnessConfigDocument(_Settled, RobustnessConfig):  # type: ignore[misc]
    """config.json of a robustness run: its options with the values that they came to."""

    corruption_parameters: dict[str, list[dict[str, float]]] = Field(
        description="by corruption, of the severities asked for"
    )
