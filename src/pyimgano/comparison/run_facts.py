"""A run as far as its directory tells of it, whatever became of it and whichever version wrote it.

Resuming a run wants every document as this program writes it. Looking at one does not: what is not
there is not known, and nothing of the rest is lost for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..metric_names import COMPARED_METRICS
from ..runs import category_folder
from ..untrusted_files import parse_json, read_regular, reason_of_failure

#: Metrics by name, in the order in which tables show them, with what tables call them.
METRICS = COMPARED_METRICS


@dataclass(frozen=True)
class ImageFacts:
    """What a run says of one test image.

    Attributes
    ----------
    key
        Its path below the dataset's root, which does not depend on where the dataset lies.
    path
        As the record has it.
    index
        Of the record.
    label
        1 defective, 0 good, None without a label.
    defect
        Its kind.
    score, threshold, pred, ratio
        As in the record; None where the image could not be read.
    map
        The file of its map, relative to the run; None unless the record names one.
    """

    key: str
    path: str
    index: int
    label: int | None
    defect: str
    score: float | None
    threshold: float | None
    pred: int | None
    ratio: float | None
    map: str | None


@dataclass(frozen=True)
class CategoryFacts:
    """What a run says of one category.

    Attributes
    ----------
    name
        As reports show it.
    status
        `complete`, `failed`, `interrupted`, `running` or `not begun`.
    why
        What went wrong, in one line; None if nothing did.
    metrics
        By the names of `METRICS`; those that are not known or not defined are None.
    images
        By key; empty without a per_image.jsonl that can be read.
    files
        Size and hash of the dataset's files by use and path; None where the run does not say.
    costs
        `fit_seconds`, `milliseconds_per_image`, `peak_memory_bytes`, `bank_rows`; those that are
        not known are None.
    normal
        Mean of the pixels of normal images' maps; None without maps.
    unreadable
        How many test images could not be read.
    """

    name: str
    status: str
    why: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    images: dict[str, ImageFacts] = field(default_factory=dict)
    files: dict[tuple[str, str], str | None] | None = None
    costs: dict[str, float | None] = field(default_factory=dict)
    normal: float | None = None
    unreadable: int = 0


@dataclass(frozen=True)
class RunFacts:
    """What a run directory says of the run.

    Attributes
    ----------
    path
        The directory, as it was given.
    dataset, split, model
        What was run on what.
    kind
        `benchmark` or `robustness`; of the latter the metrics are those of the clean images.
    status
        `complete`, `failed`, `interrupted` or `running`.
    settings
        What the results depend on: parameters of the detector and arguments of the run, by name.
    categories
        Those that were asked for, by name.
    notes
        What a reader has to know of the run: that it is not finished, what failed.
    asked
        The names of settings that were asked for as keywords of the model.
    others
        Further directories whose categories are counted to this run.
    """

    path: Path
    dataset: str
    split: str | None
    model: str
    kind: str
    status: str
    settings: dict[str, Any]
    categories: dict[str, CategoryFacts]
    notes: list[str]
    asked: frozenset[str] = frozenset()
    others: tuple[Path, ...] = ()

    @property
    def measured(self) -> dict[str, CategoryFacts]:
        """Return the categories that have metrics."""
        return {name: one for name, one in self.categories.items() if one.metrics}


def read_run_facts(path: str | Path) -> RunFacts:
    """Read what a run directory holds.

    Raises
    ------
    DataError
        It is not a run directory. A run without a report, or with damaged files, is one all the
        same: its notes say what is missing.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        raise DataError(f"{path}: {what}; give a run directory")
    if not (path / "config.json").exists() and not (path / "report.json").exists():
        raise DataError(f"{path}: is not a run directory, it has no config.json")
    notes: list[str] = []
    config = _document(path / "config.json", notes)
    report = _document(path / "report.json", notes)
    merged = {**config, **report}
    robust = "corruptions" in config or str(report.get("kind", "")).startswith("robustness")
    status = _text(report.get("status")) or "running"
    root = _text(merged.get("root")) or ""
    reports = report.get("per_category")
    if not isinstance(reports, dict):
        reports = {}
        if isinstance(report.get("category"), str):
            reports = {report["category"]: report}
    asked = merged.get("categories") or list(reports)
    names = [one for one in asked if isinstance(one, str)]
    categories = {}
    for name in dict.fromkeys([*names, *reports]):
        one = reports.get(name)
        if not isinstance(one, dict):
            # a run that was killed has reports of categories that report.json does not hold yet
            one = _document(category_folder(path, name) / "report.json", [])
        categories[name] = _category(path, name, one, root, notes)
    if status != "complete":
        done = sum(one.status == "complete" for one in categories.values())
        said = {"running": "is not finished, or was killed", "interrupted": "was interrupted"}
        notes.append(
            f"the run {said.get(status, status)}: {done} of {len(categories)} categories have "
            "results"
        )
    failure = report.get("failure")
    if isinstance(failure, dict) and not any(one.why for one in categories.values()):
        notes.append(f"the run failed: {_line(failure.get('message'))}")
    notes += [
        f"{one.name}: {one.status}: {one.why}" for one in categories.values() if one.why is not None
    ]
    notes += [
        f"{one.name}: {one.unreadable} test image{'s' * (one.unreadable > 1)} could not be read"
        for one in categories.values()
        if one.unreadable
    ]
    return RunFacts(
        path=path,
        dataset=_text(merged.get("dataset")) or "unknown",
        split=_text(merged.get("split")),
        model=_text(merged.get("model")) or "unknown",
        kind="robustness" if robust else "benchmark",
        status=status,
        settings=_settings(config, _document(path / "environment.json", [])),
        categories=categories,
        notes=notes,
        asked=frozenset(_keywords(config)),
    )


def settings_that_differ(runs: Sequence[RunFacts]) -> list[str]:
    """Return the names of the settings that tell runs apart.

    A setting that a run does not tell of, as it is of another version or model, tells nothing
    unless it is a keyword that another run was asked for.
    """
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        known = [run.settings[name] for run in runs if name in run.settings]
        missing = len(known) < len(runs)
        differ = any(value != known[0] for value in known[1:])
        if differ or (missing and any(name in run.asked for run in runs)):
            found.append(name)
    return found


def _category(
    run: Path, name: str, report: Mapping[str, Any], root: str, notes: list[str]
) -> CategoryFacts:
    if not report:
        return CategoryFacts(name, "not begun")
    status = _text(report.get("status")) or "complete"
    failure = report.get("failure")
    why = None
    if isinstance(failure, dict):
        stage = _text(failure.get("stage"))
        why = (f"while {stage}: " if stage else "") + _line(failure.get("message"))
    folder = category_folder(run, name)
    counts = _dict(report.get("counts"))
    return CategoryFacts(
        name,
        status,
        why,
        report_metrics(report),
        _images(folder / "per_image.jsonl", root, notes),
        _files(folder / "files.json"),
        report_costs(report),
        _number(_dict(report.get("pixel_calibration")).get("mean")),
        int(_number(counts.get("test_unreadable")) or 0),
    )


def report_costs(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a category cost, as its report says: see `CategoryFacts.costs`."""
    bank = _dict(_dict(report.get("detector")).get("memory_bank"))
    times = _dict(report.get("timings"))
    milliseconds = times.get("milliseconds_per_image", times.get("clean_milliseconds"))
    return {
        "fit_seconds": _number(times.get("fit_seconds")),
        "milliseconds_per_image": _number(milliseconds),
        "peak_memory_bytes": _number(times.get("peak_memory_bytes")),
        "bank_rows": _number(bank.get("size")),
    }


def report_metrics(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the `METRICS` of a category's report; an empty dictionary where it has no results."""
    clean = report.get("clean")
    if isinstance(clean, dict):  # of a robustness run
        found = _dict(clean.get("metrics"))
        missed = _number(found.get("missed_defect_rate"))
        found = {**found, "recall": None if missed is None else 1.0 - missed}
    else:
        results = _dict(report.get("results"))
        if not results:
            return {}
        calibration = _dict(report.get("calibration"))
        measured = _dict(calibration.get("measured_false_alarm_rate")).get("rate")
        decided = _dict(results.get("metrics"))
        if measured is None and _number(decided.get("specificity")) is not None:
            measured = 1.0 - float(decided["specificity"])
        found = {
            **results,
            **decided,
            **_dict(results.get("pixel_metrics")),
            "false_alarm_rate": measured,
        }
    return {name: _number(found.get(name)) for name in METRICS}


def _images(path: Path, root: str, notes: list[str]) -> dict[str, ImageFacts]:
    try:
        lines = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path}: cannot be read ({reason_of_failure(error)})")
        return {}
    found = {}
    wrong = 0
    for line in lines:
        if not line:
            continue
        try:
            record = parse_json(line)
            if record.get("corruption") is not None:  # of a robustness run
                continue
            image = _image(record, root)
        except (ValueError, TypeError, KeyError, AttributeError):
            wrong += 1
            continue
        found[image.key] = image
    if wrong:
        notes.append(f"{path}: {wrong} line{'s' * (wrong > 1)} cannot be read and were left out")
    return found


def _image(record: Mapping[str, Any], root: str) -> ImageFacts:
    path = str(record["input"])
    label = record.get("y_true")
    pred = record.get("pred")
    return ImageFacts(
        key=_below(path, root),
        path=path,
        index=int(record["index"]),
        label=None if label is None else int(label),
        defect=str(record.get("defect") or ("good" if label == 0 else "")),
        score=_number(record.get("score")),
        threshold=_number(record.get("threshold")),
        pred=None if pred is None else int(pred),
        ratio=_number(record.get("score_ratio")),
        map=_text(record.get("map")),
    )


def _below(path: str, root: str) -> str:
    path, root = path.replace("\\", "/"), root.replace("\\", "/").rstrip("/")
    return path[len(root) + 1 :] if root and path.startswith(root + "/") else path


def _files(path: Path) -> dict[tuple[str, str], str | None] | None:
    document = _document(path, [])
    files = document.get("files")
    if not isinstance(files, list):
        return None
    return {
        (str(one.get("use")), str(one.get("path"))): _text(one.get("sha256"))
        for one in files
        if isinstance(one, dict)
    }


def _settings(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results depend on, by name."""
    found = {**_keywords(config), **_dict(config.get("detector_parameters"))}
    names = ("preset", "calibration", "calibration_quantile", "calibration_tail", "contamination")
    more = ("exclude_suspects", "limit_train", "limit_test", "seed", "pixel_aupro_limit")
    found |= {name: config[name] for name in (*names, *more) if name in config}
    for name in ("pyimgano_version", "engine", "weights_sha256", "roi_sha256"):
        if name in environment:
            found[name] = environment[name]
    cpu = _dict(environment.get("cpu"))
    if cpu:
        found["cpu"] = cpu.get("model")
    return found


def _keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    asked = config.get("model_kwargs") or _dict(config.get("arguments")).get("model_kwargs")
    return _dict(asked)


def _document(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return a document; an empty one, with a note, where there is none that can be read."""
    try:
        found = parse_json(read_regular(path))
    except FileNotFoundError:
        notes.append(f"{path.name} is not there")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({reason_of_failure(error)})")
        return {}
    return found if isinstance(found, dict) else {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _line(value: Any) -> str:
    return " ".join(str(value).split())[:300]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)
