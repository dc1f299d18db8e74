"""Tables that list images: reading them line by line, and the paths that stand in them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import DataError
from ..foreign import leads_out, quoted, read_regular, reason_of_failure

# Columns, or keys, that a list of images may have; none has a tenth of them.
_MOST_COLUMNS = 1000


@dataclass(frozen=True)
class Line:
    """One line of a table: where it stands, and its fields by column; "" if missing."""

    where: str
    fields: dict[str, str]


def read_csv(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a CSV file with a header.

    Fields are separated by commas, semicolons or tabs. UTF-8, with or without a byte-order
    mark. Other columns are passed over, unless their name is a near miss of one that is not
    there.

    Raises
    ------
    DataError
        The file cannot be read or is larger than 256 MiB, a column is missing or doubled, a line
        has too many fields.
    """
    number = 0
    try:
        text = read_regular(path).decode("utf-8-sig")
        separator = _separator(text.lstrip(), required)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        columns: list[str] | None = None
        for row in rows:
            number = rows.line_num
            if not any(field.strip() for field in row):
                continue
            if columns is None:
                columns = [name.strip() for name in row]
                _check_columns(path, columns, required, optional)
                continue
            where = f"{path}: line {number}"
            if len(row) > len(columns):
                raise DataError(
                    f"{where}: has {len(row)} fields, the header {len(columns)}; a comma in "
                    "a name needs quotes around it"
                )
            fields = dict.fromkeys((*required, *optional), "")
            fields.update(zip(columns, row, strict=False))
            yield Line(where, fields)
        if columns is None:
            _check_columns(path, [], required, optional)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read after line {number} ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read (it is not UTF-8)") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error


def _separator(text: str, required: Sequence[str]) -> str:
    """What gives the required columns, or a comma."""
    header = text.split("\n", 1)[0]
    for separator in ",;\t":
        if set(required) <= {name.strip().strip('"') for name in header.split(separator)}:
            return separator
    return ","


def _check_columns(
    path: Path, columns: list[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    for name in required:
        if name not in columns:
            raise DataError(
                f"{path}: lacks the column {name!r}; wanted: {', '.join((*required, *optional))}"
            )
    for name, count in Counter(columns).items():
        if count > 1:
            raise DataError(f"{path}: has the column {quoted(name)} twice")
    refuse_near_misses(str(path), columns, (*required, *optional))


def refuse_near_misses(where: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise `DataError` for a name that is not known, but nearly one of those missing."""
    if len(names) > _MOST_COLUMNS:
        raise DataError(f"{where}: has {len(names)} columns, at most {_MOST_COLUMNS} are read")
    missing = [name for name in known if name not in names]
    longest = 2 * max(map(len, known))
    for name in names:
        if len(name) > longest:
            continue
        near = get_close_matches(name.lower(), missing, n=1, cutoff=0.75)
        if near and name not in known:
            raise DataError(f"{where}: unknown column {name!r}; did you mean {near[0]!r}?")


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
    if "\0" in name:
        raise DataError(f"{where}: {quoted(name)} is no path")
    try:
        literal = "\\" not in name or os.path.lexists(folder / name)  # a name of POSIX may have one
        relative = PurePosixPath(name if literal else name.replace("\\", "/"))
        path = folder / relative
        if allow_outside:
            return path
        outside = relative.is_absolute() or PureWindowsPath(name).is_absolute()
        outside = outside or ".." in relative.parts
        outside = outside or leads_out(path, folder)
    except (OSError, ValueError) as error:  # half a character
        reason = reason_of_failure(error)
        raise DataError(f"{where}: {quoted(name)} is no path ({reason})") from error
    if outside:
        raise DataError(
            f"{where}: {quoted(name)} leads out of the dataset's folder; --allow-outside "
            "(allow_outside=True) reads it all the same"
        )
    return path
