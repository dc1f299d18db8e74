"""From what was measured under each condition to what a robustness report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..calibration import clopper_pearson
from ..datasets import Sample
from ..images import get_corruption
from ..models import ImageScore
from ..runs import (
    CleanResults,
    ConditionResults,
    CorruptionResults,
    MeanCondition,
    MeanCorruption,
    MeasuredMisses,
    Problem,
    RobustnessCategoryReport,
    RobustnessMetrics,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
    RobustnessSummary,
    RobustnessTimings,
    Worst,
)
from .conditions import Condition
from .config import RobustnessConfig
from .measure import Measurement, measured_rate
from .report import CategoryReporter
from .run import RobustnessConfigDocument, Run

_Corruption = TypeVar("_Corruption", CorruptionResults, MeanCorruption)

#: By which the corruption that hurts most is chosen.
CRITERION = "balanced_accuracy"
#: Metrics that are better when they are lower.
_COSTS = frozenset({"false_alarm_rate", "missed_defect_rate"})


class RobustnessReporter(CategoryReporter):
    """Gathers the report of a category of `run_robust_benchmark`, condition by condition.

    The run has the report after each, so that what is done is not lost.

    Attributes
    ----------
    condition
        The one under which images are scored now.
    """

    condition: Condition

    @property
    def wants_maps(self) -> bool:
        """Return whether `record` needs maps: the page shows those of clean images."""
        return self.condition.corruption is None and super().wants_maps

    def record(self, sample: Sample, result: ImageScore) -> None:
        """Write what is known of a scored image."""
        condition = self.condition
        if condition.corruption is None:
            self._keep_for_page(sample, result)
        if self._records is not None:
            line = RobustnessRecord(
                **self._record(sample, result).model_dump(),
                corruption=condition.corruption,
                severity=condition.severity,
            )
            self._records.write(line)

    def add(self, measured: Measurement, milliseconds: float | None) -> None:
        """Add what was measured under the present condition, and how long an image took."""
        if self.condition.corruption is None:
            self._write_page_facts(measured)
            self._clean = _clean_results(measured)
            fields = self._fields(measured)
            fields["timings"] = RobustnessTimings(
                fit_seconds=self._fit.seconds,
                clean_milliseconds=milliseconds,
                milliseconds={},
                evaluate_seconds=measured.score_seconds,
            )
            self.report = self._run.category_report(
                self._name, **fields, status="running", clean=self._clean
            )
        else:
            self._add_corrupted(self.condition.corruption, measured, milliseconds)
        self._run.keep(self.report)  # what is done is not lost, whatever comes

    def _add_corrupted(
        self, corruption: str, measured: Measurement, milliseconds: float | None
    ) -> None:
        report: RobustnessCategoryReport = self.report
        known = report.corruptions.get(corruption)
        done = [] if known is None else known.severities
        done = [*done, _condition_results(self.condition, measured, self._clean)]
        whole = len(done) == len(report.severities)
        problems = [*report.problems, *_further(measured.problems, report.problems, self.condition)]
        assert report.timings is not None
        self.report = report.model_copy(
            update={
                "corruptions": {**report.corruptions, corruption: _results_of(done, whole)},
                "problems": problems,
                "timings": _timed(report.timings, self.condition, milliseconds, measured),
            }
        )

    def complete(self) -> None:
        """Complete the report of a category that was measured under all conditions."""
        summary = _summarize(self.report.corruptions)
        self.report = self.report.model_copy(update={"status": "complete", "summary": summary})


class RobustnessRun(Run[RobustnessConfig, RobustnessCategoryReport]):
    """A run of `run_robust_benchmark`."""

    kind = "robust"
    config_class = RobustnessConfig
    config_document = RobustnessConfigDocument
    report_class = RobustnessCategoryReport
    reporter = RobustnessReporter

    def conditions(self) -> list[Condition]:
        """Return what test images are measured under: clean first, then each corruption."""
        config = self.config
        corrupted = [
            Condition(corruption, severity, config.seed, self.root)
            for corruption in config.corruptions
            for severity in config.severities
        ]
        return [Condition(None, 0, config.seed, self.root), *corrupted]

    def _unmeasured(self) -> dict[str, Any]:
        return {
            "severities": list(self.config.severities),
            "seed": self.config.seed,
            "clean": None,
            "corruptions": {},
            "summary": None,
            "timings": None,
        }

    def _single(self, fields: dict[str, Any]) -> RobustnessSingleReport:
        clean = fields["clean"]
        metrics = (
            None if clean is None else _metrics_by_name(clean["metrics"], fields["corruptions"])
        )
        return RobustnessSingleReport(**fields, robustness=metrics)

    def _suite(self, fields: dict[str, Any]) -> RobustnessSuiteReport:
        complete = [one for one in self.reports.values() if one.status == "complete"]
        over, clean, corruptions = _mean_over_categories(complete)
        return RobustnessSuiteReport(
            **fields,
            severities=list(self.config.severities),
            seed=self.config.seed,
            metric_categories={name: len(categories) for name, categories in over.items()},
            metric_category_names=over,
            mean_clean=clean,
            mean_corruptions=corruptions,
            robustness=_metrics_by_name(
                clean, {name: one.model_dump() for name, one in corruptions.items()}
            )
            if complete
            else None,
            summary=_summarize(corruptions) if corruptions else None,
        )

    def _config_facts(self) -> dict[str, Any]:
        severities = self.config.severities
        return {
            "corruption_parameters": {
                name: [get_corruption(name).at(severity) for severity in severities]
                for name in self.config.corruptions
            }
        }


def _clean_results(measured: Measurement) -> CleanResults:
    """Return the metrics of one condition."""
    return CleanResults(**_results(measured))


def _condition_results(
    condition: Condition, measured: Measurement, clean: CleanResults
) -> ConditionResults:
    """Return the metrics of one condition, and how they differ from the clean ones."""
    assert condition.corruption is not None
    found = _results(measured)
    return ConditionResults(
        **found,
        severity=condition.severity,
        parameters=get_corruption(condition.corruption).at(condition.severity),
        delta=_difference(found["metrics"], clean.metrics),
    )


def _results_of(done: Sequence[ConditionResults], whole: bool) -> CorruptionResults:
    """Return what one corruption did; there are no means before all severities are done."""
    return CorruptionResults(
        severities=list(done),
        mean=_mean_of([one.metrics for one in done], whole),
        mean_delta=_mean_of([one.delta for one in done], whole),
    )


def _summarize(corruptions: Mapping[str, _Corruption]) -> RobustnessSummary:
    """Return what all corruptions did together, and which of them hurts most by each metric."""
    every = list(corruptions.values())
    names = list(every[0].mean) if every else []
    worst = {name: _worst(name, corruptions) for name in names}
    most = worst.get(CRITERION)
    return RobustnessSummary(
        mean=_mean_of([one.mean for one in every]),
        mean_delta=_mean_of([one.mean_delta for one in every]),
        hurts_most=None if most is None else most.corruption,
        worst=worst,
    )


def _mean_over_categories(
    reports: Sequence[RobustnessCategoryReport],
) -> tuple[dict[str, list[str]], dict[str, float | None], dict[str, MeanCorruption]]:
    """Return over which categories each metric is, its clean mean, and that of each corruption.

    A metric is over those categories that have it under every condition, so that a corruption
    is compared with the clean images of the same categories.
    """
    complete = [one for one in reports if one.clean is not None]
    names = list(dict.fromkeys(name for one in complete for name in _clean(one)))
    having = {name: [one for one in complete if _has(one, name)] for name in names}

    def mean(rows: Mapping[str, list[float | None]]) -> dict[str, float | None]:
        return {
            name: _mean_of([{name: v} for v in values])[name] if values else None
            for name, values in rows.items()
        }

    corruptions: dict[str, MeanCorruption] = {}
    for corruption in complete[0].corruptions if complete else ():

        def of(one: RobustnessCategoryReport, corruption: str = corruption) -> CorruptionResults:
            return one.corruptions[corruption]

        corruptions[corruption] = MeanCorruption(
            severities=[
                MeanCondition(
                    severity=severity,
                    metrics=mean(
                        {n: [of(c).severities[i].metrics[n] for c in having[n]] for n in names}
                    ),
                    delta=mean(
                        {n: [of(c).severities[i].delta[n] for c in having[n]] for n in names}
                    ),
                )
                for i, severity in enumerate(complete[0].severities)
            ],
            mean=mean({n: [of(c).mean[n] for c in having[n]] for n in names}),
            mean_delta=mean({n: [of(c).mean_delta[n] for c in having[n]] for n in names}),
        )
    clean = mean({n: [_clean(c)[n] for c in having[n]] for n in names})
    over = {n: [one.category for one in having[n]] for n in names}
    return over, clean, corruptions


def _metrics_by_name(
    clean: Mapping[str, float | None], corruptions: Mapping[str, Mapping[str, Any]]
) -> RobustnessMetrics:
    """Return the metrics of every condition, given those of clean images and the corruptions.

    `corruptions` are `CorruptionResults` or `MeanCorruption` as plain values.
    """
    return RobustnessMetrics(
        clean=dict(clean),
        corruptions={
            name: {f"severity_{each['severity']}": each["metrics"] for each in one["severities"]}
            for name, one in corruptions.items()
        },
    )


def _mean_of(
    rows: Sequence[Mapping[str, float | None]], whole: bool = True
) -> dict[str, float | None]:
    """Return the mean of each metric; None unless every row has it, and if not `whole`."""
    found: dict[str, float | None] = {}
    for name in rows[0] if rows else ():
        known = [value for row in rows if (value := row[name]) is not None]
        found[name] = float(np.mean(known)) if whole and len(known) == len(rows) else None
    return found


def _results(measured: Measurement) -> dict[str, Any]:
    """Return the fields of `CleanResults`."""
    results = measured.results
    counts = results["metrics"]
    alarms = measured_rate(measured)
    missed = clopper_pearson(counts["fn"], counts["tp"] + counts["fn"])
    balanced = None
    if alarms.rate is not None and missed.rate is not None:
        balanced = 1.0 - (alarms.rate + missed.rate) / 2.0
    metrics = {
        "auroc": results["auroc"],
        "average_precision": results["average_precision"],
        "false_alarm_rate": alarms.rate,
        "missed_defect_rate": missed.rate,
        CRITERION: balanced,
        **results["pixel_metrics"],
    }
    reasons = results["undefined"]
    known_by = {"false_alarm_rate": "specificity", "missed_defect_rate": "recall"}
    no_class = reasons.get("specificity") or reasons.get("recall")
    return {
        "metrics": metrics,
        "false_alarms": alarms,
        "missed_defects": MeasuredMisses(
            missed=missed.events,
            defective_images=missed.trials,
            rate=missed.rate,
            low=missed.low,
            high=missed.high,
            confidence=missed.confidence,
        ),
        "undefined": {
            name: no_class if name == CRITERION else reasons[known_by.get(name, name)]
            for name, value in metrics.items()
            if value is None
        },
    }


def _difference(
    metrics: Mapping[str, float | None], clean: Mapping[str, float | None]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        before = clean[name]
        found[name] = None if value is None or before is None else value - before
    return found


def _worst(name: str, corruptions: Mapping[str, _Corruption]) -> Worst | None:
    """Return the largest mean loss of a metric; the first among equals."""
    sign = 1.0 if name in _COSTS else -1.0
    found: Worst | None = None
    for corruption, one in corruptions.items():
        mean = one.mean_delta.get(name)
        if mean is None or sign * mean <= (0.0 if found is None else sign * found.mean_delta):
            continue
        deltas = [(each.delta[name], each.severity) for each in one.severities]
        delta, severity = max(
            ((d, s) for d, s in deltas if d is not None), key=lambda pair: sign * pair[0]
        )
        found = Worst(corruption=corruption, mean_delta=mean, severity=severity, delta=delta)
    return found


def _clean(report: RobustnessCategoryReport) -> dict[str, float | None]:
    return {} if report.clean is None else report.clean.metrics


def _has(report: RobustnessCategoryReport, name: str) -> bool:
    rows = [_clean(report), *(one.mean for one in report.corruptions.values())]
    return all(row.get(name) is not None for row in rows)


def _further(found: list[Problem], known: list[Problem], condition: Condition) -> list[Problem]:
    """Return problems that clean images, and milder severities, do not have."""
    files = {(one.kind, one.path) for one in known}
    return [
        one.model_copy(update={"message": f"under {condition}: {one.message}"})
        for one in found
        if (one.kind, one.path) not in files
    ]


def _timed(
    timings: RobustnessTimings,
    condition: Condition,
    milliseconds: float | None,
    measured: Measurement,
) -> RobustnessTimings:
    """Return the timings with those of one more condition."""
    assert condition.corruption is not None
    one = {
        **timings.milliseconds.get(condition.corruption, {}),
        str(condition.severity): milliseconds,
    }
    return timings.model_copy(
        update={
            "milliseconds": {**timings.milliseconds, condition.corruption: one},
            "evaluate_seconds": timings.evaluate_seconds + measured.score_seconds,
        }
    )
