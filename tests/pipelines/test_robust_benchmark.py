"""What drift does, from Python and from the command line: one fit, one threshold."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano.cli import main, robust_benchmark
from pyimgano.cli.robust_benchmark import parse_severities
from pyimgano.datasets import Saturation, load_mask, load_regions
from pyimgano.errors import UsageError
from pyimgano.evaluation import compute_auroc
from pyimgano.images import CORRUPTIONS, corrupt_image, corrupt_mask, read_image, resize_image
from pyimgano.models import Detector, register_model
from pyimgano.pipelines import run_benchmark, run_robust_benchmark
from pyimgano.pipelines.schemas import json_schemas
from tests import pixel_detector, stubs
from tests.conftest import MakeDataset, copy_registry, picture, save


class LearnedMeans(pixel_detector.LearnedDarkness):
    def of(self, images: list[Any]) -> np.ndarray:
        return np.stack([255.0 - image.astype(np.float32).mean(axis=2) for image in images])


class CountedMethod(pixel_detector.DarknessMethod):
    Learned = LearnedMeans

    def learn(self, images: Any) -> Any:
        Darkness.fits += 1
        return super().learn(images)


class Darkness(Detector):
    """Of the mean of the channels; counts its fits."""

    fits = 0
    method = CountedMethod


@pytest.fixture(autouse=True)
def darkness(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Darkness` among the models, for a test."""
    copy_registry(monkeypatch)
    monkeypatch.setattr(Darkness, "fits", 0)
    register_model("darkness")(Darkness)


def run(root: Path, tmp_path: Path, **keywords: Any) -> dict[str, Any]:
    asked = {
        "dataset": "mvtec",
        "category": "nut",
        "model": "darkness",
        "resize": (64, 64),
        "corruptions": ["lighting", "geo_jitter"],
        "severities": [1, 5],
        "runs_dir": tmp_path / "runs",
        **keywords,
    }
    report = run_robust_benchmark(root=root, **asked)
    json.dumps(report, allow_nan=False)
    return report


def lines(run_dir: str, category: str = "nut") -> list[dict[str, Any]]:
    path = Path(run_dir) / "categories" / category / "per_image.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_schema(path: Path, name: str) -> None:
    schema = json.loads(json_schemas()[f"{name}.schema.json"])
    documents = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    for document in documents:
        jsonschema.validate(json.loads(document), schema)


# ---- one fit, one threshold


@pytest.mark.parametrize("model", ["darkness", "vision_patchcore"])
def test_the_threshold_and_the_clean_results_are_the_benchmarks(
    make_mvtec: MakeDataset, tmp_path: Path, model: str
) -> None:
    root = make_mvtec(good=5, bad=5)
    report = run(root, tmp_path, model=model, corruptions="noise", severities=[3])
    plain = run_benchmark(
        dataset="mvtec",
        root=root,
        category="nut",
        model=model,
        resize=(64, 64),
        runs_dir=tmp_path / "plain",
    )
    assert report["threshold"] == plain["threshold"]
    assert report["calibration"] == plain["calibration"]
    assert report["pixel_calibration"] == plain["pixel_calibration"]
    assert report["counts"] == plain["counts"] and report["detector"] == plain["detector"]
    clean, results = report["clean"]["metrics"], plain["results"]
    for name in ("auroc", "average_precision"):
        assert clean[name] == results[name]
    for name, value in results["pixel_metrics"].items():
        assert clean[name] == pytest.approx(value, abs=1e-6)
    assert clean["missed_defect_rate"] == 1 - results["metrics"]["recall"]
    measured = plain["calibration"]["measured_false_alarm_rate"]
    assert report["clean"]["false_alarms"] == measured
    scores = [line["score"] for line in lines(report["run_dir"]) if line["severity"] == 0]
    assert scores == pytest.approx([line["score"] for line in lines(plain["run_dir"])], rel=1e-5)
    assert {line["threshold"] for line in lines(report["run_dir"])} == {plain["threshold"]}


def test_it_is_fitted_once(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    run(make_mvtec(("nut", "bolt")), tmp_path, category="all")
    assert Darkness.fits == 2


def test_every_number_follows_from_the_records(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(make_mvtec(good=6, bad=5), tmp_path, corruptions="noise,geo_jitter")
    records = lines(report["run_dir"])
    assert len(records) == 5 * 11 and [r["index"] for r in records] == list(range(11)) * 5
    order = [(None, 0), ("noise", 1), ("noise", 5), ("geo_jitter", 1), ("geo_jitter", 5)]
    assert list(dict.fromkeys((r["corruption"], r["severity"]) for r in records)) == order

    def follows(results: dict[str, Any], corruption: str | None, severity: int) -> None:
        own = [r for r in records if (r["corruption"], r["severity"]) == (corruption, severity)]
        labels, scores = [r["y_true"] for r in own], [r["score"] for r in own]
        metrics = results["metrics"]
        alarms = [r["score"] >= report["threshold"] for r in own if r["y_true"] == 0]
        missed = [r["score"] < report["threshold"] for r in own if r["y_true"] == 1]
        assert metrics["auroc"] == compute_auroc(labels, scores)
        assert metrics["false_alarm_rate"] == np.mean(alarms) == results["false_alarms"]["rate"]
        assert metrics["missed_defect_rate"] == np.mean(missed)
        assert metrics["balanced_accuracy"] == 1 - (np.mean(alarms) + np.mean(missed)) / 2
        block = results["missed_defects"]
        assert block["missed"] == sum(missed) and block["defective_images"] == 5
        assert block["low"] <= block["rate"] <= block["high"]

    follows(report["clean"], None, 0)
    clean = report["clean"]["metrics"]
    summary = report["summary"]
    assert list(report["corruptions"]) == ["noise", "geo_jitter"]
    for name, one in report["corruptions"].items():
        assert [c["severity"] for c in one["severities"]] == [1, 5]
        for condition in one["severities"]:
            follows(condition, name, condition["severity"])
            assert condition["parameters"] == CORRUPTIONS[name].at(condition["severity"])
            for metric, value in condition["metrics"].items():
                assert condition["delta"][metric] == value - clean[metric]
        for metric, value in one["mean"].items():
            each = [c["metrics"][metric] for c in one["severities"]]
            assert value == pytest.approx(np.mean(each))
    for metric, value in summary["mean"].items():
        assert value == pytest.approx(
            np.mean([one["mean"][metric] for one in report["corruptions"].values()])
        )
    drops = {
        name: -one["mean_delta"]["balanced_accuracy"] for name, one in report["corruptions"].items()
    }
    assert summary["criterion"] == "balanced_accuracy"
    assert max(drops.values()) > 0 and summary["hurts_most"] == max(drops, key=drops.__getitem__)
    worst = summary["worst"]["balanced_accuracy"]
    assert worst["corruption"] == summary["hurts_most"]
    assert worst["mean_delta"] == pytest.approx(-max(drops.values()))
    alarms = summary["worst"]["false_alarm_rate"]
    assert alarms is None or alarms["mean_delta"] > 0  # more of them is worse
    times = report["timings"]["milliseconds"]
    assert {name: list(one) for name, one in times.items()} == {
        "noise": ["1", "5"],
        "geo_jitter": ["1", "5"],
    }


def test_nothing_hurts_what_does_not_change(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    for path in (root / "nut/test").rglob("*.png"):  # flat: a blur changes nothing
        save(path, np.full((64, 64, 3), 10 if "spot" in str(path) else 200, np.uint8))
    report = run(root, tmp_path, corruptions=["blur"])
    assert report["summary"]["hurts_most"] is None
    assert report["summary"]["mean_delta"]["balanced_accuracy"] == 0
    assert set(report["summary"]["worst"].values()) == {None}


# ---- images and masks


def test_images_are_corrupted_at_their_own_size(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(size=150)
    report = run(root, tmp_path, corruptions=list(CORRUPTIONS), severities=[4], seed=9)
    for record in lines(report["run_dir"]):
        image = read_image(record["input"])
        if record["corruption"] is not None:
            name = Path(record["input"]).relative_to(root).as_posix()
            image = corrupt_image(
                image, record["corruption"], record["severity"], seed=9, identity=name
            )
        darkest = (255 - resize_image(image, (64, 64)).astype(np.float32).mean(axis=2)).max()
        assert record["score"] == pytest.approx(float(darkest))


def test_masks_move_with_their_images(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(size=128, bad=4)
    for part in ("test", "train"):
        for path in (root / "nut" / part).rglob("*.png"):  # nothing is dark but the defect
            image = np.full((128, 128, 3), 220, np.uint8)
            if "spot" in str(path):
                image[64:89, 64:89] = 15
            save(path, image)
    report = run(root, tmp_path, corruptions="geo_jitter", severities=[3, 5])
    for condition in report["corruptions"]["geo_jitter"]["severities"]:
        assert condition["metrics"]["pixel_auroc"] > 0.999
        assert condition["metrics"]["pixel_average_precision"] > 0.97
        assert condition["metrics"]["aupro"] > 0.98
    # which masks that stay where they were would not give
    mask = root / "nut/ground_truth/spot/000_mask.png"
    still = load_mask([mask], None, (64, 64))
    moved = load_mask(
        [mask], None, (64, 64), lambda m: corrupt_mask(m, "geo_jitter", 5, identity="x")
    )
    assert (still != moved).mean() > 0.01 and set(np.unique(moved)) == {0, 1}


def test_regions_of_spro_move_too(tmp_path: Path) -> None:
    values = np.zeros((60, 80), np.uint8)
    values[10:20, 10:20], values[30:50, 40:70] = 3, 255
    path = save(tmp_path / "000.png", values)
    rules = {3: Saturation(50, False), 255: Saturation(0.5, True)}
    shifted = load_regions([path], (60, 80), (60, 80), rules, lambda mask: np.roll(mask, 5, 1))
    for one, still in zip(shifted, load_regions([path], (60, 80), (60, 80), rules)):
        assert (one.mask == np.roll(still.mask, 5, 1)).all() and one.mask.any()
        assert one.saturation == still.saturation
    (gone, _) = load_regions([path], None, (60, 80), rules, lambda mask: mask * (mask.sum() > 100))
    assert gone.saturation == 0 and not gone.mask.any()


def test_a_defect_that_leaves_the_frame_is_named_once(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(bad=6, size=200)
    for mask in (root / "nut/ground_truth/spot").iterdir():
        values = np.zeros((200, 200), np.uint8)
        values[0, 0] = 255
        save(mask, values)
    report = run(root, tmp_path, corruptions="geo_jitter", severities=[4, 5], resize=(200, 200))
    gone = [p for p in report["problems"] if p["kind"] == "mask_vanishes"]
    assert gone and all(p["message"].startswith("under geo_jitter ") for p in gone)
    assert len({p["path"] for p in gone}) == len(gone)


# ---- determinism


def test_the_same_in_gives_the_same_out(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    reports = [run(root, tmp_path, corruptions=None) for _ in range(2)]
    assert lines(reports[0]["run_dir"]) == lines(reports[1]["run_dir"])
    for report in reports:
        for name in ("timings", "started_at", "finished_at", "run_dir"):
            del report[name]
    assert reports[0] == reports[1]


def test_neither_limits_nor_order_nor_severities_change_an_image(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    def scores(**keywords: Any) -> dict[tuple[str, str, int], float]:
        report = run(root, tmp_path, **keywords)
        return {
            (Path(r["input"]).relative_to(root).as_posix(), r["corruption"], r["severity"]): r[
                "score"
            ]
            for r in lines(report["run_dir"])
        }

    root = make_mvtec(good=7, bad=6)
    whole = scores(corruptions=["noise", "lighting"], severities=[1, 2, 5])
    part = scores(corruptions=["lighting", "noise"], severities=(5, 2), limit_test=4)
    assert len(part) == 4 * 5 and all(whole[key] == value for key, value in part.items())
    other = scores(corruptions=["noise", "lighting"], severities=[1, 2, 5], seed=1)
    changed = [key for key in whole if key[1] is not None and whole[key] != other[key]]
    assert len(changed) > 0.5 * len(whole)
    # nor does it matter where the dataset lies
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    root = moved
    assert scores(corruptions=["noise", "lighting"], severities=[1, 2, 5]) == whole


# ---- what is left on disk


def test_documents_and_their_schemas(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut", "bolt"))
    report = run(root, tmp_path)
    run_dir = Path(report["run_dir"])
    assert run_dir.name.endswith("_robust_mvtec_darkness") and report["status"] == "complete"
    files = sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file())
    of_page = [one for one in files if one.startswith("categories/nut/maps/")]
    assert of_page and [one for one in files if one not in of_page] == [
        ".lock",
        "categories/nut/curves.json",
        "categories/nut/files.json",
        "categories/nut/per_image.jsonl",
        "categories/nut/report.json",
        "categories/nut/training_scores.jsonl",
        "config.json",
        "environment.json",
        "report.html",
        "report.json",
    ]
    check_schema(run_dir / "categories/nut/curves.json", "curves")
    check_schema(run_dir / "categories/nut/training_scores.jsonl", "training_scores")
    assert json.loads((run_dir / "report.json").read_text()) == report
    check_schema(run_dir / "report.json", "robustness.report.single")
    check_schema(run_dir / "config.json", "robustness.config")
    check_schema(run_dir / "categories/nut/report.json", "robustness.report.category")
    check_schema(run_dir / "categories/nut/per_image.jsonl", "robustness.per_image")
    config = json.loads((run_dir / "config.json").read_text())
    assert config["corruptions"] == ["lighting", "geo_jitter"] and config["severities"] == [1, 5]
    assert config["corruption_parameters"]["geo_jitter"][1] == CORRUPTIONS["geo_jitter"].at(5)

    suite = run(root, tmp_path, category="all")
    check_schema(Path(suite["run_dir"]) / "report.json", "robustness.report.suite")
    assert suite["categories"] == ["bolt", "nut"]
    for metric, value in suite["mean_clean"].items():
        each = [suite["per_category"][c]["clean"]["metrics"][metric] for c in ("bolt", "nut")]
        assert value == pytest.approx(np.mean(each)) and suite["metric_categories"][metric] == 2
    jitter = suite["mean_corruptions"]["geo_jitter"]
    per = [suite["per_category"][c]["corruptions"]["geo_jitter"] for c in ("bolt", "nut")]
    for metric, value in jitter["mean_delta"].items():
        assert value == pytest.approx(np.mean([one["mean_delta"][metric] for one in per]))
        first = [one["severities"][0]["metrics"][metric] for one in per]
        assert jitter["severities"][0]["metrics"][metric] == pytest.approx(np.mean(first))
    assert suite["summary"]["hurts_most"] in ("lighting", "geo_jitter")


def test_nothing_is_written_without_save_run(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = run(root, tmp_path, save_run=False, runs_dir=None)
    assert report["run_dir"] is None and not list((tmp_path / "here").iterdir())
    left = Path(run(root, tmp_path, per_image_jsonl=False)["run_dir"])
    assert not list(left.rglob("per_image.jsonl"))


class _Stop:
    """A listener that stops a run once `stage` begins to count."""

    def __init__(self, stage: str, error: BaseException, category: str | None = None) -> None:
        self.wanted, self.error, self.category = stage, error, category
        self.name = ""

    def category_started(self, name: str, number: int, total: int) -> None:
        self.name = name

    def stage(self, stage: str, done: int, total: int) -> None:
        if stage.startswith(self.wanted) and self.category in (None, self.name):
            raise self.error

    def category_finished(self, report: Any) -> None:
        pass


def test_an_interrupted_run_keeps_what_is_done(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut", "bolt"))
    with pytest.raises(KeyboardInterrupt):
        run(
            root,
            tmp_path,
            category="bolt,nut",
            listener=_Stop("geo_jitter 5", KeyboardInterrupt(), "nut"),
        )
    (run_dir,) = (tmp_path / "runs").iterdir()
    top = json.loads((run_dir / "report.json").read_text())
    assert top["status"] == "interrupted" and top["finished_at"]
    assert top["per_category"]["bolt"]["status"] == "complete"
    nut = json.loads((run_dir / "categories/nut/report.json").read_text())
    assert nut == top["per_category"]["nut"] and nut["status"] == "interrupted"
    assert nut["threshold"] is not None and nut["clean"]["metrics"]["auroc"] is not None
    assert nut["corruptions"]["lighting"]["mean"]["auroc"] is not None
    half = nut["corruptions"]["geo_jitter"]
    assert [c["severity"] for c in half["severities"]] == [1]
    assert half["mean"]["auroc"] is None and nut["summary"] is None  # no mean of a part
    check_schema(run_dir / "report.json", "robustness.report.suite")
    check_schema(run_dir / "categories/nut/report.json", "robustness.report.category")
    assert len(lines(str(run_dir))) >= 4 * 6 and not list(run_dir.rglob("*.tmp"))


def test_one_bad_category_costs_one_category(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"))
    (root / "bolt/train/good/000.png").write_text("broken")
    report = run(root, tmp_path, category="all")
    assert report["status"] == "failed" and report["failed_categories"] == ["bolt"]
    assert "000.png" in report["per_category"]["bolt"]["failure"]["message"]
    assert report["per_category"]["nut"]["status"] == "complete"
    assert report["metric_categories"]["auroc"] == 1 and report["summary"] is not None
    late = run(
        root,
        tmp_path,
        category="nut,bolt",
        on_error="skip",
        listener=_Stop("lighting 5", MemoryError("no room"), "nut"),
    )
    assert late["failed_categories"] == ["nut"]
    kept = late["per_category"]["nut"]
    assert kept["status"] == "failed" and len(kept["corruptions"]["lighting"]["severities"]) == 1
    check_schema(Path(late["run_dir"]) / "report.json", "robustness.report.suite")


def test_unreadable_images_and_missing_masks_are_named_once(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    (root / "nut/test/good/001.png").write_text("broken")
    (root / "nut/ground_truth/spot/000_mask.png").unlink()
    report = run(root, tmp_path)
    assert [p["kind"] for p in report["problems"]] == ["unreadable_test_image", "mask_missing"]
    assert report["counts"]["test_unreadable"] == 1 and report["status"] == "complete"
    assert report["clean"]["false_alarms"]["good_images"] == 2
    assert "no usable mask" in report["clean"]["undefined"]["aupro"]
    broken = [r for r in lines(report["run_dir"]) if r["error"]]
    assert len(broken) == 5 and all(r["score"] is None and r["pred"] is None for r in broken)
    assert {r["index"] for r in broken} == {1}


def test_good_images_alone(make_custom: MakeDataset, tmp_path: Path) -> None:
    report = run(make_custom(bad=0), tmp_path, dataset="custom", category="plates")
    metrics = report["clean"]["metrics"]
    assert metrics["false_alarm_rate"] is not None and metrics["balanced_accuracy"] is None
    undefined = report["clean"]["undefined"]
    assert undefined["balanced_accuracy"] == "the test set has no defective image"
    assert set(undefined) == {name for name, value in metrics.items() if value is None}
    assert report["summary"]["hurts_most"] is None
    nothing = run(make_custom(good=0, bad=0), tmp_path / "x", dataset="custom", category="all")
    assert nothing["status"] == "complete"


def test_without_pixel_metrics(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(make_mvtec(), tmp_path, pixel=False)
    assert report["clean"]["metrics"]["aupro"] is None
    assert report["clean"]["undefined"]["aupro"] == "pixel metrics were not asked for"


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"corruptions": "lightning"}, "unknown corruption 'lightning'; did you mean lighting"),
        ({"corruptions": []}, "corruptions: must be names"),
        ({"corruptions": "blur,,jpeg"}, "unknown corruption ''"),
        ({"corruptions": [1]}, "unknown corruption '1'"),
        ({"severities": []}, "severities: must be a list of integers from 1 to 5"),
        ({"severities": [0]}, "severities: must be integers from 1 to 5, 0 is not"),
        ({"severities": [True]}, "severities: must be integers from 1 to 5"),
        ({"severities": [2.0]}, "severities: must be integers from 1 to 5"),
        ({"severities": 3}, "severities: must be a list"),
        ({"seed": -1}, "seed"),
        ({"dataset": "mvtecc"}, "unknown dataset"),
        ({"model": "patchcor"}, "unknown model"),
    ],
)
def test_bad_arguments_are_one_line(
    make_mvtec: MakeDataset, tmp_path: Path, keywords: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        run(make_mvtec(), tmp_path, **keywords)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_corruptions_and_severities_count_once(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(
        make_mvtec(), tmp_path, corruptions="blur, jpeg,blur", severities=(5, 1, np.int64(5))
    )
    assert list(report["corruptions"]) == ["blur", "jpeg"] and report["severities"] == [1, 5]
    named = run(make_mvtec(), tmp_path, corruptions=None, severities=range(1, 2), limit_test=2)
    assert list(named["corruptions"]) == [
        *("lighting", "jpeg", "blur", "glare", "geo_jitter"),
        *("noise", "contrast", "defocus", "motion"),
    ]


# ---- the command


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        robust_benchmark([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_the_command(
    make_mvtec: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--dataset", "mvtec", "--root", make_mvtec(train=8), "--model", "darkness"]
    copy = tmp_path / "summary.json"
    more = ["--category", "nut", "--resize", 64, 64, "--calibration-quantile", 0.8, "--seed", 3]
    asked = ["--corruptions", "blur,jpeg", "--corruptions", "noise", "--severities", "1,4..5"]
    left = ["--runs-dir", tmp_path / "o", "--output", copy, "--limit-test", 4, "--no-pixel"]
    code, out, err = call(capsys, *known, *more, *asked, *left, "--json")
    assert code == 0 and "hurts most" in err and "balanced accuracy" in err
    report = json.loads(out)
    assert json.loads(copy.read_text()) == report and report["seed"] == 3
    assert list(report["corruptions"]) == ["blur", "jpeg", "noise"]
    assert report["severities"] == [1, 4, 5] and report["counts"]["test"] == 4
    assert Path(report["run_dir"]).parent == tmp_path / "o"
    for wrong, said in (
        (["--severities", "0..3"], "--severities takes numbers from 1 to 5"),
        (["--corruptions", "blurr"], "unknown corruption 'blurr'; did you mean blur"),
        (["--corruptions", "blur,"], "--corruptions: a name is empty"),
        (["--output", tmp_path / "no" / "x.json"], "not a folder that can be written to"),
        (["--model-kwargs", "["], "--model-kwargs is not JSON"),
    ):
        code, out, err = call(capsys, *known, *wrong)
        assert code == 2 and out == "" and said in err and err.count("\n") == 1
    code, _, err = call(capsys)
    assert code == 2 and "--dataset is missing" in err


def test_an_unreadable_test_image_exits_1(
    make_mvtec: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(train=8)
    (root / "nut/test/spot/000.png").write_text("broken")
    asked = ["--dataset", "mvtec", "--root", root, "--model", "darkness", "--no-save-run"]
    small = ["--resize", 64, 64, "--corruptions", "blur", "--severities", 1]
    code, out, err = call(capsys, *asked, *small)
    assert code == 1 and json.loads(out)["status"] == "complete"
    assert "unreadable_test_image" in err and "1 test image could not be read" in err
    assert call(capsys, *asked, *small, "--on-error", "skip")[0] == 0


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--list-corruptions", "--json")
    listed = json.loads(out)
    assert code == 0 and list(listed) == list(CORRUPTIONS)
    assert listed["geo_jitter"]["moves_masks"] and len(listed["blur"]["parameters"]["sigma"]) == 5
    code, out, _ = call(capsys, "--list-corruptions")
    assert code == 0 and "jpeg: " in out and "quality" in out
    assert main(["robust-benchmark", "--help"]) == 0
    assert "--severities" in capsys.readouterr().out


def test_a_terminal_gets_a_table(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"))
    seen, terminal = pty.openpty()
    asked = ["--dataset", "mvtec", "--root", str(root), "--resize", "64", "64"]
    small = ["--corruptions", "lighting", "--model", "darkness"]
    done = subprocess.Popen(
        stubs.command("robust-benchmark", *asked, *small, "--severities", "1,5"),
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "180"},
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
    assert done.wait() == 0 and report["status"] == "complete"
    text = shown.decode()
    assert "darkness on mvtec" in text and "balanced accuracy" in text and "clean" in text
    assert "hurts most: lighting" in text or report["summary"]["hurts_most"] is None
    assert report["run_dir"] in text


severity = st.integers(1, 5)


@given(parts=st.lists(st.tuples(severity, severity, st.sampled_from(["", "-", ".."])), min_size=1))
def test_severities_as_text(parts: list[tuple[int, int, str]]) -> None:
    wanted: set[int] = set()
    texts = []
    for one, other, between in parts:
        first, last = sorted((one, other)) if between else (one, one)
        texts.append(f"{first}{between}{last}" if between else f" {first} ")
        wanted.update(range(first, last + 1))
    assert parse_severities(",".join(texts)) == sorted(wanted)


@given(text=st.text(st.sampled_from("0123456-., x٣"), max_size=8))
def test_what_is_no_list_of_severities_is_refused(text: str) -> None:
    try:
        found = parse_severities(text)
    except click.UsageError as error:
        assert "--severities takes" in str(error.message)
    else:
        assert found and set(found) <= {1, 2, 3, 4, 5} and not set(text) & set("06x٣")


def test_a_range_that_runs_backwards_is_refused() -> None:
    for text in ("5..1", "3-2", "", "1,", "1...3", "1..", "-1", "6"):
        with pytest.raises(click.UsageError):
            parse_severities(text)


def test_a_picture_of_the_fixture_is_what_it_says() -> None:
    """The detector of these tests finds the spot that `picture` draws."""
    assert picture(0, spot=True).min() < 30 < picture(0).min()
