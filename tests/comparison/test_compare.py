"""`pyimgano compare` and `pyimgano leaderboard`: runs side by side."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pyimgano import run_benchmark
from pyimgano.cli import run_subcommand
from pyimgano.comparison import compare_runs, make_leaderboard, write_leaderboard
from pyimgano.comparison.bootstrap import interval, replicates
from pyimgano.comparison.leaderboard_forms import render_leaderboard
from pyimgano.comparison.page import comparison_page
from pyimgano.comparison.run_facts import read_run_facts
from pyimgano.errors import DataError, UsageError
from pyimgano.evaluation import compute_auroc
from pyimgano.pages.page_facts import map_file
from pyimgano.runs import category_folder, write_map
from tests.browser import Browser
from tests.conftest import MakeDataset, picture, save
from tests.pages.test_pages import chromium  # noqa: F401

pytestmark = pytest.mark.real_pages

MakeRun = Callable[..., Path]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
SCORES = [0.1, 0.2, 0.3, 0.9, 0.4, 1.2, 1.5, 2.0]


def records(scores: Sequence[float | None], threshold: float, root: str, name: str) -> list[Any]:
    found = []
    for index, (label, score) in enumerate(zip(LABELS, scores)):
        kind = "spot" if label else "good"
        found.append(
            {
                "index": index, "dataset": "mvtec", "category": name, "defect": kind,
                "input": f"{root}/{name}/test/{kind}/{index}.png", "y_true": label,
                "score": score, "threshold": threshold,
                "pred": None if score is None else int(score >= threshold),
            }
        )  # fmt: skip
    return found


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run directory as little as early versions did, and return it."""

    def make(
        name: str,
        scores: dict[str, Sequence[float | None]],
        *,
        threshold: float = 1.0,
        model: str = "vision_patchcore",
        failed: Sequence[str] = (),
        status: str = "complete",
        root: str = "/data",
        parameters: dict[str, Any] | None = None,
        contents: str = "a",
    ) -> Path:
        run = tmp_path / name
        categories = [*scores, *failed]
        reports = {}
        for category, values in scores.items():
            lines = records(values, threshold, root, category)
            known = [one for one in lines if one["score"] is not None]
            labels = [one["y_true"] for one in known]
            auroc = compute_auroc(labels, [one["score"] for one in known])
            recall = float(np.mean([one["pred"] for one in known if one["y_true"] == 1]))
            alarms = float(np.mean([one["pred"] for one in known if one["y_true"] == 0]))
            reports[category] = {
                "status": "complete", "category": category, "threshold": threshold,
                "results": {"auroc": auroc, "metrics": {"recall": recall}, "pixel_metrics": {}},
                "calibration": {"measured_false_alarm_rate": {"rate": alarms}},
                "timings": {"fit_seconds": 2.5, "milliseconds_per_image": 10.0},
            }  # fmt: skip
            folder = category_folder(run, category)
            folder.mkdir(parents=True)
            (folder / "per_image.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
            files = [
                {"path": one["input"].removeprefix(f"{root}/"), "sha256": contents}
                | {"use": f"test {one['y_true']} {one['defect']}"}
                for one in lines
            ]
            (folder / "files.json").write_text(json.dumps({"files": files}))
        for category in failed:
            reports[category] = {
                "status": "failed", "category": category, "results": None,
                "failure": {"kind": "DataError", "message": "no <b>images", "stage": "reading"},
            }  # fmt: skip
        head = {"dataset": "mvtec", "root": root, "model": model, "split": None}
        config = {**head, "categories": categories, "detector_parameters": parameters or {}}
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(config))
        report = {**head, "status": status, "per_category": reports, "categories": categories}
        (run / "report.json").write_text(json.dumps(report))
        return run

    return make


# ---- intervals


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
    st.integers(0, 99),
)
def test_replicates_are_the_metrics_of_resampled_images(
    good: list[int], bad: list[int], seed: int
) -> None:
    scores = np.array([*good, *bad], np.float64)
    labels = np.array([False] * len(good) + [True] * len(bad))
    (found,) = replicates(labels, [(scores, scores >= 3)], resamples=4, seed=seed)
    # the same draws, image by image
    generator = np.random.default_rng(seed)
    of_good, of_bad = (
        generator.multinomial(n, np.full(n, 1 / n), size=4) for n in (len(good), len(bad))
    )
    for sample in range(4):
        times = np.concatenate([of_good[sample], of_bad[sample]])
        drawn, true = np.repeat(scores, times), np.repeat(labels, times)
        assert found["auroc"][sample] == pytest.approx(roc_auc_score(true, drawn))
        assert found["average_precision"][sample] == pytest.approx(
            average_precision_score(true, drawn)
        )
        assert found["recall"][sample] == pytest.approx((drawn[true] >= 3).mean())
        assert found["false_alarm_rate"][sample] == pytest.approx((drawn[~true] >= 3).mean())


def test_paired_intervals_cover_the_true_difference_and_are_narrower() -> None:
    """Where two detectors differ by little on the same hard images, pairing shows it."""
    covered, paired, apart = 0, [], []
    for trial in range(40):
        generator = np.random.default_rng(trial)
        labels = np.arange(120) % 2 == 1
        hard = generator.normal(size=120) + labels
        first, second = (hard + 0.3 * generator.normal(size=120) for _ in range(2))
        called = np.zeros(120, bool)
        one, other = replicates(labels, [(first, called), (second, called)], resamples=300)
        low, high = interval(other["auroc"] - one["auroc"])
        covered += low <= 0 <= high  # they are equally good
        paired.append(high - low)
        (alone,) = replicates(labels, [(second, called)], resamples=300, seed=1)
        bounds = interval(alone["auroc"] - one["auroc"])
        apart.append(bounds[1] - bounds[0])
    assert covered >= 34  # 38 expected of 40; fewer than 34 have a probability of 1 %
    assert np.mean(paired) < 0.6 * np.mean(apart)


# ---- compare


def test_differences_costs_and_changed_decisions(make_run: MakeRun) -> None:
    better = [0.1, 0.2, 0.3, 1.1, 1.4, 1.2, 1.5, 0.9]  # a new alarm, one found, one missed now
    one = make_run("one", {"bolt": SCORES}, parameters={"recipe": "paper", "seed": 0})
    two = make_run(
        "two", {"bolt": better}, root="/elsewhere", parameters={"recipe": "whitened", "seed": 0}
    )
    found = compare_runs([one, two])
    assert found.labels == ["one", "two"] and found.notes == []  # where it lies does not matter
    assert found.settings == {"recipe": ["paper", "whitened"]}
    rows = {row["metric"]: row for row in found.rows}
    assert rows["auroc"]["values"] == [compute_auroc(LABELS, s) for s in (SCORES, better)]
    assert rows["recall"]["differences"] == [0.0]
    low, high = rows["recall"]["intervals"][0]
    assert low < 0 < high
    assert rows["false_alarm_rate"]["differences"] == [0.25]
    assert {one["cost"]: one["values"] for one in found.costs}["fit_seconds"] == [2.5, 2.5]
    said = {Path(change.image).stem: change.what for change in found.changes}
    assert said == {"7": "missed now", "3": "false alarm now", "4": "found now"}
    assert found.changes[0].ratios == [2.0, 0.9]  # of early versions, computed
    assert json.loads(json.dumps(found.document()))["images"] == {"bolt": 8}
    again = compare_runs([one, two])
    assert again.document() == found.document()  # the seed is fixed


def test_what_differs_in_the_data_is_said(make_run: MakeRun) -> None:
    one = make_run("one", {"bolt": SCORES, "nut": SCORES})
    two = make_run("two", {"bolt": SCORES[:6], "cap": SCORES}, contents="b")
    found = compare_runs([one, two])
    text = "\n".join(found.notes)
    assert "bolt: two and one: the test images differ: 2 only in the second" in text
    assert "6 with another content" in text
    assert "nut: only one has this category, not two" in text
    assert "cap: only two has this category, not one" in text
    assert "means are over 1 of 3 categories" in text and "without nut, cap" in text
    assert found.images["bolt"] == 0  # the same names, other images
    assert found.rows[0]["intervals"] == [None]


def test_runs_that_are_not_finished_are_read_and_said(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one", {"bolt": SCORES})
    two = make_run("two", {"bolt": [None, *SCORES[1:]]}, failed=["nut"], status="failed")
    report = json.loads((two / "report.json").read_text())
    report["per_category"]["bolt"]["counts"] = {"test_unreadable": 1}
    (two / "report.json").write_text(json.dumps(report))
    three = make_run("three", {"bolt": SCORES}, status="running")
    (three / "report.json").unlink()  # killed before its first
    text = "\n".join(compare_runs([one, two, three]).notes)
    assert "two: the run failed: 1 of 2 categories have results" in text
    assert "two: nut: failed: while reading: no <b>images" in text
    assert "two: bolt: 1 test image could not be read" in text
    both = "\n".join(compare_runs([one, two]).notes)
    assert "bolt: intervals and changed decisions are over the 7 of up to 8" in both
    assert "three: report.json is not there" in text
    assert "three: the run is not finished, or was killed" in text
    with pytest.raises(DataError, match="is not a run directory"):
        compare_runs([one, tmp_path])
    with pytest.raises(UsageError, match="at least two"):
        compare_runs([one])
    with pytest.raises(UsageError, match="named twice"):
        compare_runs([one, one / ".." / "one"])


@pytest.mark.parametrize("damage", ['{"a":', "[]", "nul\0", '{"per_category": 3, "counts": []}'])
def test_damaged_files_are_said_and_never_raise(make_run: MakeRun, damage: str) -> None:
    run = make_run("one", {"bolt": SCORES})
    for name in ("report.json", "categories/bolt/files.json", "categories/bolt/per_image.jsonl"):
        (run / name).write_text(damage)
    facts = read_run_facts(run)
    assert facts.notes and facts.measured == {}


def test_the_page_escapes_names_and_has_pictures(
    make_mvtec: MakeDataset, tmp_path: Path, make_run: MakeRun
) -> None:
    root = make_mvtec(("bolt",), train=6, good=3, bad=3)
    faint = 0.92 * picture(100) + 0.08 * picture(100, spot=True)  # a good image, nearly a bad one
    save(root / "bolt" / "test" / "good" / "000.png", faint.round().astype(np.uint8))
    options: dict[str, Any] = {
        "dataset": "mvtec", "root": root, "category": "bolt", "model": "vision_patchcore",
        "resize": (64, 64), "save_model": True,
    }  # fmt: skip
    strict = run_benchmark(**options, output_dir=tmp_path / "a<b>")
    # decides by a low quantile of the training scores: that image becomes a false alarm
    run_benchmark(**options, output_dir=tmp_path / "loose", calibration_quantile=0.1)
    found = compare_runs([tmp_path / "a<b>", tmp_path / "loose"])
    memory = {one["cost"]: one["values"] for one in found.costs}["peak_memory_bytes"]
    assert 5e7 < memory[0] <= memory[1] < 1e12  # of one process, which never forgets
    assert found.changes and not strict["problems"]
    page = comparison_page(found)
    assert "<b>" not in page.split("<main")[1].split("headline")[0]
    assert "a&lt;b&gt;" in page and f"differently on {len(found.changes)} of" in page
    assert page.count("the anomaly map of") == 2 * len(found.changes)  # one for each run
    assert "http://" not in page.replace("http://www.w3.org", "")
    failed = make_run("failed", {"bolt": SCORES}, failed=["<script>alert(1)</script>"])
    page = comparison_page(compare_runs([failed, make_run("other", {"bolt": SCORES[::-1]})]))
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "no such file" in page  # of the images, which are not there


def test_a_browser_shows_the_page(
    make_run: MakeRun,
    tmp_path: Path,
    chromium: str,  # noqa: F811
) -> None:
    """The data lie where the runs say, and the runs keep maps, so there are pictures of all."""
    script = "<img src=x onerror=window.hacked=1>"
    root = tmp_path / "data"
    for index, label in enumerate(LABELS):
        kind = "spot" if label else "good"
        save(root / script / "test" / kind / f"{index}.png", picture(index, spot=bool(label)))
    one = make_run("one", {script: SCORES}, root=str(root))
    two = make_run("two", {script: SCORES[::-1]}, root=str(root))
    for index in range(len(LABELS)):
        found = np.full((8, 8), 1 + index, np.float32)
        write_map(map_file(category_folder(one, script), index), found)
        write_map(map_file(category_folder(two, script), index), found.T + np.eye(8, dtype="f4"))
    comparison = compare_runs([one, two])
    page = tmp_path / "page.html"
    page.write_text(comparison_page(comparison))
    with Browser(tmp_path / "browser") as browser:
        browser.open(page)
        assert browser.evaluate("window.hacked") is None
        cell = "document.querySelector('td[data-metric=auroc]').dataset.value"
        assert float(browser.evaluate(cell)) == comparison.rows[0]["differences"][0]
        assert browser.evaluate("document.querySelectorAll('figure button img').length") == 3 * 6
        browser.click("button.pictures")
        path = "document.getElementById('viewer-path').textContent"
        assert browser.evaluate(path) == comparison.changes[0].image
        assert browser.evaluate("document.querySelectorAll('#viewer-images img').length") == 3
        assert browser.complaints == [] and browser.requests in ([], [page.as_uri()])


def test_the_command(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one = make_run("one", {"bolt": SCORES})
    two = make_run("two", {"bolt": SCORES[::-1]}, failed=["nut"], status="failed")
    page = tmp_path / "page.html"
    assert run_subcommand("compare", [str(one), str(two), "--html", str(page)]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["kind"] == "comparison" and len(document["changes"]) == len(LABELS) - 2
    assert "| bolt     | image AUROC " in shown.err and f"page: {page}" in shown.err
    assert "nut: failed" in shown.err and page.read_text().startswith("<!DOCTYPE html>")
    assert run_subcommand("compare", [str(one)]) == 2
    assert run_subcommand("compare", [str(one), str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


# ---- leaderboard


def test_ranks_means_and_what_is_missing(make_run: MakeRun) -> None:
    worse = [1.5, *SCORES[1:]]
    runs = [
        make_run("a", {"bolt": SCORES, "nut": worse}, model="vision_padim"),
        make_run("b", {"bolt": worse, "nut": worse}, parameters={"recipe": "paper"}),
        # two runs of one model, a category each, are one line
        make_run("c", {"bolt": SCORES}, parameters={"recipe": "whitened"}),
        make_run("d", {"nut": SCORES}, parameters={"recipe": "whitened"}),
        make_run("e", {"bolt": SCORES}, failed=["nut"], status="failed", model="vision_spade"),
    ]
    board = make_leaderboard(runs)
    (table,) = board.tables
    labels = [one.label for one in table.entries]
    assert labels == [
        "vision_patchcore (recipe=whitened)",
        "vision_padim",
        "vision_patchcore (recipe=paper)",
        "vision_spade",
    ]
    # Demsar's mean ranks: bolt 1.5, 3, 1.5 and nut 2.5, 2.5, 1
    assert [one.rank for one in table.entries] == [1.25, 2.0, 2.75, None]
    assert table.entries[-1].missing == {"nut": "failed"}
    assert any("vision_spade: nut: failed: while reading" in note for note in table.notes)
    first = table.entries[0]
    assert first.means["auroc"] == compute_auroc(LABELS, SCORES) and len(first.paths) == 2
    lines = render_leaderboard(board, "markdown").splitlines()
    assert lines[0].startswith("| rank | model | image AUROC |")
    assert "| 1.25 | vision_patchcore (recipe=whitened) | **93.75** |" in lines[2]
    assert "vision_spade\\*" in lines[5] and "no \\<b\\>images" in "\n".join(lines)
    rows = list(csv.DictReader(io.StringIO(render_leaderboard(board, "csv"))))
    assert [row["rank"] for row in rows] == ["1.25", "2.0", "2.75", ""]
    assert float(rows[0]["auroc"]) == first.means["auroc"]
    assert json.loads(render_leaderboard(board, "json"))["tables"][0]["entries"][0]["rank"] == 1.25
    html = render_leaderboard(board, "html")
    assert "no &lt;b&gt;images" in html and "vision_padim" in html


def test_ranks_by_what_is_better_when_low(make_run: MakeRun) -> None:
    runs = [
        make_run("a", {"bolt": SCORES}, threshold=0.15, model="loose"),
        make_run("b", {"bolt": SCORES}, model="strict"),
    ]
    (table,) = make_leaderboard(runs, metric="false_alarm_rate").tables
    assert [one.label for one in table.entries] == ["strict", "loose"]
    with pytest.raises(UsageError, match="auroc"):
        make_leaderboard(runs, metric="aurok")


def test_the_leaderboard_command(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = str(make_run("a", {"=bolt": SCORES}, model="=cmd()"))
    assert run_subcommand("leaderboard", [run, "--output", str(tmp_path / "b.csv")]) == 0
    assert capsys.readouterr().out.startswith("| rank | model |")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "b.csv").read_text()))
    assert row["model"] == "'=cmd()"  # no formula of a spreadsheet
    # what is no run is said, and the others are there all the same
    assert run_subcommand("leaderboard", [run, str(tmp_path / "b.csv"), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["unread"] == [f"{tmp_path / 'b.csv'}: is not a folder; give "
                                               "a run directory"]  # fmt: skip
    assert "b.csv: is not a folder" in shown.err
    assert run_subcommand("leaderboard", [run, "--output", "x.pdf"]) == 2
    with pytest.raises(UsageError, match=r"ending in \.md"):
        write_leaderboard(make_leaderboard([run]), tmp_path / "x.pdf")
