"""Any report or record as plain JSON: what numpy, paths and enums become, and files of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Set
from datetime import date, datetime, time
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

from ..errors import DataError, UsageError
from .directory import write_bytes


def plain_json(value: Any, *, where: str = "the value") -> Any:
    """Return a copy made of dictionaries with text keys, lists, text, numbers, booleans and None.

    Parameters
    ----------
    value
        May hold numpy scalars and arrays, paths, dates, enums, dataclasses, pydantic models,
        tuples, sets (sorted) and keys of any of these. Numbers that are not finite become None.
    where
        What an error calls the value.

    Raises
    ------
    UsageError
        Something has no JSON form, or two keys become the same text.
    """
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, Enum)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Enum):
        return plain_json(value.value, where=where)
    if isinstance(value, np.generic):
        return plain_json(value.item(), where=where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (PurePath, datetime, date, time)):
        return str(value) if isinstance(value, PurePath) else value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist(), where=where)
    if isinstance(value, BaseModel):
        return plain_json(value.model_dump(), where=where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return plain_json(fields, where=where)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, Set):
        return plain_json(sorted(value, key=str), where=where)
    if isinstance(value, (list, tuple)):
        return [plain_json(one, where=f"{where}[{i}]") for i, one in enumerate(value)]
    raise UsageError(f"{where}: {type(value).__name__} has no JSON form")


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        plain = plain_json(key, where=f"a key of {where}")
        name = plain if isinstance(plain, str) else json.dumps(plain)
        if name in found:
            raise UsageError(f"{where}: two keys become {name!r} in JSON")
        found[name] = plain_json(one, where=f"{where}[{name!r}]")
    return found


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all; folders above it are made.

    Raises
    ------
    UsageError
        Something in it has no JSON form.
    DataError
        The file cannot be written.
    """
    _write(path, json.dumps(plain_json(document, where=path.name), indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write records as JSON Lines, one a line; errors as `write_json`."""
    lines = [
        json.dumps(plain_json(one, where=f"record {number}")) + "\n"
        for number, one in enumerate(records)
    ]
    _write(path, "".join(lines))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made ({error.strerror})") from error
    write_bytes(path, text.encode("utf-8"))
