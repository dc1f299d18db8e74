"""Forwards to `pyimgano.runs`: how reports and records are written, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..runs import write_json, write_json_lines

__all__ = ["save_jsonl_records", "save_run_report"]


def save_run_report(path: str | Path, report: Mapping[Any, Any]) -> None:
    """Write a report as JSON, whole or not at all; folders above it are made.

    Parameters
    ----------
    path
        The file to write; one that is there is replaced.
    report
        Numpy scalars and arrays, paths, dates, enums, tuples, sets and keys that are no text
        become plain JSON; a number that is not finite becomes null.

    Raises
    ------
    UsageError
        A value has no JSON form.
    DataError
        The file cannot be written.
    """
    write_json(Path(path), report)


def save_jsonl_records(path: str | Path, records: Iterable[Mapping[Any, Any]]) -> None:
    """Write records as JSON Lines, one a line; values and errors as `save_run_report`."""
    write_json_lines(Path(path), records)
