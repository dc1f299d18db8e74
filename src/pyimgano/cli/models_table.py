"""Models as a person reads them: the list of all, and all about one.

Only for a terminal. What another program reads is one name a line, or JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .console import complain, print_document, print_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..models.registry import ModelLine


def print_models(tags: str | None, as_json: bool) -> None:
    """The registered models that have all of `tags`, separated by commas."""
    from ..models.registry import missing_models, model_lines

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
        complain(f"no model has the tags {', '.join(wanted)}; known: {', '.join(known)}")
    missing = missing_models()
    for remedy in sorted(set(missing.values())):
        names = [name for name, its in missing.items() if its == remedy]
        complain(f"not installed: {', '.join(names)}; {remedy}")


def print_model(name: str, as_json: bool) -> None:
    """All about a model."""
    from ..models import model_info

    info = model_info(name)
    if as_json or not _to_terminal():
        print_document(info)
    else:
        print_text("\n\n".join(_rendered(part) for part in _about(info)))


def _to_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _rendered(part: RenderableType) -> str:
    """As text, as wide as the terminal, and with its colours."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _list(lines: list[ModelLine]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "year"):
        table.add_column(column, no_wrap=True)
    for column in ("tags", "what it is"):
        table.add_column(column)
    for line in lines:
        year = "" if line.year is None else str(line.year)
        table.add_row(*map(Text, (line.name, year, ", ".join(line.tags), line.summary)))
    return table


def _about(info: Mapping[str, Any]) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column()
    known = ("name", "summary", "tags", "has_maps", "requires", "parameters", "presets")
    shown = {
        **{key: info[key] for key in known[:2]},
        **{key: value for key, value in info.items() if key not in known},
        "tags": ", ".join(info["tags"]),
        "maps": "an anomaly map for each image" if info["has_maps"] else "none, image scores only",
        "requires": info["requires"],
    }
    for key, value in shown.items():
        if value is not None:
            facts.add_row(Text(key.replace("_", " ")), Text(str(value)))
    keywords = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("keyword", "default"):
        keywords.add_column(column, no_wrap=True)
    keywords.add_column("type and range")
    for name, one in info["parameters"].items():
        keywords.add_row(*map(Text, (name, json.dumps(one["default"]), type_in_words(one["type"]))))
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
    """A keyword's JSON Schema as one line, such as `integer, at least 1`."""
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
