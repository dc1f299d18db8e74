"""The documents of a robustness run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calibration import ScoreScale
from ..datasets import Category, Sample
from ..images import get_corruption
from ..models import Detector, ImageScore
from ..runs import (
    CleanResults,
    ConditionResults,
    Problem,
    RobustnessCategoryReport,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
    RobustnessTimings,
)
from .conditions import Condition
from .config import RobustnessConfig
from .fitted import decision_notes, region_notes
from .robustness_results import (
    corruption_results,
    mean_over_categories,
    metrics_by_name,
    summarize,
)
from .run import RobustnessConfigDocument
from .run_documents import RunDocuments
from .trial import Measurement


class RobustnessDocuments(RunDocuments[RobustnessConfig, RobustnessCategoryReport]):
    """`RunDocuments` of `run_robust_benchmark`."""

    kind = "robust"
    config_class = RobustnessConfig
    config_document = RobustnessConfigDocument
    report_class = RobustnessCategoryReport

    def line(
        self,
        condition: Condition,
        category: str,
        sample: Sample,
        result: ImageScore,
        threshold: float,
        scale: ScoreScale | None = None,
    ) -> RobustnessRecord:
        """The line of an image under a condition in per_image.jsonl."""
        plain = self.record(category, sample, result, threshold, scale=scale)
        return RobustnessRecord(
            **plain.model_dump(), corruption=condition.corruption, severity=condition.severity
        )

    def begun(
        self,
        category: Category,
        detector: Detector,
        measured: Measurement,
        clean: CleanResults,
        problems: Sequence[Problem],
        timings: RobustnessTimings,
        excluded: Sequence[str] = (),
    ) -> RobustnessCategoryReport:
        """The report of a category that was measured on its clean images."""
        fitted = self.fitted(category, detector, measured, excluded)
        notes = [
            *category.notes,
            *region_notes(fitted["roi"]),
            *detector.reading_notes_,
            *measured.notes,
            *decision_notes(detector, measured, excluded),
        ]
        if not category.test:
            notes.append(
                "there are no test images: the threshold is calibrated, nothing is measured"
            )
        return self.category_report(
            category.name,
            **{
                **fitted,
                "status": "running",
                "clean": clean,
                "problems": list(problems),
                "notes": notes,
                "timings": timings,
            },
        )

    def added(
        self,
        report: RobustnessCategoryReport,
        corruption: str,
        done: Sequence[ConditionResults],
        problems: Sequence[Problem],
        timings: RobustnessTimings,
    ) -> RobustnessCategoryReport:
        """The report with what is known of a corruption so far."""
        results = corruption_results(done, len(self.config.severities))
        return report.model_copy(
            update={
                "corruptions": {**report.corruptions, corruption: results},
                "problems": list(problems),
                "timings": timings,
            }
        )

    def finished(self, report: RobustnessCategoryReport) -> RobustnessCategoryReport:
        """The report of a category that was measured under all conditions."""
        return report.model_copy(
            update={"status": "complete", "summary": summarize(report.corruptions)}
        )

    def category_report(self, name: str, **fields: Any) -> RobustnessCategoryReport:
        own: dict[str, Any] = {
            "severities": list(self.config.severities),
            "seed": self.config.seed,
            "clean": None,
            "corruptions": {},
            "summary": None,
            "timings": None,
        }
        return RobustnessCategoryReport(**{**self._unknown(name), **own, **fields})

    def _single(self, fields: dict[str, Any]) -> RobustnessSingleReport:
        clean = fields["clean"]
        metrics = (
            None if clean is None else metrics_by_name(clean["metrics"], fields["corruptions"])
        )
        return RobustnessSingleReport(**fields, robustness=metrics)

    def _suite(self, fields: dict[str, Any]) -> RobustnessSuiteReport:
        complete = [one for one in self.reports.values() if one.status == "complete"]
        over, clean, corruptions = mean_over_categories(complete)
        return RobustnessSuiteReport(
            **fields,
            severities=list(self.config.severities),
            seed=self.config.seed,
            metric_categories={name: len(categories) for name, categories in over.items()},
            metric_category_names=over,
            mean_clean=clean,
            mean_corruptions=corruptions,
            robustness=metrics_by_name(
                clean, {name: one.model_dump() for name, one in corruptions.items()}
            )
            if complete
            else None,
            summary=summarize(corruptions) if corruptions else None,
        )

    def _config_facts(self) -> dict[str, Any]:
        severities = self.config.severities
        return {
            "corruption_parameters": {
                name: [get_corruption(name).at(severity) for severity in severities]
                for name in self.config.corruptions
            }
        }
