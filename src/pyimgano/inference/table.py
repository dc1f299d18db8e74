"""Records as a table that opens in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ..runs import InferenceRecord, write_bytes

COLUMNS = (
    *("image", "verdict", "score", "threshold", "score_ratio", "p_value"),
    *("regions", "x", "y", "width", "height", "error", "remark", "overlay"),
)


def verdict_of(record: InferenceRecord) -> str:
    """Return `defective`, `good`, `unreadable`, or `no threshold` where nothing was decided."""
    if record.error is not None:
        return "unreadable"
    if record.pred is None:
        return "no threshold"
    return "defective" if record.pred else "good"


def write_table(path: Path, records: Iterable[InferenceRecord]) -> None:
    """Write records as CSV, UTF-8 with a byte-order mark, as spreadsheets know it.

    x, y, width and height are the box of the region with the highest peak, in pixels of the image.

    Raises
    ------
    DataError
        The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for one in records:
        regions = one.regions or []
        box = regions[0].box if regions else ("", "", "", "")
        count = "" if one.regions is None else len(regions)
        writer.writerow(
            [
                _harmless(one.input),
                verdict_of(one),
                *(_number(n) for n in (one.score, one.threshold, one.score_ratio, one.p_value)),
                count,
                *box,
                _harmless(one.error),
                _harmless(one.remark),
                _harmless(one.overlay),
            ]
        )
    write_bytes(path, text.getvalue().encode("utf-8-sig", "backslashreplace"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _harmless(text: str | None) -> str:
    """Return text that a spreadsheet does not take for a formula."""
    text = text or ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
