"""The operating point: set, recalibrated, saved, and moved by `pyimgano threshold`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano.calibration import calibrate
from pyimgano.calibration.operating_points import (
    Likeness,
    likeness,
    low_recall_note,
    operating_points,
    unlike_note,
)
from pyimgano.cli import _run, group
from pyimgano.cli.threshold import command
from pyimgano.errors import DataError, NotFittedError, UsageError
from pyimgano.inference import (
    calibrate_threshold,
    infer,
    threshold_from_costs,
    threshold_from_defects,
)
from pyimgano.models import load_model, register_model
from pyimgano.pipelines import run_benchmark
from tests.conftest import copy_registry, save
from tests.stubs import SavedDarkness

Call = Callable[..., tuple[int, Any, str]]


def grey(value: int) -> np.ndarray:
    """An image of which the detector's score is 255 - value."""
    return np.full((64, 64, 3), value, np.uint8)


#: Scores of 20 good images: 40 to 59; one of them is odd in `ODD`.
GOOD = [grey(255 - 40 - i) for i in range(20)]
ODD = [*GOOD[:5], grey(15), *GOOD[6:]]


@pytest.fixture(autouse=True)
def darkness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    copy_registry(monkeypatch)
    register_model("darkness", overwrite=True)(SavedDarkness)
    yield


def fitted(images: list[np.ndarray] = GOOD, **keywords: Any) -> SavedDarkness:
    return SavedDarkness().fit(images, **keywords)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, Any, str]:
        code = _run(command, "pyimgano-threshold", [str(one) for one in arguments])
        captured = capsys.readouterr()
        document = json.loads(captured.out) if captured.out else None
        return code, document, captured.err

    return run


def test_setting_the_threshold_is_documented(tmp_path: Path) -> None:
    detector = fitted()
    detector.threshold_ = 57.5
    assert detector.calibration_.threshold == 57.5 and detector.calibration_.tail == "given"
    assert detector.calibration_.promised_false_alarm_rate == pytest.approx(3 / 21)
    assert list(detector.predict(GOOD[-3:])) == [0, 1, 1]
    loaded = load_model(detector.save(tmp_path / "m"))
    assert loaded.threshold_ == loaded.calibration_.threshold == 57.5
    assert loaded.calibration_ == detector.calibration_
    with pytest.raises(UsageError, match="finite"):
        detector.threshold_ = float("nan")
    assert detector.threshold_ == 57.5
    assert not hasattr(SavedDarkness(), "threshold_")
    for move in (lambda d: d.set_threshold(1.0), lambda d: d.recalibrate(quantile=0.9)):
        with pytest.raises(NotFittedError):
            move(SavedDarkness())


def test_a_document_that_contradicts_itself_is_mended_when_it_is_read(tmp_path: Path) -> None:
    folder = fitted().save(tmp_path / "m")
    document = json.loads((folder / "detector.json").read_text())
    # as an earlier version left it, without the fields of today
    old = (
        "threshold method quantile_asked quantile_reached n_scores promised_false_alarm_rate notes"
    )
    document["calibration"] = {name: document["calibration"][name] for name in old.split()}
    for name in ("suspects", "excluded"):
        del document[name]
    (folder / "detector.json").write_text(json.dumps(document))
    loaded = load_model(folder)
    assert loaded.calibration_.unseen and loaded.calibration_.tail == "conformal"
    assert loaded.training_suspects_ == []
    document["threshold"] = 12.0
    (folder / "detector.json").write_text(json.dumps(document))
    loaded = load_model(folder)
    assert loaded.threshold_ == loaded.calibration_.threshold == 12.0


def test_recalibrating_is_what_a_fit_at_that_quantile_gives() -> None:
    detector = fitted().recalibrate(quantile=0.9, tail="conformal")
    again = SavedDarkness(calibration_quantile=0.9).fit(GOOD)
    assert detector.threshold_ == again.threshold_
    assert detector.calibration_.origin == "recalibrated at the quantile 0.9"
    back = detector.set_threshold(3.0).recalibrate(quantile=0.995)
    assert back.threshold_ == fitted().threshold_
    with pytest.raises(UsageError, match="calibration_quantile"):
        detector.recalibrate(quantile=1.0)


def test_results_have_ratio_and_p_value() -> None:
    detector = fitted()
    for result in infer(detector, [*GOOD[:3], grey(0)]):
        assert result.score is not None and result.score_ratio is not None
        assert (result.score_ratio >= 1) == bool(result.label)
        reached = (detector.decision_scores_ >= result.score).sum()
        assert result.p_value == (1 + reached) / 21
    seen = SavedDarkness(calibration="in-sample").fit(GOOD)
    assert infer(seen, GOOD[:1])[0].p_value is None


def test_suspects_are_named_and_left_out(tmp_path: Path) -> None:
    detector = fitted(ODD)
    (suspect,) = detector.training_suspects_
    assert (suspect.index, suspect.score, suspect.role) == (5, 240.0, "train")
    assert suspect.path == "image 5" and detector.excluded_ == []
    without = fitted(ODD, exclude_suspects=True)
    rest = [one for i, one in enumerate(ODD) if i != 5]
    assert without.threshold_ == fitted(rest).threshold_
    assert without.n_train_ == 19 and [one.index for one in without.excluded_] == [5]
    assert "1 of 20 good images was left out" in without.calibration_.notes[-1]
    assert "expect up to" in without.calibration_.notes[-1]
    # what is said of the scores stays, whatever threshold is chosen
    assert without.calibration_.notes[-1] in without.set_threshold(50.0).calibration_.notes
    loaded = load_model(without.save(tmp_path / "m"))
    assert loaded.excluded_ == without.excluded_
    others = [grey(255 - 60 - i) for i in range(20)]
    others[5] = grey(15)
    held = fitted(GOOD, calibration_images=others)
    assert [(one.index, one.role) for one in held.training_suspects_] == [(5, "calibration")]
    held = fitted(GOOD, calibration_images=others, exclude_suspects=True)
    assert held.calibration_.n_scores == 19 and held.n_train_ == 20


def test_thresholds_from_images() -> None:
    bad = [grey(255 - 100 - i) for i in range(60)]
    detector = fitted()
    assert threshold_from_defects(detector, bad, miss_rate=0.05) == detector.threshold_ == 100.0
    assert "at most 5 % of defects missed" in detector.calibration_.origin
    with pytest.raises(DataError, match="149 are needed"):
        threshold_from_defects(detector, bad, miss_rate=0.02)
    found = threshold_from_costs(detector, bad, cost_miss=50.0, cost_false_alarm=1.0)
    assert 59.0 < found < 100.0
    calibrate_threshold(detector, bad, quantile=0.5, tail="conformal")
    assert detector.calibration_.origin != "fit" and detector.calibration_.n_scores == 60
    with pytest.raises(UsageError, match="calibration_tail"):
        calibrate_threshold(detector, bad, tail="other")


class TestCommand:
    def test_quantile_value_and_good_images(self, tmp_path: Path, call: Call) -> None:
        folder = fitted().save(tmp_path / "m")
        code, document, _ = call(folder)
        assert code == 0 and document["saved"] is None
        assert document["threshold"] == fitted().threshold_

        code, document, _ = call(folder, "--quantile", "90%", "--dry-run")
        assert code == 0 and load_model(folder).threshold_ == fitted().threshold_
        code, document, _ = call(folder, "--quantile", 0.9)
        assert code == 0 and document["saved"] == str(folder)
        loaded = load_model(folder)
        assert (
            loaded.threshold_
            == document["threshold"]
            == fitted().recalibrate(quantile=0.9).threshold_
        )
        assert loaded.calibration_.origin == document["calibration"]["origin"]

        code, document, _ = call(folder, "--value", 77, "--save-model", tmp_path / "other")
        assert code == 0 and load_model(tmp_path / "other").threshold_ == 77
        assert load_model(folder).threshold_ == loaded.threshold_

        for i in range(12):
            save(tmp_path / "good" / f"{i}.png", grey(100 + i))
        code, document, _ = call(folder, "--good", tmp_path / "good", "--quantile", 0.995)
        assert code == 0 and load_model(folder).calibration_.n_scores == 12
        assert load_model(folder).threshold_ == np.nextafter(155.0, np.inf)

    def test_defects_and_costs(self, tmp_path: Path, call: Call) -> None:
        folder = fitted().save(tmp_path / "m")
        for i in range(30):
            save(tmp_path / "bad" / f"{i:02d}.png", grey(100 - i))
        given = (folder, "--bad", tmp_path / "bad")
        code, document, _ = call(*given, "--miss-rate", "10%")
        assert code == 0 and load_model(folder).threshold_ == 155.0
        code, _, err = call(*given, "--miss-rate", "2%")
        assert code == 1 and "149 are needed" in err and load_model(folder).threshold_ == 155.0
        code, document, _ = call(*given, "--miss-rate", "20%", "--on-average")
        assert document["threshold"] == 160.0  # the sixth of 30: 6 / 31
        code, document, _ = call(*given, "--cost-miss", 50, "--cost-false-alarm", 1)
        assert code == 0 and 59 < document["threshold"] < 155

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--value", 1, "--quantile", 0.9], "one way"),
            (["--cost-miss", 1], "go together"),
            (["--bad", "x"], "has no effect"),
            (["--miss-rate", 0.1], "--bad is missing"),
            (["--on-average"], "without --miss-rate"),
            (["--defect-share", 0.1], "without costs"),
            (["--quantile", 2], "between 0 and 1"),
            (["--value", "nan"], "finite"),
            (["--dry-run"], "nothing chooses"),
            (["--category", "a"], "--category"),
            (["--value", 1, "--calibration-tail", "conformal"], "has no effect"),
        ],
    )
    def test_usage(self, tmp_path: Path, call: Call, options: list[Any], said: str) -> None:
        folder = fitted().save(tmp_path / "m")
        code, document, err = call(folder, *options)
        assert code == 2 and document is None and said in err and err.count("\n") == 1

    def test_it_is_a_subcommand(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert _run(group, "pyimgano", ["threshold", "--help"]) == 0
        assert "--miss-rate" in capsys.readouterr().out


def dataset(root: Path, train: list[np.ndarray], good: list[int], bad: list[int]) -> Path:
    for i, image in enumerate(train):
        save(root / "nut" / "train" / "good" / f"{i:03d}.png", image)
    for name, values in (("good", good), ("scratch", bad)):
        for i, value in enumerate(values):
            save(root / "nut" / "test" / name / f"{i:03d}.png", grey(value))
    return root


def bench(root: Path, tmp_path: Path, **keywords: Any) -> dict[str, Any]:
    return run_benchmark(
        dataset="mvtec",
        root=root,
        category="nut",
        model="darkness",
        resize=(64, 64),
        pixel=False,
        runs_dir=tmp_path / "runs",
        **keywords,
    )


#: 255 - score of defects: between the good images and the odd one.
DEFECTS = [100 - i for i in range(20)]


def test_a_report_shows_what_promises_lead_to(tmp_path: Path, call: Call) -> None:
    root = dataset(tmp_path / "data", ODD, [200, 205, 210], DEFECTS)
    report = bench(root, tmp_path, save_model=True)
    points = report["operating_points"]
    assert [p["asked_false_alarm_rate"] for p in points] == [0.001, 0.005, 0.01, 0.02, 0.05, 0.1]
    scores = SavedDarkness().fit(ODD).decision_scores_
    for point in points:
        expected = calibrate(scores, 1 - point["asked_false_alarm_rate"], method="m")
        assert point["threshold"] == expected.threshold
        found = sum(255 - value >= expected.threshold for value in DEFECTS)
        assert point["recall"]["events"] == found and point["recall"]["images"] == 20
        assert point["false_alarms"]["images"] == 3
    assert [p["recall"]["rate"] for p in points[:4]] == [0.0] * 4
    assert points[-1]["recall"]["rate"] == 1.0
    (note,) = [one for one in report["notes"] if "it would find" in one]
    assert "it would find 100 % instead of 0 %" in note

    run_dir = Path(report["run_dir"])
    (suspect,) = report["training_suspects"]
    assert suspect["path"].endswith("005.png") and suspect["score"] == 240
    assert (run_dir / suspect["picture"]).is_file()
    assert suspect["picture"] == "categories/nut/suspects/001.jpg"
    lines = (run_dir / "categories/nut/per_image.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        assert record["score_ratio"] == pytest.approx(record["score"] / record["threshold"])
        assert record["p_value"] == (1 + (scores >= record["score"]).sum()) / 21

    # defects that the run has scored serve for costs
    code, document, err = call(run_dir, "--cost-miss", 50, "--cost-false-alarm", 1)
    assert code == 0 and 59 < document["threshold"] < 155
    assert "its report still has what was measured" in err


def test_suspects_are_excluded_or_listed_by_the_user(tmp_path: Path) -> None:
    root = dataset(tmp_path / "data", ODD, [200, 205, 210], DEFECTS)
    excluded = bench(root, tmp_path, exclude_suspects=True)
    assert excluded["results"]["metrics"]["recall"] == 1.0
    (one,) = excluded["excluded"]
    assert one["path"].endswith("005.png")
    assert any("left out as suspect" in note for note in excluded["calibration"]["notes"])

    names = tmp_path / "out.txt"
    names.write_text("# dirt beside the part\n\nnut/train/good/005.png\n")
    listed = bench(root, tmp_path, exclude=names)
    assert listed["threshold"] == excluded["threshold"]
    assert [Path(p).name for p in listed["excluded_by_list"]] == ["005.png"]
    assert listed["counts"]["train"] == 19
    assert any("list of images to exclude" in note for note in listed["notes"])
    names.write_text("nut/train/good/nothing.png\n")
    with pytest.raises(UsageError, match=r"line 1: .*nothing\.png.* is not a file"):
        bench(root, tmp_path, exclude=names)
    for text, said in ((b"\xff\xfe", "not text"), (b"# nothing\n", "names no images")):
        names.write_bytes(text)
        with pytest.raises(UsageError, match=said):
            bench(root, tmp_path, exclude=names)
    names.write_text("\n".join(f"nut/train/good/{i:03d}.png" for i in range(20)))
    with pytest.raises(DataError, match="every training image"):
        bench(root, tmp_path, exclude=names)


def test_good_test_images_that_are_others_are_told_of(tmp_path: Path) -> None:
    root = dataset(tmp_path / "data", GOOD, [170 + i for i in range(15)], DEFECTS)
    report = bench(root, tmp_path)
    assert report["likeness"]["unlike"] and report["likeness"]["p_value"] < 0.01
    assert any("are not like the images that the threshold" in n for n in report["notes"])
    alike = bench(dataset(tmp_path / "alike", GOOD, [205] * 9, DEFECTS), tmp_path)
    assert not alike["likeness"]["unlike"]
    assert not any("are not like" in note for note in alike["notes"])


def test_the_test_of_likeness_has_its_level() -> None:
    rng = np.random.default_rng(0)
    unlike = shifted = 0
    for _ in range(300):
        scores = rng.normal(size=100)
        known = calibrate(scores, 0.95, method="m"), scores
        found = likeness(*known, list(rng.normal(size=60)))
        assert isinstance(found, Likeness)
        unlike += found.unlike
        moved = likeness(*known, list(rng.normal(size=60) + 1.0))
        assert moved is not None
        shifted += moved.unlike
    assert unlike <= 9 and shifted > 270
    assert likeness(*known, []) is None


def test_no_sentence_where_nothing_is_to_be_said() -> None:
    detector = fitted(ODD)
    known = detector.calibration_, detector.decision_scores_
    points = operating_points(*known, [45.0], [155.0] * 10)
    assert low_recall_note(points, 0.0, 1.0, detector.threshold_) is not None
    assert low_recall_note(points, 0.0, 0.6, detector.threshold_) is None
    assert low_recall_note(points, 0.9, 1.0, detector.threshold_) is None
    assert low_recall_note(points, None, None, detector.threshold_) is None
    assert (
        low_recall_note(
            operating_points(*known, [], []),
            0.0,
            1.0,
            1e9,
        )
        is None
    )
    assert unlike_note(None, points[0].false_alarms) is None


def test_the_command_line_has_options_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyimgano.cli.console.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    root = dataset(tmp_path / "data", ODD, [200, 205, 210], DEFECTS)
    arguments = [
        "benchmark", "--dataset", "mvtec", "--root", root, "--category", "nut", "--model",
        "darkness", "--resize", 64, 64, "--no-pixel", "--runs-dir", tmp_path / "runs",
    ]  # fmt: skip

    def run(*more: str) -> tuple[int, dict[str, Any], str]:
        code = _run(group, "pyimgano", [str(one) for one in (*arguments, *more)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out or "{}"), captured.err

    code, report, err = run()
    assert code == 0 and report["training_suspects"] and "005.png" in err
    assert "promised false alarms, and what they lead to" in err and "0.1" in err
    assert "it would find 100 % instead of 0 %" in err
    code, report, err = run("--exclude-suspects")
    assert code == 0 and len(report["excluded"]) == 1 and "left out as suspect" in err
    config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
    assert config["exclude_suspects"] is True
    code, report, _ = run("--calibration-tail", "conformal")  # which every method has
    config = json.loads((Path(report["run_dir"]) / "config.json").read_text())
    assert code == 0 and config["calibration_tail"] == "conformal"


def test_the_tail_is_a_keyword_of_detectors() -> None:
    from pyimgano.models import create_model, model_info

    assert create_model("vision_patchcore", calibration_tail="conformal").get_params()[
        "calibration_tail"
    ] == ("conformal")
    assert model_info("vision_padim")["parameters"]["calibration_tail"]["default"] == "exponential"
    with pytest.raises(UsageError, match="calibration_tail"):
        create_model("vision_patchcore", calibration_tail="gumbel")
