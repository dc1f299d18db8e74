"""Records as a table that opens in a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..runs import InferenceRecord, csv_text, write_bytes

COLUMNS = (
    *("image", "verdict", "score", "threshold", "score_ratio", "p_value"),
    *("regions", "x", "y", "width", "height", "error", "remark", "overlay"),
)


def verdict_of(record: InferenceRecord) -> str:
    """Return `defective`, `good`, `unknown product`, `unreadable`, or `no threshold`.

    The last three are where nothing was decided.
    """
    if record.product_known_by == "unknown":
        return "unknown product"
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
    write_bytes(path, csv_text(_rows(records)).encode("utf-8-sig", "backslashreplace"))


def _rows(records: Iterable[InferenceRecord]) -> Iterator[list[str | int | float | None]]:
    yield [*COLUMNS]
    for one in records:
        regions = one.regions or []
        box = regions[0].box if regions else (None,) * 4
        count = None if one.regions is None else len(regions)
        numbers = (one.score, one.threshold, one.score_ratio, one.p_value)
        rounded = [None if n is None else float(f"{n:.6g}") for n in numbers]
        said = (one.error, one.remark, one.overlay)
        yield [one.input, verdict_of(one), *rounded, count, *box, *said]
