"""`--resume RUN`: what is seen to before a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..untrusted_files import parse_json, read_regular
from .console import parse_keywords, print_error

if TYPE_CHECKING:
    from ..pipelines.run import Run


@dataclass(frozen=True)
class Again:
    """A run that goes on.

    Attributes
    ----------
    complete
        Whether there is nothing left to do.
    skip
        Whether it leaves unreadable images out, and so does not fail for them.
    """

    complete: bool
    skip: bool


def begin_again(kind: type[Run[Any, Any]], run: Path, given: dict[str, Any]) -> Again:
    """Check the options that the user typed against the run's own.

    Raises
    ------
    UsageError
        One of them is another than the run's, or the run is of another kind.
    DataError
        `run` is not a run directory.
    """
    from ..pipelines.open_run import require_same
    from ..runs import finished_report

    if "model_kwargs" in given:
        given = {**given, "model_kwargs": parse_keywords(given["model_kwargs"])}
    require_same(kind, run, given)
    config = parse_json(read_regular(run / "config.json"))  # which was looked at above
    complete = finished_report(run) is not None
    if complete:
        print_error(f"{run}: is complete, there is nothing to do")
    return Again(complete, config.get("on_error") == "skip")
