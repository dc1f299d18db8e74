"""The documents of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Category, Layout
from ..evaluation import DECISION_METRICS, PIXEL_METRICS
from ..models import Detector
from ..runs import CategoryReport, Results, SingleReport, SuiteReport, Timings
from .config import BenchmarkConfig
from .fitted import decision_notes, region_notes
from .run import RunConfig
from .run_documents import RunDocuments
from .trial import Trial

_IMAGE_METRICS = ("auroc", "average_precision")


class BenchmarkDocuments(RunDocuments[BenchmarkConfig, CategoryReport]):
    """`RunDocuments` of `run_benchmark`."""

    config_class = BenchmarkConfig
    config_document = RunConfig
    report_class = CategoryReport

    def finished(
        self,
        category: Category,
        detector: Detector,
        trial: Trial,
        notes: Sequence[str],
        model: Path | None,
        excluded: Sequence[str] = (),
    ) -> CategoryReport:
        """The report of a category that was measured; `model` is where its detector lies, and
        `excluded` are the training images that the user's list left out."""
        scored = len(category.test) - trial.n_unreadable
        fitted = self.fitted(category, detector, trial, excluded)
        saved = None
        if model is not None and self.directory is not None:
            saved = model.relative_to(self.directory.path).as_posix()
        return self.category_report(
            category.name,
            **fitted,
            status="complete",
            results=Results.model_validate(trial.results),
            problems=trial.problems,
            notes=[
                *notes,
                *region_notes(fitted["roi"]),
                *detector.reading_notes_,
                *decision_notes(detector, trial, excluded),
            ],
            saved_model=saved,
            timings=Timings(
                fit_seconds=trial.fit_seconds,
                score_seconds=trial.score_seconds,
                milliseconds_per_image=1e3 * trial.score_seconds / scored if scored else None,
            ),
        )

    def category_report(self, name: str, **fields: Any) -> CategoryReport:
        own: dict[str, Any] = {"results": None, "timings": None}
        return CategoryReport(**{**self._unknown(name), **own, **fields})

    def _single(self, fields: dict[str, Any]) -> SingleReport:
        return SingleReport(**fields)

    def _suite(self, fields: dict[str, Any]) -> SuiteReport:
        mean, std, over = _summary(self.reports, self.layout)
        return SuiteReport(
            **fields,
            mean_metrics=mean,
            std_metrics=std,
            metric_categories={name: len(categories) for name, categories in over.items()},
            metric_category_names=over,
        )


def _summary(
    reports: dict[str, CategoryReport], layout: Layout
) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, list[str]]]:
    """Mean and population standard deviation of every metric, and over which categories."""
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
    """By name; where each kind of defect is reported apart, also `<metric>/<kind>`."""
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
