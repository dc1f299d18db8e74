"""What a run leaves behind, as typed, versioned models.

Every number is finite or null; where a metric is null, `results.undefined` says why. The
JSON Schemas in `docs/schemas` are generated from these classes (`python -m pyimgano.runs
docs/schemas`), and a test holds them to it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

#: Raised when a field changes its meaning or goes away; additions leave it alone.
SCHEMA_VERSION = 1


def shown(text: str) -> str:
    """Return `text` as JSON can hold it: bytes of a file name that are no UTF-8 become \\xNN."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte either
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown_within(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown_within(k): shown_within(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shown_within(item) for item in value]
    return value


#: Text that comes from outside: names of files and categories, and messages about them.
Text = Annotated[str, BeforeValidator(shown_within)]
Plain = Annotated[dict[str, Any], BeforeValidator(shown_within)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1)]
Status = Literal["running", "complete", "failed", "interrupted"]


class Model(BaseModel):
    """What every part of a document is: nothing unknown in it, and not to be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasuredRate(Model):
    """False alarms on the good test images, with the exact binomial interval."""

    false_alarms: int
    good_images: int
    rate: Rate | None
    low: Rate | None = Field(description="lower end of the Clopper-Pearson interval")
    high: Rate | None
    confidence: Rate


class CalibrationReport(Model):
    """The threshold block: where the threshold comes from and how far it can be trusted."""

    value: Number = Field(description="the threshold; score >= value is called defective")
    method: str = Field(description="how the normal scores were obtained")
    quantile_asked: Rate
    quantile_reached: Rate | None = Field(description="conformal rank over n + 1")
    n_scores: int
    promised_false_alarm_rate: Rate | None = Field(
        description="upper bound in expectation; null where the method can promise none"
    )
    measured_false_alarm_rate: MeasuredRate
    notes: list[str]
    tail: str = Field(
        "conformal", description="what the threshold came from: conformal, exponential or given"
    )
    tail_asked: str = "conformal"
    false_alarm_rate_bound: Rate | None = Field(
        None, description="with the probability `confidence` the rate is at most this"
    )
    confidence: Rate = 0.95
    estimate_interval: tuple[Rate, Rate] | None = Field(
        None, description="of the rate, by parametric bootstrap, where the tail was modelled"
    )
    tail_fit_p_value: Rate | None = Field(
        None, description="of the test against a heavier tail; null if none was fitted"
    )
    origin: str = Field("fit", description="where the operating point comes from")
    unseen: bool | None = Field(
        None, description="whether the detector had not seen the images behind the scores"
    )
    disturbed_score: Number | None = Field(
        None,
        description="of a slightly disturbed good image, where the threshold was raised above it",
    )
    disturbance: str | None = Field(None, description="what was done to that image")


class ShareReport(Model):
    """A count of images, their share, and its exact binomial interval."""

    events: int
    images: int
    rate: Rate | None
    low: Rate | None = Field(description="lower end of the Clopper-Pearson interval")
    high: Rate | None


class OperatingPointReport(Model):
    """What another promise would lead to; a line of the table that a user decides by."""

    asked_false_alarm_rate: Rate
    promised_false_alarm_rate: Rate | None
    false_alarm_rate_bound: Rate | None
    tail: str
    threshold: Number
    false_alarms: ShareReport = Field(description="of the good test images")
    recall: ShareReport = Field(description="of the defective test images")
    confidence: Rate


class LikenessReport(Model):
    """Whether the good test images score as the images of the calibration do."""

    good_images: int
    false_alarm_p_value: Rate | None = Field(
        description="of as many false alarms or more, if the promise holds (beta-binomial)"
    )
    rank_p_value: Rate | None = Field(
        description="one-sided Mann-Whitney test of good test scores against the calibration's"
    )
    p_value: Rate | None = Field(description="of both: twice the smaller, at most 1")
    unlike: bool = Field(description="p_value is below 0.01: the promise does not hold for them")


class ExcludedReport(Model):
    """A good image that was left out because it was a suspect."""

    path: Text
    role: Literal["train", "calibration"]
    score: Number
    reasons: list[str]


class SuspectReport(ExcludedReport):
    """A good image whose score decides the threshold or stands apart."""

    score_ratio: Number | None
    picture: Text | None = Field(description="a small copy, relative to the run")


class PixelCalibrationReport(Model):
    """Where the threshold of pixels comes from: mean + 3 std of maps of normal images."""

    value: Number = Field(description="a pixel that scores at or above it is called defective")
    method: str = Field(description="how the maps were obtained")
    mean: Number
    std: Number
    n_images: int
    unseen: bool = Field(description="whether the detector had not seen the images")


class ClassificationMetrics(Model):
    """Decisions at the calibrated threshold."""

    precision: Rate | None
    recall: Rate | None
    f1: Rate | None
    specificity: Rate | None
    accuracy: Rate | None
    tp: int | None
    tn: int | None
    fp: int | None
    fn: int | None


class PixelMetrics(Model):
    """Over all pixels of all readable test images, at the report's `resize`."""

    pixel_auroc: Rate | None
    pixel_average_precision: Rate | None
    aupro: Rate | None
    segf1: Rate | None = Field(description="F1 of pixels at pixel_threshold")
    spro: Rate | None = Field(
        None, description="saturated per-region overlap; only there where the dataset has it"
    )

    pixel_threshold: Number | None = Field(
        None, description="of pixel_segf1 and bg_fpr; the three are only there where asked for"
    )
    pixel_segf1: Rate | None = Field(
        None, description="F1 of pixels strictly above pixel_threshold"
    )
    bg_fpr: Rate | None = Field(
        None, description="share of the normal pixels strictly above pixel_threshold"
    )

    @model_serializer(mode="wrap")
    def _without_what_was_not_asked(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = whole(self)
        optional = ("spro", "pixel_threshold", "pixel_segf1", "bg_fpr")
        for name in set(optional) - self.model_fields_set:
            fields.pop(name, None)
        return fields


class DefectResults(Model):
    """One kind of defect, against all good test images."""

    count: int = Field(description="test images with a score")
    auroc: Rate | None
    average_precision: Rate | None
    recall: Rate | None = Field(description="at the calibrated threshold")
    pixel_metrics: PixelMetrics | None = Field(
        description="null unless the dataset's authors report each kind apart"
    )
    undefined: dict[str, Text]


class Results(Model):
    """All metrics of a category's test set."""

    auroc: Rate | None
    average_precision: Rate | None
    threshold: Number | None
    metrics: ClassificationMetrics
    pixel_threshold: Number | None
    pixel_metrics: PixelMetrics
    pixel_aupro_limit: Rate = Field(description="of AUPRO and sPRO")
    per_defect: dict[Text, DefectResults]
    mean_over_defects: dict[str, Rate | None] | None = Field(
        description="where the dataset's authors report it; null if a kind has none"
    )
    undefined: dict[str, Text] = Field(description="why a metric is null")


class RegionReport(Model):
    """The part of the frame that counts; nothing outside it does, in no score and no metric."""

    origin: Text = Field(description="the argument, and its file if it has one")
    sha256: str = Field(description="of the region itself, not of its file")
    share: Rate = Field(description="of the pixels at `resize` that count")


class Counts(Model):
    """How many images there were, and how many could be used."""

    train: int
    train_used: int
    train_skipped: int
    validation: int
    validation_used: int = Field(description="for the threshold")
    test: int
    test_good: int
    test_defective: int
    test_unlabelled: int
    test_unreadable: int
    masks: int = Field(description="defective test images with a usable mask")


ProblemKind = Literal[
    "unreadable_train_image",
    "unreadable_calibration_image",
    "unreadable_test_image",
    "mask_missing",
    "mask_unreadable",
    "mask_size",
    "mask_empty",
    "mask_vanishes",
    "mask_value",
    "mask_outside_roi",
    "several_pages",
]


class Problem(Model):
    """Something wrong with one file of the dataset."""

    kind: ProblemKind
    path: Text
    message: Text


class Timings(Model):
    """Wall-clock seconds, and memory; of all the report, these alone differ from run to run."""

    fit_seconds: Number
    score_seconds: Number
    milliseconds_per_image: Number | None = Field(
        description="decoding, score and map of a test image, scored one after another"
    )
    peak_memory_bytes: int | None = Field(
        None,
        description="the most that the process had held when the category was done, with whatever "
        "it did before; null where the system does not tell",
    )


class Failure(Model):
    """Why a category, or the run, has no results."""

    kind: str = Field(description="class of the error")
    message: Text
    stage: str | None = Field(
        None,
        description="what was being done: reading, fitting, calibration, saving, scoring, "
        "metrics or writing; null if it is not known",
    )
    where: str | None = Field(
        None,
        description="file:line in this package, of an error that nobody foresaw; null otherwise",
    )


class Asked(Model):
    """What every document repeats of what was asked for."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    root: Text
    split: str | None = Field(description="the authors' name for it; null if there is one only")
    own_metrics: list[str] = Field(description="the metrics that the dataset's authors report")
    category: Text
    model: str
    preset: str | None
    device: str
    resize: tuple[int, int] | None = Field(
        description="height, width; null where the training images decide and have not yet, or "
        "where the categories of a suite differ"
    )


class FittedReport(Asked):
    """One category: a detector fitted and calibrated. What was measured is its subclasses'."""

    status: Status
    score_threshold_strategy: str | None
    calibration_quantile: Rate | None
    threshold: Number | None
    calibration: CalibrationReport | None
    pixel_calibration: PixelCalibrationReport | None
    counts: Counts | None
    problems: list[Problem]
    notes: list[Text] = Field(description="what a reader of the results should know")
    detector: Plain = Field(description="parameters, backbone, weights, bank")
    roi: RegionReport | None = Field(None, description="null if the whole frame counts")
    operating_points: list[OperatingPointReport] = Field(default_factory=list)
    likeness: LikenessReport | None = Field(None, description="null without good test images")
    training_suspects: list[SuspectReport] = Field(
        default_factory=list, description="highest score first"
    )
    excluded: list[ExcludedReport] = Field(
        default_factory=list, description="suspects that were left out"
    )
    excluded_by_list: list[Text] = Field(
        default_factory=list, description="images that the user's list left out"
    )
    failure: Failure | None = None


class CategoryReport(FittedReport):
    """One category: a detector fitted, calibrated and measured."""

    results: Results | None
    timings: Timings | None
    saved_model: Text | None = Field(
        None, description="folder of the saved detector, relative to the run"
    )


class RunFields(Model):
    """What the top-level report of every run says of the run itself."""

    run_dir: Text | None
    pyimgano_version: str
    started_at: str = Field(description="ISO 8601 with offset")
    finished_at: str | None
    resumed_at: list[str] = Field(
        default_factory=list, description="when the run was taken up again after it had stopped"
    )


class MetricsOverCategories(Model):
    """Means over the categories of a run, of which there may be one.

    Reports of one category that were written before these stood in them have none.
    """

    categories: list[Text] = Field(default_factory=list)
    mean_metrics: dict[str, Number | None] = Field(
        default_factory=dict, description="over the categories in which the metric is defined"
    )
    std_metrics: dict[str, Number | None] = Field(
        default_factory=dict, description="population standard deviation"
    )
    metric_categories: dict[str, int] = Field(
        default_factory=dict, description="over how many categories each is"
    )
    metric_category_names: dict[str, list[Text]] = Field(
        default_factory=dict, description="over which categories each is"
    )


class SingleReport(CategoryReport, RunFields, MetricsOverCategories):
    """Top-level report of a run over one category: the category's report and the run's."""

    kind: Literal["benchmark-category"] = "benchmark-category"


class RecognisedReport(Model):
    """What a joint detector takes test images of one product for, where it is not named."""

    right: ShareReport = Field(description="recognised as images of the product")
    wrong: ShareReport = Field(description="recognised as images of another product")
    unknown: ShareReport = Field(description="said to be of an unknown product")
    unlike_good: ShareReport = Field(
        description="recognised, but farther from the product's good images than these from each "
        "other: they may be called defective and never good"
    )


class ProductReport(Model):
    """How a joint detector recognises one product."""

    recognised_by: int = Field(description="good images that it is recognised by")
    promised_unknown_rate: Rate | None = Field(
        description="share of its good images that may be taken for no image of it"
    )
    good: RecognisedReport
    defective: RecognisedReport
    unknown_if_left_out: ShareReport | None = Field(
        description="test images that are said to be of an unknown product by a detector of the "
        "other products alone; null where there is one other"
    )
    may_be_good_if_left_out: ShareReport | None = Field(
        description="those that such a detector might call good, as images of another product"
    )


class JointReport(Model):
    """One detector for all categories of a run, and how it recognises the product of an image."""

    products: list[Text]
    unknown_rate: Rate = Field(description="that was asked for")
    recognition_size: tuple[int, int] = Field(description="height, width")
    accuracy: ShareReport = Field(description="test images recognised as of their own product")
    unreadable: int = Field(description="test images that could not be read")
    per_product: dict[Text, ProductReport]
    saved_model: Text | None = Field(
        None, description="folder of the joint detector, relative to the run"
    )


class SuiteReport(Asked, RunFields, MetricsOverCategories):
    """Top-level report of a run over several categories."""

    kind: Literal["benchmark-suite"] = "benchmark-suite"
    status: Status
    calibration_quantile: Rate | None
    categories: list[Text]
    per_category: dict[Text, CategoryReport]
    failed_categories: list[Text]
    not_begun: list[Text] = Field(
        default_factory=list, description="those asked for that nothing was done for yet"
    )
    mean_metrics: dict[str, Number | None] = Field(
        description="over the categories in which the metric is defined"
    )
    std_metrics: dict[str, Number | None] = Field(description="population standard deviation")
    metric_categories: dict[str, int] = Field(description="over how many categories each is")
    failure: Failure | None = None
    joint: JointReport | None = Field(None, description="null unless one detector was made of all")


class ImageRecord(Model):
    """A line of per_image.jsonl."""

    index: int
    dataset: str
    category: Text
    input: Text
    y_true: Literal[0, 1] | None
    defect: Text
    score: Number | None
    threshold: Number
    pred: Literal[0, 1] | None
    score_ratio: Number | None = Field(
        None, description="score / threshold; 1 and more is defective; null for a threshold of 0"
    )
    p_value: Rate | None = Field(
        None,
        description="(1 + k) / (n + 1), where k of the n normal scores are at least as large; null "
        "where the detector had seen the images behind them",
    )
    context_share: Rate | None = Field(
        None,
        description="share of the score that comes from context, which the map does not show; null "
        "where the score comes from the map alone, or no map was made",
    )
    error: Text | None = None
    map: Text | None = Field(None, description="file of its anomaly map, relative to the run")


class TrainingScoreRecord(Model):
    """A line of training_scores.jsonl: a good image that the threshold comes from."""

    index: int = Field(description="position among the scores")
    input: Text | None = Field(description="null where the method does not say which image it is")
    role: Literal["train", "calibration"]
    score: Number = Field(description="as the calibration has it: by default without the image")
    score_ratio: Number | None = Field(None, description="score / threshold")


class CurvesDocument(Model):
    """curves.json: curves that cannot be had from per_image.jsonl."""

    schema_version: int = SCHEMA_VERSION
    pro_false_positive_rate: list[Rate] = Field(
        description="of the pixels, from 0 to the limit of AUPRO; at most 200 of the curve's points"
    )
    pro_overlap: list[Rate] = Field(description="mean over the regions, at these rates")
