"""Small pieces of HTML, in which all text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_CELL = "style='text-align:left;padding:.15em .8em .15em 0;vertical-align:top'"


def table(title: str, rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Return a title and a table; the first cell of each row is its heading."""
    parts = [f"<div><strong>{escape(title)}</strong>", "<table style='font-size:90%'>"]
    if head:
        cells = "".join(f"<th {_CELL}>{escape(str(one))}</th>" for one in head)
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    for first, *others in rows:
        cells = "".join(f"<td {_CELL}>{escape(_shown(one))}</td>" for one in others)
        parts.append(f"<tr><th {_CELL}>{escape(str(first))}</th>{cells}</tr>")
    return "".join([*parts, "</table></div>"])


def _shown(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def thumbnail(image: npt.NDArray[np.uint8], side: int = 160) -> str:
    """Return an image (H, W, 3) uint8 RGB as a `data:` address, its longer side at most `side`."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    assert encoded
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def pictures(addresses: Iterable[tuple[str, str]]) -> str:
    """Return pictures beside each other, each an address and what stands under it."""
    figures = [
        "<figure style='margin:.3em;display:inline-block;vertical-align:top'>"
        f"<img src='{escape(address)}' alt='{escape(text)}'>"
        f"<figcaption style='font-size:80%'>{escape(text)}</figcaption></figure>"
        for address, text in addresses
    ]
    return f"<div>{''.join(figures)}</div>" if figures else ""
