"""The commands: what stands on stdout and stderr, and the exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyimgano import __version__
from pyimgano.cli import benchmark, main, models_table
from pyimgano.models import list_models
from tests import stubs
from tests.conftest import MakeDataset, picture, save

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `pyimgano-benchmark` here; gives exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            benchmark([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = left.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return run


def arguments(root: Path, *more: str) -> list[str]:
    return ["--dataset", "mvtec", "--root", str(root), "--resize", "64", "64", *more]


def test_one_document_on_stdout_and_no_noise(
    call: Command, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut"), train=8)
    copy = tmp_path / "summary.json"
    more = ["--runs-dir", str(tmp_path / "o"), "--output", str(copy), "--json"]
    code, out, err = call(*arguments(root, "--calibration-quantile", "0.8", *more))
    report = json.loads(out)
    # nothing is wrong, and stderr is no terminal: progress, the table and the places in plain lines
    assert code == 0 and "\x1b" not in err and "\r" not in err
    assert "bolt (1/2): training images, 8\n" in err and "nut (2/2): test images, " in err
    assert "| bolt " in err and "| mean " in err and "image AUROC" in err
    assert f"run: {report['run_dir']}\npage: {report['run_dir']}/report.html\n" in err
    assert report["categories"] == ["bolt", "nut"]
    assert json.loads(copy.read_text()) == report
    stored = json.loads((Path(report["run_dir"]) / "report.json").read_text())
    assert stored == report
    assert Path(report["run_dir"]).parent == tmp_path / "o"


def test_splits_manifests_and_calibration_arrive(call: Command, tmp_path: Path) -> None:
    rows = ["path,split,label"]
    for i in range(4):
        save(tmp_path / "out" / f"{i}.png", picture(i))
        rows.append(f"../out/{i}.png,{'train' if i < 3 else 'validation'},")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/nut.csv").write_text("\n".join(rows))
    known = ["--dataset", "custom", "--root", str(tmp_path / "set/nut.csv")]
    code, out, err = call(*known, "--list-categories")
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "nut.csv: line 2: '../out/0.png' leads out" in err and "--allow-outside" in err
    assert call(*known, "--list-categories", "--allow-outside")[:2] == (0, "nut\n")
    more = ["--allow-outside", "--calibration", "validation", "--resize", "64", "64"]
    code, out, err = call(*known, *more, "--no-save-run")
    report = json.loads(out)["per_category"]["nut"]
    assert code == 0 and report["calibration"]["method"] == "held-out-images"
    said = "nut: there are no test images: the threshold is calibrated, nothing is measured"
    assert said in err.splitlines()
    code, _, err = call(*known, "--split", "1cls")
    assert code == 2 and "split: dataset 'custom' has no splits, got '1cls'" in err
    code, _, err = call("--dataset", "mvtec", "--root", "x", "--calibration", "validation")
    assert code == 2 and "dataset 'mvtec' has no validation images" in err


def test_every_flag_arrives(call: Command, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    code, out, _ = call(
        *arguments(make_mvtec(), "--category", "nut", "--model", "vision_patchcore"),
        *["--device", "cpu", "--no-pretrained", "--seed", "3", "--no-per-image-jsonl", "--no-html"],
        *["--model-kwargs", '{"n_neighbors": 2}', "--contamination", "0.25", "--no-pixel"],
        *["--limit-train", "5", "--limit-test", "4", "--calibration", "in-sample"],
        *["--preset", "industrial-fast", "--runs-dir", str(tmp_path / "o")],
        *["--pixel-aupro-limit", "0.05", "--on-error", "skip"],
    )
    assert code == 0
    report = json.loads(out)
    config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
    assert config["model_kwargs"] == {"n_neighbors": 2}
    assert config["pretrained"] is False
    assert config["detector_parameters"]["max_bank_size"] == 4096  # the preset's
    assert config["resize"] == [64, 64]  # not the preset's
    assert config["contamination"] == 0.25 and config["calibration"] == "in-sample"
    assert (config["limit_train"], config["limit_test"], config["seed"]) == (5, 4, 3)
    assert config["pixel"] is False and config["pixel_aupro_limit"] == 0.05
    assert config["on_error"] == "skip" and config["per_image_jsonl"] is False
    assert config["html"] is False
    assert not list(Path(report["run_dir"]).rglob("per_image.jsonl"))


def test_no_save_run(
    call: Command, make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = call(*arguments(root, "--no-save-run"))
    assert code == 0 and json.loads(out)["run_dir"] is None
    assert not list((tmp_path / "here").iterdir())


def test_the_demo_needs_nothing(call: Command, tmp_path: Path) -> None:
    limits = ["--limit-train", "6", "--limit-test", "10", "--resize", "64", "64"]
    code, out, _ = call("--dataset", "demo", "--runs-dir", str(tmp_path), *limits)
    assert code == 0 and json.loads(out)["categories"] == ["fabric", "washer"]


def test_a_wrong_keyword_is_found_before_the_demo_is_drawn(call: Command, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    code, _, _ = call("--dataset", "demo", "--root", str(root), "--model-kwargs", '{"zzz": 1}')
    assert code == 2 and not root.exists()


def test_an_unreadable_test_image_is_listed_and_exits_1(
    call: Command, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    broken = root / "nut/test/good/001.png"
    broken.write_bytes(b"\x89PNG")
    where = ["--runs-dir", str(tmp_path / "o")]
    code, out, err = call(*arguments(root, *where))
    assert code == 1 and json.loads(out)["per_category"]["nut"]["counts"]["test_unreadable"] == 1
    assert f"nut: unreadable_test_image: {broken}: " in err
    assert "1 test image could not be read and got no score" in err
    code, _, err = call(*arguments(root, *where, "--on-error", "skip"))
    assert code == 0 and str(broken) in err


def test_a_failed_category_exits_1_and_the_others_stand(
    call: Command, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut"))
    (root / "bolt/train/good/002.png").write_text("broken")
    code, out, err = call(*arguments(root, "--runs-dir", str(tmp_path / "o")))
    assert code == 1 and json.loads(out)["failed_categories"] == ["bolt"]
    assert "bolt: " in err and "002.png: not an image" in err and "Traceback" not in err


WRONG: list[tuple[list[str], int, str]] = [
    (["--dataset", "mvtecc", "--root", "."], 2, "unknown dataset 'mvtecc'"),
    (["--datset", "mvtec"], 2, "--datset"),
    (["--root", "."], 2, "--dataset is missing"),
    (["--dataset", "mvtec"], 2, "needs a root"),
    (["--dataset", "mvtec", "--root", "/no/where"], 1, "/no/where: no such folder"),
    (["ROOT", "--category", "nutt"], 1, "unknown category 'nutt'; did you mean nut?"),
    (["ROOT", "--model", "vision_patchcor"], 2, "did you mean vision_patchcore"),
    (["ROOT", "--model-kwargs", '{"n_neighbours": 3}'], 2, "did you mean n_neighbors"),
    (["ROOT", "--model-kwargs", '{"n_neighbors": -3}'], 2, "n_neighbors: input should be"),
    (["ROOT", "--model-kwargs", "{n: 3}"], 2, "--model-kwargs is not JSON"),
    (["ROOT", "--model-kwargs", "[3]"], 2, "--model-kwargs must be a JSON object"),
    (["ROOT", "--calibration-quantile", "1"], 2, "calibration_quantile"),
    (["ROOT", "--calibration-quantile", "0"], 2, "calibration_quantile"),
    (["ROOT", "--calibration-quantile", "x"], 2, "not a valid float"),
    (["ROOT", "--calibration-quantile", "nan"], 2, "calibration_quantile"),
    (["ROOT", "--contamination", "0.9"], 2, "contamination"),
    (["ROOT", "--preset", "quick"], 2, "unknown preset"),
    (["ROOT", "--resize", "64"], 2, "--resize"),
    (["ROOT", "--resize", "0", "64"], 2, "resize"),
    (["ROOT", "--device", "cuda:77"], 2, "device 'cuda:77' is not there"),
    (["ROOT", "--limit-train", "0"], 2, "limit_train"),
    (["ROOT", "--on-error", "ignore"], 2, "'--on-error': 'ignore' is not one of 'error', 'skip'"),
    (["--model-info", "vision_patchcor"], 2, "did you mean vision_patchcore"),
    (["--list-categories"], 2, "--dataset is missing"),
]


@pytest.mark.parametrize(("wrong", "code", "said"), WRONG, ids=lambda v: str(v)[:60])
def test_what_is_wrong_is_one_clear_line(
    call: Command,
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[str],
    code: int,
    said: str,
) -> None:
    root = make_mvtec()
    monkeypatch.chdir(tmp_path)
    if wrong[0] == "ROOT":
        wrong = ["--dataset", "mvtec", "--root", str(root), *wrong[1:]]
    found, out, err = call(*wrong)
    assert found == code, err
    assert out == "" and said in err
    assert err.count("\n") == 1 and err.startswith("pyimgano-benchmark: error: ")
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_an_output_that_cannot_be_written_is_found_out_first(
    call: Command, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    where = ["--runs-dir", str(tmp_path / "o")]
    for output in ("", str(tmp_path / "no" / "x.json"), str(root / "nut/train/good/000.png/x")):
        code, out, err = call(*arguments(root, *where, "--output", output))
        assert code == 2 and out == "" and err.count("\n") == 1 and "--output" in err
    assert not (tmp_path / "o").exists()


def test_json_too_deep(call: Command, make_mvtec: MakeDataset) -> None:
    code, _, err = call(*arguments(make_mvtec(), "--model-kwargs", "[" * 100_000))
    assert code == 2 and err.count("\n") == 1 and len(err) < 500


def test_streams_that_are_full_or_closed(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    words = ["-m", "pyimgano", "benchmark", "--list-models"]
    command = " ".join([sys.executable, *words])
    for redirect, said in ((">/dev/full", "No space left"), (">&-", "stdout is closed")):
        done = subprocess.run(
            f"{command} {redirect}", shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(f"{command} 2>&-", shell=True, capture_output=True, check=False)
    assert done.returncode == 0 and b"vision_patchcore" in done.stdout


def test_a_summary_is_in_its_file_also_where_stdout_is_full(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    copy = tmp_path / "summary.json"
    asked = arguments(make_mvtec(), "--model", "darkness", "--no-save-run")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            stubs.command("benchmark", *asked, "--output", copy),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1 and "No space left" in done.stderr
    assert json.loads(copy.read_text())["status"] == "complete"


def test_a_stopped_run_says_so(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    runs = []
    for stop in (signal.SIGTERM, signal.SIGINT):
        output = tmp_path / stop.name
        keywords = {"at": "fit", "how": "python", "sign": str(tmp_path / f"{stop.name}.sign")}
        more = ["--model", "busy", "--model-kwargs", json.dumps(keywords)]
        run = subprocess.Popen(
            stubs.command("benchmark", *arguments(root, *more, "--runs-dir", str(output))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        runs.append((run, stop, output, Path(keywords["sign"])))
    for run, stop, output, sign in runs:
        deadline = time.monotonic() + 120
        while not sign.exists():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        run.send_signal(stop)
        out, err = run.communicate(timeout=60)
        assert run.returncode == 130 and out == ""
        lines = err.splitlines()
        (run_dir,) = output.iterdir()
        assert lines[-2] == "pyimgano: error: interrupted"
        assert lines[-1] == f"to go on: pyimgano benchmark --resume {run_dir}"
        (top,) = output.glob("*/report.json")
        (category,) = output.glob("*/categories/nut/report.json")
        for path in (top, category):
            assert '"status": "interrupted"' in path.read_text()


def test_an_empty_train_folder(call: Command, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    for path in (root / "nut/train/good").iterdir():
        path.unlink()
    code, out, err = call(*arguments(root, "--category", "nut", "--runs-dir", str(tmp_path)))
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "nut/train/good: holds no images" in err


def test_lists(call: Command, make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("nut", "bolt"))
    assert call("--list-models")[:2] == (0, "\n".join(list_models()) + "\n")
    assert json.loads(call("--list-models", "--json")[1]) == list_models()
    tagged = call("--list-models", "--tags", "classical, neighbours")
    assert tagged == (0, "vision_knn\nvision_lof\n", "")
    code, out, err = call("--list-models", "--tags", "no-such-tag")
    assert (code, out) == (0, "") and "no model has the tags no-such-tag; known: " in err
    assert call("--tags", "classical")[0] == 2
    where = ["--dataset", "mvtec", "--root", str(root), "--list-categories"]
    assert call(*where)[:2] == (0, "bolt\nnut\n")
    assert json.loads(call(*where, "--json")[1]) == ["bolt", "nut"]
    info = json.loads(call("--model-info", "vision_patchcore", "--json")[1])
    assert info["parameters"]["n_neighbors"]["default"] == 9


def test_models_as_tables(call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_table, "_to_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    rows = call("--list-models", "--tags", "neighbours")[1].splitlines()
    assert rows[0].split() == ["model", "year", "tags", "what", "it", "is"]
    assert [row.split()[:2] for row in rows[2:]] == [["vision_knn", "2000"], ["vision_lof", "2000"]]
    shown = call("--model-info", "vision_hbos")[1]
    for said in ("Goldstein & Dengel", "none, image scores only", "refitted folds", "https://"):
        assert said in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line}
    assert lines["n_bins"].split(maxsplit=2)[1:] == ["10", "integer, at least 2, at most 1000"]
    assert lines["industrial-balanced"].endswith("the defaults")
    assert "resize=[320, 320]" in lines["industrial-accurate"]
    assert call("--model-info", "vision_hbos", "--json")[1].startswith("{")


def test_types_in_words() -> None:
    words = models_table.type_in_words
    assert words({"type": "number", "exclusiveMinimum": 0, "maximum": 1}) == (
        "number, above 0, at most 1"
    )
    assert words({"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}]}) == 'null or "a" | "b"'
    pair = {"prefixItems": [{"type": "integer"}, {"type": "integer"}], "type": "array"}
    assert words(pair) == "[integer, integer]"
    assert words({"type": "array", "items": {"type": "string"}}) == "array of string"


def test_one_command_under_all_its_names(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    names = [
        [str(folder / "pyimgano-benchmark")],
        [str(folder / "pyimgano"), "benchmark"],
        [sys.executable, "-m", "pyimgano", "benchmark"],
    ]
    helps = [
        subprocess.run([*name, "--help"], capture_output=True, text=True, check=True).stdout
        for name in names
    ]
    texts = [text.split("Dataset options:")[1] for text in helps]
    assert texts[0] == texts[1] == texts[2] and "--calibration-quantile" in texts[0]
    version = subprocess.run(
        [*names[2][:3], "--version"], check=True, capture_output=True, text=True
    )
    assert __version__ in version.stdout
    unknown = subprocess.run([*names[2][:3], "bench"], check=False, capture_output=True, text=True)
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1


def test_group_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "robust-benchmark" in capsys.readouterr().out


def test_stderr_on_a_terminal_gets_a_table_and_a_piped_stdout_the_document(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("nut [b]", "bolt"))  # a name that looks like markup
    seen, terminal = pty.openpty()
    done = subprocess.Popen(
        stubs.command("benchmark", *arguments(root), "--model", "darkness", "--no-html"),
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(seen, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert done.stdout is not None
    report = json.loads(done.stdout.read())
    assert done.wait() == 0
    text = shown.decode()
    assert "darkness on mvtec" in text and "image AUROC" in text and "mean" in text
    assert "nut [b]" in text and str(report["run_dir"]) in text


@pytest.mark.parametrize("as_json", [False, True])
def test_a_person_at_a_terminal_gets_a_table_and_a_log_file_too(
    make_mvtec: MakeDataset, tmp_path: Path, as_json: bool
) -> None:
    root = make_mvtec(("nut [b]",))
    more = ["--category", "nut [b]", "--model", "darkness"] + ["--json"] * as_json
    seen, terminal = pty.openpty()
    log = tmp_path / "log"
    with log.open("wb") as file:
        done = subprocess.Popen(
            stubs.command("benchmark", *arguments(root), "--output-dir", "r", *more),
            stdout=terminal,
            stderr=file,
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
        )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
        while part := os.read(seen, 4096):
            shown += part
    os.close(seen)
    assert done.wait() == 0
    text, logged = shown.decode(), log.read_text()
    if as_json:
        assert json.loads(text)["category"] == "nut [b]"
    else:
        assert "image AUROC" in text and "nut [b]" in text and '"schema_version"' not in text
        assert "page: r/report.html" in text
    for line in ("nut [b]: training images, ", "| nut [b] ", "run: r\n", "page: r/report.html\n"):
        assert line in logged
    assert "\x1b" not in logged and "┃" not in logged
