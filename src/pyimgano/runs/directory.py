"""The run directory: names, and writing so that a crash loses nothing.

How a document is written (report.json, config.json):

1. its text goes to a new file beside it, and is flushed to the disk;
2. that file is renamed over the document, which is atomic on one file system;
3. the folder is flushed, so that the rename survives a power cut.

So at any moment a document is absent, or whole and true at the time of its writing.
per_image.jsonl grows by whole lines, each flushed to the system as it is made, and to the disk
before the category's report calls it complete; a kill can leave at most its last line cut. A run
directory is made under a hidden name, with config.json and environment.json in it, and renamed,
which only one of two processes wins; the other takes the next free name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from ..errors import DataError
from ..untrusted_files import leads_out, quoted
from .lines import append_line, as_line
from .lock import LOCK_FILE, WriterLock
from .schema import shown

#: The folder that named runs are made in unless another is given.
DEFAULT_OUTPUT = Path("runs")
# Of a folder or file, in bytes, less what is appended to it.
_LONGEST_NAME = 200
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
)


# What `write_bytes` and a detector being saved leave when they are killed.
_DROPPING = re.compile(r"\..+\.(tmp|old)")
# What a run that was killed as it began leaves in a folder that was given, and what file systems
# and desktops put into every folder: none of it is anybody's work.
_COUNTS_AS_NOTHING = frozenset(
    {LOCK_FILE, "environment.json", "lost+found", ".DS_Store", "Thumbs.db", "desktop.ini"}
)


# What a run writes of a category, but for pictures of suspects.
_OF_A_CATEGORY = (
    *("per_image.jsonl", "report.json", "files.json", "model"),
    *("training_scores.jsonl", "curves.json", "maps"),
)


class RunDirectory:
    """The directory of one run, held by one writer.

    Attributes
    ----------
    path
        The folder that was given; or `<runs>/<timestamp>_<dataset>_<model>`, with the kind of
        run before the dataset where it has one, and `_2`, `_3`, ... where that exists.

    Raises
    ------
    DataError
        Another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock(path)

    def close(self) -> None:
        """Let others write it."""
        self._lock.release()

    @classmethod
    def create(
        cls,
        runs_dir: str | Path | None,
        dataset: str,
        model: str,
        started: datetime,
        kind: str | None = None,
        documents: Mapping[str, BaseModel] | None = None,
    ) -> RunDirectory:
        """Make a named directory in `runs_dir`, with `documents` in it.

        Raises `DataError` where that cannot be done.
        """
        parent = Path(runs_dir) if runs_dir is not None else DEFAULT_OUTPUT
        parts = [dataset, model] if kind is None else [kind, dataset, model]
        name = "_".join([f"{started:%Y%m%d_%H%M%S}", *map(safe_name, parts)])
        building = parent / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            building.mkdir()
            try:
                (building / LOCK_FILE).touch()  # a rename replaces what is empty
                for file, document in (documents or {}).items():
                    try:
                        write_document(building / file, document)
                    except DataError as error:  # its folder is gone when anybody looks
                        cause = getattr(error.__cause__, "strerror", None) or error
                        raise DataError(
                            f"{parent}: no run can be written there ({cause})"
                        ) from error
                path = _move_to_a_free_name(building, name)
            finally:
                shutil.rmtree(building, ignore_errors=True)
            _flush_folder(parent)
        except OSError as error:
            raise DataError(f"{parent}: no run can be written there ({error.strerror})") from error
        return cls(path)

    @classmethod
    def create_at(
        cls, path: str | Path, documents: Mapping[str, BaseModel] | None = None
    ) -> RunDirectory:
        """Make `path` itself the directory of a new run, with `documents` in it.

        The folder may be there, and is then written into as it is: it may be a mount, whose
        parent cannot be written to. `config.json` is written last, since it is what makes a
        folder a run.

        Raises
        ------
        DataError
            Something else is in the folder, another process writes it, or it cannot be made.
        """
        path = Path(path)
        require_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: no run can be written there ({error.strerror})") from error
        directory = cls(path)
        try:
            require_empty(path)  # again, now that nobody else can begin one there
            directory.sweep()
            given = dict(documents or {})
            for name in sorted(given, key=lambda one: one == "config.json"):
                directory.write(name, given[name])
            with contextlib.suppress(OSError):  # it may be another's, and not to be opened
                _flush_folder(path.parent)
        except BaseException:
            directory.close()
            raise
        return directory

    def write(self, name: str, document: BaseModel) -> None:
        """Write a document at the top of the run."""
        write_document(self.path / name, document)

    def category(self, name: str) -> Path:
        """Return the folder of a category, made if need be; the same for its name in reports."""
        folder = category_folder(self.path, name)
        self.require_inside(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder

    def require_inside(self, path: Path) -> None:
        """Raise `DataError` if a link leads from `path` out of the run directory."""
        if leads_out(path, self.path):
            raise DataError(
                f"{path}: a link leads out of the run directory; nothing is written there"
            )

    def clear(self, name: str) -> None:
        """Remove what a stopped process left of a category, and nothing that is not ours."""
        folder = self.category(name)
        try:
            for path in _droppings(folder):
                _remove(path)
            for ours in _OF_A_CATEGORY:
                _remove(folder / ours)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be removed ({error.strerror})") from error

    def sweep(self) -> None:
        """Remove the halves of files that a stopped process left at the top, and of maps."""
        self.require_inside(self.path / "submission")
        with contextlib.suppress(OSError):
            for path in (*_droppings(self.path), *_droppings(self.path / "submission", deep=True)):
                _remove(path)


def category_folder(run: Path, name: str) -> Path:
    """Return the folder of a category in a run; the same for the name as reports show it."""
    return run / "categories" / as_file_name(safe_name(shown(name)))


def require_empty(path: str | Path) -> None:
    """Raise `DataError` unless a new run can have `path` for its directory.

    It may be missing, or a folder without anything in it.
    """
    path = Path(path)
    try:
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise DataError(f"{path}: is not a folder; the run directory is to be made there")
        found = sorted(
            one.name
            for one in path.iterdir()
            if one.name not in _COUNTS_AS_NOTHING and not _DROPPING.fullmatch(one.name)
        )
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: no run can be written there ({reason})") from error
    if "config.json" in found:
        raise DataError(
            f"{path}: holds a run already; resume it (--resume {path}), or name another folder"
        )
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise DataError(
            f"{path}: is not empty, it holds {quoted(found[0])}{more}; the output directory is the "
            "run directory itself, and --runs-dir is the folder that named runs are made in"
        )


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
        append_line(self._file, self._path, as_line(record).encode())

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._file:
            if kind is None:  # a report that calls the lines complete comes next
                _flush_file(self._path, self._file.fileno())


def write_document(path: Path, document: BaseModel) -> None:
    """Write a document as the module's docstring says, in place of a link too.

    Raises
    ------
    DataError
        It cannot be written.
    """
    write_bytes(path, (document.model_dump_json(indent=2) + "\n").encode())


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
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(2)}.tmp")
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


def flush_to_disk(path: Path) -> None:
    """Flush a file that was written without; raises `DataError` where it cannot be."""
    try:
        with path.open("rb+") as file:
            _flush_file(path, file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _flush_file(path: Path, descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a pipe or a device has no disk
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _move_to_a_free_name(building: Path, name: str) -> Path:
    """Rename to `name`, or `name_2`, ...: the first that is free."""
    attempt = 1
    while True:
        path = building.with_name(name if attempt == 1 else f"{name}_{attempt}")
        attempt += 1
        if os.path.lexists(path):
            continue
        try:
            return building.rename(path)
        except OSError:  # another process was quicker, or something is really wrong
            if not os.path.lexists(path):
                raise


def _droppings(folder: Path, *, deep: bool = False) -> list[Path]:
    found = folder.rglob(".*") if deep else folder.glob(".*")
    return [path for path in found if _DROPPING.fullmatch(path.name)]


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; of a link only itself, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders, and needs no such flush
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """Return a name as one path component, on any system; no two names give the same.

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


def as_file_name(text: str) -> str:
    """Return text such that the system writes it as UTF-8, whatever the locale is.

    Under `LC_ALL=C`, where Python's UTF-8 mode is off, names of files are ASCII, and other bytes
    stand in them as surrogates.
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return os.fsdecode(text.encode())
    return text


def _is_strange(c: str) -> bool:
    return c in '/\\:*?"<>|%' or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
