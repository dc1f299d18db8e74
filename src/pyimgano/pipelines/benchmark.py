"""`run_benchmark`: the whole story of a run, to be read from top to bottom."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .. import __version__
from ..datasets import Category, Layout, Sample, get_layout, limit_samples, open_root
from ..errors import PyimganoError, UsageError
from ..evaluation import DECISION_METRICS, PIXEL_METRICS
from ..models import Detector, ImageScore
from ..models.registry import create_model
from ..runs import (
    CalibrationReport,
    CategoryReport,
    Counts,
    Failure,
    ImageRecord,
    MeasuredRate,
    Problem,
    RecordWriter,
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
from .trial import Trial, run_trial

_log = logging.getLogger(__name__)

_IMAGE_METRICS = ("auroc", "average_precision")


class Listener(Protocol):
    """Told how a run goes on; what the command line's progress bar is."""

    def category_started(self, name: str, number: int, total: int) -> None: ...

    def stage(self, stage: str, done: int, total: int) -> None: ...

    def category_finished(self, report: CategoryReport) -> None: ...


def run_benchmark(
    *,
    dataset: str,
    root: str | Path | None = None,
    category: str | Sequence[str] = "all",
    model: str = "vision_patchcore",
    device: str = "cpu",
    preset: str | None = None,
    pretrained: bool = True,
    contamination: float | None = None,
    resize: tuple[int, int] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    calibration: Literal["out-of-sample", "in-sample"] = "out-of-sample",
    calibration_quantile: float | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    pixel: bool = True,
    pixel_aupro_limit: float = 0.3,
    on_error: Literal["error", "skip"] = "error",
    save_run: bool = True,
    per_image_jsonl: bool = True,
    output_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a detector over one category of a dataset, some, or all.

    Parameters
    ----------
    dataset, root
        A name of `pyimgano.datasets.list_datasets()`, and the folder it lies in; the demo
        needs none.
    category
        A name, several (a sequence, or separated by commas), or `all`.
    model, preset, model_kwargs
        A name of `pyimgano.models.list_models()`, a preset of it, and further keywords.
        What is given here beats the preset, and the preset beats the defaults.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    pretrained
        False for random weights.
    contamination, calibration, calibration_quantile
        Of the threshold: see `pyimgano.calibration`.
    resize
        (height, width) that images, maps and masks are brought to; by default (256, 256).
    limit_train, limit_test
        At most so many images a category: evenly spread, every kind of defect kept.
    seed
        Of the detector, and of the samples that the limits take.
    pixel, pixel_aupro_limit
        Whether pixel metrics are computed where masks exist, and the limit of AUPRO.
    on_error
        `error`: an unreadable training image fails its category. `skip`: it is left out.
        An unreadable test image never has a score, either way.
    save_run, output_dir, per_image_jsonl
        Whether a run directory is written, the folder it is made in (`runs`), and whether
        it holds per_image.jsonl files.
    listener
        Told of progress.

    Returns
    -------
    dict
        The top-level report (plain JSON values): that of the category, or of several, with
        `per_category`, `mean_metrics` and `std_metrics`. `run_dir` says where the run is.

    Raises
    ------
    UsageError
        An unknown name, or a value out of range.
    DataError
        A missing root, an unknown category. Where one category is asked for, also what is
        wrong with it; where several are, a failed one is a result that says so, and the
        others run.
    """
    config = BenchmarkConfig.check(
        dataset=dataset,
        category=category if isinstance(category, str) else list(category),
        model=model,
        device=device,
        preset=preset,
        pretrained=pretrained,
        contamination=contamination,
        resize=resize,
        model_kwargs=model_kwargs,
        calibration=calibration,
        calibration_quantile=calibration_quantile,
        limit_train=limit_train,
        limit_test=limit_test,
        seed=seed,
        pixel=pixel,
        pixel_aupro_limit=pixel_aupro_limit,
        on_error=on_error,
        save_run=save_run,
        per_image_jsonl=per_image_jsonl,
    )
    keywords = config.detector_keywords()
    layout = get_layout(dataset)
    folder = open_root(layout, root)
    names = _choose_categories(layout, folder, config.category)
    detector = create_model(model, **keywords)
    detector.prepare()  # a device or weights that are not there fail here, not in each category
    run = _Run(config, detector, layout, folder, names, output_dir)
    run.write("running")
    try:
        for number, name in enumerate(names, start=1):
            if listener is not None:
                listener.category_started(name, number, len(names))
            report = run.one_category(name, listener)
            if listener is not None:
                listener.category_finished(report)
        return run.write("complete" if not run.failed else "failed")
    except KeyboardInterrupt:
        run.write("interrupted")
        raise
    except Exception as error:
        run.write("failed", _failure(error))
        raise


def list_dataset_categories(*, dataset: str, root: str | Path | None = None) -> list[str]:
    """Names of a dataset's categories, sorted.

    Raises
    ------
    UsageError
        An unknown dataset, or no root where one is needed.
    DataError
        A missing root, or one without categories.
    """
    layout = get_layout(dataset)
    return layout.list_categories(open_root(layout, root))


def _choose_categories(layout: Layout, root: Path, wanted: str | list[str]) -> list[str]:
    if wanted == "all":
        return layout.list_categories(root)
    if isinstance(wanted, list):
        names = wanted
    elif wanted in layout.list_categories(root):  # also one with a comma in its name
        names = [wanted]
    else:
        names = [name.strip() for name in wanted.split(",")]
    if not names or not all(names):
        raise UsageError(
            f"category must be a name, several separated by commas, or 'all': {wanted!r}"
        )
    for name in names:
        layout.require_category(root, name)
    return list(dict.fromkeys(names))


class _Run:
    """A run in progress: its reports so far, and its directory if it is saved."""

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
        self.started = datetime.now().astimezone()
        self.parameters = _plain(self.keywords)
        self.category = (
            config.category if isinstance(config.category, str) else ",".join(config.category)
        )
        self.directory: RunDirectory | None = None
        if config.save_run:
            self.directory = RunDirectory.create(
                output_dir, layout.name, config.model, self.started
            )
            self.directory.write("config.json", self._config_document())

    # ---- one category

    def one_category(self, name: str, listener: Listener | None) -> CategoryReport:
        """Run it and write its report; of several, a failed one is a report that says so."""
        self._keep(self._report(name, status="running"))
        try:
            report = self._measure(name, listener)
        except Exception as error:  # whatever it is, it costs this category alone
            report = self._report(name, status="failed", failure=_failure(error))
            self.failed.append(name)
            if len(self.names) == 1 or isinstance(error, UsageError):
                self._keep(report)
                raise
            if not isinstance(error, PyimganoError):  # a bug of ours, or of what we stand on
                _log.exception("category %s failed", name)
        except KeyboardInterrupt:
            self._keep(self._report(name, status="interrupted"))
            raise
        self._keep(report)
        self.write("running")
        return report

    def _measure(self, name: str, listener: Listener | None) -> CategoryReport:
        config = self.config
        whole = self.layout.load(self.root, name)
        category = Category(
            name,
            limit_samples(whole.train, config.limit_train, config.seed),
            limit_samples(whole.test, config.limit_test, config.seed),
        )
        detector = create_model(config.model, **self.keywords)
        with ExitStack() as stack:
            records: RecordWriter | None = None
            if self.directory is not None and config.per_image_jsonl:
                path = self.directory.category(name) / "per_image.jsonl"
                records = stack.enter_context(RecordWriter(path))

            def record(sample: Sample, result: ImageScore) -> None:
                if records is not None:
                    records.write(self._record(name, sample, result, detector.threshold_))

            trial = run_trial(
                detector,
                [str(sample.path) for sample in category.train],
                category.test,
                pixel=config.pixel,
                pro_integration_limit=config.pixel_aupro_limit,
                on_error=config.on_error,
                on_score=record,
                progress=None if listener is None else listener.stage,
            )
        return self._finished_report(category, detector, trial)

    def _record(
        self, category: str, sample: Sample, result: ImageScore, threshold: float
    ) -> ImageRecord:
        return ImageRecord(
            index=result.index,
            dataset=self.layout.name,
            category=category,
            input=str(sample.path),
            y_true=1 if sample.label else 0,
            defect=sample.defect,
            score=result.score,
            threshold=threshold,
            pred=None if result.score is None else (1 if result.score >= threshold else 0),
            error=None if result.error is None else result.error.reason,
        )

    def _finished_report(
        self, category: Category, detector: Detector, trial: Trial
    ) -> CategoryReport:
        calibration = detector.calibration_
        measured = trial.false_alarms
        scored = len(category.test) - trial.n_unreadable
        return self._report(
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
            results=Results.model_validate(trial.results),
            counts=Counts(
                train=len(category.train),
                train_used=detector.n_train_,
                train_skipped=len(detector.skipped_),
                test=len(category.test),
                test_good=sum(not sample.label for sample in category.test),
                test_defective=sum(sample.label for sample in category.test),
                test_unreadable=trial.n_unreadable,
                masks=trial.n_masks,
            ),
            problems=trial.problems,
            detector={"parameters": self.parameters, **detector.describe()},
            timings=Timings(
                fit_seconds=trial.fit_seconds,
                score_seconds=trial.score_seconds,
                milliseconds_per_image=1e3 * trial.score_seconds / scored if scored else None,
            ),
        )

    def _report(self, name: str, **fields: Any) -> CategoryReport:
        """A category's report; what is not given is not known yet."""
        config = self.config
        unknown: dict[str, Any] = dict.fromkeys(
            (
                "score_threshold_strategy",
                "calibration_quantile",
                "threshold",
                "calibration",
                "results",
                "counts",
                "timings",
            )
        )
        common = {
            "dataset": self.layout.name,
            "root": str(self.root),
            "category": name,
            "model": config.model,
            "preset": config.preset,
            "device": config.device,
            "resize": self.parameters["resize"],
            "problems": list[Problem](),
            "detector": {"parameters": self.parameters},
        }
        return CategoryReport(**{**unknown, **common, **fields})

    def _keep(self, report: CategoryReport) -> None:
        self.reports[report.category] = report
        if self.directory is not None:
            write_document(self.directory.category(report.category) / "report.json", report)

    # ---- the run's own documents

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
        config = self.config
        if len(self.names) == 1 and self.category != "all":
            name = self.names[0]
            category = self.reports.get(name) or self._report(name, status="running")
            fields = {**category.model_dump(), **run}
            if failure is not None:
                fields["failure"] = failure
            if status != "complete":
                fields["status"] = status
            return SingleReport(**fields)
        mean, std, over = _summary(self.reports)
        first = next((r for r in self.reports.values() if r.status == "complete"), None)
        return SuiteReport(
            **run,
            status=status,
            dataset=self.layout.name,
            root=str(self.root),
            category=self.category,
            model=config.model,
            preset=config.preset,
            device=first.device if first else config.device,
            resize=self.parameters["resize"],
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
            dataset=self.layout.name,
            root=str(self.root),
            category=self.category,
            categories=self.names,
            model=config.model,
            preset=config.preset,
            device=config.device,
            resize=self.parameters["resize"],
            detector_parameters=self.parameters,
            calibration=self.parameters["calibration"],
            calibration_quantile=self.parameters["calibration_quantile"],
            contamination=self.parameters["contamination"],
            limit_train=config.limit_train,
            limit_test=config.limit_test,
            seed=config.seed,
            pixel=config.pixel,
            pixel_aupro_limit=config.pixel_aupro_limit,
            on_error=config.on_error,
            per_image_jsonl=config.per_image_jsonl,
        )


def _summary(
    reports: dict[str, CategoryReport],
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, int]]:
    """Mean, population standard deviation, and number of categories, of every metric."""
    values: dict[str, list[float]] = {
        name: [] for name in (*_IMAGE_METRICS, *DECISION_METRICS, *PIXEL_METRICS)
    }
    values["false_alarm_rate"] = []
    for report in reports.values():
        if report.results is None or report.calibration is None:
            continue
        results = report.results
        found: dict[str, float | None] = {
            **{name: getattr(results, name) for name in _IMAGE_METRICS},
            **{name: getattr(results.metrics, name) for name in DECISION_METRICS},
            **{name: getattr(results.pixel_metrics, name) for name in PIXEL_METRICS},
            "false_alarm_rate": report.calibration.measured_false_alarm_rate.rate,
        }
        for name, value in found.items():
            if value is not None:
                values[name].append(value)
    mean = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    std = {name: float(np.std(v)) if v else None for name, v in values.items()}
    return mean, std, {name: len(v) for name, v in values.items()}


def _failure(error: Exception) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error) or type(error).__name__)


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(parameters, default=str))
    return plain
