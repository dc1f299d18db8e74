"""Every relative link and anchor in the documentation leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
    + [*(ROOT / "docs").rglob("*.md")]
)
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, but for those in code."""
    text = _CODE.sub("``", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return [first or second for first, second in _LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = 0
        while (name := slug if count == 0 else f"{slug}-{count}") in found:
            count += 1
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere, with the reason."""
    wrong = []
    for link in links(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # leads out of the project
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / unquote(path)).resolve()
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif not target.is_relative_to(ROOT.resolve()):
            wrong.append(f"{link}: leads out of the project")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_page_is_reached_from_the_readme() -> None:
    start = (ROOT / "README.md").resolve()
    reached, waiting = {start}, [start]
    while waiting:
        page = waiting.pop()
        for link in links(page):
            target = (page.parent / unquote(link.partition("#")[0])).resolve()
            if target.suffix == ".md" and target.is_file() and target not in reached:
                reached.add(target)
                waiting.append(target)
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(str(page) for page in pages - reached) == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`: three\n\n## Again\n\n## Again\n\n"
        "[a](#one-two-three) [b](#again-1) [c](page.md#again)\n"
        "[d](#nothing) [e](missing.md) [f](https://example.org/x) `[g](missing.md)`\n"
        "[h](../page.md)\n"
        "```\n# No heading\n[i](missing.md)\n```\n[j](#no-heading)\n",
        encoding="utf-8",
    )
    assert broken(page) == [
        "#nothing: no such heading",
        "missing.md: no such file",
        "../page.md: no such file",
        "#no-heading: no such heading",
    ]
