"""Models as a person reads them: the list of all, and all about one.

The list is for a terminal; another program gets one name a line. `--json` prints JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .console import print_document, print_error, print_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..models.registry import ModelLine


# Columns of what is not printed on a terminal: more than any line has, so that none is wrapped.
_UNWRAPPED = 10_000


def print_models(tags: str | None, as_json: bool) -> None:
    """Print the registered models that have all of `tags`, separated by commas."""
    from ..models.registry import model_lines

    wanted = [tag.strip() for tag in (tags or "").split(",") if tag.strip()]
    lines = model_lines(tags=wanted)
    if as_json:
        print_document([line.name for line in lines])
    elif _to_terminal():
        print_text(_rendered(_list(lines)))
    elif lines:
        print_text("\n".join(line.name for line in lines))
    if not lines:
        known = sorted({tag for line in model_lines() for tag in line.tags})
        print_error(f"no model has the tags {', '.join(wanted)}; known: {', '.join(known)}")


def print_model(name: str, as_json: bool) -> None:
    """Print all about a model."""
    from ..models import model_info

    info = model_info(name)
    if as_json:
        print_document(info)
    else:
        print_text("\n\n".join(_rendered(part) for part in _about(info)))


def _to_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _rendered(part: RenderableType) -> str:
    """Return text as wide as the terminal and with its colours; for another program unwrapped."""
    from rich.console import Console

    console = Console() if _to_terminal() else Console(width=_UNWRAPPED, color_system=None)
    with console.capture() as captured:
        console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _list(lines: list[ModelLine]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..models.registry import COMMON_TAGS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "year"):
        table.add_column(column, no_wrap=True)
    for column in ("tags", "what it is"):
        table.add_column(column)
    for line in lines:
        year = "" if line.year is None else str(line.year)
        own = [tag for tag in line.tags if tag not in COMMON_TAGS]  # what all have tells nothing
        table.add_row(*map(Text, (line.name, year, ", ".join(own), line.summary)))
    return table


def _about(info: Mapping[str, Any]) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column()
    known = (
        "name",
        "summary",
        "signature",
        "tags",
        "has_maps",
        "requires",
        "parameters",
        "presets",
    )
    shown = {
        **{key: info[key] for key in known[:2]},
        "Signature": info["signature"],
        **{key: value for key, value in info.items() if key not in known},
        "tags": ", ".join(info["tags"]),
        "maps": "an anomaly map for each image" if info["has_maps"] else "none, image scores only",
    }
    for key, value in shown.items():
        if value is not None:
            facts.add_row(Text(key.replace("_", " ")), Text(str(value)))
    keywords = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("keyword", "default"):
        keywords.add_column(column, no_wrap=True)
    keywords.add_column("type and range, and what it means")
    for name, one in info["parameters"].items():
        said = [type_in_words(one["type"]), *([one["description"]] if one["description"] else [])]
        keywords.add_row(*map(Text, (name, json.dumps(one["default"]), "\n".join(said))))
    presets = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    presets.add_column("preset", no_wrap=True)
    presets.add_column("keywords")
    for name, preset in info["presets"].items():
        words = ", ".join(f"{key}={json.dumps(value)}" for key, value in preset.items())
        presets.add_row(Text(name), Text(words or "the defaults"))
    return [facts, keywords, *([presets] if info["presets"] else [])]


_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return a keyword's JSON Schema as one line, such as `integer, at least 1`."""
    if "anyOf" in schema:
        choices = " or ".join(type_in_words(one) for one in schema["anyOf"])
        said = schema.get("description")
        return choices if said is None else f"{choices}: {said}"
    if "enum" in schema:
        return " | ".join(json.dumps(one) for one in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "prefixItems" in schema:
        return f"[{', '.join(type_in_words(one) for one in schema['prefixItems'])}]"
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        return f"array of {type_in_words(schema['items'])}"
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([kind, *bounds])
