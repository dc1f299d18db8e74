"""What a category's report says, and how it is gathered; the reports of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..calibration import (
    BinomialInterval,
    Likeness,
    OperatingPoint,
    ScoreScale,
    low_recall_note,
    unlike_note,
)
from ..datasets import Layout, Sample
from ..errors import DataError, ImageReadError, during
from ..evaluation import DECISION_METRICS, PIXEL_METRICS
from ..images import read_image
from ..memory import peak_memory
from ..models import Detector, ImageScore
from ..models.context_share import context_share
from ..pages import PageFacts
from ..runs import (
    MODEL_FOLDER,
    CalibrationReport,
    CategoryReport,
    Counts,
    ExcludedReport,
    ImageRecord,
    JointReport,
    LikenessReport,
    OperatingPointReport,
    PixelCalibrationReport,
    RecordWriter,
    RegionReport,
    Results,
    ShareReport,
    SingleReport,
    SuiteReport,
    SuspectReport,
    Timings,
    shown,
    write_bytes,
)
from .config import BenchmarkConfig
from .joint import join_products, measure_recognition
from .measure import Fit, Measurement, Task, measured_rate
from .run import Run, RunConfig
from .submission import Submission

if TYPE_CHECKING:
    from typing_extensions import Self

_IMAGE_METRICS = ("auroc", "average_precision")
# Suspects that a note names; all of them stand in the report.
_NAMED = 3
# Suspects of a category that have a picture, and its longer side in pixels.
_MOST_PICTURES, _SIDE = 50, 512


class CategoryReporter:
    """Gathers what the report of a category says, and writes its other files on the way.

    Attributes
    ----------
    report
        The report once it is complete.
    wants_maps
        Whether maps are wanted, whatever is measured.

    Parameters
    ----------
    run, name
        The run, and the category's name.
    """

    report: Any

    def __init__(self, run: Run[Any, Any], name: str) -> None:
        self._run, self._name = run, name
        self._files = ExitStack()
        self._task: Task
        self._detector: Any
        self._fit: Fit
        self._scale: ScoreScale
        self._records: RecordWriter | None = None
        self._page: PageFacts | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def load(self) -> Task:
        """Load the category, and note in the run that it has begun."""
        self._task = self._run.load(self._name)
        return self._task

    def create_detector(self) -> Any:
        """Make a detector to fit, and open what its scores are written to."""
        run = self._run
        self._detector = run.create_detector()
        if run.directory is not None:
            folder = run.directory.category(self._name)
            if run.config.html:
                self._page = PageFacts(folder)
            if run.config.per_image_jsonl:
                records = RecordWriter(folder / "per_image.jsonl")
                self._records = self._files.enter_context(records)
        return self._detector

    def fitted(self, fit: Fit) -> None:
        """Note that the detector is fitted."""
        self._fit = fit
        with during("saving"):
            self._scale = self._detector.score_scale()

    @property
    def wants_maps(self) -> bool:
        """Return whether `record` needs maps."""
        return self._page is not None

    def _record(
        self, sample: Sample, result: ImageScore, map_file: str | None = None
    ) -> ImageRecord:
        """Return the line of an image in per_image.jsonl."""
        score, threshold = result.score, self._detector.threshold_
        return ImageRecord(
            index=result.index,
            dataset=self._run.layout.name,
            category=self._name,
            input=str(sample.path),
            y_true=None if sample.label is None else (1 if sample.label else 0),
            defect=sample.defect,
            score=score,
            threshold=threshold,
            pred=None if score is None else (1 if score >= threshold else 0),
            score_ratio=None if score is None else self._scale.ratio(score),
            p_value=None if score is None else self._scale.p_value(score),
            context_share=context_share(self._detector, score, result.anomaly_map),
            error=None if result.error is None else result.error.reason,
            map=map_file,
        )

    def _keep_for_page(self, sample: Sample, result: ImageScore) -> None:
        if self._page is not None:
            self._page.add(sample.label, result.index, result.score, result.anomaly_map)

    def _write_page_facts(self, measured: Measurement) -> None:
        """Write what the page of the run needs of the category."""
        if self._page is None:
            return
        with during("writing"):
            self._page.write(
                self._detector.decision_scores_,
                getattr(self._detector, "decision_images_", None),
                threshold=self._detector.threshold_,
                apart=self._task.calibration_images is not None,
                pro_curve=measured.pro_curve,
            )

    def _fields(self, measured: Measurement, further: Sequence[str] = ()) -> dict[str, Any]:
        """Return the fields of the report that say how the category was fitted and calibrated.

        Pictures of suspects are saved on the way. `further` are notes on what became of the scores.
        """
        task, detector = self._task, self._detector
        assert task.category is not None
        fields = _fitted_fields(self._run, task, detector, measured)
        notes = [*task.category.notes, *self._fit.notes, *measured.notes, *further]
        if not task.test:
            notes.append(
                "there are no test images: the threshold is calibrated, nothing is measured"
            )
        notes += [
            *_region_notes(fields["roi"]),
            *detector.reading_notes_,
            *_decision_notes(detector, measured, task.excluded),
        ]
        return {
            **fields,
            "notes": notes,
            "problems": [*self._fit.problems, *measured.problems],
            "training_suspects": self._suspects(),
            "excluded_by_list": list(task.excluded),
        }

    def _suspects(self) -> list[SuspectReport]:
        directory = self._run.directory
        found = []
        for number, one in enumerate(self._detector.training_suspects_, start=1):
            picture = None
            if directory is not None and number <= _MOST_PICTURES:
                folder = directory.category(self._name) / "suspects"
                directory.require_inside(folder)
                written = _write_picture(folder, number, one.path)
                if written is not None:
                    picture = written.relative_to(directory.path).as_posix()
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


class BenchmarkReporter(CategoryReporter):
    """Gathers the report of a category of `run_benchmark`."""

    def create_detector(self) -> Any:
        """Make a detector to fit; images whose server wants one map for two are an error."""
        detector = super().create_detector()
        run = self._run
        self._submission = Submission(
            run.layout, run.root, run.directory, self._task.test, detector
        )
        return detector

    def fitted(self, fit: Fit) -> None:
        """Note that the detector is fitted, and save it where it is to be kept."""
        super().fitted(fit)
        self._saved: str | None = None
        directory = self._run.directory
        if self._run.config.joint:  # kept as one, when all are fitted
            assert isinstance(self._run, BenchmarkRun)
            self._run.products[self._name] = self._detector, self._task
        elif directory is not None and self._run.config.save_model:
            folder = directory.category(self._name) / MODEL_FOLDER
            with during("saving"):
                self._detector.save(folder)
            self._saved = folder.relative_to(directory.path).as_posix()

    @property
    def wants_maps(self) -> bool:
        """Return whether `record` needs maps."""
        return self._submission.wanted or super().wants_maps

    def record(self, sample: Sample, result: ImageScore) -> None:
        """Write what is known of a scored image."""
        saved = self._submission.save(self._detector, sample, result)
        self._keep_for_page(sample, result)
        if self._records is not None:
            self._records.write(self._record(sample, result, saved))

    def add(self, measured: Measurement) -> None:
        """Complete the report with what was measured."""
        self._submission.flush()
        self._write_page_facts(measured)
        scored = len(self._task.test) - measured.n_unreadable
        self.report = self._run.category_report(
            self._name,
            **self._fields(measured, self._submission.notes()),
            status="complete",
            results=Results.model_validate(measured.results),
            saved_model=self._saved,
            timings=Timings(
                fit_seconds=self._fit.seconds,
                score_seconds=measured.score_seconds,
                milliseconds_per_image=1e3 * measured.score_seconds / scored if scored else None,
                peak_memory_bytes=peak_memory(),
            ),
        )


class BenchmarkRun(Run[BenchmarkConfig, CategoryReport]):
    """A run of `run_benchmark`."""

    config_class = BenchmarkConfig
    config_document = RunConfig
    report_class = CategoryReport
    reporter = BenchmarkReporter

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        #: Of a joint run, the fitted detectors and what they were fitted on.
        self.products: dict[str, tuple[Detector, Task]] = {}
        self.joint: JointReport | None = None

    def join(self) -> None:
        """Make one detector of those of the categories, measure and keep it, if it is wanted."""
        if not self.config.joint:
            return
        whole = {name: one for name, one in self.products.items() if shown(name) not in self.failed}
        if len(whole) < 2:  # the report says which categories failed
            return
        with during("joining the products"):
            many = join_products(whole, self.config.on_error, self.progress)
            self.joint = measure_recognition(many, whole)
            if self.directory is not None and self.config.save_model:
                many.save(self.directory.path / MODEL_FOLDER)
                self.joint = self.joint.model_copy(update={"saved_model": MODEL_FOLDER})

    def _unmeasured(self) -> dict[str, Any]:
        return {"results": None, "timings": None}

    def _single(self, fields: dict[str, Any]) -> SingleReport:
        return SingleReport(**fields, **self._over_categories(), categories=self.names)

    def _suite(self, fields: dict[str, Any]) -> SuiteReport:
        return SuiteReport(**fields, **self._over_categories(), joint=self.joint)

    def _over_categories(self) -> dict[str, Any]:
        """Return the means over the categories, the same fields for one and for several."""
        mean, std, over = _summary(self.reports, self.layout)
        return {
            "mean_metrics": mean,
            "std_metrics": std,
            "metric_categories": {name: len(categories) for name, categories in over.items()},
            "metric_category_names": over,
        }


def _summary(
    reports: dict[str, CategoryReport], layout: Layout
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, list[str]]]:
    """Return mean and population standard deviation of each metric, and over which categories."""
    names = (*_IMAGE_METRICS, *DECISION_METRICS, *PIXEL_METRICS, *layout.own_metrics)
    values: dict[str, dict[str, float]] = {name: {} for name in (*names, "false_alarm_rate")}
    if layout.kinds_apart:
        values.update({f"{name}/mean_over_defects": {} for name in layout.own_metrics})
    for category, report in reports.items():
        for name, value in _metrics_of(report).items():
            known = values.setdefault(name, {})
            if value is not None:
                known[category] = value
    mean = {name: float(np.mean([*v.values()])) if v else None for name, v in values.items()}
    std = {name: float(np.std([*v.values()])) if v else None for name, v in values.items()}
    return mean, std, {name: list(v) for name, v in values.items()}


def _metrics_of(report: CategoryReport) -> dict[str, float | None]:
    """Return metrics by name; also `<metric>/<kind>` where kinds of defects are reported apart."""
    if report.results is None or report.calibration is None:
        return {}
    results = report.results
    found: dict[str, float | None] = {
        **{name: getattr(results, name) for name in _IMAGE_METRICS},
        **{name: getattr(results.metrics, name) for name in DECISION_METRICS},
        **results.pixel_metrics.model_dump(exclude={"pixel_threshold"}),
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


def _decision_notes(
    detector: Detector, measured: Measurement, excluded: Sequence[str]
) -> list[str]:
    """Return what a reader should know before trusting the decisions."""
    results = measured.results
    notes = [
        unlike_note(measured.likeness, measured.false_alarms),
        low_recall_note(
            measured.operating_points,
            results["metrics"]["recall"],
            results["auroc"],
            detector.threshold_,
        ),
    ]
    found = [note for note in notes if note is not None]
    suspects = detector.training_suspects_
    if suspects:
        first = ", ".join(one.path for one in suspects[:_NAMED])
        more = f" and {len(suspects) - _NAMED} more" if len(suspects) > _NAMED else ""
        found.append(
            f"{len(suspects)} good image{'s' * (len(suspects) > 1)} to look at, whose scores "
            f"decide the threshold or stand apart: {first}{more}; --exclude-suspects fits "
            "without them"
        )
    if excluded:
        plural = "s" * (len(excluded) > 1)
        found.append(
            f"{len(excluded)} training image{plural} left out by the list of images to exclude: "
            "the promised rate holds for parts like those that were kept"
        )
    return found


def _share(found: BinomialInterval) -> ShareReport:
    return ShareReport(
        events=found.events,
        images=found.trials,
        rate=found.rate,
        low=found.low,
        high=found.high,
    )


def _point(one: OperatingPoint) -> OperatingPointReport:
    return OperatingPointReport(
        asked_false_alarm_rate=one.asked,
        promised_false_alarm_rate=one.calibration.promised_false_alarm_rate,
        false_alarm_rate_bound=one.calibration.false_alarm_rate_bound,
        tail=one.calibration.tail,
        threshold=one.calibration.threshold,
        false_alarms=_share(one.false_alarms),
        recall=_share(one.recall),
        confidence=one.recall.confidence,
    )


def _likeness(found: Likeness | None) -> LikenessReport | None:
    if found is None:
        return None
    return LikenessReport(
        good_images=found.good_images,
        false_alarm_p_value=found.false_alarm_p_value,
        rank_p_value=found.rank_p_value,
        p_value=found.p_value,
        unlike=found.unlike,
    )


def _fitted_fields(
    run: Run[Any, Any], task: Task, detector: Detector, measured: Measurement
) -> dict[str, Any]:
    """Return the fields of a category's report that say how it was fitted and calibrated.

    Parameters that are None, for the method or the training images to decide, are what they
    came to.
    """
    config, category = run.config, task.category
    assert category is not None
    # a region of interest is named as it was given
    parameters = dict(vars(detector.params_))
    if "roi" in parameters:
        parameters["roi"] = detector.get_params()["roi"]
    parameters = config.plain_parameters(parameters)
    calibration = detector.calibration_
    pixels = detector.pixel_calibration_
    held_out = config.calibration == "validation"
    skipped = [one.role for one in detector.skipped_]
    region = _region(detector)
    return {
        "device": str(detector.describe().get("backbone", {}).get("device", config.device)),
        "resize": parameters["resize"],
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
            tail=calibration.tail,
            tail_asked=calibration.tail_asked,
            false_alarm_rate_bound=calibration.false_alarm_rate_bound,
            confidence=calibration.confidence,
            estimate_interval=calibration.estimate_interval,
            tail_fit_p_value=calibration.tail_fit_p_value,
            origin=calibration.origin,
            unseen=calibration.unseen,
            disturbed_score=calibration.disturbed_score,
            disturbance=calibration.disturbance,
        ),
        "operating_points": [_point(one) for one in measured.operating_points],
        "likeness": _likeness(measured.likeness),
        "excluded": [
            ExcludedReport(path=one.path, role=one.role, score=one.score, reasons=list(one.reasons))
            for one in detector.excluded_
        ],
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
        "detector": {"parameters": parameters, **detector.describe()},
    }


def _region_notes(region: RegionReport | None) -> list[str]:
    """Return what a reader should know of it."""
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


def _write_picture(folder: Path, number: int, path: str) -> Path | None:
    """Save a small JPEG of the image at `path`; None where it cannot be read again.

    Raises
    ------
    DataError
        It cannot be written.
    """
    try:
        image = read_image(path)
    except ImageReadError:
        return None
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    # a name of our own: names of files may be anything
    target = folder / f"{number:03d}.jpg"
    if not encoded:
        raise DataError(f"{target}: cannot be encoded as JPEG")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
    write_bytes(target, data.tobytes(), durable=False)
    return target
