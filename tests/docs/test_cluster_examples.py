"""The examples for clusters are sound, and the very commands in them run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from pyimgano.cli import main

FOLDER = Path(__file__).parents[2] / "docs" / "cluster"


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Return an environment in which `pyimgano` is this package, and runs two small models."""
    program = tmp_path / "bin" / "pyimgano"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m pyimgano "$@" --executor in-process\n'
    )
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", **more}


def small_sweep(tmp_path: Path) -> Path:
    """Write the example as a sweep of two cells."""
    asked = yaml.safe_load((FOLDER / "sweep.yaml").read_text(encoding="utf-8"))
    asked |= {"models": ["vision_ecod"], "seeds": [0]}
    asked["datasets"] = [{"dataset": "demo", "categories": ["washer"]}]
    asked["cells"] = [{"dataset": "demo", "category": "fabric", "model": "vision_ecod", "seed": 0}]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(asked))
    return file


def test_the_array_of_slurm(tmp_path: Path, capsys: object) -> None:
    script = FOLDER / "slurm-array.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("#SBATCH --array=") for line in lines) == 1
    place = tmp_path / "shards"
    words = ["bash", str(script), str(small_sweep(tmp_path)), str(place)]
    facts = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    for _ in range(2):  # the second time it has been requeued
        done = subprocess.run(
            words, check=False, env=environment(tmp_path, **facts), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    found = json.loads((place / "1" / "table.json").read_text())
    assert [one["category"] for one in found["cells"]] == ["fabric"]
    assert main(["merge", str(place / "1")]) == 1  # for the other shard is not there


def test_the_job_of_kubernetes(tmp_path: Path) -> None:
    job = yaml.safe_load((FOLDER / "kubernetes-job.yaml").read_text(encoding="utf-8"))
    assert job["kind"] == "Job" and job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (line,) = container["args"]
    assert f'/{job["spec"]["completions"]}"' in line
    small_sweep(tmp_path)
    facts = {"JOB_COMPLETION_INDEX": "3", "DATA": str(tmp_path)}
    done = subprocess.run(
        [*container["command"], line],
        check=False,
        env=environment(tmp_path, **facts),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "3" / "table.json").exists()
