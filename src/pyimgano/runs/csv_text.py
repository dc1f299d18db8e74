"""Tables for spreadsheets, in which no name of a file or a category is a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

# A spreadsheet takes a cell that begins with one of these for a formula, and computes it.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Return rows as CSV. Text that a spreadsheet would take for a formula has ' before it.

    Numbers stay as they are, and None is an empty cell.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_harmless_row, rows))
    return text.getvalue()


def _harmless_row(row: Sequence[str | int | float | None]) -> list[str | int | float | None]:
    return [
        f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell for cell in row
    ]
