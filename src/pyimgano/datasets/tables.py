"""Tables that list images: reading them line by line, and the paths that stand in them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import DataError


@dataclass(frozen=True)
class Line:
    """One line of a table: where it stands, and its fields by column; "" if missing."""

    where: str
    fields: dict[str, str]


def read_csv(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a CSV file with a header.

    Fields are separated by commas, or by semicolons or tabs if those are all that the header
    has. UTF-8, with or without a byte-order mark. Other columns are passed over, unless their
    name is a near miss of one that is not there.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing or doubled, a line has too many fields.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            separator = next((s for s in ",;\t" if s in header), ",")
            rows = csv.reader(file, delimiter=separator, strict=True)
            columns = [name.strip() for name in next(rows, [])]
            _check_columns(path, columns, required, optional)
            for row in rows:
                if not any(field.strip() for field in row):
                    continue
                where = f"{path}: line {rows.line_num}"
                if len(row) > len(columns):
                    raise DataError(
                        f"{where}: has {len(row)} fields, the header {len(columns)}; a comma in "
                        "a name needs quotes around it"
                    )
                fields = dict.fromkeys((*required, *optional), "")
                fields.update(zip(columns, row, strict=False))
                yield Line(where, fields)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error


def _check_columns(
    path: Path, columns: list[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    for name in required:
        if name not in columns:
            raise DataError(
                f"{path}: lacks the column {name!r}; wanted: {', '.join((*required, *optional))}"
            )
    missing = [name for name in optional if name not in columns]
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{path}: has the column {name!r} twice")
        near = get_close_matches(name.lower(), missing, n=1, cutoff=0.75)
        if near and name not in (*required, *optional):
            raise DataError(f"{path}: unknown column {name!r}; did you mean {near[0]!r}?")


def listed_path(folder: Path, where: str, name: str, *, allow_outside: bool = False) -> Path:
    """The file that a table names, relative to `folder`.

    Parameters
    ----------
    folder
        The folder that paths are relative to.
    where
        File and line, for the message.
    name
        As it stands in the table; slashes may lean either way.
    allow_outside
        Otherwise a path that leads out of `folder`, also through a symbolic link, is refused:
        a stranger's table must not make us read what it was not given.

    Raises
    ------
    DataError
        The path leads out of the folder.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if "\0" in name:
        raise DataError(f"{where}: {name!r} is no path")
    if allow_outside:
        return folder / relative
    outside = relative.is_absolute() or bool(PureWindowsPath(name).drive) or ".." in relative.parts
    path = folder / relative
    if not outside:
        real, home = os.path.realpath(path), os.path.realpath(folder)
        outside = os.path.commonpath([real, home]) != home
    if outside:
        raise DataError(
            f"{where}: {name!r} leads out of the dataset's folder; --allow-outside "
            "(allow_outside=True) reads it all the same"
        )
    return path
