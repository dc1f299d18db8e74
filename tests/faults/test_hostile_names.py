"""Untrusted names of categories, defects and files are text, wherever they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.cli import benchmark, console, datasets, infer, robust_table
from pyimgano.errors import DataError
from pyimgano.inference.outputs import Recorder, Wanted
from pyimgano.inference.scoring import infer as score
from pyimgano.models import registry
from pyimgano.pipelines import run_benchmark
from pyimgano.runs import find_model, shown
from pyimgano.runs.directory import RunDirectory, safe_name, write_bytes
from tests.conftest import copy_registry, save, spot_mask
from tests.pixel_detector import Darkness, fitted, plain

HOSTILE = [
    "..",
    ".",
    "...",
    "../../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "a%2Fb",
    "CON",
    "con.txt",
    "NUL",
    "lpt1.a",
    "-rf",
    "--output=x",
    "a\nb",
    "a\rb",
    "a\0b",
    "\0",
    "a\x1b]0;owned\x07",
    "\x1b[2J\x1b[31mred",
    "\x9b31m",
    "\u202egnp.exe",
    "a\u2028b",
    "\ud800",
    "\udcff",
    "x" * 5000,
    "x" * 4999 + "y",
    "é" * 300,
    "{0.__class__.__init__.__globals__}",
    "{}",
    "%s%s%s%n",
    "%(name)s",
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "[red]x[/red]",
    "[/]",
    "[link=file:///etc/passwd]x[/link]",
    ":warning:",
    "=cmd|'/C calc'!A0",
    "<script>alert(1)</script>",
    "a,b;c\td",
    '"',
    "'",
    "*",
]


@pytest.fixture
def darkness(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    registry.register_model("darkness")(Darkness)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A manifest in which each category, and its defect, has one of these names."""
    folder = tmp_path / "set"
    for name, value in (("0", 200), ("1", 205), ("good", 210), ("bad", 20)):
        save(folder / f"{name}.png", plain(value, 8, 8))
    save(folder / "mask.png", spot_mask(8))
    with (folder / "manifest.jsonl").open("w") as file:
        for name in HOSTILE:
            for path, split, label in (
                ("0.png", "train", 0),
                ("1.png", "train", 0),
                ("good.png", "test", 0),
                ("bad.png", "test", 1),
            ):
                line: dict[str, Any] = {"path": path, "split": split, "label": label}
                if label:
                    line |= {"mask": "mask.png", "defect": name}
                file.write(json.dumps({**line, "category": name}) + "\n")
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.usefixtures("darkness")
def test_categories_and_defects_of_any_name(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as left:
        benchmark(
            [
                "--dataset",
                "custom",
                "--root",
                str(root),
                "--model",
                "darkness",
                "--resize",
                "8",
                "8",
            ]
            + ["--runs-dir", "out"]
        )
    out, err = capsys.readouterr()
    assert left.value.code == 0, err[-2000:]
    report = json.loads(out)
    run = Path(report["run_dir"])
    assert {one["status"] for one in report["per_category"].values()} == {"complete"}
    assert len(report["per_category"]) == len(HOSTILE)
    folders = sorted(path.name for path in (run / "categories").iterdir())
    assert folders == sorted(safe_name(shown(name)) for name in HOSTILE)
    for name in HOSTILE:
        folder = run / "categories" / safe_name(shown(name))
        assert sorted(path.name for path in folder.iterdir()) == [
            "curves.json",
            "files.json",
            "maps",
            "per_image.jsonl",
            "report.json",
            "training_scores.jsonl",
        ]
        lines = (folder / "per_image.jsonl").read_bytes().decode().splitlines()
        assert len([json.loads(line) for line in lines]) == 2
    for path in everything(tmp_path) - before:  # nothing but the run
        assert path == "out" or path.startswith(f"out{os.sep}")
    seen = err.replace("\r", "")
    for bad in ("\x07", "\x9b", "\u202e", "\u2028", "\x1b]", "\x1b[2J", "\x1b[31m"):
        assert bad not in seen
    for name in ("[red]x[/red]", "[/]", ":warning:", "%s%s%s%n", "<script>alert(1)</script>"):
        assert name in seen


@pytest.mark.usefixtures("darkness")
def test_lists_are_one_line_a_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments in (
        (benchmark, ["--dataset", "custom", "--root", str(root), "--list-categories"]),
        (datasets, ["check", "--dataset", "custom", "--root", str(root)]),
    ):
        with pytest.raises(SystemExit) as left:
            command(arguments)
        out = capsys.readouterr().out
        assert left.value.code == 0
        assert all(line.isprintable() for line in out.split("\n"))
        if command is benchmark:
            assert len(out.split("\n")) == len(HOSTILE) + 1
    with pytest.raises(SystemExit):
        benchmark(["--dataset", "custom", "--root", str(root), "--list-categories", "--json"])
    assert sorted(json.loads(capsys.readouterr().out)) == sorted(HOSTILE)


def test_names_of_folders(tmp_path: Path) -> None:
    places = {name: safe_name(name) for name in HOSTILE}
    assert len(set(places.values())) == len(HOSTILE)
    for place in places.values():
        assert place.isprintable() and len(place.encode()) <= 200
        assert not place.startswith("-") and not set(place) & set('/\\:*?"<>|')
        assert place.split(".")[0].rstrip(" ").upper() not in ("CON", "NUL", "LPT1")
        (tmp_path / place).mkdir()
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)


@settings(max_examples=300)
@given(st.text(st.sampled_from("xX-%.aC OoNn\n9é"), max_size=300), st.text(max_size=300))
def test_cut_names_do_not_meet(first: str, second: str) -> None:
    assert (safe_name(first) == safe_name(second)) == (first == second)
    long = safe_name("x" * 300 + first)
    assert "%-" in long
    for name in (long, long.replace("%-", ""), long.replace("%-", "%"), long.replace("%", "")):
        assert safe_name(name) != long  # nobody can be called as the cut name of another is


@pytest.mark.usefixtures("darkness")
def test_names_that_reports_cannot_tell_apart(tmp_path: Path) -> None:
    save(tmp_path / "0.png", plain(200, 8, 8))
    lines = [
        json.dumps({"path": "0.png", "split": "train", "category": name})
        for name in ("\udcff", "\\xff")
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="are written alike"):
        run_benchmark(
            dataset="custom",
            root=tmp_path / "list.jsonl",
            category="all",
            model="darkness",
            save_run=False,
        )


def test_models_of_categories_of_any_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in HOSTILE:
        model = RunDirectory(run).category(name) / "model"
        model.mkdir()
        (model / "detector.json").touch()
    for name in HOSTILE:
        assert find_model(run, name).parent.name == safe_name(shown(name))


FILES = [
    b"\xff.png",
    b"\xfe.png",
    b"a\nb.png",
    b"-rf.png",
    b"\x1b[31m\x07.png",
    b"[red]x[.png",
    b"x" * 250 + b".png",
    b"x" * 249 + b"y.png",
    b"=1+1.png",
    b"CON.png",
    b"a%2Fb.png",
    b"{0.__class__}.png",
    b"%s%n.png",
    b"$(touch owned).png",
    b"a...png",
]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@pytest.mark.usefixtures("darkness")
def test_files_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = tmp_path / "parts"
    good = save(tmp_path / "train" / "0.png", plain(200)).read_bytes()
    parts.mkdir()
    for number, name in enumerate(FILES):
        damaged = number % 5 == 4
        Path(os.fsdecode(bytes(parts) + b"/" + name)).write_bytes(good[: 30 if damaged else None])
    before = everything(tmp_path)
    with pytest.raises(SystemExit) as left:
        infer(
            ["--model", "darkness", "--train-dir", "train", "--resize", "64", "64", "parts"]
            + ["--save-jsonl", "records.jsonl", "--regions"]
            + [f for kind in ("maps", "overlays", "masks") for f in (f"--save-{kind}", kind)]
        )
    out, err = capsys.readouterr()
    assert left.value.code == 1 and len(out.split("\n")) == len(FILES) + 1
    assert all(line.isprintable() for line in err.split("\n"))
    assert (tmp_path / "records.jsonl").read_bytes().decode() == out
    records = [json.loads(line) for line in out.splitlines()]
    whole = [one for one in records if one["error"] is None]
    assert len(whole) == len(FILES) - 3
    for kind in ("maps", "overlays", "masks"):
        written = [path for path in (tmp_path / kind).rglob("*") if path.is_file()]
        assert len(written) == len(whole) and all(path.name.isprintable() for path in written)
    rest = {Path(path).parts[0] for path in everything(tmp_path) - before}
    assert rest == {"maps", "overlays", "masks", "records.jsonl"}


def test_outputs_do_not_follow_links_out_of_their_folder(tmp_path: Path) -> None:
    outside, maps = tmp_path / "outside", tmp_path / "maps"
    outside.mkdir()
    maps.mkdir()
    (maps / "good").symlink_to(outside)
    detector = fitted()
    (result,) = score(detector, [plain(200)], include_maps=True)
    recorder = Recorder(detector, Wanted(maps=maps), None)
    with pytest.raises(DataError, match=r"leads out of .*nothing is written there"):
        recorder.record(result, 0, "0.png", ("good", "0.png"))
    assert not list(outside.iterdir())
    (maps / "0.png.map.tiff").symlink_to(outside / "0.tiff")
    recorder.record(result, 0, "0.png", ("0.png",))
    assert not list(outside.iterdir()) and not (maps / "0.png.map.tiff").is_symlink()


def test_a_link_that_waits_for_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(tmp_path / "elsewhere")
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x" and not (tmp_path / "elsewhere").exists()


# ---- what reaches a terminal


def test_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for name in HOSTILE:
        console.print_error(f"{name}: unreadable")
    err = capsys.readouterr().err
    assert len(err.split("\n")) == len(HOSTILE) + 1
    assert all(line.isprintable() for line in err.split("\n"))
    console.print_error("x" * 10**7)
    assert len(capsys.readouterr().err) < 5000


def test_warnings_are_lines_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a saved detector, for one, that names the engine it was fitted with."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards

    def list_datasets() -> list[str]:
        warnings.warn("fitted with \x1b]0;owned\x07\non cpu", stacklevel=1)
        return ["a\x1b[31m"]

    monkeypatch.setattr("pyimgano.datasets.list_datasets", list_datasets)
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("always")
        datasets(["list"])
    out, err = capsys.readouterr()
    assert err == "warning: fitted with \\x1b]0;owned\\x07\\non cpu\n"
    assert out == "a\\x1b[31m\n"


def test_tables_and_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[red]x[/] \x1b[31m\x07"
    summary = {"mean": {}, "worst": {}}
    report = {
        "model": "m",
        "dataset": "custom",
        "category": name,
        "run_dir": name,
        "severities": [1],
        "summary": summary,
        "clean": {"metrics": {}},
        "corruptions": {},
    }
    robust_table.print_table(report)
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err and err.count("[red]x[/] \\x1b[31m") == 2
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with console.Bar() as bar:
        assert bar._progress is not None
        bar.show(name, 1, 2)
        bar._progress.refresh()
        assert bar._progress.tasks[0].description == "[red]x[/] \\x1b[31m\\x07"


def test_a_console_of_few_characters(tmp_path: Path) -> None:
    """JSON stays JSON where stdout cannot show a name."""
    save(tmp_path / "größe\udcff" / "train" / "good" / "0.png", plain(200, 8, 8))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyimgano",
            "datasets",
            "check",
            "--dataset",
            "mvtec",
            "--root",
            ".",
        ],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0 and "größe\\udcff".encode() in done.stdout, done.stderr
