"""A file that grows by whole lines, also on a disk that is full."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel

from ..errors import DataError
from ..untrusted_files import parse_json, read_regular

# Beside those that JSON escapes: control characters, ends of lines, marks of direction.
_OBEYED = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def append_line(file: BinaryIO, path: Path, line: bytes) -> None:
    """Append a line and its end to an unbuffered file: all of it, or nothing.

    A file system that is filling up takes a part of it and says so afterwards; that part is
    taken back, so that the file ends with a whole line.

    Raises
    ------
    DataError
        It cannot be written.
    """
    data = memoryview(line + b"\n")
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        taken = len(line) + 1 - len(data)
        if taken:
            with contextlib.suppress(OSError):  # a pipe or a device keeps what it has
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - taken)
                file.seek(0, os.SEEK_END)
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def as_line(record: BaseModel, *, exclude_unset: bool = False) -> str:
    """JSON on one line for whoever looks: what a terminal would obey, or some readers take for the
    end of a line, is written as \\uNNNN."""
    text = record.model_dump_json(exclude_unset=exclude_unset)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def read_scores(path: Path) -> list[tuple[int | None, float]]:
    """Labels (0, 1, or None) and scores of the images in a per_image.jsonl that have a score.

    Raises
    ------
    DataError
        It cannot be read, or is something else.
    """
    try:
        lines = read_regular(path).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            label, score = record["y_true"], record["score"]
            if label not in (None, 0, 1) or isinstance(label, bool):
                raise ValueError("y_true")
            if score is not None:
                found.append((label, float(score)))
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}: line {number} is not a record of a benchmark") from None
    return found
