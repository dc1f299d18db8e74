"""Rows as a data frame of pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError


def to_frame(rows: Sequence[Mapping[str, Any]], index: str | None = None) -> Any:
    """Return a `pandas.DataFrame` of rows, which may differ in their columns.

    Parameters
    ----------
    rows
        By the names of columns.
    index
        The column that becomes the index.

    Raises
    ------
    UsageError
        pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError(
            "a data frame needs pandas, which is not installed; pip install pandas"
        ) from None
    frame = pandas.DataFrame.from_records([dict(row) for row in rows])
    return frame if index is None or frame.empty else frame.set_index(index)
