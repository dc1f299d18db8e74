"""The documents of a run: reports as far as it has come, and its directory if it is saved.

What every kind of run has in common; `benchmark_documents` and `robustness_documents` add what
is theirs.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .. import __version__
from ..calibration import ScoreScale
from ..datasets import Category, Sample
from ..errors import PyimganoError, during
from ..images import max_pixels
from ..memory import one_line
from ..models import Detector, ImageScore
from ..pages import REPORT_PAGE, PageFacts, write_report_page
from ..runs import (
    EarlierRun,
    Failure,
    FilesDocument,
    FittedReport,
    ImageRecord,
    Problem,
    RecordWriter,
    ResumedSession,
    RunConfig,
    RunDirectory,
    RunFields,
    Status,
    SuspectReport,
    shown,
    write_document,
)
from .config import BenchmarkConfig
from .environment import command_line, describe_environment
from .fitted import fitted_fields, plain_parameters
from .opened_run import OpenedRun
from .suspect_pictures import MOST_PICTURES, write_picture
from .trial import Measurement

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)

Report = TypeVar("Report", bound=FittedReport)
Config = TypeVar("Config", bound=BenchmarkConfig)


class RunDocuments(ABC, Generic[Config, Report]):
    """Makes the documents of a run, and writes them if the run is saved.

    Attributes
    ----------
    names
        The categories asked for.
    reports
        The categories' reports so far, by name, in the order of `names`.
    aupro_limit
        Of AUPRO and sPRO: what was asked for, else that of the dataset's authors.
    environment
        What the run is made with; of a resumed one, what it was begun with.
    directory
        Where the run is saved; None if it is not.

    Parameters
    ----------
    config, opened
        What was asked for, and what it came to.
    output_dir, runs_dir
        The run's directory, or the folder that a named one is made in.
    directory, earlier
        Of a run to be taken up again: its directory, and what it holds. Nothing is written to it
        before `take_up`.
    """

    #: Stands in the name of the run's directory; none for a benchmark.
    kind: ClassVar[str | None] = None
    #: The arguments, and the models of config.json and of a category's report.
    config_class: ClassVar[type[BenchmarkConfig]]
    config_document: ClassVar[type[RunConfig]]
    report_class: ClassVar[type[FittedReport]]

    def __init__(
        self,
        config: Config,
        opened: OpenedRun,
        output_dir: str | Path | None = None,
        runs_dir: str | Path | None = None,
        directory: RunDirectory | None = None,
        earlier: EarlierRun[Any, Report] | None = None,
    ) -> None:
        layout = opened.layout
        self.config = config
        self.keywords = opened.keywords
        self.layout = layout
        self.root = opened.root
        self.names = opened.names
        self.reports: dict[str, Report] = {}
        self.aupro_limit = (
            layout.aupro_limit if config.pixel_aupro_limit is None else config.pixel_aupro_limit
        )
        started = datetime.now().astimezone()
        self.started_at = started.isoformat(timespec="seconds")
        self.parameters = plain_parameters(opened.detector.get_params(), config)
        self.category = opened.category
        self._writing = threading.RLock()
        self.resumed = earlier is not None
        self.directory = directory
        self.environment = describe_environment(
            opened.backbone, config.device, opened.roi_sha256, self.started_at, self.keywords
        )
        if earlier is not None:
            self.started_at = earlier.config.started_at
            known = {name: earlier.complete_report(name) for name in map(shown, self.names)}
            self.reports = {name: one for name, one in known.items() if one is not None}
        elif config.save_run:
            first = {"config.json": self.config_json(), "environment.json": self.environment}
            self.directory = (
                RunDirectory.create(runs_dir, layout.name, config.model, started, self.kind, first)
                if output_dir is None
                else RunDirectory.create_at(output_dir, first)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.directory is not None:
            self.directory.close()

    @property
    def failed(self) -> list[str]:
        """Names of the categories that failed."""
        return [name for name, one in self.reports.items() if one.status == "failed"]

    def take_up(self, earlier: EarlierRun[Any, Report], differs: list[str]) -> None:
        """Note that the run goes on, and in what it `differs` from what was begun."""
        assert self.directory is not None
        began = earlier.environment or self.environment
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        session = ResumedSession(at=at, command_line=command_line(), differs=differs)
        self.environment = began.model_copy(update={"resumed": [*began.resumed, session]})
        self.directory.sweep()
        self.directory.write("environment.json", self.environment)

    def keep_files(self, category: str, files: FilesDocument) -> None:
        """Note what a category is measured on."""
        if self.directory is None:
            return
        name = shown(category)
        write_document(self.directory.category(name) / "files.json", files)
        known = {**self.environment.dataset_fingerprints, name: files.fingerprint}
        ordered = {one: known[one] for one in map(shown, self.names) if one in known}
        self.environment = self.environment.model_copy(update={"dataset_fingerprints": ordered})
        self.directory.write("environment.json", self.environment)

    def page_facts(self, category: str) -> PageFacts | None:
        """Keeps what the page needs of a category while it is tested; None without a page."""
        if self.directory is None or not self.config.html:
            return None
        return PageFacts(self.directory.category(category))

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
        scale: ScoreScale | None = None,
    ) -> ImageRecord:
        """The line of an image in per_image.jsonl."""
        score = result.score
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
            score_ratio=None if score is None or scale is None else scale.ratio(score),
            p_value=None if score is None or scale is None else scale.p_value(score),
            error=None if result.error is None else result.error.reason,
            map=map_file,
        )

    def fitted(
        self,
        category: Category,
        detector: Detector,
        measured: Measurement,
        excluded: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The fields of a category's report that say how it was fitted and calibrated; pictures
        of suspects are saved on the way."""
        return {
            **fitted_fields(self.config, category, detector, measured),
            "training_suspects": self._suspects(category.name, detector),
            "excluded_by_list": list(excluded),
        }

    def _suspects(self, category: str, detector: Detector) -> list[SuspectReport]:
        found = []
        for number, one in enumerate(detector.training_suspects_, start=1):
            picture = None
            if self.directory is not None and number <= MOST_PICTURES:
                folder = self.directory.category(category) / "suspects"
                self.directory.require_inside(folder)
                written = write_picture(folder, number, one.path)
                if written is not None:
                    picture = written.relative_to(self.directory.path).as_posix()
            found.append(
                SuspectReport(
                    path=one.path,
                    role=one.role,
                    score=one.score,
                    score_ratio=one.score_ratio,
                    reasons=list(one.reasons),
                    picture=picture,
                )
            )
        return found

    @abstractmethod
    def category_report(self, name: str, **fields: Any) -> Report:
        """A category's report; what is not given is not known yet."""

    def unfinished(self, name: str, status: Status, failure: Failure | None = None) -> Report:
        """The report of a category that stopped: what was known of it stays."""
        known = self.reports.get(shown(name))
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
        with self._writing:
            known = {**self.reports, report.category: report}
            self.reports = {name: known[name] for name in map(shown, self.names) if name in known}
            if self.directory is not None:
                write_document(self.directory.category(report.category) / "report.json", report)

    def write(self, status: Status, failure: Failure | None = None) -> dict[str, Any]:
        """Write the top-level report as things stand; returns it as plain JSON values."""
        with self._writing:
            report = self._top_report(status, failure)
            if self.directory is not None:
                self.directory.write("report.json", report)
                if self.config.html and status in ("complete", "failed"):
                    _write_page(self.directory.path)
        return _plain_report(report)

    def finished_part(self, failure: Failure) -> dict[str, Any] | None:
        """The top-level report of a run that ends early, if a category was complete; as plain
        JSON values, not written."""
        if not any(report.status == "complete" for report in self.reports.values()):
            return None
        return _plain_report(self._top_report("failed", failure))

    def interrupt(self) -> None:
        """Write that the run was interrupted; from then on nothing is written any more.

        For a process that is about to end and cannot wait for what it is doing.
        """
        if not self._writing.acquire(timeout=1.0):
            return  # the disk does not answer
        self.end_running("interrupted")
        self.write("interrupted")  # and never released

    def end_running(self, status: Status) -> None:
        """Give the categories under way, if any, another status."""
        for name, one in list(self.reports.items()):
            if one.status == "running":
                self.keep(self.unfinished(name, status))

    def _top_report(self, status: Status, failure: Failure | None) -> RunFields:
        run: dict[str, Any] = {
            "run_dir": None if self.directory is None else str(self.directory.path),
            "pyimgano_version": __version__,
            "started_at": self.started_at,
            "finished_at": None
            if status == "running"
            else datetime.now().astimezone().isoformat(timespec="seconds"),
            "resumed_at": [session.at for session in self.environment.resumed],
        }
        if len(self.names) == 1 and self.category != "all":
            name = self.names[0]
            category = self.reports.get(shown(name)) or self.category_report(name, status="running")
            fields = {**category.model_dump(), **run}
            if failure is not None:
                fields["failure"] = failure
            if status != "complete":
                fields["status"] = status
            return self._single(fields)
        complete = [one for one in self.reports.values() if one.status == "complete"]
        first = complete[0] if complete else None
        fields = {
            **run,
            **self._asked(self.category),
            "status": status,
            "calibration_quantile": first.calibration_quantile if first else None,
            "categories": self.names,
            "per_category": self.reports,
            "failed_categories": self.failed,
            "not_begun": [name for name in map(shown, self.names) if name not in self.reports],
            "failure": failure,
        }
        if first is not None:
            fields["device"] = first.device  # where it ran, which `auto` does not tell
            if all(one.resize == first.resize for one in complete):
                fields["resize"] = first.resize
        return self._suite(fields)

    @abstractmethod
    def _single(self, fields: dict[str, Any]) -> RunFields:
        """The top-level report of a run over one category, given all its fields."""

    @abstractmethod
    def _suite(self, fields: dict[str, Any]) -> RunFields:
        """That of several, given the fields that every kind of run has."""

    def config_json(self) -> RunConfig:
        """config.json."""
        return RunConfig(**self._config_fields())

    def _config_fields(self) -> dict[str, Any]:
        config = self.config
        return {
            "pyimgano_version": __version__,
            "started_at": self.started_at,
            **self._asked(self.category),
            "categories": self.names,
            "allow_outside": config.allow_outside,
            "detector_parameters": self.parameters,
            "calibration": config.calibration,
            "calibration_quantile": self.parameters["calibration_quantile"],
            "calibration_tail": self.parameters.get("calibration_tail"),
            "exclude_suspects": config.exclude_suspects,
            "exclude": config.exclude,
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
            "arguments": config.as_json(),
        }


def write_page_facts(
    page: PageFacts, detector: Detector, measured: Measurement, apart: bool
) -> None:
    """Write what the page needs of a category that was tested; `apart` says that other images than
    the training images set the threshold."""
    with during("writing"):
        page.write(
            detector.decision_scores_,
            getattr(detector, "decision_images_", None),
            threshold=detector.threshold_,
            apart=apart,
            pro_curve=measured.pro_curve,
        )


def _write_page(run: Path) -> None:
    """Write the page of a run; where that fails the run is whole all the same, and this is said."""
    try:
        write_report_page(run)
    except Exception as error:  # whatever it is, it must not cost hours of measuring
        if not isinstance(error, PyimganoError):
            _log.exception("the page of %s failed", run)
        warnings.warn(
            f"{run / REPORT_PAGE} could not be written ({one_line(error)}); "
            "pyimgano report makes it from the run",
            stacklevel=2,
        )


def _plain_report(report: RunFields) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(report.model_dump_json())
    return plain
