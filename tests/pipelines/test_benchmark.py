"""The main job from Python: a run on disk that says what happened."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from referencing import Registry, Resource

import pyimgano
from pyimgano.datasets import load_dataset
from pyimgano.errors import DataError, ImageReadError, UsageError
from pyimgano.evaluation import compute_auroc
from pyimgano.pipelines import list_dataset_categories, run_benchmark
from pyimgano.pipelines.mvtec_visa import (
    BenchmarkSplit,
    build_default_detector,
    evaluate_split,
    load_benchmark_split,
)
from pyimgano.pipelines.schemas import json_schemas, schema_files
from pyimgano.runs import RunDirectory
from tests.conftest import MakeDataset, picture, save, spot_mask

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run(root: Path, tmp_path: Path, **keywords: Any) -> dict[str, Any]:
    given = {"dataset": "mvtec", "category": "nut", "resize": (64, 64), **keywords}
    report = run_benchmark(root=root, runs_dir=tmp_path / "runs", **given)
    json.dumps(report, allow_nan=False)
    return report


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_schema(path: Path, name: str) -> None:
    schema = json.loads(json_schemas()[f"{name}.schema.json"])
    documents = lines(path) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    for document in documents:
        jsonschema.validate(document, schema)


def test_a_single_category(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut", "bolt"))
    report = run(root, tmp_path)
    expected = "dataset category model preset device resize score_threshold_strategy"
    for name in [*expected.split(), "calibration_quantile", "threshold", "results", "run_dir"]:
        assert name in report
    assert report["status"] == "complete" and report["category"] == "nut"
    assert report["device"] == "cpu" and report["resize"] == [64, 64]
    results = report["results"]
    assert results["auroc"] == 1.0 and results["threshold"] == report["threshold"]
    decisions = {"precision", "recall", "f1", "specificity", "accuracy"}
    assert set(results["metrics"]) == {*decisions, "tp", "tn", "fp", "fn"}
    assert results["metrics"]["tp"] == 3
    assert results["pixel_metrics"]["pixel_auroc"] > 0.9 and results["undefined"] == {}

    block = report["calibration"]
    assert block["value"] == report["threshold"] and block["method"] == "leave-one-image-out"
    assert block["quantile_asked"] == 0.995 and block["n_scores"] == 6
    assert block["quantile_reached"] == pytest.approx(6 / 7)
    assert block["promised_false_alarm_rate"] == pytest.approx(1 / 7)
    assert any("needs at least" in note for note in block["notes"])
    measured = block["measured_false_alarm_rate"]
    assert measured["good_images"] == 3 and measured["confidence"] == 0.95
    assert measured["false_alarms"] == results["metrics"]["fp"]

    run_dir = Path(report["run_dir"])
    found = [p.relative_to(run_dir) for p in run_dir.rglob("*") if p.is_file()]
    assert any(p.parent.name == "maps" for p in found)  # of the images that the page shows
    assert sorted(str(p) for p in found if p.parent.name != "maps") == [
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
    assert json.loads((run_dir / "report.json").read_text()) == report
    check_schema(run_dir / "report.json", "report.single")
    check_schema(run_dir / "categories/nut/report.json", "report.category")
    check_schema(run_dir / "categories/nut/per_image.jsonl", "per_image")
    check_schema(run_dir / "config.json", "config")
    check_schema(run_dir / "environment.json", "environment")
    check_schema(run_dir / "categories/nut/files.json", "files")

    records = lines(run_dir / "categories/nut/per_image.jsonl")
    assert [r["index"] for r in records] == list(range(6))
    assert [r["y_true"] for r in records] == [0, 0, 0, 1, 1, 1]
    for record in records:
        assert record["pred"] == int(record["score"] >= record["threshold"])
        assert record["dataset"] == "mvtec" and record["category"] == "nut"
        assert Path(record["input"]).is_file() and record["error"] is None
    found = compute_auroc([r["y_true"] for r in records], [r["score"] for r in records])
    assert found == results["auroc"]


def test_all_categories(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"))
    report = run(root, tmp_path, category="all")
    assert report["categories"] == ["bolt", "nut"] == list(report["per_category"])
    per_category = report["per_category"].values()
    for metric in ("auroc", "average_precision"):
        values = [c["results"][metric] for c in per_category]
        assert report["mean_metrics"][metric] == pytest.approx(np.mean(values))
        assert report["std_metrics"][metric] == pytest.approx(np.std(values))
    for metric in ("precision", "recall", "f1", "specificity", "accuracy"):
        values = [c["results"]["metrics"][metric] for c in per_category]
        assert report["mean_metrics"][metric] == pytest.approx(np.mean(values))
    for metric in ("pixel_auroc", "pixel_average_precision", "aupro"):
        values = [c["results"]["pixel_metrics"][metric] for c in per_category]
        assert None not in values
        assert report["mean_metrics"][metric] == pytest.approx(np.mean(values))
        assert report["metric_categories"][metric] == 2
    run_dir = Path(report["run_dir"])
    check_schema(run_dir / "report.json", "report.suite")
    for name in ("bolt", "nut"):
        stored = json.loads((run_dir / "categories" / name / "report.json").read_text())
        assert stored == report["per_category"][name]


def test_some_categories(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut", "washer"))
    report = run(root, tmp_path, category="washer, bolt")
    assert report["categories"] == ["washer", "bolt"]
    assert run(root, tmp_path, category=["nut", "bolt"], save_run=False)["categories"] == [
        "nut",
        "bolt",
    ]
    with pytest.raises(DataError, match="unknown category 'nutt'; did you mean nut"):
        run(root, tmp_path, category="nut,nutt")
    with pytest.raises(UsageError, match="category must be a name"):
        run(root, tmp_path, category="nut,,bolt")
    assert list_dataset_categories(dataset="mvtec", root=root) == ["bolt", "nut", "washer"]


def test_the_custom_layout_and_jpg(make_custom: MakeDataset, tmp_path: Path) -> None:
    report = run(make_custom(), tmp_path, dataset="custom", category="all")
    assert report["results"]["auroc"] == 1.0


def test_without_test_images_it_calibrates_and_says_so(
    make_custom: MakeDataset, tmp_path: Path
) -> None:
    root = make_custom(good=0, bad=0)
    report = run(root, tmp_path, dataset="custom", category="plates")
    assert report["status"] == "complete" and report["threshold"] > 0
    assert report["results"]["auroc"] is None
    assert report["results"]["undefined"]["auroc"] == "there are no test images"
    assert report["notes"] == [
        "there are no test images: the threshold is calibrated, nothing is measured"
    ]
    assert report["calibration"]["measured_false_alarm_rate"]["rate"] is None


def test_nothing_is_written_without_save_run(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = run_benchmark(
        dataset="mvtec", root=root, category="nut", resize=(64, 64), save_run=False
    )
    assert report["run_dir"] is None and not list((tmp_path / "here").iterdir())


def test_without_per_image_records(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(make_mvtec(), tmp_path, per_image_jsonl=False)
    assert not list(Path(report["run_dir"]).rglob("per_image.jsonl"))


def test_runs_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    now = datetime.now().astimezone()
    made: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(RunDirectory.create(tmp_path, "d", "m", now).path)
        )
        for _ in range(8)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(made)) == 8 and all(path.is_dir() for path in made)


def test_the_same_in_gives_the_same_out(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    reports = [run(root, tmp_path) for _ in range(2)]
    texts = [(Path(r["run_dir"]) / "categories/nut/per_image.jsonl").read_bytes() for r in reports]
    assert texts[0] == texts[1]
    for report in reports:
        for name in ("timings", "started_at", "finished_at", "run_dir"):
            del report[name]
    assert reports[0] == reports[1]


# ---- images and masks that are wrong


def test_an_unreadable_test_image_has_no_score(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    whole = run(root, tmp_path)
    broken = root / "nut/test/spot/001.png"
    broken.write_bytes(broken.read_bytes()[:300])
    report = run(root, tmp_path)
    assert report["counts"]["test_unreadable"] == 1
    assert [p for p in report["problems"] if p["kind"] == "unreadable_test_image"] == [
        {
            "kind": "unreadable_test_image",
            "path": str(broken),
            "message": "the PNG is truncated (no end chunk)",
        }
    ]
    records = lines(Path(report["run_dir"]) / "categories/nut/per_image.jsonl")
    assert len(records) == 6 and [r["index"] for r in records] == list(range(6))
    bad = records[4]
    assert bad["score"] is None and bad["pred"] is None and "truncated" in bad["error"]
    metrics = report["results"]["metrics"]
    assert sum(metrics[k] for k in ("tp", "tn", "fp", "fn")) == 5  # it counts nowhere
    before = lines(Path(whole["run_dir"]) / "categories/nut/per_image.jsonl")
    assert [r["score"] for i, r in enumerate(records) if i != 4] == [
        r["score"] for i, r in enumerate(before) if i != 4
    ]


def test_an_unreadable_training_image(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(train=7)
    broken = root / "nut/train/good/003.png"
    broken.write_text("no image")
    with pytest.raises(ImageReadError, match=r"003\.png: not an image"):
        run(root, tmp_path)
    (failed,) = (tmp_path / "runs").iterdir()
    stored = json.loads((failed / "report.json").read_text())
    assert stored["status"] == "failed" and "003.png" in stored["failure"]["message"]

    report = run(root, tmp_path, on_error="skip")
    assert report["counts"]["train"] == 7 and report["counts"]["train_used"] == 6
    assert report["counts"]["train_skipped"] == 1 and report["calibration"]["n_scores"] == 6
    assert [p["kind"] for p in report["problems"]] == ["unreadable_train_image"]


def test_one_bad_category_costs_one_category(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"))
    for path in (root / "bolt/train/good").iterdir():
        path.unlink()
    report = run(root, tmp_path, category="all")
    assert report["status"] == "failed" and report["failed_categories"] == ["bolt"]
    assert (
        "bolt/train/good: holds no images" in report["per_category"]["bolt"]["failure"]["message"]
    )
    assert report["per_category"]["nut"]["status"] == "complete"
    assert report["metric_categories"]["auroc"] == 1
    assert report["mean_metrics"]["auroc"] == report["per_category"]["nut"]["results"]["auroc"]
    check_schema(Path(report["run_dir"]) / "report.json", "report.suite")


def damage(root: Path, how: str) -> Path:
    mask = root / "nut/ground_truth/spot/001_mask.png"
    if how == "mask_missing":
        mask.unlink()
        return root / "nut/test/spot/001.png"
    if how == "mask_size":
        save(mask, spot_mask(32))
    elif how == "mask_unreadable":
        mask.write_bytes(b"no image")
    elif how == "mask_empty":
        save(mask, spot_mask() * 0)
    elif how == "mask_vanishes":
        thin = np.zeros((640, 640), np.uint8)
        thin[0, 0] = 255
        save(root / "nut/test/spot/001.png", picture(201, 640, spot=True))
        save(mask, thin)
    return mask


@pytest.mark.parametrize("how", ["mask_missing", "mask_size", "mask_unreadable"])
def test_a_mask_that_will_not_do_is_named_and_image_metrics_stand(
    make_mvtec: MakeDataset, tmp_path: Path, how: str
) -> None:
    root = make_mvtec()
    named = damage(root, how)
    report = run(root, tmp_path)
    assert report["status"] == "complete"
    assert [(p["kind"], p["path"]) for p in report["problems"]] == [(how, str(named))]
    results = report["results"]
    assert results["auroc"] == 1.0 and results["metrics"]["tp"] == 3
    assert set(results["pixel_metrics"].values()) == {None}
    for metric in ("pixel_auroc", "pixel_average_precision", "aupro"):
        assert results["undefined"][metric] == "1 defective image has no usable mask: 001.png"


@pytest.mark.parametrize("how", ["mask_empty", "mask_vanishes"])
def test_a_mask_that_marks_nothing_is_named(
    make_mvtec: MakeDataset, tmp_path: Path, how: str
) -> None:
    root = make_mvtec()
    named = damage(root, how)
    report = run(root, tmp_path)
    assert [(p["kind"], p["path"]) for p in report["problems"]] == [(how, str(named))]
    assert report["results"]["pixel_metrics"]["aupro"] is not None


def test_pixel_metrics_only_if_wanted(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    results = run(make_mvtec(), tmp_path, pixel=False)["results"]
    assert results["pixel_metrics"]["aupro"] is None
    assert results["undefined"]["aupro"] == "pixel metrics were not asked for"


def test_the_aupro_limit_is_used_and_said(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    wide = run(root, tmp_path, pixel_aupro_limit=1.0)["results"]
    narrow = run(root, tmp_path, pixel_aupro_limit=0.01)["results"]
    assert wide["pixel_aupro_limit"] == 1.0 and narrow["pixel_aupro_limit"] == 0.01
    assert narrow["pixel_metrics"]["aupro"] < wide["pixel_metrics"]["aupro"]


# ---- the threshold, limits, keywords


def test_the_quantile_and_where_it_comes_from(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(train=12)
    by_default = run(root, tmp_path)
    lower = run(root, tmp_path, calibration_quantile=0.5)
    assert lower["calibration_quantile"] == 0.5 and lower["threshold"] < by_default["threshold"]
    assert lower["calibration"]["promised_false_alarm_rate"] == pytest.approx(1 - 7 / 13)
    assert run(root, tmp_path, contamination=0.2)["calibration_quantile"] == 0.8
    naive = run(root, tmp_path, calibration="in-sample", calibration_quantile=0.5)
    assert naive["score_threshold_strategy"] == "in-sample-quantile"
    assert naive["calibration"]["promised_false_alarm_rate"] is None
    assert naive["threshold"] < lower["threshold"]


def test_the_threshold_does_not_depend_on_test_images(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    before = run(root, tmp_path)["threshold"]
    for path in (root / "nut/test").rglob("*.png"):
        save(path, 255 - picture(7))
    assert run(root, tmp_path)["threshold"] == before


def test_one_training_image(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(make_mvtec(train=1), tmp_path)
    assert report["calibration"]["n_scores"] == 1
    assert report["calibration"]["promised_false_alarm_rate"] is None
    assert report["results"]["auroc"] == 1.0


def test_limits(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run(make_mvtec(), tmp_path, limit_train=4, limit_test=4)
    assert report["counts"]["train"] == 4
    assert report["counts"]["test_good"] == 2 and report["counts"]["test_defective"] == 2


def test_keywords_presets_and_what_beats_what(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    report = run(
        root, tmp_path, model_kwargs={"coreset_sampling_ratio": 0.5, "layers": ["blocks.4"]}
    )
    assert report["detector"]["parameters"]["coreset_sampling_ratio"] == 0.5
    assert report["detector"]["backbone"]["layers"] == ["blocks.4"]
    fast = run(root, tmp_path, preset="industrial-fast", resize=None, limit_test=2)
    assert fast["resize"] == [256, 256] and fast["preset"] == "industrial-fast"
    assert run(root, tmp_path, preset="industrial-fast")["resize"] == [64, 64]
    random = run(root, tmp_path, pretrained=False, seed=4)
    assert random["detector"]["backbone"]["weights"]["detail"] == "seed 4"
    config = json.loads((Path(random["run_dir"]) / "config.json").read_text())
    assert config["seed"] == 4 and config["pretrained"] is False


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"dataset": "mvtecc"}, "unknown dataset"),
        ({"model": "patchcore"}, "unknown model 'patchcore'; did you mean vision_patchcore"),
        ({"model_kwargs": {"zzz": 1}}, "unknown keyword of vision_patchcore 'zzz'"),
        (
            {"model_kwargs": {"resize": [32, 32]}},
            "resize in model_kwargs: it is an argument",
        ),
        ({"preset": "quick"}, "unknown preset"),
        ({"calibration_quantile": 1.0}, "calibration_quantile: .* less than 1, got 1.0"),
        ({"calibration_quantile": 0.0}, "calibration_quantile: .* greater than 0, got 0.0"),
        ({"contamination": 0.7}, "contamination"),
        ({"limit_train": 0}, "limit_train"),
        ({"limit_test": -1}, "limit_test"),
        ({"pixel_aupro_limit": 0.0}, "pixel_aupro_limit"),
        ({"resize": (0, 1)}, "resize"),
        ({"on_error": "ignore"}, "on_error"),
        ({"calibration": "test"}, "calibration"),
        ({"device": "tpu"}, "device must be"),
    ],
)
def test_bad_arguments_are_one_line(
    make_mvtec: MakeDataset, tmp_path: Path, keywords: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        run(make_mvtec(), tmp_path, **keywords)
    assert "\n" not in str(error.value)


def test_an_output_folder_that_cannot_be_made(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(DataError, match="no run can be written there"):
        run(make_mvtec(), tmp_path)


def test_the_report_is_true_while_the_run_goes_on(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("bolt", "nut"))
    seen: list[dict[str, Any]] = []

    class Watch:
        def category_started(self, name: str, number: int, total: int) -> None:
            (run_dir,) = (tmp_path / "runs").iterdir()
            seen.append(json.loads((run_dir / "report.json").read_text()))

        def stage(self, stage: str, done: int, total: int) -> None:
            assert 0 <= done <= total

        def category_finished(self, report: Any) -> None:
            if report.category == "nut":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path, category="all", listener=Watch())
    assert [report["status"] for report in seen] == ["running", "running"]
    assert list(seen[0]["per_category"]) == []
    assert seen[1]["per_category"]["bolt"]["status"] == "complete"
    (run_dir,) = (tmp_path / "runs").iterdir()
    last = json.loads((run_dir / "report.json").read_text())
    assert last["status"] == "interrupted" and not list(run_dir.rglob("*.tmp"))
    check_schema(run_dir / "report.json", "report.suite")


def test_schemas_in_the_docs_are_those_of_the_code() -> None:
    files = schema_files()
    assert {path.name for path in (DOCS / "schemas").iterdir()} == set(files)
    for name, text in files.items():
        # compared as JSON: versions of pydantic write 1 or 1.0
        assert json.loads((DOCS / "schemas" / name).read_text()) == json.loads(text), (
            "python -m pyimgano.pipelines.schemas docs/schemas"
        )


def test_the_schemas_in_the_docs_check_documents(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    run_dir = Path(run(make_mvtec(("nut",)), tmp_path)["run_dir"])
    shared = json.loads((DOCS / "schemas" / "documents.schema.json").read_text())
    resource = Resource.from_contents(shared)
    registry: Registry[Any] = Registry().with_resource("documents.schema.json", resource)
    for name, document in (("report.single", "report.json"), ("config", "config.json")):
        schema = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text())
        content = json.loads((run_dir / document).read_text())
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        validator.validate(content)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**content, "unknown": 1})


def test_any_error_costs_its_category_alone(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyimgano.pipelines.benchmark as pipeline

    fit = pipeline.fit

    def failing(detector: Any, task: Any, *rest: Any) -> Any:
        if "bolt" in task.train[0]:
            raise MemoryError("no room for the bank")
        return fit(detector, task, *rest)

    monkeypatch.setattr(pipeline, "fit", failing)
    root = make_mvtec(("bolt", "nut"))
    report = run(root, tmp_path, category="all")
    assert report["status"] == "failed" and report["failed_categories"] == ["bolt"]
    failure = report["per_category"]["bolt"]["failure"]
    assert failure["kind"] == "MemoryError" and failure["message"] == "no room for the bank"
    assert report["per_category"]["nut"]["status"] == "complete"
    with pytest.raises(MemoryError):
        run(root, tmp_path, category="bolt")
    newest = max((tmp_path / "runs").iterdir(), key=lambda p: p.name)
    assert json.loads((newest / "report.json").read_text())["status"] == "failed"


def test_names_that_are_no_utf8(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    import os

    root = make_mvtec(("nut",))
    folder = os.fsencode(root / "nut/test/good")
    os.rename(folder + b"/000.png", folder + b"/f\xfcr.png")
    os.rename(os.fsencode(root / "nut"), os.fsencode(root) + b"/n\xfct")
    report = run(root, tmp_path, category="all")
    assert report["status"] == "complete" and report["categories"] == ["n\\xfct"]
    (records,) = Path(report["run_dir"]).rglob("per_image.jsonl")
    assert any("f\\xfcr.png" in record["input"] for record in lines(records))


def test_reasons_do_not_deny_what_could_not_be_read(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    for path in (root / "nut/test").rglob("*.png"):
        path.write_text("broken")
    results = run(root, tmp_path)["results"]
    assert results["undefined"]["auroc"].endswith("(3 unreadable defective images left out)")
    assert results["undefined"]["specificity"].endswith("(3 unreadable good images left out)")
    assert results["per_defect"]["spot"]["undefined"]["auroc"] == "no image of this kind was scored"


def test_a_category_without_training_images_is_not_dropped_in_silence(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut"))
    (root / "bolt/train/good").rename(root / "bolt/train/parts")
    report = run(root, tmp_path, category="all")
    assert report["failed_categories"] == ["bolt"]
    assert "bolt/train/good: no such folder" in report["per_category"]["bolt"]["failure"]["message"]


def test_categories_with_awkward_names(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("a:b", "a_b", "c,d"), train=2, good=1, bad=1)
    report = run(root, tmp_path, category="all")
    stored = [
        json.loads(path.read_text())["category"]
        for path in Path(report["run_dir"]).glob("categories/*/report.json")
    ]
    assert sorted(stored) == ["a:b", "a_b", "c,d"]
    assert run(root, tmp_path, category="c,d")["category"] == "c,d"
    assert run(root, tmp_path, category=["c,d"])["category"] == "c,d"
    with pytest.raises(UsageError, match="category"):
        run(root, tmp_path, category=[])
    with pytest.raises(UsageError, match="category"):
        run(root, tmp_path, category=[1])


def test_custom_is_a_name_for_the_single_category(make_custom: MakeDataset, tmp_path: Path) -> None:
    report = run(make_custom(), tmp_path, dataset="custom", category="custom")
    assert report["category"] == "custom" and report["results"]["auroc"] == 1.0


def test_many_threads_at_once(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    found: list[Any] = []

    def one() -> None:
        try:
            found.append(run(root, tmp_path)["threshold"])
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(found)) == 1 and isinstance(found[0], float), found


# ---- step by step


def test_split_detector_evaluate(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    split = load_benchmark_split(dataset="mvtec", root=root, category="nut", resize=(64, 64))
    assert isinstance(split, BenchmarkSplit) and len(split.train_paths) == 6
    detector = build_default_detector(resize=(64, 64), contamination=0.2)
    found = evaluate_split(detector, split)
    whole = run(root, tmp_path, contamination=0.2)["results"]
    for name in ("auroc", "average_precision", "threshold", "metrics", "pixel_metrics"):
        assert found[name] == whole[name]
    narrow = evaluate_split(detector, split, pro_integration_limit=0.01)
    assert narrow["pixel_metrics"]["aupro"] < found["pixel_metrics"]["aupro"]
    without = evaluate_split(detector, split, compute_pixel_scores=False)
    assert "pixel_metrics" not in without and without["auroc"] == found["auroc"]


def test_split_without_masks_and_of_another_size(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    bare = load_benchmark_split(dataset="mvtec", root=root, category="nut", load_masks=False)
    assert bare.test_masks is None
    found = evaluate_split(build_default_detector(resize=(64, 64)), bare)
    assert found["undefined"]["aupro"] == "the split carries no masks"
    assert found["problems"] == []
    split = load_benchmark_split(dataset="mvtec", root=root, category="nut")
    assert split.test_masks is not None and split.test_masks.shape == (6, 256, 256)
    small = evaluate_split(build_default_detector(resize=(64, 64)), split)  # maps are resized
    assert small["pixel_metrics"]["aupro"] > 0.8
    fewer = replace(split, test_masks=split.test_masks[:5])
    with pytest.raises(UsageError, match=r"test_masks has shape \(5, 256, 256\), wanted \(6,"):
        evaluate_split(build_default_detector(resize=(64, 64)), fewer)
    with pytest.raises(UsageError, match="unknown keyword"):
        build_default_detector(zzz=1)


def test_further_pages_are_named_and_do_no_harm(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(suffix=".tif")
    for part in ("train", "test"):
        path = root / "nut" / part / "good" / "001.tif"
        pages = [Image.open(path).copy(), Image.fromarray(picture(1))]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    report = run(root, tmp_path)
    assert [(p["kind"], Path(p["path"]).parts[-3:]) for p in report["problems"]] == [
        ("several_pages", ("train", "good", "001.tif")),
        ("several_pages", ("test", "good", "001.tif")),
    ]
    assert report["status"] == "complete" and report["results"]["auroc"] == 1.0


def test_a_dataset_in_a_read_only_folder_of_links(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    linked = tmp_path / "it's a “set” of ü"
    for path in sorted(root.rglob("*.png")):
        link = linked / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    for folder in sorted(p for p in linked.rglob("*") if p.is_dir()):
        folder.chmod(0o555)
    linked.chmod(0o555)
    before = sorted(linked.rglob("*"))
    report = run(linked, tmp_path, allow_outside=True)
    assert report["status"] == "complete" and report["results"]["auroc"] == 1.0
    assert sorted(linked.rglob("*")) == before


def test_the_public_face() -> None:
    for name in pyimgano.__all__:
        assert getattr(pyimgano, name) is not None
    assert set(pyimgano.__all__) <= set(dir(pyimgano))
    with pytest.raises(AttributeError):
        _ = pyimgano.nothing


# ---- real images


@pytest.fixture(scope="module")
def real_reports(
    real_mvtec: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        report = run_benchmark(
            dataset="mvtec",
            root=real_mvtec,
            category="all",
            limit_train=50,  # so that it takes a third of the time
            html=False,
            runs_dir=tmp_path_factory.mktemp("r"),
        )
    found: dict[str, dict[str, Any]] = report["per_category"]
    return found


def test_bottle(real_reports: dict[str, dict[str, Any]]) -> None:
    results = real_reports["bottle"]["results"]
    assert results["auroc"] >= 0.995
    assert results["pixel_metrics"]["pixel_auroc"] >= 0.98


@pytest.mark.parametrize("category", ["bottle", "magnetic_tile"])
def test_the_promise_on_real_images(real_reports: dict[str, dict[str, Any]], category: str) -> None:
    block = real_reports[category]["calibration"]
    measured = block["measured_false_alarm_rate"]
    assert measured["low"] <= block["promised_false_alarm_rate"]


def test_real_images_in_other_formats(real_mvtec: Path, tmp_path: Path) -> None:
    """A part of both categories as PNG, BMP and JPEG: the same scores, or nearly."""
    limits = {"limit_train": 8, "limit_test": 6}
    for category in ("bottle", "magnetic_tile"):
        part = load_dataset("mvtec", real_mvtec, category, **limits).samples
        for sample in (*part.train, *part.test):
            image = Image.open(sample.path)
            place = sample.path.relative_to(real_mvtec)
            for kind, suffix in (("png", ".png"), ("bmp", ".BMP"), ("jpg", ".jpg")):
                copy = (tmp_path / kind / place).with_suffix(suffix)
                copy.parent.mkdir(parents=True, exist_ok=True)
                image.save(copy, quality=98, compress_level=1)  # each takes its own
                for mask in sample.mask_paths:
                    link = tmp_path / kind / mask.relative_to(real_mvtec)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(mask.resolve())
    reports = {
        kind: run(tmp_path / kind, tmp_path, category="all", allow_outside=True)
        for kind in ("png", "bmp", "jpg")
    }
    for category in ("bottle", "magnetic_tile"):
        png, bmp, jpg = (reports[k]["per_category"][category] for k in ("png", "bmp", "jpg"))
        assert png["results"] == bmp["results"]
        assert jpg["threshold"] == pytest.approx(png["threshold"], rel=0.1)
        for metric in ("pixel_auroc", "aupro"):
            close = pytest.approx(png["results"]["pixel_metrics"][metric], abs=0.05)
            assert jpg["results"]["pixel_metrics"][metric] == close


def test_the_empty_mask_of_magnetic_tile_is_named(
    real_reports: dict[str, dict[str, Any]],
) -> None:
    problems = real_reports["magnetic_tile"]["problems"]
    assert [p["kind"] for p in problems] == ["mask_empty"]
    assert problems[0]["path"].endswith("exp3_num_45042_mask.png")
    assert real_reports["magnetic_tile"]["results"]["pixel_metrics"]["aupro"] > 0.6
