"""The documents of a run: reports as far as it has come, and its directory if it is saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..datasets import Category, Layout, Sample
from ..evaluation import DECISION_METRICS, PIXEL_METRICS
from ..models import Detector, ImageScore
from ..runs import (
    CalibrationReport,
    CategoryReport,
    Counts,
    Failure,
    ImageRecord,
    MeasuredRate,
    PixelCalibrationReport,
    Problem,
    RegionReport,
    Results,
    RunConfig,
    RunDirectory,
    SingleReport,
    Status,
    SuiteReport,
    Timings,
    write_document,
)
from .config import BenchmarkConfig
from .trial import Trial

_IMAGE_METRICS = ("auroc", "average_precision")


class RunDocuments:
    """Makes the documents of a run, and writes them if the run is saved.

    Attributes
    ----------
    names
        The categories asked for.
    reports
        The categories' reports so far, by name.
    failed
        Names of the categories that failed.
    aupro_limit
        Of AUPRO and sPRO: what was asked for, else that of the dataset's authors.
    directory
        Where the run is saved; None if it is not.
    """

    def __init__(
        self,
        config: BenchmarkConfig,
        detector: Detector,
        layout: Layout,
        root: Path,
        names: list[str],
        output_dir: str | Path | None,
    ) -> None:
        self.config = config
        self.keywords = detector.get_params()
        self.layout = layout
        self.root = root
        self.names = names
        self.reports: dict[str, CategoryReport] = {}
        self.failed: list[str] = []
        self.aupro_limit = (
            layout.aupro_limit if config.pixel_aupro_limit is None else config.pixel_aupro_limit
        )
        self.started = datetime.now().astimezone()
        # the run's word for where the threshold comes from, which a detector does not know
        self.parameters = {**_plain(self.keywords), "calibration": config.calibration}
        self.category = (
            config.category if isinstance(config.category, str) else ",".join(config.category)
        )
        self.directory: RunDirectory | None = None
        if config.save_run:
            self.directory = RunDirectory.create(
                output_dir, layout.name, config.model, self.started
            )
            self.directory.write("config.json", self._config_document())

    def record(
        self,
        category: str,
        sample: Sample,
        result: ImageScore,
        threshold: float,
        map_file: str | None = None,
    ) -> ImageRecord:
        """The line of an image in per_image.jsonl."""
        return ImageRecord(
            index=result.index,
            dataset=self.layout.name,
            category=category,
            input=str(sample.path),
            y_true=None if sample.label is None else (1 if sample.label else 0),
            defect=sample.defect,
            score=result.score,
            threshold=threshold,
            pred=None if result.score is None else (1 if result.score >= threshold else 0),
            error=None if result.error is None else result.error.reason,
            map=map_file,
        )

    def finished(
        self,
        category: Category,
        detector: Detector,
        trial: Trial,
        notes: Sequence[str],
        model: Path | None,
    ) -> CategoryReport:
        """The report of a category that was measured; `model` is where its detector lies."""
        calibration = detector.calibration_
        pixels = detector.pixel_calibration_
        held_out = self.config.calibration == "validation"
        skipped = [one.role for one in detector.skipped_]
        measured = trial.false_alarms
        scored = len(category.test) - trial.n_unreadable
        region = _region(detector)
        said = list(notes)
        if region is not None:
            said.append(
                f"a region of interest of {100 * region.share:.1f} % of the frame counts, "
                "nothing outside it"
            )
        saved = None
        if model is not None and self.directory is not None:
            saved = model.relative_to(self.directory.path).as_posix()
        return self.category_report(
            category.name,
            status="complete",
            device=str(detector.describe().get("backbone", {}).get("device", self.config.device)),
            score_threshold_strategy=f"{calibration.method}-quantile",
            calibration_quantile=calibration.quantile_asked,
            threshold=detector.threshold_,
            calibration=CalibrationReport(
                value=calibration.threshold,
                method=calibration.method,
                quantile_asked=calibration.quantile_asked,
                quantile_reached=calibration.quantile_reached,
                n_scores=calibration.n_scores,
                promised_false_alarm_rate=calibration.promised_false_alarm_rate,
                measured_false_alarm_rate=MeasuredRate(
                    false_alarms=measured.events,
                    good_images=measured.trials,
                    rate=measured.rate,
                    low=measured.low,
                    high=measured.high,
                    confidence=measured.confidence,
                ),
                notes=list(calibration.notes),
            ),
            pixel_calibration=None
            if pixels is None
            else PixelCalibrationReport(
                value=pixels.threshold,
                method=pixels.method,
                mean=pixels.mean,
                std=pixels.std,
                n_images=pixels.n_images,
                unseen=pixels.unseen,
            ),
            results=Results.model_validate(trial.results),
            counts=Counts(
                train=len(category.train),
                train_used=detector.n_train_,
                train_skipped=skipped.count("train"),
                validation=len(category.validation),
                validation_used=calibration.n_scores if held_out else 0,
                test=len(category.test),
                test_good=sum(sample.label == 0 for sample in category.test),
                test_defective=sum(sample.label == 1 for sample in category.test),
                test_unlabelled=sum(sample.label is None for sample in category.test),
                test_unreadable=trial.n_unreadable,
                masks=trial.n_masks,
            ),
            problems=trial.problems,
            notes=said,
            roi=region,
            saved_model=saved,
            detector={"parameters": self.parameters, **detector.describe()},
            timings=Timings(
                fit_seconds=trial.fit_seconds,
                score_seconds=trial.score_seconds,
                milliseconds_per_image=1e3 * trial.score_seconds / scored if scored else None,
            ),
        )

    def category_report(self, name: str, **fields: Any) -> CategoryReport:
        """A category's report; what is not given is not known yet."""
        unknown: dict[str, Any] = dict.fromkeys(
            (
                "score_threshold_strategy",
                "calibration_quantile",
                "threshold",
                "calibration",
                "pixel_calibration",
                "results",
                "counts",
                "timings",
            )
        )
        common = {
            **self._asked(name),
            "problems": list[Problem](),
            "notes": list[str](),
            "detector": {"parameters": self.parameters},
        }
        return CategoryReport(**{**unknown, **common, **fields})

    def _asked(self, category: str) -> dict[str, Any]:
        """The fields that every document begins with."""
        return {
            "dataset": self.layout.name,
            "root": str(self.root),
            "split": self.layout.split,
            "own_metrics": list(self.layout.own_metrics),
            "category": category,
            "model": self.config.model,
            "preset": self.config.preset,
            "device": self.config.device,
            "resize": self.parameters["resize"],
        }

    def keep(self, report: CategoryReport) -> None:
        """Take a category's report into the run, in place of an earlier one, and write it."""
        self.reports[report.category] = report
        if self.directory is not None:
            write_document(self.directory.category(report.category) / "report.json", report)

    def write(self, status: Status, failure: Failure | None = None) -> dict[str, Any]:
        """Write the top-level report as things stand; returns it as plain JSON values."""
        report = self._top_report(status, failure)
        if self.directory is not None:
            self.directory.write("report.json", report)
        plain: dict[str, Any] = json.loads(report.model_dump_json())
        return plain

    def _top_report(self, status: Status, failure: Failure | None) -> SingleReport | SuiteReport:
        run: dict[str, Any] = {
            "run_dir": None if self.directory is None else str(self.directory.path),
            "pyimgano_version": __version__,
            "started_at": self.started.isoformat(timespec="seconds"),
            "finished_at": None
            if status == "running"
            else datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        if len(self.names) == 1 and self.category != "all":
            name = self.names[0]
            category = self.reports.get(name) or self.category_report(name, status="running")
            fields = {**category.model_dump(), **run}
            if failure is not None:
                fields["failure"] = failure
            if status != "complete":
                fields["status"] = status
            return SingleReport(**fields)
        mean, std, over = _summary(self.reports, self.layout)
        first = next((r for r in self.reports.values() if r.status == "complete"), None)
        asked = self._asked(self.category)
        if first is not None:
            asked["device"] = first.device  # where it ran, which `auto` does not tell
        return SuiteReport(
            **run,
            **asked,
            status=status,
            calibration_quantile=first.calibration_quantile if first else None,
            categories=self.names,
            per_category=self.reports,
            failed_categories=self.failed,
            mean_metrics=mean,
            std_metrics=std,
            metric_categories=over,
            failure=failure,
        )

    def _config_document(self) -> RunConfig:
        config = self.config
        return RunConfig(
            pyimgano_version=__version__,
            started_at=self.started.isoformat(timespec="seconds"),
            **self._asked(self.category),
            categories=self.names,
            allow_outside=config.allow_outside,
            detector_parameters=self.parameters,
            calibration=config.calibration,
            calibration_quantile=self.parameters["calibration_quantile"],
            contamination=self.parameters["contamination"],
            limit_train=config.limit_train,
            limit_test=config.limit_test,
            seed=config.seed,
            pixel=config.pixel,
            pixel_aupro_limit=self.aupro_limit,
            on_error=config.on_error,
            per_image_jsonl=config.per_image_jsonl,
            save_model=config.save_model,
        )


def _region(detector: Detector) -> RegionReport | None:
    region = detector.roi_
    if region is None:
        return None
    counted = region.counted(tuple(detector.params_.resize))
    return RegionReport(origin=region.origin, sha256=region.sha256, share=float(counted.mean()))


def _summary(
    reports: dict[str, CategoryReport], layout: Layout
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, int]]:
    """Mean, population standard deviation, and number of categories, of every metric."""
    names = (*_IMAGE_METRICS, *DECISION_METRICS, *PIXEL_METRICS, *layout.own_metrics)
    values: dict[str, list[float]] = {name: [] for name in (*names, "false_alarm_rate")}
    if layout.kinds_apart:
        values.update({f"{name}/mean_over_defects": [] for name in layout.own_metrics})
    for report in reports.values():
        for name, value in _metrics_of(report).items():
            values.setdefault(name, [])
            if value is not None:
                values[name].append(value)
    mean = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    std = {name: float(np.std(v)) if v else None for name, v in values.items()}
    return mean, std, {name: len(v) for name, v in values.items()}


def _metrics_of(report: CategoryReport) -> dict[str, float | None]:
    """By name; where each kind of defect is reported apart, also `<metric>/<kind>`."""
    if report.results is None or report.calibration is None:
        return {}
    results = report.results
    found: dict[str, float | None] = {
        **{name: getattr(results, name) for name in _IMAGE_METRICS},
        **{name: getattr(results.metrics, name) for name in DECISION_METRICS},
        **results.pixel_metrics.model_dump(),
        "false_alarm_rate": report.calibration.measured_false_alarm_rate.rate,
    }
    if results.mean_over_defects is None:
        return found
    for kind, one in results.per_defect.items():
        for name in report.own_metrics:
            found[f"{name}/{kind}"] = getattr(one, name, getattr(one.pixel_metrics, name, None))
    for name in report.own_metrics:
        found[f"{name}/mean_over_defects"] = results.mean_over_defects.get(name)
    return found


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(parameters, default=str))
    return plain
