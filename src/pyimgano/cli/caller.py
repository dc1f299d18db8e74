"""What a command takes from the Python code that calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import click

from ..models.registry import create_model


@dataclass(frozen=True)
class Caller:
    """What the modules that older scripts call have of their own.

    Attributes
    ----------
    create_model
        Makes the detector; a script may have put its own function there.
    map_format
        Of saved maps, where `--map-format` says nothing.
    """

    create_model: Callable[..., Any] = create_model
    map_format: Literal["tiff", "npy"] = "tiff"

    @property
    def makes_its_own(self) -> bool:
        """Whether it makes detectors in another way than we do."""
        return self.create_model is not create_model


def current_caller() -> Caller:
    """Return the caller of the command under way; from a shell it is one without wishes."""
    return click.get_current_context().find_object(Caller) or Caller()
