"""What a command says when it is asked for help, mistyped, or asked what a machine has."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

from pyimgano import __version__, cli
from pyimgano.cli import doctor, main
from pyimgano.cli.groups import SuggestingGroup
from pyimgano.cli.infer_usage import _SECTIONS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bechmark"], "unknown command 'bechmark'; did you mean benchmark or robust-benchmark?"),
        (["chek"], "unknown command 'chek'; did you mean check?"),
        (["xyzzy"], "unknown command 'xyzzy'; known: benchmark, check, compare"),
        (["datasets", "chek"], "unknown command 'chek'; did you mean check?"),
        (["weights", "fech"], "unknown command 'fech'; did you mean fetch?"),
    ],
)
def test_a_mistyped_command_is_met_with_the_near_ones(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["datasets"], ["weights"]])
def test_a_group_alone_shows_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("Usage: pyimgano")


@pytest.mark.parametrize(
    ("words", "same_as"),
    [
        (["help"], ["--help"]),
        (["help", "check"], ["check", "--help"]),
        (["help", "datasets", "check"], ["datasets", "check", "--help"]),
        (["datasets", "help", "check"], ["datasets", "check", "--help"]),
    ],
)
def test_help_is_a_command_too(
    words: list[str], same_as: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main(same_as) == 0
    assert shown == capsys.readouterr().out
    assert main(["help", "chek"]) == 2
    assert "did you mean check?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_every_command_says_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--version"]) == 0
    assert capsys.readouterr().out == f"pyimgano, version {__version__}\n"
    assert cli.run_subcommand(name, ["--version"]) == 0  # as the dashed command


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_help_begins_with_a_sentence_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli._command(name)
    some = [[name]]
    if isinstance(command, SuggestingGroup):
        some += [[name, one] for one in command.commands]
    for words in some:
        assert main([*words, "--help"]) == 0
        text = capsys.readouterr().out
        lines = [line for line in text.split("\n\n") if line.strip()]
        assert re.match(r"\s+[A-Z][^.]*\.", lines[1]), lines[1]
        assert f"    pyimgano {words[0]}" in lines[2], lines[2]


def test_the_groups_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert text.index("To begin with:") < text.index("\n  check ") < text.index("To measure")
    assert all(f"\n  {name} " in text for name in cli._COMMANDS)
    assert "pyimgano check photos/good photos/new" in text


def test_the_doctor_says_what_there_is_and_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pyimgano"] == __version__ and found["cpu"]["threads"] >= 1
    assert "torch" in found["engines"] and found["weights"]["efficientnet_lite0"]["found"]
    missing = importlib.util.find_spec("timm") is None
    assert ("timm" in found["missing_parts"]) == missing and "dev" not in found["missing_parts"]
    assert main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().out
    for row in ("CPU", "cores", "GPU", "engines", "weights", "cache"):
        assert re.search(rf"^{row}\s+\S", text, re.M), row
    assert not missing or "timm missing: pip install 'pyimgano[timm]'" in text


def test_the_doctor_times_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PHOTOS", 2)
    monkeypatch.setattr(doctor, "_REPEATS", 1)
    timed = doctor._time_one_image()
    assert timed["milliseconds"] > 0 and timed["photos"] == 2 and "error" not in timed


def test_the_doctor_says_what_hinders_the_default_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_time_one_image", lambda: {"error": "no weights"})
    assert main(["doctor"]) == 1
    assert re.search(r"one image +could not be timed: no weights", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("built_for", "devices", "said"),
    [
        (None, [], "built for the CPU alone"),
        ("12.8", [], "built for CUDA 12.8 and sees no GPU"),
        ("12.8", ["H100"], "H100: used with --device cuda or auto"),
    ],
)
def test_the_gpu_in_words(built_for: str | None, devices: list[str], said: str) -> None:
    assert said in doctor._of_gpu({"torch_built_for": built_for, "devices": devices})


def test_the_options_of_infer_stand_in_sections(capsys: pytest.CaptureFixture[str]) -> None:
    main(["infer", "--help"])
    text = capsys.readouterr().out
    command = cli._command("infer")
    declared = {one.name for one in command.params}
    named = {name for some in _SECTIONS.values() for name in some.split()}
    assert named <= declared and all(f"\n{title}:" in text for title in (*_SECTIONS, "Other"))
    for one in command.params:
        assert all(f"  {flag}" in text or f"{flag} " in text for flag in one.opts if "-" in flag)
