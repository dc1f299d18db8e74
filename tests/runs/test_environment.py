"""environment.json, and that results depend on nothing that is not in it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano import __version__, run_benchmark, run_robust_benchmark
from pyimgano.cli import benchmark
from pyimgano.datasets import Category, Sample
from pyimgano.runs import changes, used_files
from pyimgano.runs.environment import command_line, git_commit
from tests import stubs
from tests.conftest import MakeDataset, copy_registry, picture, save
from tests.pipelines.test_benchmark import check_schema

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    stubs.register()


def environment_of(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(report["run_dir"]) / "environment.json").read_text())
    return found


def begin(root: Path, output: Path, **more: Any) -> dict[str, Any]:
    given = {"dataset": "mvtec", "model": "darkness", "resize": (64, 64), **more}
    return run_benchmark(root=root, runs_dir=output, **given)


def test_what_is_in_it(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr(sys, "argv", ["/opt/serve", "--password", "hunter2"])
    root = make_mvtec(("bolt", "nut"), train=2, good=1, bad=1)
    report = begin(root, tmp_path / "r", num_threads=1)
    found = environment_of(report)
    assert found["pyimgano_version"] == __version__ and found["packages"]["numpy"] == np.__version__
    assert {"numpy", "torch", "opencv-python-headless", "scipy"} <= set(found["packages"])
    assert found["cpu"]["threads"] == 1 and found["cpu"]["model"]
    assert found["device"] == "cpu" and found["engine"] is found["backbone"] is None
    assert list(found["dataset_fingerprints"]) == ["bolt", "nut"] and found["resumed"] == []
    assert found["command_line"] is None and "hunter2" not in json.dumps(found)
    for name, fingerprint in found["dataset_fingerprints"].items():
        files = Path(report["run_dir"]) / "categories" / name / "files.json"
        check_schema(files, "files")
        assert json.loads(files.read_text())["fingerprint"] == fingerprint
    again = environment_of(begin(root, tmp_path / "r", num_threads=1))
    assert {**again, "started_at": ""} == {**found, "started_at": ""}


def test_the_backbone_and_the_region_of_interest(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",), train=1, good=1, bad=0)
    mask = save(tmp_path / "roi.png", np.full((64, 64), 255, np.uint8))
    given: dict[str, Any] = {"model": "vision_patchcore", "category": "nut", "roi": mask}
    given |= {"pretrained": False, "model_kwargs": {"engine": "torch"}}
    found = [environment_of(begin(root, tmp_path / "r", seed=s, **given)) for s in (0, 0, 1)]
    assert found[0]["backbone"]["name"] == "efficientnet_lite0" and found[0]["engine"]
    hashes = [one["weights_sha256"] for one in found]  # of random numbers, which have no file
    assert len(hashes[0]) == 64 and hashes[0] == hashes[1] != hashes[2]
    assert len(found[0]["roi_sha256"]) == 64


def test_of_a_robustness_run(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run_robust_benchmark(
        dataset="mvtec",
        root=make_mvtec(("nut",), train=2, good=1, bad=1),
        model="darkness",
        corruptions="lighting",
        severities=(1,),
        runs_dir=tmp_path,
    )
    check_schema(Path(report["run_dir"]) / "environment.json", "environment")
    assert list(environment_of(report)["dataset_fingerprints"]) == ["nut"]


def test_the_command_line(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("nut",), train=2, good=1, bad=1)
    words = ["--dataset", "mvtec", "--root", str(root), "--model", "darkness"]
    words += ["--runs-dir", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pyimgano-benchmark", *words])
    with pytest.raises(SystemExit):
        benchmark(words)
    (run,) = (tmp_path / "r").iterdir()
    assert environment_of({"run_dir": run})["command_line"] == sys.argv
    for other in ([], [""], ["-c"], ["/usr/bin/python-imgano"], ["/opt/pyimgano.sh.d/x"]):
        monkeypatch.setattr(sys, "argv", other)
        assert command_line() is None


def test_the_commit_of_a_working_tree(tmp_path: Path) -> None:
    package = tmp_path / "src" / "pyimgano"
    package.mkdir(parents=True)
    assert git_commit(package) is None
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(package) is None  # nothing was committed yet
    (git / "packed-refs").write_text(f"# pack\n{'a' * 40} refs/heads/main\n")
    assert git_commit(package) == "a" * 40
    (git / "refs/heads/main").write_text("b" * 40 + "\n")
    assert git_commit(package) == "b" * 40
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert git_commit(package) == "c" * 40
    (git / "HEAD").write_text("ref: ../../etc/passwd\n")
    assert git_commit(package) is None
    further = tmp_path / "further" / "src" / "pyimgano"
    further.mkdir(parents=True)
    (git / "worktrees/w").mkdir(parents=True)
    (git / "worktrees/w/HEAD").write_text("ref: refs/heads/main\n")
    (git / "worktrees/w/commondir").write_text("../..\n")
    (tmp_path / "further/.git").write_text(f"gitdir: {git}/worktrees/w\n")
    assert git_commit(further) == "b" * 40
    installed = tmp_path / "lib" / "pyimgano"  # in somebody's own repository
    installed.mkdir(parents=True)
    assert git_commit(installed) is None


# ---- the fingerprint


def sample(path: Path, label: int | None = 0, *masks: Path) -> Sample:
    return Sample(path, label, "spot" if label else "good", masks)


def test_the_fingerprint_is_of_names_uses_and_content(tmp_path: Path) -> None:
    for number, name in enumerate("abm"):
        save(tmp_path / f"{name}.png", picture(number))
    a, b, m = (tmp_path / f"{name}.png" for name in "abm")
    category = Category("c", (sample(a),), (sample(b, 1, m), sample(a)))
    before = used_files(category, tmp_path)
    assert [one.path for one in before.files] == ["a.png", "b.png", "m.png"]
    assert [one.use for one in before.files] == ["test 0 good, train", "test 1 spot", "mask"]
    turned = Category("c", (sample(a),), (sample(a), sample(b, 1, m)))
    assert used_files(turned, tmp_path).fingerprint == before.fingerprint
    relabelled = Category("c", (sample(a),), (sample(b, None, m), sample(a)))
    assert changes(before, used_files(relabelled, tmp_path)) == "b.png changed"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (a, b, m):
        path.rename(moved / path.name)
    a, b, m = (moved / path.name for path in (a, b, m))
    category = Category("c", (sample(a),), (sample(b, 1, m), sample(a)))
    assert used_files(category, moved).fingerprint == before.fingerprint
    data = bytearray(a.read_bytes())
    data[-20] ^= 1
    a.write_bytes(data)
    after = used_files(category, moved, before)
    assert changes(before, after) == "a.png changed"
    a.unlink()
    assert changes(before, used_files(category, moved, before)) == "a.png changed"
    assert used_files(category, moved).files[0].sha256 is None  # its reader says why


def test_a_file_that_looks_the_same_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyimgano.runs.fingerprint as files

    path = save(tmp_path / "a.png", picture(1))
    category = Category("c", (sample(path),))
    before = used_files(category, tmp_path)
    monkeypatch.setattr(files.hashlib, "sha256", files.hashlib.md5)  # would be another hash
    assert used_files(category, tmp_path, before).files == before.files
    os.utime(path, (1, 1))
    assert used_files(category, tmp_path, before).files != before.files


# ---- the same in, the same out


def measured(run: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    report = json.loads((run / "report.json").read_text())
    results = {name: one["results"] for name, one in report["per_category"].items()}
    lines = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*.jsonl")}
    return {"mean": report["mean_metrics"], **results}, lines


@pytest.mark.parametrize("model", ["darkness", "vision_patchcore"])
def test_whatever_order_the_file_system_has(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    root = make_mvtec(("bolt", "nut"), train=4, good=3, bad=3)
    given: dict[str, Any] = {"model": model, "limit_test": 5}
    if model == "vision_patchcore":
        given["model_kwargs"] = {"engine": "torch"}  # nothing is compiled
    plain = measured(Path(begin(root, tmp_path / "r", **given)["run_dir"]))
    listed, rng = os.listdir, random.Random(3)
    scanned, orders = os.scandir, []

    def shuffled(*where: Any) -> list[Any]:
        names = listed(*where)
        rng.shuffle(names)
        orders.append(names)
        return names

    class Scan:
        def __init__(self, *where: Any) -> None:
            with scanned(*where) as entries:
                self.entries = list(entries)
            rng.shuffle(self.entries)
            orders.append([entry.name for entry in self.entries])  # pathlib of Python 3.13

        def __enter__(self) -> Any:
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            pass

        def __iter__(self) -> Any:
            return iter(self.entries)

        def close(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", shuffled)
        patch.setattr(os, "scandir", Scan)
        found = begin(root, tmp_path / "r", **given)
    assert any(sorted(names) != names for names in orders) or sys.version_info < (3, 11)
    assert measured(Path(found["run_dir"])) == plain


def test_whatever_the_folder_locale_time_zone_and_hash_seed(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut"), train=3, good=2, bad=2)
    script = (
        "import json, locale, sys; sys.path.insert(0, sys.argv[1]);"
        "from tests import stubs; stubs.register(); from pyimgano import run_benchmark;"
        "locale.setlocale(locale.LC_ALL, '');"
        "print(run_benchmark(dataset='mvtec', root=sys.argv[2], model='darkness', limit_test=3,"
        "runs_dir=sys.argv[3], num_threads=int(sys.argv[4]))['run_dir'])"
    )
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout
    other = next((one for one in known.split() if one.startswith(("tr_", "de_", "fr_"))), "C.UTF-8")
    found = []
    for number, (where, locale, zone, seed) in enumerate(
        [(tmp_path, "C", "UTC", "1"), (root.parent, other, "Asia/Kathmandu", "2")]
    ):
        folder = root if number == 0 else Path(root.name)  # from where we are
        words = [str(HERE.parents[1]), str(folder), str(tmp_path / "r"), str(number + 1)]
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=where,
            env={**os.environ, "LC_ALL": locale, "TZ": zone, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(Path(done.stdout.strip()))
    assert measured(found[0]) == measured(found[1])
    zones = [environment_of({"run_dir": run})["started_at"][-6:] for run in found]
    assert zones == ["+00:00", "+05:45"]
