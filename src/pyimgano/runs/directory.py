"""The run directory: names, and writing so that a crash loses nothing.

How a document is written (report.json, config.json):

1. its text goes to a new file beside it, and is flushed to the disk;
2. that file is renamed over the document, which is atomic on one file system;
3. the folder is flushed, so that the rename survives a power cut.

So at any moment a document is absent, or whole and true at the time of its writing.
per_image.jsonl grows by whole lines, each flushed to the system as it is made; a kill can
leave at most its last line cut. A run directory is new: it is made with `mkdir`, which only
one of two processes wins, and the other takes the next free name.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from ..errors import DataError
from .schema import shown

#: Where runs go unless a folder is given.
DEFAULT_OUTPUT = Path("runs")
# Beside those that JSON escapes: control characters, ends of lines, marks of direction.
_OBEYED = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
# Of a folder or file, in bytes, less what is appended to it.
_LONGEST_NAME = 200
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
)


class RunDirectory:
    """A new directory for one run.

    Attributes
    ----------
    path
        `<output>/<timestamp>_<dataset>_<model>`, with the kind of run before the dataset where
        it has one, and `_2`, `_3`, ... where that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        output: str | Path | None,
        dataset: str,
        model: str,
        started: datetime,
        kind: str | None = None,
    ) -> RunDirectory:
        """Make the directory; raises `DataError` where it cannot be made."""
        parent = Path(output) if output is not None else DEFAULT_OUTPUT
        parts = [dataset, model] if kind is None else [kind, dataset, model]
        name = "_".join([f"{started:%Y%m%d_%H%M%S}", *map(safe_name, parts)])
        try:
            parent.mkdir(parents=True, exist_ok=True)
            attempt = 1
            while True:
                path = parent / (name if attempt == 1 else f"{name}_{attempt}")
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    attempt += 1
        except OSError as error:
            raise DataError(f"{parent}: no run can be written there ({error.strerror})") from error

    def write(self, name: str, document: BaseModel) -> None:
        """Write a document at the top of the run."""
        write_document(self.path / name, document)

    def category(self, name: str) -> Path:
        """The folder of a category, made if need be; the same for the name as reports show it."""
        folder = self.path / "categories" / safe_name(shown(name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder


class RecordWriter:
    """Appends records to a per_image.jsonl, one whole line at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # unbuffered: a line is with the system, or it is an error here and now
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error

    def write(self, record: BaseModel) -> None:
        try:
            self._file.write(as_line(record).encode() + b"\n")
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written ({error.strerror})") from error

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def as_line(record: BaseModel, *, exclude_unset: bool = False) -> str:
    """JSON on one line for whoever looks: what a terminal would obey, or some readers take for the
    end of a line, is written as \\uNNNN."""
    text = record.model_dump_json(exclude_unset=exclude_unset)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_document(path: Path, document: BaseModel) -> None:
    """Write a document as the module's docstring says; raises `DataError` where it cannot."""
    write_text(path, document.model_dump_json(indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` (UTF-8), atomically.

    A link stays a link: what it points to is replaced. A pipe or a device is written to.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        return
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file at `path` by `data`, atomically; `durable` also flushes it to the disk.

    Raises
    ------
    DataError
        It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            beside.unlink(missing_ok=True)
            with beside.open("xb") as file:  # not through a link that waits there
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders, and needs no such flush
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """A name as one path component, on any system; no two names give the same.

    What some file system does not take is written as in a web address: %3A for a colon. So is
    what a person or a program would take for something else: control characters, marks that turn
    the direction of writing, a dash at the beginning, and the names of Windows' devices. A name of
    more than 200 bytes is cut, and gets a hash of all of it.
    """
    escaped = "".join(_percent(c) if _is_strange(c) else c for c in name)
    if escaped.startswith("-") or escaped.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        escaped = _percent(escaped[0]) + escaped[1:]
    if escaped.strip(".") == "" or escaped.endswith((" ", ".")):
        escaped = escaped[:-1] + _percent(escaped[-1:])
    if len(escaped.encode()) > _LONGEST_NAME:
        # %- stands for nothing else, since every % of a name is escaped
        digest = hashlib.blake2b(escaped.encode(), digest_size=12).hexdigest()
        start = escaped.encode()[: _LONGEST_NAME - 26].decode("utf-8", "ignore")
        escaped = f"{start}%-{digest}"
    return escaped or "%"


def _is_strange(c: str) -> bool:
    return c in '/\\:*?"<>|%' or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
