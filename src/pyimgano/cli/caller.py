"""What a command takes from the Python code that calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from ..models.registry import create_model
from .interruption import Interruption


@dataclass(frozen=True)
class Caller:
    """What the modules that older scripts call have of their own.

    Attributes
    ----------
    create_model
        Makes the detector; a script may have put its own function there.
    map_format
        Of saved maps, where `--map-format` says nothing.
    interruption
        Is told of the run under way, for a signal to mark it.
    """

    create_model: Callable[..., Any] = create_model
    map_format: Literal["tiff", "npy"] = "tiff"
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def makes_its_own(self) -> bool:
        """Return whether it makes detectors in another way than we do."""
        return self.create_model is not create_model


def current_caller() -> Caller:
    """Return the caller of the command under way; from a shell it is one without wishes."""
    return click.get_current_context().find_object(Caller) or Caller()


def detector_of_caller(
    arguments: Mapping[str, Any], input_mode: str | None = None
) -> dict[str, Any]:
    """Return the argument `create` of a benchmark, where a calling script makes its own detectors.

    `arguments` are those of the benchmark; `input_mode` is the form in which the detector is given
    images.
    """
    caller = current_caller()
    if not caller.makes_its_own:
        return {}

    def create(name: str, **keywords: Any) -> Any:
        from ..models.adapted import adapt

        settings = {"resize": arguments["resize"], "input_mode": input_mode}
        settings["calibration_quantile"] = arguments["calibration_quantile"]
        asked = {name: value for name, value in settings.items() if value is not None}
        return adapt(caller.create_model(name, **keywords), **asked)

    return {"create": create}
