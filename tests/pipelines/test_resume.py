"""Going on with a run that stopped: what is kept, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyimgano import load_dataset, run_benchmark, run_robust_benchmark
from pyimgano.cli import benchmark, robust_benchmark
from pyimgano.errors import DataError, UsageError
from pyimgano.images import RegionOfInterest
from pyimgano.pipelines.config import BenchmarkConfig
from pyimgano.runs import RunDirectory, environment, used_files
from tests import stubs
from tests.conftest import MakeDataset, copy_registry, picture, save
from tests.datasets.test_layouts import ad2
from tests.faults.killing import contents

assert ad2
CATEGORIES = ("bolt", "nut", "washer")


class Stop:
    """Interrupts a run when the category called so is about to be done, or scored."""

    def __init__(self, category: str, at: str | None = None) -> None:
        self.category, self.at, self.now = category, at, ""
        self.started: list[str] = []

    def category_started(self, name: str, number: int, total: int) -> None:
        self.now = name
        self.started.append(name)
        if name == self.category and self.at is None:
            raise KeyboardInterrupt

    def stage(self, stage: str, done: int, total: int) -> None:
        if self.now == self.category and stage == self.at:
            raise KeyboardInterrupt

    def category_finished(self, report: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    stubs.register()


@pytest.fixture
def root(make_mvtec: MakeDataset) -> Path:
    return make_mvtec(CATEGORIES, train=3, good=2, bad=2)


def begin(root: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    given = {"dataset": "mvtec", "model": "darkness", "resize": (64, 64), **more}
    return run_benchmark(root=root, runs_dir=tmp_path / "runs", **given)


def stopped(root: Path, tmp_path: Path, at: str = "nut", **more: Any) -> Path:
    """The directory of a run that was interrupted in a category's scoring."""
    with pytest.raises(KeyboardInterrupt):
        begin(root, tmp_path, listener=Stop(at, "test images"), **more)
    return newest(tmp_path)


def newest(tmp_path: Path) -> Path:
    return max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def snapshot(run: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_what_is_complete_is_kept_and_the_rest_done_again(root: Path, tmp_path: Path) -> None:
    whole = Path(begin(root, tmp_path, save_model=True)["run_dir"])
    run = stopped(root, tmp_path, save_model=True)
    assert report_of(run)["not_begun"] == ["washer"]
    (run / "categories/nut/.report.json.1-ab.tmp").write_text("{")
    (run / "categories/nut/mine.txt").write_text("notes")
    before = snapshot(run / "categories/bolt")
    listener = Stop("none")
    report = run_benchmark(resume=run, listener=listener)
    assert listener.started == ["nut", "washer"]
    assert snapshot(run / "categories/bolt") == before
    assert report["status"] == "complete" and report["not_begun"] == []
    assert len(report["resumed_at"]) == 1 and report == report_of(run)
    (run / "categories/nut/mine.txt").unlink()  # was no business of ours
    assert contents(run) == contents(whole)


def test_a_complete_run_is_left_alone(root: Path, tmp_path: Path) -> None:
    report = begin(root, tmp_path)
    before = snapshot(Path(report["run_dir"]))
    for path in root.rglob("*.png"):
        path.unlink()  # whatever became of them
    assert run_benchmark(resume=report["run_dir"]) == report
    assert snapshot(Path(report["run_dir"])) == before


def test_a_failed_category_is_done_again_once_it_is_mended(root: Path, tmp_path: Path) -> None:
    broken = root / "nut/train/good/001.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    report = begin(root, tmp_path)
    assert report["failed_categories"] == ["nut"]
    assert run_benchmark(resume=report["run_dir"])["failed_categories"] == ["nut"]
    broken.write_bytes(whole)
    again = run_benchmark(resume=report["run_dir"])
    assert again["status"] == "complete" and again["failed_categories"] == []
    assert list(again["per_category"]) == list(CATEGORIES)
    assert len(again["resumed_at"]) == 2
    assert again["metric_category_names"]["auroc"] == list(CATEGORIES)


def test_one_category_alone(root: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin(root, tmp_path, category="nut", listener=Stop("nut", "training images"))
    run = newest(tmp_path)
    assert report_of(run)["kind"] == "benchmark-category"
    report = run_benchmark(resume=run)
    assert report["status"] == "complete" and report["results"]["auroc"] is not None


def test_from_another_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    with pytest.raises(KeyboardInterrupt):
        begin(Path(root.name), tmp_path, listener=Stop("nut"))
    monkeypatch.chdir("/")
    assert run_benchmark(resume=newest(tmp_path))["status"] == "complete"


def test_maps_for_a_server(ad2: Path, tmp_path: Path) -> None:
    given = {"dataset": "mvtec_ad2", "split": "private"}
    whole = Path(begin(ad2, tmp_path, **given)["run_dir"])
    names = [path.name for path in sorted(ad2.iterdir())]
    run = stopped(ad2, tmp_path, names[-1], **given)
    left = next((run / "submission").rglob("*.tiff")).parent / ".000.tiff.1-ab.tmp"
    left.write_text("half")
    run_benchmark(resume=run)
    assert contents(run) == contents(whole) and any("submission" in n for n in contents(run))


def test_a_robustness_run(root: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "dataset": "mvtec",
        "root": root,
        "model": "darkness",
        "resize": (64, 64),
        "corruptions": "lighting",
        "severities": (1, 3),
        "runs_dir": tmp_path / "runs",
    }
    whole = Path(run_robust_benchmark(**given)["run_dir"])
    with pytest.raises(KeyboardInterrupt):
        run_robust_benchmark(**given, listener=Stop("nut", "lighting 1 (2/3)"))
    run = newest(tmp_path)
    assert json.loads((run / "categories/nut/report.json").read_text())["clean"] is not None
    with pytest.raises(UsageError, match="is a robustness run; pyimgano robust-benchmark resumes"):
        run_benchmark(resume=run)
    with pytest.raises(UsageError, match=r"severities: the run has \(1, 3\), got \(1, 2\)"):
        run_robust_benchmark(resume=run, severities=(1, 2))
    assert run_robust_benchmark(resume=run)["status"] == "complete"
    assert contents(run) == contents(whole)


# ---- what is refused


def change_an_image(root: Path, run: Path) -> None:
    save(root / "bolt/test/good/001.png", picture(77))


def remove_an_image(root: Path, run: Path) -> None:
    (root / "bolt/train/good/001.png").unlink()


def add_images(root: Path, run: Path) -> None:
    for name in "xy":
        save(root / f"bolt/train/good/{name}.png", picture(5))


def change_a_mask(root: Path, run: Path) -> None:
    save(root / "bolt/ground_truth/spot/000_mask.png", picture(5)[:, :, 0])


def add_a_category(root: Path, run: Path) -> None:
    save(root / "screw/train/good/0.png", picture(5))


def remove_a_category(root: Path, run: Path) -> None:
    (root / "bolt/train").rename(root / "bolt/trian")


def edit_the_seed(root: Path, run: Path) -> None:
    edit(run / "config.json", seed=5)


def another_version(root: Path, run: Path) -> None:
    edit(run / "environment.json", pyimgano_version="0.0.1")


def another_code(root: Path, run: Path) -> None:
    edit(run / "environment.json", code_sha256="0" * 64)


def another_numpy(root: Path, run: Path) -> None:
    packages = json.loads((run / "environment.json").read_text())["packages"]
    edit(run / "environment.json", packages={**packages, "numpy": "1.0"})


def no_environment(root: Path, run: Path) -> None:
    (run / "environment.json").unlink()


def no_files(root: Path, run: Path) -> None:
    (run / "categories/bolt/files.json").write_text("{")


CHANGES: list[tuple[Callable[[Path, Path], None], str]] = [
    (change_an_image, r"bolt: bolt/test/good/001.png changed \("),
    (remove_an_image, "bolt: bolt/train/good/001.png gone"),
    (add_images, "bolt: bolt/train/good/x.png and 1 more new"),
    (change_a_mask, "bolt: bolt/ground_truth/spot/000_mask.png changed"),
    (add_a_category, "the categories were bolt, nut, washer and are bolt, nut, screw, washer"),
    (remove_a_category, "bolt/train/good: no such folder"),
    (edit_the_seed, "bolt was measured with other parameters than config.json has"),
    (another_version, "pyimgano was 0.0.1 and is 0.1.0"),
    (another_code, "the code of pyimgano 0.1.0 was changed"),
    (another_numpy, "numpy was 1.0 and is "),
    (no_environment, "environment.json is missing or damaged"),
    (no_files, "bolt: files.json is missing or damaged"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=lambda one: getattr(one, "__name__", ""))
def test_what_is_not_as_it_was_is_refused_unless_forced(
    root: Path, tmp_path: Path, change: Callable[[Path, Path], None], said: str
) -> None:
    run = stopped(root, tmp_path)
    change(root, run)
    before = snapshot(run)
    with pytest.raises(DataError, match=said) as error:
        run_benchmark(resume=run)
    assert "\n" not in str(error.value) and "--force" in str(error.value)
    assert snapshot(run) == before
    kept = snapshot(run / "categories/bolt")
    report = run_benchmark(resume=run, force=True)
    assert report["per_category"]["nut"]["status"] == "complete"
    assert snapshot(run / "categories/bolt") == kept
    session = json.loads((run / "environment.json").read_text())["resumed"][-1]
    assert any(one in str(error.value) for one in session["differs"])


def test_a_touched_file_is_the_same_file(root: Path, tmp_path: Path) -> None:
    run = stopped(root, tmp_path)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert run_benchmark(resume=run)["status"] == "complete"


def test_a_changed_file_of_a_category_that_is_done_again_is_no_matter(
    root: Path, tmp_path: Path
) -> None:
    run = stopped(root, tmp_path)
    save(root / "nut/train/good/001.png", picture(77))
    save(root / "washer/train/good/001.png", picture(77))
    report = run_benchmark(resume=run)
    assert report["status"] == "complete"


def no_config(run: Path) -> None:
    (run / "config.json").unlink()


def half_a_config(run: Path) -> None:
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text[: len(text) // 2])


def a_list(run: Path) -> None:
    (run / "config.json").write_text("[]")


def deep(run: Path) -> None:
    (run / "config.json").write_text("[" * 100_000)


def a_wrong_value(run: Path) -> None:
    edit(run / "config.json", seed="three")


def a_wrong_limit(run: Path) -> None:
    edit(run / "config.json", limit_test=-1)


def an_unknown_option(run: Path) -> None:
    edit(run / "config.json", cls=-1)


def no_keywords(run: Path) -> None:
    edit(run / "config.json", model_kwargs=None)


def of_the_future(run: Path) -> None:
    edit(run / "config.json", schema_version=99)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_config, "is not a run directory, it has no config.json"),
        (half_a_config, r"config\.json: is not JSON"),
        (a_list, r"config\.json: is not a config of a run"),
        (deep, r"config\.json: is not JSON"),
        (a_wrong_value, r"config\.json: seed: .*, got 'three'"),
        (a_wrong_limit, r"config\.json: limit_test: .* got -1"),
        (an_unknown_option, r"config\.json: cls: Extra inputs are not permitted, got -1"),
        (no_keywords, "cannot be resumed: its config.json does not hold model_kwargs"),
        (of_the_future, r"config\.json: schema_version is 99, this program reads 1 and 2"),
    ],
)
def test_what_is_no_run_is_one_line(
    root: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    run = stopped(root, tmp_path)
    spoil(run)
    before = snapshot(run)
    with pytest.raises(DataError, match=said) as error:
        run_benchmark(resume=run, force=True)  # there is nothing to go by, whatever is forced
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert snapshot(run) == before


def test_places_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; give a run directory"):
        run_benchmark(resume=tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder; give a run directory"):
        run_benchmark(resume=tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_keywords_that_json_does_not_hold(root: Path, tmp_path: Path) -> None:
    mask = RegionOfInterest.from_polygons([[[0, 0], [1, 0], [1, 1]]])
    more = {"model": "vision_hbos", "pretrained": False, "model_kwargs": {"roi": mask}}
    run = stopped(root, tmp_path, **more)
    assert json.loads((run / "config.json").read_text())["model_kwargs"] is None
    with pytest.raises(DataError, match="does not hold model_kwargs, which JSON could not"):
        run_benchmark(resume=run)


def first_version(run: Path, **given: Any) -> None:
    """Write config.json as the first version did: most options twice."""
    config = json.loads((run / "config.json").read_text())
    arguments = {
        name: config[name]
        for name in BenchmarkConfig.model_fields
        if name not in ("root", "bit_depth")  # of an option that was not there yet
    }
    top = {
        name: config[name]
        for name in (
            *("dataset", "root", "split", "own_metrics", "category", "model", "preset", "device"),
            *("resize", "pyimgano_version", "started_at", "categories", "allow_outside"),
            *("calibration", "calibration_quantile", "calibration_tail", "contamination"),
            *("exclude_suspects", "exclude", "limit_train", "limit_test", "seed", "pixel"),
            *("pixel_aupro_limit", "on_error", "per_image_jsonl", "max_pixels", "save_model"),
            "detector_parameters",
        )
    }
    arguments.update({"resize": None, "pixel_aupro_limit": None, "max_pixels": None, **given})
    document = {"schema_version": 1, **top, "arguments": arguments}
    (run / "config.json").write_text(json.dumps(document))


def test_a_run_of_the_first_version_goes_on(root: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"seed": 3, "limit_test": 3, "category": "bolt,nut", "pixel": False}
    whole = Path(begin(root, tmp_path, **given)["run_dir"])
    run = stopped(root, tmp_path, **given)
    first_version(run, category=["bolt", "nut"], model_kwargs={"image_size": 64})
    for wrong, said in (
        ({"seed": 4}, "seed: the run has 3, got 4"),
        ({"pixel": True, "limit_test": 4}, "limit_test: the run has 3, got 4"),
        ({"resize": (32, 32)}, r"resize: the run has \(64, 64\), got \(32, 32\)"),
    ):
        with pytest.raises(UsageError, match=said):
            run_benchmark(resume=run, **wrong)
    report = run_benchmark(resume=run, seed=3, resize=(64, 64), max_pixels=2**28)
    assert report["status"] == "complete" and report["category"] == "bolt,nut"
    ours, theirs = contents(run), contents(whole)
    assert ours.pop("config.json") != theirs.pop("config.json") and ours == theirs
    (run / "report.json").unlink()
    first_version_without_arguments = json.loads((run / "config.json").read_text())
    edit(run / "config.json", **{**first_version_without_arguments, "arguments": None})
    with pytest.raises(DataError, match="does not hold model_kwargs"):
        run_benchmark(resume=run)


def test_a_list_of_categories_is_resumed_as_it_was(root: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"category": ["bolt", "nut"]}
    run = stopped(root, tmp_path, **given)
    save(root / "screw/train/good/0.png", picture(5))  # not asked for
    report = run_benchmark(resume=run, **given)
    assert report["status"] == "complete" and report["categories"] == ["bolt", "nut"]


def test_one_writer(root: Path, tmp_path: Path) -> None:
    run = stopped(root, tmp_path)
    writing = RunDirectory(run)
    with pytest.raises(DataError, match="another process is writing this run"):
        run_benchmark(resume=run)
    writing.close()
    assert run_benchmark(resume=run)["status"] == "complete"


def test_arguments_beside_resume(root: Path, tmp_path: Path) -> None:
    run = stopped(root, tmp_path, seed=3)
    for wrong, said in (
        ({"seed": 4}, "seed: the run has 3, got 4"),
        ({"dataset": "btad"}, "dataset: the run has 'mvtec', got 'btad'"),
        ({"root": "/else"}, "root: the run has "),
        ({"runs_dir": "/else"}, "runs_dir: the run has "),
        ({"save_run": False}, "save_run: the run has True, got False"),
        ({"limit_test": 0}, "limit_test"),
    ):
        with pytest.raises(UsageError, match=said):
            run_benchmark(resume=run, **wrong)
    same: dict[str, Any] = {"dataset": "mvtec", "root": root, "seed": 3}
    assert run_benchmark(resume=run, num_threads=1, **same)["status"] == "complete"
    with pytest.raises(UsageError, match="force is for a run that goes on"):
        begin(root, tmp_path, force=True)


# ---- the commands


def call(
    command: Callable[..., Any], capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        command([str(word) for word in words])
    captured = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_the_command(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(root, tmp_path, seed=3)
    wrong: list[tuple[list[object], int, str]] = [
        (["--resume", run, "--seed", "0"], 2, "seed: the run has 3, got 0"),
        (["--resume", run, "--model-kwargs", "{"], 2, "--model-kwargs is not JSON"),
        (["--resume", run, "--no-pixel"], 2, "pixel: the run has True, got False"),
        (["--resume", tmp_path], 1, "is not a run directory"),
        (["--dataset", "mvtec", "--root", root, "--force"], 2, "force is for a run that goes on"),
    ]
    for words, status, said in wrong:
        code, out, err = call(benchmark, capsys, *words)
        assert code == status and out == "" and said in err and err.count("\n") == 1
    code, _, err = call(robust_benchmark, capsys, "--resume", run)
    assert code == 2 and "pyimgano benchmark resumes it" in err
    copy = tmp_path / "copy.json"
    words = ["--resume", run, "--num-threads", "1", "--output", copy, "--seed", "3"]
    code, out, err = call(benchmark, capsys, *words)
    assert code == 0 and json.loads(out) == report_of(run) == json.loads(copy.read_text())
    before = snapshot(run)
    code, out, err = call(benchmark, capsys, "--resume", run)
    assert code == 0 and json.loads(out) == report_of(run)
    assert "is complete, there is nothing to do" in err and snapshot(run) == before


def test_fail_fast(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "nut/train/good/001.png").write_bytes(b"broken")
    report = begin(root, tmp_path, fail_fast=True)
    assert report["status"] == "failed" and report["failed_categories"] == ["nut"]
    assert report["not_begun"] == ["washer"] and report == report_of(Path(report["run_dir"]))
    failure = report["per_category"]["nut"]["failure"]
    assert failure["kind"] == "ImageReadError" and failure["stage"] == "reading"
    assert "nut/train/good/001.png" in failure["message"] and failure["where"] is None
    words = ["--dataset", "mvtec", "--root", root, "--model", "darkness", "--fail-fast"]
    code, out, err = call(benchmark, capsys, *words, "--runs-dir", tmp_path / "o")
    assert code == 1 and json.loads(out)["not_begun"] == ["washer"]
    assert "not begun: washer" in err
    robust = ["--corruptions", "lighting", "--severities", "1", "--runs-dir", tmp_path / "o"]
    code, out, err = call(robust_benchmark, capsys, *words, *robust)
    assert code == 1 and json.loads(out)["not_begun"] == ["washer"]


@pytest.mark.parametrize(
    ("owner", "name", "stage", "called"),
    [
        (stubs.SavedDarknessMethod, "learn", "fitting", "learn"),
        (stubs.SavedDarknessMethod, "scores", "calibration", "learn"),
        (stubs.LearnedMean, "state", "saving", "state"),
        (stubs.LearnedMean, "score", "scoring", "score"),
    ],
)
def test_where_a_bug_is(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    stage: str,
    called: str,
) -> None:
    def fail(*rest: Any, **more: Any) -> Any:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(owner, name, fail)
    report = begin(root, tmp_path, fail_fast=True, save_model=True)
    failure = report["per_category"]["bolt"]["failure"]
    assert failure["kind"] == "ZeroDivisionError" and failure["message"] == "two lines"
    assert failure["stage"] == stage
    file, line = failure["where"].split(":")
    package = Path(environment.__file__).parents[1]
    assert called in (package / file).read_text().splitlines()[int(line) - 1]


def test_the_stage_of_metrics_and_of_a_missing_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyimgano.pipelines.measure as measuring

    (root / "nut/train/good").rename(root / "nut/train/bad")
    measure = measuring.measure_all

    def fail(detector: Any, protocol: Any, pixels: Any, scored: Any, *rest: Any) -> Any:
        if "bolt" in str(scored[0].path):
            raise RuntimeError("broken")
        if "washer" in str(scored[0].path):
            raise MemoryError
        return measure(detector, protocol, pixels, scored, *rest)

    monkeypatch.setattr(measuring, "measure_all", fail)
    report = begin(root, tmp_path)
    found = {name: one["failure"] for name, one in report["per_category"].items()}
    assert found["bolt"]["stage"] == "metrics" and found["bolt"]["message"] == "broken"
    assert found["bolt"]["where"].startswith("pipelines/measure.py:")
    assert found["nut"]["stage"] == "reading" and found["nut"]["where"] is None
    assert found["washer"]["stage"] == "metrics" and found["washer"]["where"] is None
    assert found["washer"]["message"].startswith("not enough memory to score and measure")


def test_options_that_say_what_the_run_has(root: Path, tmp_path: Path) -> None:
    run = stopped(root, tmp_path)
    config = json.loads((run / "config.json").read_bytes())
    same = {"resize": tuple(config["resize"]), "max_pixels": config["max_pixels"]}
    resumed = run_benchmark(resume=run, **same)
    assert resumed["status"] == "complete"


def test_a_path_of_a_method_is_found_from_anywhere() -> None:
    keywords = {"teacher": "t.safetensors", "penalty_images": "p", "steps": 1}
    config = BenchmarkConfig.check(dataset="mvtec", model_kwargs=keywords)
    assert config.model_kwargs["teacher"] == str(Path.cwd() / "t.safetensors")
    assert config.model_kwargs["penalty_images"] == str(Path.cwd() / "p")


@pytest.mark.parametrize("document", ["report.json", "environment.json", "config.json"])
def test_a_link_in_a_run_is_replaced_and_not_followed(
    root: Path, tmp_path: Path, document: str
) -> None:
    run = stopped(root, tmp_path)
    victim = tmp_path / "victim.json"
    victim.write_bytes((run / document).read_bytes())
    was = victim.read_bytes()
    (run / document).unlink()
    (run / document).symlink_to(victim)
    run_benchmark(resume=run)
    assert victim.read_bytes() == was and report_of(run)["status"] == "complete"


@pytest.mark.parametrize("place", ["categories/nut", "categories", "submission", ".lock"])
def test_a_folder_that_leads_out_of_the_run_is_left_alone(
    root: Path, tmp_path: Path, place: str
) -> None:
    run = stopped(root, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    if (run / place).is_dir():
        (run / place).rename(elsewhere)
    else:
        (run / place).unlink(missing_ok=True)
        elsewhere.mkdir()
    (elsewhere / "model").mkdir()
    (run / place).symlink_to(elsewhere)
    before = snapshot(elsewhere)
    with pytest.raises(DataError, match=r"a link"):
        run_benchmark(resume=run)
    assert (elsewhere / "model").is_dir() and snapshot(elsewhere) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(root: Path, tmp_path: Path) -> None:
    run = stopped(root, tmp_path)
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    with pytest.raises(DataError, match="is not a regular file"):
        run_benchmark(resume=run)
    os.mkfifo(root / "pipe.png")
    category = load_dataset("mvtec", root, "nut").samples
    piped = dataclasses.replace(
        category, train=[dataclasses.replace(category.train[0], path=root / "pipe.png")]
    )
    assert any(one.sha256 is None for one in used_files(piped, root).files)
