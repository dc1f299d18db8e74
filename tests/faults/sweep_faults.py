"""What goes wrong while a sweep runs, done to it on purpose; and a program that does it often.

    python -m tests.faults.sweep_faults [--times 10] [--executor ray]

kills random workers of a sweep of 12 cells so many times, kills the driver and goes on, fills the
disk of one worker, hides the images from one node, and starts a second driver. Each line says what
was seen; the exit status is 0 where every result equals that of an undisturbed sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.sweep.quick_models"
_BEGINS = re.compile(r"begins on .*?, process (\d+)")


def environment() -> dict[str, str]:
    """Return the environment of drivers: they find this repository's tests, and so do workers."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_AUTH_MODE": "disabled",  # nothing is kept in the home folder
    }


def make_images(root: Path, categories: Sequence[str]) -> Path:
    """Make a small dataset in MVTec layout."""
    rng = np.random.default_rng(0)
    for name in categories:
        for folder, low in (("train/good", 100), ("test/good", 100), ("test/spot", 10)):
            place = root / name / folder
            place.mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(low, 200, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def make_file(folder: Path, *, cells: int, seconds: float, **keywords: Any) -> Path:
    """Make a sweep file of `cells` cells (an even number), on two categories."""
    root = make_images(folder / "images", ["nut", "screw"])
    sweep = {
        "datasets": [{"dataset": "mvtec", "root": str(root)}],
        "models": [
            {"model": "quick", "label": "quick", "model_kwargs": {"seconds": seconds, **keywords}}
        ],
        "seeds": list(range(cells // 2)),
        "options": {"html": False, "resize": [16, 16]},
        "resources": {"memory_gib": 0.1},
    }
    file = folder / "sweep.json"
    file.write_text(json.dumps(sweep))
    return file


def command(*words: str | Path) -> list[str]:
    """Return the command of a sweep that knows the quick models."""
    return [sys.executable, "-m", "pyimgano", "sweep", *map(str, words), "--json"]


def begin(*words: str | Path) -> subprocess.Popen[str]:
    """Begin a sweep as a process of its own."""
    return subprocess.Popen(
        command(*words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Run a sweep to its end; return its status, what it printed, and what it said."""
    with begin(*words) as process:
        out, err = process.communicate(timeout=280)
    return process.returncode, json.loads(out) if out else {}, err


def at_work(folder: Path) -> dict[str, int]:
    """Return the cells that are under way, with the processes that are at them."""
    found = {}
    for log in folder.glob("logs/*seed*.log"):
        text = log.read_text(errors="replace")
        begun = _BEGINS.findall(text)
        if begun and not text.rstrip().endswith("ended"):
            found[log.stem] = int(begun[-1])
    return found


def wait_for(folder: Path, complete: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many cells are complete and another is under way."""
    while process.poll() is None:
        done = sum('"complete"' in one.read_text() for one in folder.glob("outcomes/*.json"))
        if done >= complete and at_work(folder):
            return
        time.sleep(0.02)


def results(report: dict[str, Any]) -> list[Any]:
    """Return what must not differ between two sweeps of the same cells."""
    return [[(one["cell"], one["status"], one["metrics"]) for one in report["cells"]]] + [
        [(one["method"], one["means"], one["deviations"], one["rank"]) for one in report["methods"]]
    ]


def ended_once(folder: Path) -> bool:
    """Return whether every cell has come to its end once, however often it was begun."""
    return all(
        log.read_text().count("seed") and len(re.findall(r" ended\n", log.read_text())) == 1
        for log in folder.glob("logs/*seed*.log")
    )


def kill_workers(file: Path, folder: Path, executor: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill random workers while a sweep runs; return what it printed, and how many were killed."""
    draw = random.Random(seed)
    killed: list[str] = []
    words = ("--executor", executor, "--workers", "2", "--import", MODULE, "--output-dir", folder)
    with begin(file, *words) as process:
        while process.poll() is None and len(killed) < kills:
            time.sleep(draw.uniform(0.1, 0.5))
            cells = {one: pid for one, pid in at_work(folder).items() if killed.count(one) < 2}
            if not cells:
                continue
            cell = draw.choice(sorted(cells))
            try:
                os.kill(cells[cell], signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append(cell)
        out, err = process.communicate(timeout=280)
    return {**(json.loads(out) if out else {"err": err}), "killed": len(killed)}


def kill_driver(file: Path, folder: Path, executor: str) -> tuple[dict[str, Any], int]:
    """Kill the driver amid a sweep, then go on; return the report, and how many cells were kept."""
    words = ("--executor", executor, "--workers", "2", "--import", MODULE)
    with begin(file, *words, "--output-dir", folder) as process:
        wait_for(folder, 2, process)
        process.kill()
        process.communicate()
    reports = {
        one: one.stat().st_mtime_ns
        for one in folder.glob("cells/*/report.json")
        if '"status": "complete"' in one.read_text()
    }
    _, report, err = run(*words, "--resume", folder)
    kept = sum(one.stat().st_mtime_ns == before for one, before in reports.items())
    if kept < len(reports):
        raise AssertionError(f"cells that were complete were run again: {err}")
    return report, kept


def fill_disk(folder: Path, executor: str, cells: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fill the disk of one worker; return the report, and that of the sweep gone on with."""
    folder.mkdir()
    disk = folder / "disk"
    disk.touch()
    file = make_file(folder, cells=cells, seconds=0.2, disk=str(disk))
    words = ("--executor", executor, "--workers", "2", "--import", MODULE)
    _, first, _ = run(file, *words, "--output-dir", folder / "sweep")
    _, second, _ = run(*words, "--resume", folder / "sweep")
    return first, second


def second_driver(file: Path, folder: Path, executor: str) -> tuple[int, str]:
    """Start a second driver on a sweep that runs; return its status and what it said."""
    words = ("--executor", executor, "--workers", "2", "--import", MODULE)
    with begin(file, *words, "--output-dir", folder) as first:
        wait_for(folder, 1, first)
        status, _, err = run("--resume", folder, "--import", MODULE)
        first.communicate(timeout=280)
    return status, err


@contextmanager
def two_nodes(*hidden: Path, tiny: Path | None = None) -> Iterator[str]:
    """Give the address of a Ray cluster of two nodes, of which the second is poor.

    It has mounts of its own, which wants the right to make them.

    Parameters
    ----------
    hidden
        Folders in which the second node sees nothing.
    tiny
        A folder that is its disk for temporary files, of 64 KiB.
    """
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--disable-usage-stats"]
    address = "127.0.0.1:16379"
    small = ["--num-cpus=1", "--block"]
    head = [*ray, "--head", "--port=16379", "--node-ip-address=127.0.0.1", *small]
    head += ["--include-dashboard=false"]
    mounts = [f'mount -t tmpfs none "{one}"' for one in hidden]
    mounts += [f'mount -t tmpfs -o size=64k none "{tiny}"'] if tiny else []
    mounts += [f'export TMPDIR="{tiny}"'] if tiny else []
    poor = " && ".join([*mounts, 'exec "$@"'])
    node = ["unshare", "-m", "sh", "-c", poor, "sh", *ray, f"--address={address}", *small]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        for words in (head, node):
            stack.enter_context(_ended(words, **quiet))
            time.sleep(8)
        yield address


@contextmanager
def _ended(words: Sequence[str], **how: Any) -> Iterator[None]:
    """Run a process for a while, in a group that ends with it."""
    process = subprocess.Popen(words, env=environment(), start_new_session=True, **how)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def may_mount() -> bool:
    """Return whether this process may hide a folder from another."""
    words = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(words, check=False, capture_output=True).returncode
    )


def main() -> int:
    """Do everything so often, print what was seen, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--executor", default="ray")
    given = parser.parse_args()
    wrong = 0

    def say(what: str, well: bool, seen: object) -> None:
        nonlocal wrong
        wrong += not well
        print(f"{'ok  ' if well else 'FAIL'} {what}: {seen}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        (base / "file").mkdir()
        file = make_file(base / "file", cells=given.cells, seconds=0.5)
        words = ("--import", MODULE, "--executor", "processes")
        _, whole, err = run(file, *words, "--output-dir", base / "whole")
        say(
            "undisturbed",
            bool(whole) and all(c["status"] == "complete" for c in whole["cells"]),
            err,
        )
        for number in range(given.times):
            folder = base / f"kill-{number}"
            report = kill_workers(file, folder, given.executor, 3, number)
            well = "cells" in report and results(report) == results(whole) and ended_once(folder)
            say(f"workers killed, {number + 1}", well, f"{report.get('killed')} killed")
        report, kept = kill_driver(file, base / "driver", given.executor)
        say("driver killed", results(report) == results(whole), f"{kept} cells were kept")
        first, second = fill_disk(base / "disk", given.executor, given.cells)
        failed = [one["why"] for one in first["cells"] if one["status"] == "failed"]
        after = all(one["status"] == "complete" for one in second["cells"])
        say("disk of a worker full, then --resume", after, f"{len(failed)} failed: {failed[:1]}")
        status, err = second_driver(file, base / "two", given.executor)
        say("second driver", status == 1 and "another process runs" in err, err.splitlines()[-1])
        if given.executor == "ray" and may_mount():
            (base / "poor").mkdir()
            (base / "tiny").mkdir()
            rest = ("--executor", "ray", "--import", MODULE)
            with two_nodes(base / "file" / "images") as address:
                where = base / "poor" / "blind"
                _, report, err = run(file, *rest, "--address", address, "--output-dir", where)
            line = [one for one in err.splitlines() if "does not see" in one][:1]
            say("node without images", results(report) == results(whole) and bool(line), line)
            with two_nodes(base / "poor", tiny=base / "tiny") as address:
                where = base / "poor" / "tiny"
                _, report, err = run(file, *rest, "--address", address, "--output-dir", where)
            line = [one for one in err.splitlines() if "other nodes take" in one][:1]
            say("node with a full disk", results(report) == results(whole) and bool(line), line)
            with two_nodes(base / "poor") as address:
                where = base / "poor" / "sent"
                _, report, err = run(file, *rest, "--address", address, "--output-dir", where)
            say("node that sends its cells", results(report) == results(whole), "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
