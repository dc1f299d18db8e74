"""report.html: one file that shows what came out of a run, made from the run's directory alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from markupsafe import Markup

from ..calibration import score_ratio
from ..errors import DataError
from ..images import limited_pixels
from ..metric_names import LOW_IS_GOOD, METRIC_NAMES, title_of
from ..runs import (
    ImageRecord,
    OperatingPointReport,
    RobustnessCategoryReport,
    SuiteReport,
    TrainingScoreRecord,
    read_map,
    write_bytes,
    write_text,
)
from ..threads import thread_count
from . import plotting, words
from .page_facts import GALLERY_SIZE, map_file
from .pictures import MapFacts, Picture, scale_of_colours, take_picture
from .rendering import render
from .run_files import AnyCategory, CategoryFiles, RunFiles, labelled, read_run

REPORT_PAGE = "report.html"

#: Bytes of a category's pictures in the page, and of those of all categories together. With its
#: plots and words a category has at most 3 MB, and a run of fifteen at most 40 MB.
CATEGORY_BYTES = 2_300_000
RUN_BYTES = 33_000_000

# Of a category; one that cannot be drawn is None.
_PLOTS = (
    *("histogram", "trade_off", "roc", "precision_recall", "pro"),
    *("drift_recall", "drift_false_alarm_rate"),
)
# Those of the table of categories.
_COLUMNS = ("auroc", "average_precision", "pixel_auroc", "aupro", "recall", "false_alarm_rate")


@dataclass(frozen=True)
class Tile:
    """One image of a gallery.

    Attributes
    ----------
    picture
        Of it.
    path, name
        Where it lies, as the run has it, and the end of that.
    kind
        Of its defect, or what else is known of it.
    ratio
        Its score as a multiple of the threshold, in words.
    called
        `defective` or `good`, by the detector; None where there is no threshold.
    score
        As a number.
    note
        What else is to be said.
    times
        Whether `ratio` is a multiple of the threshold; the score itself where there is none.
    """

    picture: Picture
    path: str
    name: str
    kind: str
    ratio: str
    called: str | None
    score: float
    note: str | None = None
    times: bool = True


@dataclass(frozen=True)
class Gallery:
    """Images that show one thing.

    Attributes
    ----------
    title, text
        What they show.
    tiles
        In the order in which they are to be looked at.
    """

    title: str
    text: str
    tiles: list[Tile]


@dataclass(frozen=True)
class _Chosen:
    """A gallery before its pictures are made."""

    title: str
    text: str
    images: Sequence[ImageRecord | TrainingScoreRecord]


def write_report_page(run: str | Path, output: str | Path | None = None) -> Path:
    """Make the page of a run and write it, as `report.html` in the run unless `output` says where.

    Parameters
    ----------
    run
        A run directory, complete or not. The images are read again from where they lie; of one
        that is not there any more the page says so.
    output
        The file to write.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    DataError
        It is not a run directory, one of its files is damaged, or the page cannot be written.
    """
    files = read_run(run)
    with limited_pixels(files.max_pixels):
        page = report_page(files)
    if output is not None:
        write_text(Path(output), page)
        return Path(output)
    target = files.path / REPORT_PAGE
    write_bytes(target, page.encode())  # in place of a link, which a run does not have
    return target


def report_page(run: RunFiles) -> str:
    """Return the page of a run as HTML."""
    report = run.report
    categories = [one.report for one in run.categories]
    share = min(CATEGORY_BYTES, RUN_BYTES // max(1, len(run.categories)))
    return render(
        "report.html",
        title=f"{report.category} · {report.dataset} · {report.model}",
        report=report,
        headline=words.headline(report, categories),
        wrongs=words.wrongs(report, categories),
        facts=_facts(run),
        tiles=_key_figures(run),
        sections=[_section(run, one, number, share) for number, one in enumerate(run.categories)],
        names=[one.name for one in run.categories],
        several=len(run.categories) > 1,
        means=_means(run),
        scale=scale_of_colours(),
        settings=_settings(run),
        environment=_environment(run),
    )


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what was run, on what."""
    report = run.report
    counts = [one.report.counts for one in run.categories if one.report.counts is not None]
    found = [
        ("Detector", report.model + (f", preset {report.preset}" if report.preset else "")),
        ("Dataset", report.dataset + (f", split {report.split}" if report.split else "")),
        ("Folder", report.root),
    ]
    if counts:
        train, test = sum(one.train_used for one in counts), sum(one.test for one in counts)
        good, bad = sum(one.test_good for one in counts), sum(one.test_defective for one in counts)
        tested = words.plural(test, "test image")
        if good or bad:
            tested += f" ({good:,} good, {bad:,} defective)"
        found.append(("Images", f"{words.plural(train, 'training image')}, {tested}"))
    if report.resize is not None:
        found.append(("Seen at", f"{report.resize[1]} x {report.resize[0]} pixels"))
    where = report.device
    if run.environment is not None:
        where += f", {run.environment.cpu.model}" if report.device == "cpu" else ""
    found.append(("Ran on", where))
    found.append(("Started", report.started_at.replace("T", " ")))
    found.append(("Program", f"pyimgano {report.pyimgano_version}"))
    return found


def _key_figures(run: RunFiles) -> list[dict[str, Any]]:
    """Return the few numbers that stand at the top."""
    complete = [one.report for one in run.categories if one.report.status == "complete"]
    if not complete:
        return []
    if len(run.categories) == 1:
        values = metrics_of(complete[0])
    else:
        gathered = [metrics_of(one) for one in complete]
        values = {}
        for name in METRIC_NAMES:
            known = [v for one in gathered if (v := one.get(name)) is not None]
            values[name] = float(np.mean(known)) if known else None
    note = "mean over the categories" if len(run.categories) > 1 else ""
    found = []
    for name in ("recall", "false_alarm_rate", "auroc", "pixel_auroc", "aupro"):
        value = values.get(name)
        if value is not None:
            found.append({"name": name, "title": title_of(name), "value": value, "note": note})
    return found


def metrics_of(report: AnyCategory) -> dict[str, float | None]:
    """Return the metrics of a category by their names in reports; of clean images, under drift."""
    if isinstance(report, RobustnessCategoryReport):
        found = dict(report.clean.metrics) if report.clean is not None else {}
        missed = found.get("missed_defect_rate")
        return {**found, "recall": None if missed is None else 1.0 - missed}
    if report.results is None:
        return {}
    results = report.results
    measured = None
    if report.calibration is not None:
        measured = report.calibration.measured_false_alarm_rate.rate
    return {
        "auroc": results.auroc,
        "average_precision": results.average_precision,
        **results.metrics.model_dump(include=set(METRIC_NAMES)),
        **results.pixel_metrics.model_dump(include=set(METRIC_NAMES)),
        "false_alarm_rate": measured,
    }


# ---- a category


def _section(run: RunFiles, files: CategoryFiles, number: int, most_bytes: int) -> dict[str, Any]:
    report = files.report
    plots: dict[str, Markup | None] = dict.fromkeys(_PLOTS)
    galleries: list[Gallery] = []
    absent: list[str] = []
    if report.threshold is not None:
        plots.update(_plots(files, number))
        chosen = _choose(files)
        galleries = _galleries(run, files, chosen, most_bytes)
        if not files.images and report.counts is not None and report.counts.test:
            absent.append(
                "The run has no per_image.jsonl, so there is nothing to show of its test images."
            )
        if not files.training:
            absent.append("The run does not hold the scores of its training images.")
        if any(not tile.picture.has_map for one in galleries[:-1] for tile in one.tiles):
            absent.append("Images without colours have no map in the run.")
    calibration = report.calibration
    return {
        "name": files.name,
        "anchor": f"category-{number}",
        "report": report,
        "sentence": words.category_sentence(report),
        "plots": plots,
        "galleries": galleries,
        "absent": absent,
        "metrics": [
            {"name": name, "title": title_of(name), "value": value, "low": name in LOW_IS_GOOD}
            for name in METRIC_NAMES
            if (value := metrics_of(report).get(name)) is not None
        ],
        "undefined": _undefined(report),
        "kinds": _kinds(report),
        "drift": _drift(report),
        "points": report.operating_points,
        "notes": [] if calibration is None else list(calibration.notes),
        "timings": _timings(report),
    }


def _undefined(report: AnyCategory) -> dict[str, str]:
    if isinstance(report, RobustnessCategoryReport):
        return dict(report.clean.undefined) if report.clean is not None else {}
    return dict(report.results.undefined) if report.results is not None else {}


def _kinds(report: AnyCategory) -> list[dict[str, Any]]:
    """Return the rows of the table by kind of defect, the worst recall first."""
    if isinstance(report, RobustnessCategoryReport) or report.results is None:
        return []
    rows = [
        {
            "kind": kind,
            "count": one.count,
            "found": None if one.recall is None else round(one.recall * one.count),
            "recall": one.recall,
            "auroc": one.auroc,
            "average_precision": one.average_precision,
        }
        for kind, one in report.results.per_defect.items()
    ]
    return sorted(rows, key=lambda row: (row["recall"] is None, row["recall"] or 0.0, row["kind"]))


def _drift(report: AnyCategory) -> list[dict[str, Any]]:
    """Return the rows of the table of corruptions; none for a benchmark."""
    if not isinstance(report, RobustnessCategoryReport):
        return []
    return [
        {"corruption": name, "severity": one.severity, "metrics": one.metrics}
        for name, corruption in report.corruptions.items()
        for one in corruption.severities
    ]


def _timings(report: AnyCategory) -> str:
    timings = report.timings
    if timings is None:
        return ""
    said = f"Fitted in {words.seconds(timings.fit_seconds)}"
    each = getattr(timings, "milliseconds_per_image", None)
    return said + ("" if each is None else f", then {each:.0f} ms an image") + "."


def _plots(files: CategoryFiles, number: int) -> dict[str, Markup]:
    report = files.report
    threshold = report.threshold
    assert threshold is not None
    good, bad = labelled(files.images, 0), labelled(files.images, 1)
    unknown = labelled(files.images, None)
    as_multiples = threshold != 0
    apart = any(one.role == "calibration" for one in files.training)
    unseen = report.calibration is None or report.calibration.unseen is not False
    trained = "good images set aside for the threshold" if apart else "training images"
    if not apart:
        trained += ", each scored without itself" if unseen else ", as the detector has seen them"

    def scores(records: Sequence[ImageRecord | TrainingScoreRecord]) -> plotting.Floats:
        values = [one.score for one in records if one.score is not None]
        if as_multiples:
            values = [v for one in values if (v := score_ratio(one, threshold)) is not None]
        return np.asarray(values, np.float64)

    found: dict[str, Markup] = {}
    if files.training or files.images:
        found["histogram"] = plotting.histogram(
            f"histogram-{number}",
            [
                (f"{len(files.training)} {trained}", "train", scores(files.training)),
                (words.plural(len(good), "good test image"), "good", scores(good)),
                (words.plural(len(bad), "defective test image"), "bad", scores(bad)),
                (
                    words.plural(len(unknown), "test image") + " without a label",
                    "other",
                    scores(unknown),
                ),
            ],
            threshold=1.0 if as_multiples else 0.0,
            unit="score as a multiple of the threshold" if as_multiples else "score",
        )
    metrics = metrics_of(report)
    if good and bad:
        decisions = plotting.Decisions(
            np.asarray([one.score for one in good], np.float64),
            np.asarray([one.score for one in bad], np.float64),
        )
        points: list[OperatingPointReport] = report.operating_points
        promised = None
        if report.calibration is not None:
            promised = report.calibration.promised_false_alarm_rate
        now = tuple(sum(one.pred == 1 for one in some) for some in (good, bad))
        found["trade_off"] = plotting.trade_off(
            f"trade-off-{number}", decisions, points, (now[0], now[1]), promised
        )
        found["roc"] = plotting.roc(f"roc-{number}", decisions, metrics.get("auroc"))
        found["precision_recall"] = plotting.precision_recall(
            f"precision-recall-{number}", decisions, metrics.get("average_precision")
        )
    if files.curves is not None:
        rates, overlap = files.curves.pro_false_positive_rate, files.curves.pro_overlap
        limit = rates[-1] if rates else 0.3
        found["pro"] = plotting.pro(f"pro-{number}", rates, overlap, limit, metrics.get("aupro"))
    if isinstance(report, RobustnessCategoryReport) and report.clean is not None:
        for name in ("recall", "false_alarm_rate"):
            source, flipped = ("missed_defect_rate", True) if name == "recall" else (name, False)
            lines = []
            for corruption, one in report.corruptions.items():
                each = [(0, report.clean.metrics.get(source))]
                each += [(c.severity, c.metrics.get(source)) for c in one.severities]
                if flipped:
                    each = [(x, None if y is None else 1.0 - y) for x, y in each]
                lines.append((corruption, each))
            if lines:
                heading = title_of(name) + " under drift"
                found[f"drift_{name}"] = plotting.drift(f"drift-{name}-{number}", lines, heading)
    return found


# ---- galleries


def _choose(files: CategoryFiles) -> list[_Chosen]:
    """Return which images the galleries show."""
    good, bad = labelled(files.images, 0), labelled(files.images, 1)
    low_first = sorted(bad, key=lambda one: (one.score, one.index))
    high_first = sorted(bad, key=lambda one: (-(one.score or 0.0), one.index))
    alarms_first = sorted(good, key=lambda one: (-(one.score or 0.0), one.index))
    found = []
    missed = [one for one in low_first if one.pred == 0]
    if missed:
        text = (
            f"{words.plural(len(missed), 'defective image is', 'defective images are')} called "
            "good; those with the lowest scores come first."
        )
        found.append(_Chosen("Worst misses", text, missed[:GALLERY_SIZE]))
    elif bad:
        text = "No defect is missed. These are the finds with the lowest scores."
        found.append(_Chosen("Weakest finds", text, low_first[: GALLERY_SIZE // 3]))
    alarms = [one for one in alarms_first if one.pred == 1]
    if alarms:
        text = (
            f"{words.plural(len(alarms), 'good image is', 'good images are')} called defective; "
            "those with the highest scores come first."
        )
        found.append(_Chosen("False alarms", text, alarms[:GALLERY_SIZE]))
    elif good:
        text = "No good image is called defective. These come closest."
        found.append(_Chosen("Closest to a false alarm", text, alarms_first[: GALLERY_SIZE // 3]))
    finds = [one for one in high_first if one.pred == 1]
    if finds:
        text = "Defects with the highest scores."
        found.append(_Chosen("Surest finds", text, finds[:GALLERY_SIZE]))
    unknown = sorted(labelled(files.images, None), key=lambda one: (-(one.score or 0.0), one.index))
    if unknown:
        text = "Test images without a label, highest score first."
        found.append(_Chosen("Highest scores", text, unknown[:GALLERY_SIZE]))
    named = [one for one in files.training if one.input is not None]
    if named:
        text = (
            "Good images that are most unlike the others, by the scores that the threshold comes "
            "from. Look for dirt, damage and wrong parts among them. They have no map: the "
            "detector has learned from them, and sees nothing unusual in what it knows."
        )
        if any(one.role == "calibration" for one in named):
            text = (
                "Good images, set aside for the threshold, that are most unlike the training "
                "images. Look for dirt, damage and wrong parts among them."
            )
        found.append(_Chosen("Training images that differ most", text, named[:GALLERY_SIZE]))
    return found


def _galleries(
    run: RunFiles, files: CategoryFiles, chosen: Sequence[_Chosen], most_bytes: int
) -> list[Gallery]:
    """Make the pictures of the galleries, with all threads; each has its share of the bytes."""
    report = files.report
    each = most_bytes // max(1, 2 * sum(len(one.images) for one in chosen))
    calibration = report.pixel_calibration
    assert report.threshold is not None
    suspects = {one.path: one for one in report.training_suspects}

    def tile(record: ImageRecord | TrainingScoreRecord) -> Tile:
        assert report.threshold is not None and record.score is not None
        shown = record.input or ""
        anomaly_map, facts, called, note = None, None, None, None
        if isinstance(record, ImageRecord):
            called = {0: "good", 1: "defective", None: None}[record.pred]
            kind = record.defect if record.y_true else "good"
            if record.y_true is None:
                kind = "no label"
            note = words.context_note(record.context_share)
            anomaly_map = _map_of(run, files, record)
            facts = MapFacts(
                record.score,
                record.threshold,
                None if calibration is None else calibration.mean,
            )
        else:
            kind = "training" if record.role == "train" else "set aside for the threshold"
            if shown in suspects:
                note = "; ".join(suspects[shown].reasons)
        picture = take_picture(
            files.paths.get(shown, shown),
            anomaly_map,
            facts,
            files.masks.get(shown, ()) if isinstance(record, ImageRecord) else (),
            most_bytes=each,
            bit_depth=run.bit_depth,
        )
        ratio = score_ratio(record.score, report.threshold)
        parts = PurePath(shown.replace("\\", "/")).parts
        return Tile(
            picture,
            shown,
            "/".join(parts[-2:]),
            kind,
            words.multiple(ratio) if ratio is not None else f"{record.score:.4g}",
            called,
            record.score,
            note,
            ratio is not None,
        )

    with ThreadPoolExecutor(thread_count(), thread_name_prefix="pictures") as pool:
        tiles = iter(list(pool.map(tile, [image for one in chosen for image in one.images])))
    return [Gallery(one.title, one.text, [next(tiles) for _ in one.images]) for one in chosen]


def _map_of(run: RunFiles, files: CategoryFiles, record: ImageRecord) -> Any:
    """Return an image's map (H, W) float32 if the run holds it, for the page or for a server."""
    places = [map_file(files.folder, record.index)]
    if record.map is not None:
        places.append(run.path / record.map)
    for place in places:
        with suppress(DataError):
            return read_map(place)
    return None


# ---- the whole run


def _means(run: RunFiles) -> dict[str, Any] | None:
    """Return the table over the categories; None where there is one."""
    if len(run.categories) < 2:
        return None
    values = [[metrics_of(one.report).get(name) for name in _COLUMNS] for one in run.categories]
    rows = [
        {
            "name": one.name,
            "anchor": f"category-{number}",
            "status": one.report.status,
            "values": values[number],
        }
        for number, one in enumerate(run.categories)
    ]
    report = run.report
    mean, spread = [], []
    for column, name in enumerate(_COLUMNS):
        if isinstance(report, SuiteReport):
            mean.append(report.mean_metrics.get(name))
            spread.append(report.std_metrics.get(name))
            continue
        known = [value for row in values if (value := row[column]) is not None]
        mean.append(float(np.mean(known)) if known else None)
        spread.append(float(np.std(known)) if known else None)
    return {
        "columns": [
            {"name": name, "title": title_of(name), "low": name in LOW_IS_GOOD} for name in _COLUMNS
        ],
        "rows": rows,
        "mean": mean,
        "std": spread,
    }


def _settings(run: RunFiles) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in sorted(run.config.items())]


def _environment(run: RunFiles) -> list[tuple[str, str]]:
    if run.environment is None:
        return []
    document = run.environment.model_dump(mode="json")
    return [(name, _plain(value)) for name, value in sorted(document.items())]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, indent=None)
