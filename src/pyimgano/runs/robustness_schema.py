"""What a robustness run leaves behind: a category's or several's, by corruption and severity.

The blocks that it shares with a benchmark are those of `schema`.

`Metrics` are, by name: `auroc`, `average_precision`, `false_alarm_rate` (good test images at or
above the threshold), `missed_defect_rate` (defective ones below it), `balanced_accuracy` (1 less
the mean of these two), and the pixel metrics of a benchmark. A `delta` is the metric under
corruption less the clean one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .schema import (
    Asked,
    Failure,
    FittedReport,
    ImageRecord,
    MeasuredRate,
    Model,
    Number,
    Rate,
    RunFields,
    Status,
    Text,
)

Severity = Annotated[int, Field(ge=1, le=5)]
Metrics = dict[str, Rate | None]
Deltas = dict[str, Number | None]
Parameters = dict[str, Number]


class MeasuredMisses(Model):
    """Defects missed among the defective test images, with the exact binomial interval."""

    missed: int
    defective_images: int
    rate: Rate | None
    low: Rate | None = Field(description="lower end of the Clopper-Pearson interval")
    high: Rate | None
    confidence: Rate


class CleanResults(Model):
    """The test images as they are."""

    metrics: Metrics
    false_alarms: MeasuredRate
    missed_defects: MeasuredMisses
    undefined: dict[str, Text] = Field(description="why a metric is null")


class ConditionResults(CleanResults):
    """The test images under one corruption at one severity."""

    severity: Severity
    parameters: Parameters = Field(description="of the corruption's formula at this severity")
    delta: Deltas


class CorruptionResults(Model):
    """The test images under one corruption."""

    severities: list[ConditionResults]
    mean: Metrics = Field(description="over the severities; null unless all of them have it")
    mean_delta: Deltas


class Worst(Model):
    """The corruption under which a metric suffers most."""

    corruption: str
    mean_delta: Number = Field(description="of the metric, over the severities")
    severity: Severity = Field(description="the one with the largest loss")
    delta: Number = Field(description="of the metric, at that severity")


class RobustnessSummary(Model):
    """What the corruptions did together.

    The corruption that hurts most is the one with the largest mean drop, over the severities, of
    balanced accuracy at the fixed threshold: it weighs false alarms and missed defects alike,
    whatever the share of defects in the test set. The other metrics are ranked the same way.
    """

    mean: Metrics = Field(description="over the corruptions, of their means over the severities")
    mean_delta: Deltas
    hurts_most: str | None = Field(
        description="by balanced accuracy; null if nothing lowers it, or it is undefined"
    )
    criterion: Literal["balanced_accuracy"] = "balanced_accuracy"
    worst: dict[str, Worst | None] = Field(
        description="by metric: the largest mean loss; null if there is none"
    )


class RobustnessTimings(Model):
    """Wall clock; of all the report, this alone differs from run to run."""

    fit_seconds: Number
    clean_milliseconds: Number | None = Field(
        description="scoring an image (mean): from its pixels at `resize` to score and map, in the "
        "detector's batches; without reading, decoding, corrupting and resizing"
    )
    milliseconds: dict[str, dict[str, Number | None]] = Field(
        description="the same by corruption and severity"
    )
    evaluate_seconds: Number = Field(description="all test images under all conditions, in whole")


class RobustnessCategoryReport(FittedReport):
    """One category: a detector fitted and calibrated on clean images, and measured under drift."""

    severities: list[Severity] = Field(description="asked for")
    seed: int
    clean: CleanResults | None
    corruptions: dict[str, CorruptionResults] = Field(
        description="measured so far; all that were asked for once the status is complete"
    )
    summary: RobustnessSummary | None
    timings: RobustnessTimings | None


class RobustnessMetrics(Model):
    """The metrics of every condition, by the names that older scripts read."""

    clean: Metrics
    corruptions: dict[str, dict[str, Metrics]] = Field(
        description="by corruption, and in it by severity_1 to severity_5"
    )


class RobustnessSingleReport(RobustnessCategoryReport, RunFields):
    """Top-level report of a run over one category: the category's report and the run's."""

    kind: Literal["robustness-category"] = "robustness-category"
    robustness: RobustnessMetrics | None = Field(
        None, description="null before clean images were measured"
    )


class MeanCondition(Model):
    """One severity, over the categories."""

    severity: Severity
    metrics: Metrics
    delta: Deltas


class MeanCorruption(Model):
    """One corruption, over the categories."""

    severities: list[MeanCondition]
    mean: Metrics
    mean_delta: Deltas


class RobustnessSuiteReport(Asked, RunFields):
    """Top-level report of a run over several categories."""

    kind: Literal["robustness-suite"] = "robustness-suite"
    status: Status
    calibration_quantile: Rate | None
    severities: list[Severity]
    seed: int
    categories: list[Text]
    per_category: dict[Text, RobustnessCategoryReport]
    failed_categories: list[Text]
    not_begun: list[Text] = Field(
        default_factory=list, description="those asked for that nothing was done for yet"
    )
    metric_categories: dict[str, int] = Field(
        description="over how many categories each metric is: those that are complete and have it"
    )
    metric_category_names: dict[str, list[Text]] = Field(
        default_factory=dict, description="over which categories each is"
    )
    mean_clean: Metrics = Field(description="over these categories")
    mean_corruptions: dict[str, MeanCorruption]
    robustness: RobustnessMetrics | None = Field(
        None, description="means over the categories; null where none is complete"
    )
    summary: RobustnessSummary | None
    failure: Failure | None = None


class RobustnessRecord(ImageRecord):
    """A line of a robustness run's per_image.jsonl."""

    corruption: str | None = Field(description="null for the clean image")
    severity: int = Field(ge=0, le=5, description="0 for the clean image")
