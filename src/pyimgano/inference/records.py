"""A JSONL file of records that grows by whole lines, and may be gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runs import InferenceRecord, append_line, shown
from ..runs import as_line as whole_line

# Of every record's line.
_BEGINNING = b'{"index":'


def as_line(record: InferenceRecord) -> str:
    """Return the record as JSON on one line, without the fields that were not asked for."""
    return whole_line(record, exclude_unset=True)


class RecordFile:
    """Records on disk: each is one write of one whole line, straight to the system.

    Parameters
    ----------
    path
        Its folder must exist.
    keep
        Whether to go on after the lines that are there; else the file is begun anew. A last
        line that was cut by a crash is removed.

    Attributes
    ----------
    count
        Records in it.
    known
        With `keep`, the keys (`key_of`) of the watched files that have a record.

    Raises
    ------
    DataError
        The file cannot be read or written, or with `keep` holds something else.
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self.path = path
        self.count = 0
        self.known: set[bytes] = set()
        try:
            self._file = path.open("ab" if keep else "wb", buffering=0)
            if keep and path.is_file():
                self._file.truncate(self._look_over())
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error

    def write(self, line: str) -> None:
        """Append a line; raises `DataError` where that fails."""
        append_line(self._file, self.path, line.encode())
        self.count += 1

    def close(self) -> None:
        """Close the file; the records are on it already."""
        self._file.close()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _look_over(self) -> int:
        """Take in the records that are there; gives where the last whole line ends."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                    break  # a record that was cut: only the last line has no end
                end += len(line)
                try:
                    document: Any = json.loads(line)
                    self.count = max(self.count, int(document["index"]) + 1)
                    watched = document.get("file")
                    if watched is not None:
                        self.known.add(
                            key_of(watched["path"], watched["size"], watched["mtime_ns"])
                        )
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    raise DataError(
                        f"{self.path}: line {number} is not a record of pyimgano infer; name "
                        "another file"
                    ) from None
        return end


def key_of(relative: str, size: int, mtime_ns: int) -> bytes:
    """Return what a watched file is known by, in 16 bytes however long its path."""
    text = f"{relative}\0{size}\0{mtime_ns}"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8: as they stand in records
        data = shown(text).encode()
    return hashlib.blake2b(data, digest_size=16).digest()


def require_folder_of(path: Path, option: str) -> str | None:
    """Why `path` cannot be written, in one line; None if nothing speaks against it."""
    if not path.name or path.is_dir():
        return f"{option} {path}: give the name of a file"
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        return f"{option} {path}: {path.parent} is not a folder that can be written to"
    return None
