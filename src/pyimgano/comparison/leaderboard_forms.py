"""A leaderboard in the forms that papers and issues take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ..runs import csv_text
from .leaderboard import Leaderboard, Table, best_of, caption, cells_of, head_of, percent
from .run_facts import METRICS

Format = Literal["markdown", "csv", "html", "json"]
#: How a leaderboard is written, by the suffix of the file.
FORMATS: dict[str, Format] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".csv": "csv",
    ".html": "html",
    ".htm": "html",
    ".json": "json",
}


def render_leaderboard(board: Leaderboard, form: Format) -> str:
    """Return a leaderboard as text in one of the forms of `FORMATS`."""
    return _WRITERS[form](board)


def write_leaderboard(board: Leaderboard, path: str | Path) -> None:
    """Write a leaderboard to a file, in the form that its suffix says.

    Raises
    ------
    UsageError
        The suffix is none of .md, .csv, .html and .json.
    DataError
        The file cannot be written.
    """
    from ..runs import write_text

    write_text(Path(path), render_leaderboard(board, form_of(path)))


def form_of(path: str | Path) -> Format:
    """Return the form that a file's suffix says; errors as `write_leaderboard`."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: give a file ending in .md, .csv, .html or .json")
    return FORMATS[suffix]


def _markdown(board: Leaderboard) -> str:
    parts = []
    for table in board.tables:
        head, best = head_of(board), best_of(board, table)
        lines = [_row(head), _row(["---:", ":---", *["---:"] * (len(head) - 2)])]
        for one in table.entries:
            cells = [_escaped(cell) for cell in cells_of(board, one)]
            for at, name in enumerate(board.metrics, start=2):
                if one.rank is not None and name in best and one.means[name] == best[name]:
                    cells[at] = f"**{cells[at]}**"
            lines.append(_row(cells))
        parts.append("\n".join([*lines, "", _escaped(caption(board, table)) + "."]))
        if len(table.categories) > 1:
            parts.append(_markdown_categories(board, table))
        parts += ["\n".join(f"- {_escaped(note)}" for note in table.notes)] * bool(table.notes)
    if board.unread:
        parts.append("\n".join(f"- not read: {_escaped(one)}" for one in board.unread))
    return "\n\n".join(parts) + "\n"


def _markdown_categories(board: Leaderboard, table: Table) -> str:
    head = [METRICS[board.metric], *(one.label for one in table.entries)]
    lines = [_row([_escaped(one) for one in head]), _row([":---", *["---:"] * (len(head) - 1)])]
    for name in table.categories:
        values = [percent(one.per_category[name]) for one in table.entries]
        lines.append(_row([_escaped(name), *values]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is: names of categories are anybody's."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    plain = re.sub(r"([\\`*{}\[\]<>|~&$])", r"\\\1", plain)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", plain)  # within a word it is only a sign


def _csv(board: Leaderboard) -> str:
    rows: list[list[str | int | float | None]] = [
        ["dataset", "rank", "model", *board.metrics, "milliseconds_per_image", "missing", "run"]
    ]
    for table in board.tables:
        for one in table.entries:
            missing = "; ".join(f"{name}: {why}" for name, why in one.missing.items())
            means = [one.means[name] for name in board.metrics]
            paths = "; ".join(one.paths)
            rows.append(
                [table.dataset, one.rank, one.label, *means, one.milliseconds, missing, paths]
            )
    return csv_text(rows)


def _html(board: Leaderboard) -> str:
    from .page import leaderboard_page  # needs a template library, which the others do not

    return leaderboard_page(board)


def _json(board: Leaderboard) -> str:
    return json.dumps(board.document(), indent=2) + "\n"


_WRITERS: dict[Format, Callable[[Leaderboard], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "html": _html,
    "json": _json,
}
