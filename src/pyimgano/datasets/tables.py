"""Tables that list images: reading them line by line, and the paths that stand in them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import DataError
from ..untrusted_files import leads_out, quoted, read_regular, reason_of_failure

# Columns, or keys, that a list of images may have; none has a tenth of them.
_MOST_COLUMNS = 1000
_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Line:
    """One line of a table: where it stands, and its fields by column; "" if missing."""

    where: str
    fields: dict[str, str]


def read_csv(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Line]:
    """Read the lines of a CSV file with a header.

    Fields are separated by commas, semicolons, tabs or bars; a first line `sep=;`, as spreadsheets
    write it, says which. Names of columns may be in any case. Empty fields behind the last
    column, as spreadsheets leave them, are cut off. The text is what `decode_text` reads. Other
    columns are passed over, unless their name is a near miss of one that is not there.

    Raises
    ------
    DataError
        The file cannot be read or is larger than 256 MiB, a column is missing or doubled, a line
        has too many fields.
    """
    number = 0
    try:
        text = decode_text(read_regular(path))
        separator, skipped = _separator(text, required)
        lines = io.StringIO(text, newline="")
        for _ in range(skipped):
            lines.readline()
        rows = csv.reader(lines, delimiter=separator, strict=True)
        columns: list[str] | None = None
        for row in rows:
            number = skipped + rows.line_num
            if not any(field.strip() for field in row):
                continue
            if columns is None:
                columns = _column_names(row, (*required, *optional))
                _check_columns(path, columns, required, optional)
                continue
            where = f"{path}: line {number}"
            if any(field.strip() for field in row[len(columns) :]):
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
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error


def decode_text(data: bytes) -> str:
    """Return text that is UTF-8, or UTF-16 with a byte-order mark.

    Raises
    ------
    ValueError
        It is neither; the message says so.
    """
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8, nor UTF-16 with a byte-order mark") from error


def _separator(text: str, required: Sequence[str]) -> tuple[str, int]:
    """Return what separates the fields, and how many lines stand before the header.

    It is what a first line `sep=;` says, else what gives the required columns, else a comma.
    """
    header = ""
    for number, line in enumerate(io.StringIO(text, newline="")):
        plain = line.strip("\r\n ")
        said = re.fullmatch(r'"?sep=(.)"?[,;\t|]*', plain, re.IGNORECASE)
        if said is not None and said[1] in _SEPARATORS:
            return said[1], number + 1
        if plain.strip(_SEPARATORS + " "):
            header = line
            break
    for separator in _SEPARATORS:
        names = {name.strip().strip('"').strip().lower() for name in header.split(separator)}
        if set(required) <= names:
            return separator, 0
    return ",", 0


def _column_names(row: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the names in a header; those that are known in lower case, and no empty ones at the
    end.
    """
    names = [name.strip() for name in row]
    while names and not names[-1]:
        names.pop()
    return [name.lower() if name.lower() in known else name for name in names]


def _check_columns(
    path: Path, columns: list[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    for name in required:
        if name not in columns:
            raise DataError(
                f"{path}: lacks the column {name!r}; the columns are "
                f"{', '.join((*required, *optional))}"
            )
    for name, count in Counter(columns).items():
        if count > 1 and name:
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
    """Return the file that a table names, relative to `folder`.

    Parameters
    ----------
    folder
        The folder that paths are relative to.
    where
        File and line, for the message.
    name
        As it stands in the table; slashes may lean either way. An absolute path must lie in
        `folder`.
    allow_outside
        Otherwise a path that leads out of `folder`, also through a symbolic link, is refused:
        an untrusted table must not make the program read other files.

    Raises
    ------
    DataError
        The path leads out of the folder.
    """
    if "\0" in name:
        raise DataError(f"{where}: {quoted(name)} is not a path")
    try:
        literal = "\\" not in name or os.path.lexists(folder / name)  # a name of POSIX may have one
        relative = PurePosixPath(name if literal else name.replace("\\", "/"))
        path = folder / relative
        if allow_outside:
            return path
        absolute = Path(relative).is_absolute()
        # a path of Windows is none here, and one of POSIX is none there
        foreign = not absolute and (relative.is_absolute() or PureWindowsPath(name).is_absolute())
        outside = foreign or ".." in relative.parts or leads_out(path, folder)
        if absolute and not outside and path.is_relative_to(folder.absolute()):
            # the same file is known by one path, however it is written
            path = folder / path.relative_to(folder.absolute())
    except (OSError, ValueError) as error:  # half a character
        reason = reason_of_failure(error)
        raise DataError(f"{where}: {quoted(name)} is not a path ({reason})") from error
    if outside:
        raise DataError(
            f"{where}: {quoted(name)} leads out of the dataset's folder; --allow-outside "
            "(allow_outside=True) reads it all the same"
        )
    return path
