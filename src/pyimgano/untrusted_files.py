"""Untrusted files and text: bounded in size and depth, and nothing that waits or leads away.

Whatever reads a file that somebody else made reads it through here.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

#: No list of images, configuration or report has more bytes.
MAX_TEXT_BYTES = 2**28
#: Lists and objects within one another; what a person writes has five.
MAX_DEPTH = 64

# A pipe put in a file's place between two looks must not be waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def read_regular(path: str | Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file; links are followed.

    Raises
    ------
    ValueError
        It is something else, or has more than `limit` bytes; the text is the reason. Also a name
        that no file can have.
    OSError
        It cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"has {size} bytes, at most {limit} are read")
        return file.read(size)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading without waiting for it; errors as `read_regular`."""
    require_regular_file(path)
    file = os.fdopen(os.open(path, _FLAGS), "rb")
    try:
        _require_regular(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def require_regular_file(path: str | Path) -> None:
    """Opening a pipe would wait for ever for somebody to write to it; errors as `read_regular`."""
    _require_regular(os.stat(path).st_mode)  # noqa: PTH116 -- also for str, without making a Path


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError("is a folder" if stat.S_ISDIR(mode) else "is not a regular file")


def reason_of_failure(error: OSError | ValueError) -> str:
    """Return the complaint of `read_regular` or `parse_json` on one line, without the path."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object in which no name stands twice; raises `ValueError`."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def parse_json(text: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] = once) -> Any:
    """JSON as the standard has it: UTF-8, no NaN, no infinity, no depth beyond reason.

    Parameters
    ----------
    text
        With or without a byte-order mark.
    pairs
        Makes a value of the names and values of an object.

    Raises
    ------
    ValueError
        It is none; the text says why in one line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
            depth += 1 if bracket in "[{" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=_no_constant)
    except RecursionError as error:  # of a caller that is deep down itself
        raise ValueError("is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def quoted(value: object, limit: int = 80) -> str:
    """Return the `repr` of untrusted text, cut to fit a message."""
    text = repr(value[: limit + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def leads_out(path: str | Path, folder: str | Path) -> bool:
    """Return whether `path`, with all links followed, lies outside `folder`; `ValueError` for no
    path.
    """
    real, home = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.commonpath([real, home]) != home
    except ValueError:
        if "\0" in str(path):
            raise
        return True  # on another drive
