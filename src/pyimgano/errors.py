"""What can go wrong, in the words that a user reads.

Every error that pyimgano raises on purpose is a `PyimganoError` whose message is one
line: what was found, what is wanted, and the file or argument it is about. The command
line prints that line and exits with `exit_code`; a traceback means a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class PyimganoError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command's exit status.

    `report` is that of a run which the error ended after some of its categories were complete,
    as plain JSON values: what was measured is not lost where it could not be written.
    """

    exit_code = 1
    report: dict[str, Any] | None = None


class UsageError(PyimganoError, ValueError):
    """The request itself is wrong: an unknown name, a value outside its range (exit 2)."""

    exit_code = 2


class UnknownNameError(UsageError, KeyError):
    """There is no model, or no dataset, of that name; also a `KeyError`, as a look-up's is."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class DataError(PyimganoError):
    """The request is fine, but what lies on disk cannot serve it (exit 1)."""


class MissingFolderError(DataError, FileNotFoundError):
    """A folder or file that the request names is not there; also a `FileNotFoundError`."""

    __str__ = Exception.__str__  # an OSError shows its number


class UnknownCategoryError(DataError, ValueError):
    """The dataset has no such category; also a `ValueError`, for the name was an argument."""


class ImageReadError(DataError):
    """One image cannot be used; `path` says which and `reason` why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    @property
    def missing(self) -> bool:
        """Return whether the reason is that there is no such file."""
        return isinstance(self.__cause__, FileNotFoundError)

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class UnknownProductError(ImageReadError):
    """An image that is judged by no detector, because its product is none of those known."""


class WeightsError(DataError):
    """No weights, or weights that do not fit the network."""


class SavedModelError(DataError):
    """A folder that holds no saved detector, a damaged one, or one that cannot be used here."""


class NotEnoughMemoryError(PyimganoError):
    """Memory ran out, also for the smallest pieces of work that it was divided into."""


class NotFittedError(PyimganoError, ValueError, AttributeError):
    """A detector was asked for results before `fit`."""


@contextmanager
def during(stage: str) -> Iterator[None]:
    """Notes on an error that passes through what was being done, as its attribute `stage`.

    The innermost of several stays. `stage_of` reads it.
    """
    try:
        yield
    except Exception as error:
        if stage_of(error) is None:
            with suppress(AttributeError, TypeError):  # an error may have no room for it
                error.stage = stage  # type: ignore[attr-defined]
        raise


def stage_of(error: BaseException) -> str | None:
    """Return what was being done when the error was raised, as far as `during` knows."""
    if isinstance(error, ImageReadError):
        return "reading"
    stage = getattr(error, "stage", None)
    if stage is None and error.__cause__ is not None:  # one that was put in words further out
        return stage_of(error.__cause__)
    return stage if isinstance(stage, str) else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Write one line for an unknown name: the near ones if there are any, else all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(near)}?"
    return f"unknown {kind} {name!r}; known: {', '.join(names) if names else 'none'}"


def invalid_value(error: ValidationError, given: Mapping[str, Any]) -> UsageError:
    """Write pydantic's first complaint as one line that names the argument and its value."""
    first = error.errors()[0]
    argument = str(first["loc"][0]) if first["loc"] else "argument"
    message = first["msg"].removeprefix("Value error, ")
    shown = ""
    if argument in given:
        value = repr(given[argument])
        shown = f", got {value if len(value) <= 200 else value[:200] + '...'}"
    return UsageError(f"{argument}: {message[0].lower()}{message[1:]}{shown}")
