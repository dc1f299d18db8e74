"""Kills runs at random moments, resumes them, and says what came of it.

    python -m tests.faults.killing ROOT OUTPUT TRIALS SEED

A run is a forked child of this process, which has imported all that it needs. Prints a JSON line
for each trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from pyimgano.pipelines import run, run_benchmark
from pyimgano.pipelines.run import RunConfig
from pyimgano.runs import (
    CategoryReport,
    CurvesDocument,
    EnvironmentDocument,
    FilesDocument,
    ImageRecord,
    SuiteReport,
    TrainingScoreRecord,
)
from tests import stubs

MODELS = {
    "config.json": RunConfig,
    "environment.json": EnvironmentDocument,
    "files.json": FilesDocument,
    "curves.json": CurvesDocument,
}
LINES = {"per_image.jsonl": ImageRecord, "training_scores.jsonl": TrainingScoreRecord}
#: A page takes longer than all the rest of a run: one trial in so many has a real one.
_REAL_PAGE = 5
#: Fields that say when, or where the run lies.
_TIMES = {"started_at", "finished_at", "resumed_at", "resumed", "run_dir", "timings", "saved_at"}


def child(work: Callable[[], object]) -> int:
    """Fork; the child does its work and ends."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def killed(work: Callable[[], object], after: float) -> bool:
    """Whether the child was still at work when it was killed."""
    pid = child(work)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def finished(work: Callable[[], object]) -> None:
    status = os.waitpid(child(work), 0)[1]
    assert status == 0, f"a child ended with {status}"


def check_whole(run: Path) -> None:
    """Every document is valid, and every line but for the last of a file."""
    for path in run.rglob("*.json"):
        top = path.parent == run
        model = MODELS.get(path.name, SuiteReport if top else CategoryReport)
        if path.parent.name == "model":
            json.loads(path.read_bytes())
        elif not path.relative_to(run).as_posix().count("/."):  # else half a model, and named so
            model.model_validate_json(path.read_bytes())
    assert (run / "config.json").is_file() and (run / "environment.json").is_file()
    for path in run.rglob("*.jsonl"):
        *whole, last = path.read_bytes().split(b"\n")
        for line in whole:
            LINES[path.name].model_validate_json(line)
        if json.loads((path.parent / "report.json").read_bytes())["status"] == "complete":
            assert last == b""


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run, without what may differ."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_bytes()))
        elif path.suffix == ".html":
            found[name] = "the page, which has times and follows from the rest"
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_timeless(one) for one in value]
    return value


def write_short_page(folder: Path) -> None:
    (folder / "report.html").write_text("<p>not made in this trial</p>\n")


def main() -> None:
    root, output, trials, seed = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    rng = random.Random(seed)

    def begin(folder: Path) -> None:
        run_benchmark(
            dataset="mvtec",
            root=root,
            model="darkness",
            resize=(64, 64),
            runs_dir=folder,
            save_model=True,
        )

    os.fsync = lambda descriptor: None  # the machine stays on, and keeps what it was given
    cv2.setNumThreads(0)  # threads of its own do not outlive a fork
    begin(output / "imports")  # whatever is imported on the way is, before a child is forked
    seconds = {}  # that a run takes, by what writes its page
    for write_page in (write_short_page, run.write_report_page):
        run.write_report_page = write_page
        began = time.perf_counter()
        finished(lambda: begin(output / write_page.__name__))  # noqa: B023
        seconds[write_page] = time.perf_counter() - began
        (whole,) = (output / write_page.__name__).iterdir()
        wanted = contents(whole)
    for trial in range(trials):
        if trial % _REAL_PAGE:
            run.write_report_page = write_short_page
        else:
            run.write_report_page = write_page
        took = seconds[run.write_report_page]
        folder = output / str(trial)
        was_killed = killed(lambda: begin(folder), rng.uniform(0, took))  # noqa: B023
        runs = [path for path in folder.glob("*") if not path.name.startswith(".")]
        kept: dict[Path, bytes] = {}
        if runs:
            (left,) = runs
            check_whole(left)
            for path in left.glob("categories/*/report.json"):
                if json.loads(path.read_bytes())["status"] == "complete":
                    kept |= {one: one.read_bytes() for one in path.parent.glob("*.json*")}
            if trial % 3 == 0:  # and once more while it is resumed
                killed(lambda: run_benchmark(resume=left), rng.uniform(0, took))  # noqa: B023
                check_whole(left)
            finished(lambda: run_benchmark(resume=left))  # noqa: B023
            assert contents(left) == wanted
            assert all(path.read_bytes() == data for path, data in kept.items())
        print(
            json.dumps({"took": took, "killed": was_killed, "began": bool(runs), "kept": len(kept)})
        )


if __name__ == "__main__":
    stubs.register()
    main()
