"""A sweep on a local Ray cluster of two workers, with a worker that is killed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.faults.sweep_faults import MODULE, ended_once, kill_workers, make_file, results, run

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pyimgano[ray])"
)


@needs_ray
def test_ray_gives_the_table_of_one_process_though_workers_die(tmp_path: Path) -> None:
    file = make_file(tmp_path, cells=4, seconds=2)
    words = ("--import", MODULE, "--executor", "in-process", "--output-dir", tmp_path / "alone")
    status, alone, err = run(file, *words)
    assert status == 0, err
    report = kill_workers(file, tmp_path / "ray", "ray", 1, 0)
    assert report["killed"] == 1 and results(report) == results(alone)
    assert ended_once(tmp_path / "ray")
    assert "logs of Ray" in (tmp_path / "ray" / "logs" / "ray.txt").read_text()


def test_processes_that_are_killed_cost_nothing(tmp_path: Path) -> None:
    file = make_file(tmp_path, cells=4, seconds=0.5)
    report = kill_workers(file, tmp_path / "sweep", "processes", 2, 0)
    assert report["killed"] == 2 and ended_once(tmp_path / "sweep")
    assert {one["status"] for one in report["cells"]} == {"complete"}
