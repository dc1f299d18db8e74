"""The commands in the documentation exist, with the options and choices that are given there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pyimgano import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SHELLS = {"", "bash", "sh", "console"}
#: `pyimgano-detector` is the kind of a document.
_INLINE = re.compile(r"`(pyimgano[ -](?!detector`)[a-z][^`]*)`")
_COMMAND = re.compile(r"(?:\S*/)?pyimgano(?:-([a-z-]+))?")
#: Words before the name of a package, a folder or a program that say that it is not the command.
_NOT_RUN = {"pip", "install", "venv", "cd", "build", "save"}
_ENDS = {"|", "||", "&&", ";", "&", ">", "2>", "<"}


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of pyimgano in a page: the subcommand, then what it gets."""
    lines = [
        line.strip()
        for language, fence in _FENCE.findall(text)
        if language in _SHELLS
        for line in fence.replace("\\\n", " ").splitlines()
    ]
    lines += [" ".join(code.split()) for code in _INLINE.findall(_FENCE.sub("", text))]
    found = []
    for line in lines:
        if "pyimgano" not in line:
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # not a line of a shell
            continue
        begun: list[str] | None = None  # the words of a command so far
        first = 0  # where what stands between two ends begins
        for i, word in enumerate([*words, ";"]):
            if word in _ENDS:
                found += [begun] if begun else []
                begun, first = None, i + 1
            elif begun is not None:
                begun.append(word)
            elif (match := _COMMAND.fullmatch(word)) and not _NOT_RUN & set(words[first:i]):
                begun = [match.group(1)] if match.group(1) else []
    return found


def wrong(words: list[str]) -> str | None:
    """Return what is wrong with a command, None if nothing is.

    What only says where something goes, such as `RUN`, `[--category C]` or `...`, is understood.
    """
    name, *rest = words
    if name in ("COMMAND", "--help", "--version", "-h"):
        return None
    if name.startswith("-"):
        name, rest = "benchmark", words  # as `pyimgano --dataset ...` does
    if name not in cli._COMMANDS:
        return f"no command {name}"
    command = cli._command(name)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"no command {name} {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = command.get_params(click.Context(command))
    options = {one for p in known for one in (*p.opts, *p.secondary_opts)}
    rest = [word.strip("[]") if re.match(r"\[?-", word) else word for word in rest]
    for word in rest:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in options and flag != "--help":
            return f"{name} has no option {flag}"
    for option in known:
        if not isinstance(option.type, click.Choice | click.IntRange | click.FloatRange):
            continue
        for i, word in enumerate(rest[:-1]):
            given = rest[i + 1].strip("[]")
            if word in option.opts and not given.isupper() and given != "...":
                try:
                    option.type.convert(given, option, None)
                except click.BadParameter as error:
                    return f"{name} {word}: {error.message}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_command_of_a_page_exists(page: Path) -> None:
    found = commands(page.read_text(encoding="utf-8"))
    assert [(words, reason) for words in found if (reason := wrong(words))] == []


def test_commands_are_found_where_pages_have_them() -> None:
    text = (
        "```\npip install pyimgano && pyimgano-benchmark --dataset demo  # a comment\n"
        "find . | pyimgano infer --input - \\\n    --json > x\nbin/pyimgano doctor\n```\n"
        "`pyimgano threshold RUN|MODEL [--category C]` and `pyimgano.models` and `pyimgano`\n"
        "```python\nimport pyimgano\n```\n"
    )
    assert commands(text) == [
        ["benchmark", "--dataset", "demo"],
        ["infer", "--input", "-", "--json"],
        ["doctor"],
        ["threshold", "RUN|MODEL", "[--category", "C]"],
    ]
    many = sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES)
    assert many > 60


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("bench --dataset demo", "no command bench"),
        ("datasets look", "no command datasets look"),
        ("check a b --fast", "check has no option --fast"),
        ("infer --model-dir m --map-format png", "infer --map-format: 'png' is not one of"),
        ("infer --model-dir m --min-area 0", "infer --min-area: 0 is not in the range"),
        ("threshold RUN|MODEL [--category C] [--quantil 1]", "threshold has no option --quantil"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, reason: str) -> None:
    assert str(wrong(line.split())).startswith(reason)
