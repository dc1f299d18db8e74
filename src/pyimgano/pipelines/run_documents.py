"""The documents of a run: reports as far as it has come, and its directory if it is saved.

What every kind of run has in common; `benchmark_documents` and `robustness_documents` add what
is theirs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from .. import __version__
from ..datasets import Category, Sample
from ..images import max_pixels
from ..models import Detector, ImageScore
from ..runs import (
    CalibrationReport,
    Counts,
    Failure,
    FittedReport,
    ImageRecord,
    PixelCalibrationReport,
    Problem,
    RecordWriter,
    RegionReport,
    RunConfig,
    RunDirectory,
    RunFields,
    Status,
    write_document,
)
from .config import BenchmarkConfig
from .opened_run import OpenedRun
from .trial import Measurement, measured_rate

Report = TypeVar("Report", bound=FittedReport)
Config = TypeVar("Config", bound=BenchmarkConfig)


class RunDocuments(ABC, Generic[Config, Report]):
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

    #: Stands in the name of the run's directory; none for a benchmark.
    kind: ClassVar[str | None] = None

    def __init__(
        self,
        config: Config,
        opened: OpenedRun,
        output_dir: str | Path | None,
    ) -> None:
        layout = opened.layout
        self.config = config
        self.keywords = opened.detector.get_params()
        self.layout = layout
        self.root = opened.root
        self.names = opened.names
        self.reports: dict[str, Report] = {}
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
                output_dir, layout.name, config.model, self.started, self.kind
            )
            self.directory.write("config.json", self._config_document())

    def record_writer(self, category: str) -> RecordWriter | None:
        """Of the category's per_image.jsonl; None if it is not wanted."""
        if self.directory is None or not self.config.per_image_jsonl:
            return None
        return RecordWriter(self.directory.category(category) / "per_image.jsonl")

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

    def fitted(
        self, category: Category, detector: Detector, measured: Measurement
    ) -> dict[str, Any]:
        """The fields of a category's report that say how it was fitted and calibrated."""
        calibration = detector.calibration_
        pixels = detector.pixel_calibration_
        held_out = self.config.calibration == "validation"
        skipped = [one.role for one in detector.skipped_]
        region = _region(detector)
        return {
            "device": str(
                detector.describe().get("backbone", {}).get("device", self.config.device)
            ),
            "score_threshold_strategy": f"{calibration.method}-quantile",
            "calibration_quantile": calibration.quantile_asked,
            "threshold": detector.threshold_,
            "calibration": CalibrationReport(
                value=calibration.threshold,
                method=calibration.method,
                quantile_asked=calibration.quantile_asked,
                quantile_reached=calibration.quantile_reached,
                n_scores=calibration.n_scores,
                promised_false_alarm_rate=calibration.promised_false_alarm_rate,
                measured_false_alarm_rate=measured_rate(measured),
                notes=list(calibration.notes),
            ),
            "pixel_calibration": None
            if pixels is None
            else PixelCalibrationReport(
                value=pixels.threshold,
                method=pixels.method,
                mean=pixels.mean,
                std=pixels.std,
                n_images=pixels.n_images,
                unseen=pixels.unseen,
            ),
            "counts": Counts(
                train=len(category.train),
                train_used=detector.n_train_,
                train_skipped=skipped.count("train"),
                validation=len(category.validation),
                validation_used=calibration.n_scores if held_out else 0,
                test=len(category.test),
                test_good=sum(sample.label == 0 for sample in category.test),
                test_defective=sum(sample.label == 1 for sample in category.test),
                test_unlabelled=sum(sample.label is None for sample in category.test),
                test_unreadable=measured.n_unreadable,
                masks=measured.n_masks,
            ),
            "roi": region,
            "detector": {"parameters": self.parameters, **detector.describe()},
        }

    @abstractmethod
    def category_report(self, name: str, **fields: Any) -> Report:
        """A category's report; what is not given is not known yet."""

    def unfinished(self, name: str, status: Status, failure: Failure | None = None) -> Report:
        """The report of a category that stopped: what was known of it stays."""
        known = self.reports.get(name)
        if known is None:
            return self.category_report(name, status=status, failure=failure)
        return known.model_copy(update={"status": status, "failure": failure})

    def _unknown(self, name: str) -> dict[str, Any]:
        """The fields of `FittedReport`, where nothing is known but what was asked for."""
        return {
            **self._asked(name),
            **dict.fromkeys(
                (
                    "score_threshold_strategy",
                    "calibration_quantile",
                    "threshold",
                    "calibration",
                    "pixel_calibration",
                    "counts",
                )
            ),
            "problems": list[Problem](),
            "notes": list[str](),
            "detector": {"parameters": self.parameters},
        }

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

    def keep(self, report: Report) -> None:
        """Take a category's report into the run, in place of an earlier one, and write it."""
        self.reports[report.category] = report
        if self.directory is not None:
            write_document(self.directory.category(report.category) / "report.json", report)

    def write(self, status: Status, failure: Failure | None = None) -> dict[str, Any]:
        """Write the top-level report as things stand; returns it as plain JSON values."""
        report = self._top_report(status, failure)
        if self.directory is not None:
            self.directory.write("report.json", report)
        return _plain_report(report)

    def finished_part(self, failure: Failure) -> dict[str, Any] | None:
        """The top-level report of a run that ends early, if a category was complete; as plain
        JSON values, not written."""
        if not any(report.status == "complete" for report in self.reports.values()):
            return None
        return _plain_report(self._top_report("failed", failure))

    def _top_report(self, status: Status, failure: Failure | None) -> RunFields:
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
            return self._single(fields)
        first = next((r for r in self.reports.values() if r.status == "complete"), None)
        fields = {
            **run,
            **self._asked(self.category),
            "status": status,
            "calibration_quantile": first.calibration_quantile if first else None,
            "categories": self.names,
            "per_category": self.reports,
            "failed_categories": self.failed,
            "failure": failure,
        }
        if first is not None:
            fields["device"] = first.device  # where it ran, which `auto` does not tell
        return self._suite(fields)

    @abstractmethod
    def _single(self, fields: dict[str, Any]) -> RunFields:
        """The top-level report of a run over one category, given all its fields."""

    @abstractmethod
    def _suite(self, fields: dict[str, Any]) -> RunFields:
        """That of several, given the fields that every kind of run has."""

    def _config_document(self) -> RunConfig:
        return RunConfig(**self._config_fields())

    def _config_fields(self) -> dict[str, Any]:
        config = self.config
        return {
            "pyimgano_version": __version__,
            "started_at": self.started.isoformat(timespec="seconds"),
            **self._asked(self.category),
            "categories": self.names,
            "allow_outside": config.allow_outside,
            "detector_parameters": self.parameters,
            "calibration": config.calibration,
            "calibration_quantile": self.parameters["calibration_quantile"],
            "contamination": self.parameters["contamination"],
            "limit_train": config.limit_train,
            "limit_test": config.limit_test,
            "seed": config.seed,
            "pixel": config.pixel,
            "pixel_aupro_limit": self.aupro_limit,
            "on_error": config.on_error,
            "per_image_jsonl": config.per_image_jsonl,
            "max_pixels": max_pixels(),
            "save_model": config.save_model,
        }


def region_notes(region: RegionReport | None) -> list[str]:
    """What a reader should know of it."""
    if region is None:
        return []
    share = f"{100 * region.share:.1f} %"
    return [f"a region of interest of {share} of the frame counts, nothing outside it"]


def _region(detector: Detector) -> RegionReport | None:
    region = detector.roi_
    if region is None:
        return None
    counted = region.counted(tuple(detector.params_.resize))
    return RegionReport(origin=region.origin, sha256=region.sha256, share=float(counted.mean()))


def _plain_report(report: RunFields) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(report.model_dump_json())
    return plain


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(parameters, default=str))
    return plain
