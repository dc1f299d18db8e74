"""A sweep: what a file comes to, the same tables whatever runs it, shards, claims and grids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano import merge_sweeps, run_benchmark, run_sweep
from pyimgano.cli import main
from pyimgano.errors import DataError, UsageError
from pyimgano.runs import finished_report
from pyimgano.sweep import make_plan
from pyimgano.sweep.folder import SweepFolder
from pyimgano.sweep.shards import Shard, parse_shard
from tests.conftest import MakeDataset, copy_registry
from tests.faults.sweep_faults import environment, results
from tests.stubs import register

MODULE = "tests.sweep.quick_models"
ROOT = Path(__file__).resolve().parents[2]
Asked = dict[str, Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    register()
    import tests.sweep.quick_models as module
    from pyimgano.models import register_model

    register_model("quick", overwrite=True)(module.Quick)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def asked(make_mvtec: MakeDataset) -> Asked:
    """Return a sweep of 2 categories, 2 models and 2 seeds."""
    root = make_mvtec(("nut", "screw"), train=4, good=2, bad=2, size=16)
    return {
        "datasets": [{"dataset": "mvtec", "root": str(root)}],
        "models": ["darkness", {"model": "quick", "label": "second"}],
        "seeds": [0, 1],
        "options": {"html": False, "resize": [16, 16], "limit_train": 3},
        "resources": {"memory_gib": 0.05},
    }


def test_cells_are_a_grid_with_names_that_stay(asked: Asked) -> None:
    cells = make_plan(asked).cells
    assert len(cells) == 8 and len({one.name for one in cells}) == 8
    assert [one.category for one in cells] == ["nut"] * 4 + ["screw"] * 4
    more = make_plan({**asked, "seeds": [5, 0, 1], "models": [*asked["models"], "busy"]}).cells
    assert {one.name for one in cells} < {one.name for one in more}
    other = make_plan({**asked, "options": {**asked["options"], "limit_train": 4}}).cells
    assert not {one.name for one in cells} & {one.name for one in other}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ["vision_patchcor"]}, "did you mean vision_patchcore"),
        ({"models": []}, "models is missing"),
        ({"seeds": [0, 0]}, "seeds: one of [0, 0] stands twice"),
        ({"seed": [0]}, "seed: extra inputs are not permitted"),
        ({"options": {"seed": 3}}, "options: seed is given by seeds, not here"),
        ({"options": {"limit_trian": 3}}, "limit_trian"),
        ({"models": ["darkness", "darkness"]}, "this cell stands twice"),
        ({"datasets": ["nothing"]}, "unknown dataset 'nothing'"),
        ({"models": [{"model": "darkness", "model_kwargs": {"nonsense": 1}}]}, "nonsense"),
    ],
)
def test_what_a_sweep_must_not_hold_is_one_line(asked: Asked, change: Asked, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        make_plan({**asked, **change})
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [0]\nseeds: [1]\n", "line 2: 'seeds' stands twice"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases (*name) are not read"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
        ("a: [", "line 1"),
        ("datasets: [{dataset: btad, categories: [01]}]\nmodels: [x]\n", "put names in quotes"),
        ("- 1\n", "must be an object"),
    ],
)
def test_yaml_that_a_person_would_not_mean(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises((UsageError, DataError)) as raised:
        make_plan(file)
    assert str(raised.value).startswith(str(file)) and said in str(raised.value)


def test_models_have_presets_and_backbones_where_they_apply(asked: Asked) -> None:
    models = ["darkness", "vision_padim", {"model": "vision_padim", "preset": "industrial-fast"}]
    plan = make_plan(
        {**asked, "models": models, "backbones": [None, "resnet18"], "seeds": [0], "options": {}}
    )
    methods = list(dict.fromkeys(one.method for one in plan.cells))
    assert methods == [
        *("darkness", "vision_padim", "vision_padim (resnet18)"),
        *("vision_padim (industrial-fast)", "vision_padim (industrial-fast, resnet18)"),
    ]
    assert plan.notes == ("darkness has no backbone to choose, and runs once for all of them",)


@given(st.integers(0, 60), st.integers(1, 12))
def test_shards_hold_every_cell_once(cells: int, of: int) -> None:
    shards = [Shard(k, of).take(range(cells)) for k in range(1, of + 1)]
    assert [one for shard in shards for one in shard] == list(range(cells))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        parse_shard(text)


def test_processes_and_shards_give_the_table_of_one_process(asked: Asked, tmp_path: Path) -> None:
    alone = run_sweep(asked, executor="in-process", output_dir=tmp_path / "alone")
    assert alone.complete and json.loads(json.dumps(alone)) == alone
    for name in ("table.json", "cells.csv", "table.csv", "table.md", "leaderboard.html"):
        assert (tmp_path / "alone" / name).stat().st_size
    several = run_sweep(asked, workers=2, modules=[MODULE], output_dir=tmp_path / "several")
    # darkness is known to this process alone, and so its cells fail elsewhere: rows that say so
    own = [one for one in several["cells"] if one["method"] == "second"]
    assert own == [
        {**one, **{k: mine[k] for k in ("run_dir", "log", "costs", "host")}}
        for one, mine in zip((c for c in alone["cells"] if c["method"] == "second"), own)
    ]
    failed = [one for one in several["cells"] if one["method"] == "darkness"]
    assert {one["status"] for one in failed} == {"failed"}
    assert all("unknown model 'darkness'" in one["why"] for one in failed)
    assert "unknown model" in Path(failed[0]["log"]).read_text()
    places = [tmp_path / f"shard{k}" for k in (1, 2, 3)]
    for number, place in enumerate(places, start=1):
        run_sweep(asked, executor="in-process", shard=f"{number}/3", resume=place)
    merged = merge_sweeps(places, output_dir=tmp_path / "merged")
    assert results(merged) == results(alone)
    part = merge_sweeps(places[1:])
    assert {one["status"] for one in part["cells"]} == {"complete", "not begun"}


def test_means_deviations_and_ranks(asked: Asked, tmp_path: Path) -> None:
    report = run_sweep(asked, executor="in-process", output_dir=tmp_path / "sweep")
    rows = {(one["method"], one["category"]): one for one in report["methods"]}
    assert len(rows) == 6 and rows["second", None]["seeds"] == 2
    values = report.table.values("mvtec", "second", "auroc")  # (categories, seeds)
    assert values.shape == (2, 2)
    over = values.mean(axis=0)
    assert rows["second", None]["means"]["auroc"] == pytest.approx(over.mean())
    assert rows["second", None]["deviations"]["auroc"] == pytest.approx(np.std(over, ddof=1))
    assert rows["second", None]["rank"] == rows["darkness", None]["rank"] == 1.5


def test_what_is_complete_is_not_run_again(asked: Asked, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    first = run_sweep(asked, executor="in-process", output_dir=place)
    names = [one["cell"] for one in first["cells"]]
    folder = SweepFolder(place)
    (folder.run_dir(names[0]) / "report.json").unlink()  # as if it had been killed
    before = {name: folder.log(name).stat().st_size for name in names}
    again = run_sweep(resume=place, executor="in-process")
    assert results(again) == results(first)
    grown = [name for name in names if folder.log(name).stat().st_size > before[name]]
    assert grown == names[:1]
    with pytest.raises(DataError, match="holds a sweep already"):
        run_sweep(asked, executor="in-process", output_dir=place)
    more = run_sweep({**asked, "seeds": [0, 1, 2]}, resume=place, executor="in-process")
    assert more.complete and len(more["cells"]) == 12
    with pytest.raises(UsageError, match="that the sweep file does not ask for"):
        run_sweep(asked, resume=place, executor="in-process")


def test_a_second_driver_says_so_and_claimants_share(asked: Asked, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    seen: list[str] = []

    class Second:
        """Starts others while the first cell of a sweep has just ended."""

        def cell_finished(self, outcome: Any, done: int, total: int) -> None:
            if done == 1:
                with pytest.raises(DataError, match="another process runs this sweep"):
                    run_sweep(resume=place, executor="in-process")
                other = run_sweep(resume=place, claim=True, executor="in-process")
                seen.append("complete" if other.complete else "not")

        def waiting(self, cells: int) -> None:
            raise AssertionError(cells)

    report = run_sweep(asked, executor="in-process", output_dir=place, listener=Second())
    assert seen == ["complete"] and report.complete
    ends = [(place / "logs" / f"{one['cell']}.log").read_text() for one in report["cells"]]
    assert all(text.count(" ended\n") == 1 for text in ends)


def test_a_machine_that_does_not_see_the_images(asked: Asked, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    root = Path(asked["datasets"][0]["root"])

    class Gone:
        """Takes the images away after the first cell."""

        def cell_finished(self, outcome: Any, done: int, total: int) -> None:
            if done == 1:
                root.rename(root.with_name("elsewhere"))

        def waiting(self, cells: int) -> None: ...

    report = run_sweep(asked, executor="in-process", output_dir=place, listener=Gone())
    failed = [one for one in report["cells"] if one["status"] == "failed"]
    assert len(failed) == 7
    assert f"{os.uname().nodename} does not see {root}" in failed[0]["why"]
    assert "does not see" in (place / "cells.csv").read_text()
    assert "does not see" in (place / "table.md").read_text()


def test_a_grid_of_run_benchmark(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = asked["datasets"][0]["root"]
    how: Asked = {"dataset": "mvtec", "root": root, "resize": (16, 16), "html": False}
    report = run_benchmark(
        model="darkness, quick", seed=[0, 1], category="nut", output_dir=tmp_path / "grid", **how
    )
    assert len(report["cells"]) == 4 and json.loads(json.dumps(report)) == report
    single = run_benchmark(model="darkness", seed=1, category="nut", save_run=False, **how)
    row = next(c for c in report["cells"] if c["model"] == "darkness" and c["seed"] == 1)
    assert row["metrics"]["auroc"] == single["results"]["auroc"]
    assert finished_report(row["run_dir"])
    unsaved = run_benchmark(model=["darkness"], category="nut", save_run=False, **how)
    assert unsaved["sweep_dir"] is None and unsaved["cells"][0]["run_dir"] is None
    with pytest.raises(UsageError, match="resume is not for several models"):
        run_benchmark(model="darkness,quick", resume=tmp_path / "grid", **how)
    words = ["benchmark", "--dataset", "mvtec", "--root", root, "--category", "nut", "--no-html"]
    words += ["--model", "darkness,quick", "--seed", "0,1", "--resize", "16", "16"]
    assert main([*words, "--output-dir", str(tmp_path / "typed")]) == 0
    assert results(json.loads(capsys.readouterr().out)) == results(report)


def test_a_dry_run_counts_and_runs_nothing(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.json"
    file.write_text(json.dumps(asked))
    assert main(["sweep", str(file), "--dry-run", "--shard", "1/2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cells"] == 4 and found["images"] == 4 * (3 + 4)
    assert main(["sweep"]) == 2 and main(["merge", str(tmp_path)]) == 1
    assert "is not the directory of a sweep" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs*"))


def test_the_core_does_not_import_ray() -> None:
    code = "import sys, pyimgano.sweep, pyimgano.cli.sweep; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
