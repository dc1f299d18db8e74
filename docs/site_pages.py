"""Make the site's pages of files that GitHub shows from elsewhere: a hook of MkDocs (mkdocs.yml).

README.md, CHANGELOG.md, CONTRIBUTING.md and SECURITY.md lie at the root, where GitHub looks for
them, and MkDocs takes pages from docs/ alone. They are added here, README.md as the first page, and
the links between them and the pages in docs/ are rewritten. The files themselves keep the links
that work on GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
#: Files at the root to the names of their pages.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
#: A line of a paragraph that a list follows at once: GitHub sees that list, and MkDocs does not.
_BEFORE_LIST = re.compile(r"^(?!- )(\S.*)\n(?=- )", re.MULTILINE)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that lie at the root."""
    for name, page in _PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page from where files lie to where the site has them.

    Lists get the blank line before them that MkDocs needs.
    """
    uri = page.file.src_uri
    at_root = {page: name for name, page in _PAGES.items()}.get(uri)
    here = posixpath.dirname(at_root or f"docs/{uri}")  # the folder in the repository

    def rewrite(link: re.Match[str]) -> str:
        opening, target, anchor, closing = link.groups(default="")
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            return link.group()
        file = posixpath.normpath(posixpath.join(here, target))
        on_site = _PAGES.get(file, file.removeprefix("docs/"))
        where = posixpath.relpath(on_site, posixpath.dirname(uri) or ".")
        return f"{opening}{where}{anchor}{closing}"

    parts = _CODE.split(_BEFORE_LIST.sub(r"\1\n\n", markdown))
    return "".join(part if i % 2 else _LINK.sub(rewrite, part) for i, part in enumerate(parts))
