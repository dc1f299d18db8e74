"""From what was measured under each condition to what a robustness report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..calibration import clopper_pearson
from ..images import get_corruption
from ..runs import (
    CleanResults,
    ConditionResults,
    CorruptionResults,
    MeanCondition,
    MeanCorruption,
    MeasuredMisses,
    RobustnessCategoryReport,
    RobustnessMetrics,
    RobustnessSummary,
    Worst,
)
from .conditions import Condition
from .trial import Measurement, measured_rate

_Corruption = TypeVar("_Corruption", CorruptionResults, MeanCorruption)

#: By which the corruption that hurts most is chosen.
CRITERION = "balanced_accuracy"
#: Metrics that are better when they are lower.
_COSTS = frozenset({"false_alarm_rate", "missed_defect_rate"})


def clean_results(measured: Measurement) -> CleanResults:
    """The metrics of one condition."""
    return CleanResults(**_results(measured))


def condition_results(
    condition: Condition, measured: Measurement, clean: CleanResults
) -> ConditionResults:
    """The metrics of one condition, and how they differ from the clean ones."""
    assert condition.corruption is not None
    found = _results(measured)
    return ConditionResults(
        **found,
        severity=condition.severity,
        parameters=get_corruption(condition.corruption).at(condition.severity),
        delta=_difference(found["metrics"], clean.metrics),
    )


def corruption_results(done: Sequence[ConditionResults], wanted: int) -> CorruptionResults:
    """What one corruption did; there are no means before all severities are done."""
    whole = len(done) == wanted
    return CorruptionResults(
        severities=list(done),
        mean=mean_of([one.metrics for one in done], whole),
        mean_delta=mean_of([one.delta for one in done], whole),
    )


def summarize(corruptions: Mapping[str, _Corruption]) -> RobustnessSummary:
    """What all corruptions did together, and which of them hurts most by each metric."""
    every = list(corruptions.values())
    names = list(every[0].mean) if every else []
    worst = {name: _worst(name, corruptions) for name in names}
    most = worst.get(CRITERION)
    return RobustnessSummary(
        mean=mean_of([one.mean for one in every]),
        mean_delta=mean_of([one.mean_delta for one in every]),
        hurts_most=None if most is None else most.corruption,
        worst=worst,
    )


def mean_over_categories(
    reports: Sequence[RobustnessCategoryReport],
) -> tuple[dict[str, list[str]], dict[str, float | None], dict[str, MeanCorruption]]:
    """Over which categories each metric is, its clean mean, and that of each corruption.

    A metric is over those categories that have it under every condition, so that a corruption
    is compared with the clean images of the same categories.
    """
    complete = [one for one in reports if one.clean is not None]
    names = list(dict.fromkeys(name for one in complete for name in _clean(one)))
    having = {name: [one for one in complete if _has(one, name)] for name in names}

    def mean(rows: Mapping[str, list[float | None]]) -> dict[str, float | None]:
        return {
            name: mean_of([{name: v} for v in values])[name] if values else None
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


def metrics_by_name(
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


def mean_of(
    rows: Sequence[Mapping[str, float | None]], whole: bool = True
) -> dict[str, float | None]:
    """The mean of each metric; None unless every row has it, and if not `whole`."""
    found: dict[str, float | None] = {}
    for name in rows[0] if rows else ():
        known = [value for row in rows if (value := row[name]) is not None]
        found[name] = float(np.mean(known)) if whole and len(known) == len(rows) else None
    return found


def _results(measured: Measurement) -> dict[str, Any]:
    """The fields of `CleanResults`."""
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
    """The largest mean loss of a metric; the first among equals."""
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
