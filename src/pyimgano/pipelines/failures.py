"""Why a category failed, as a report says it."""

from __future__ import annotations

import traceback
from pathlib import Path

from ..errors import PyimganoError, stage_of
from ..runs import Failure

_PACKAGE = Path(__file__).resolve().parents[1]


def failure_of(error: Exception) -> Failure:
    """Kind, message and stage; of an error that nobody foresaw also the innermost line of ours."""
    message = " ".join(str(error).split()) or type(error).__name__
    where = None if isinstance(error, PyimganoError) else _innermost(error)
    return Failure(kind=type(error).__name__, message=message, stage=stage_of(error), where=where)


def _innermost(error: Exception) -> str | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        try:
            file = Path(frame.filename).resolve().relative_to(_PACKAGE)
        except (ValueError, OSError):  # of another package, or no file
            continue
        return f"{file.as_posix()}:{frame.lineno}"
    return None
