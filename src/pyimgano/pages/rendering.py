"""From a template to a page: one file that asks for nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from . import words

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not before a page is made

    made = Environment(
        loader=PackageLoader("pyimgano.pages"),
        autoescape=True,  # names of categories, defects and files are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=words.percent, multiple=words.multiple, seconds=words.seconds, plural=words.plural
    )
    return made


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def render(
    template: str, *, script: str | None = None, connects: bool = False, **values: Any
) -> str:
    """Return a page.

    Its content security policy lets a browser load nothing, not even from the same folder, and run
    no script but the page's own: whatever a name contains stays text twice over.

    Parameters
    ----------
    template
        A file in `templates`.
    script
        A script in `templates` that the page has besides `page.js`.
    connects
        Whether the page comes from a service, which its script may ask, and shows pictures that
        its reader opens.
    values
        What it needs; text in them is escaped.
    """
    text = _part("page.js") + ("" if script is None else _part(script))
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:{' blob:' if connects else ''}; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    if connects:
        policy += "; connect-src 'self'"
    page = (
        _environment()
        .get_template(template)
        .render(
            **values,
            policy=policy,
            script=Markup(text),
            style=Markup(_part("style.css")),
        )
    )
    # half a character, of a name that is no text, has no place in UTF-8
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
