"""What a run leaves behind, as typed, versioned models.

Every number is finite or null; where a metric is null, `results.undefined` says why. The
JSON Schemas in `docs/schemas` are generated from these classes (`python -m pyimgano.runs
docs/schemas`), and a test holds them to it.
"""

from __future__ import annotations

import json
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
    """`text` as JSON can hold it: bytes of a file name that are no UTF-8 become \\xNN."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte either
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown_within(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {_shown_within(k): _shown_within(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown_within(item) for item in value]
    return value


#: Text that comes from outside: names of files and categories, and messages about them.
Text = Annotated[str, BeforeValidator(_shown_within)]
Plain = Annotated[dict[str, Any], BeforeValidator(_shown_within)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1)]
Status = Literal["running", "complete", "failed", "interrupted"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasuredRate(_Model):
    """False alarms on the good test images, with the exact binomial interval."""

    false_alarms: int
    good_images: int
    rate: Rate | None
    low: Rate | None = Field(description="lower end of the Clopper-Pearson interval")
    high: Rate | None
    confidence: Rate


class CalibrationReport(_Model):
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


class PixelCalibrationReport(_Model):
    """Where the threshold of pixels comes from: mean + 3 std of maps of normal images."""

    value: Number = Field(description="a pixel that scores at or above it is called defective")
    method: str = Field(description="how the maps were obtained")
    mean: Number
    std: Number
    n_images: int
    unseen: bool = Field(description="whether the detector had not seen the images")


class ClassificationMetrics(_Model):
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


class PixelMetrics(_Model):
    """Over all pixels of all readable test images, at the report's `resize`."""

    pixel_auroc: Rate | None
    pixel_average_precision: Rate | None
    aupro: Rate | None
    segf1: Rate | None = Field(description="F1 of pixels at pixel_threshold")
    spro: Rate | None = Field(
        None, description="saturated per-region overlap; only there where the dataset has it"
    )

    @model_serializer(mode="wrap")
    def _without_what_was_not_asked(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = whole(self)
        if "spro" not in self.model_fields_set:
            del fields["spro"]
        return fields


class DefectResults(_Model):
    """One kind of defect, against all good test images."""

    count: int = Field(description="test images with a score")
    auroc: Rate | None
    average_precision: Rate | None
    recall: Rate | None = Field(description="at the calibrated threshold")
    pixel_metrics: PixelMetrics | None = Field(
        description="null unless the dataset's authors report each kind apart"
    )
    undefined: dict[str, Text]


class Results(_Model):
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


class Counts(_Model):
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
    "several_pages",
]


class Problem(_Model):
    """Something wrong with one file of the dataset."""

    kind: ProblemKind
    path: Text
    message: Text


class Timings(_Model):
    """Wall-clock seconds."""

    fit_seconds: Number
    score_seconds: Number
    milliseconds_per_image: Number | None = Field(
        description="decoding, score and map of a test image, scored one after another"
    )


class Failure(_Model):
    """Why a category, or the run, has no results."""

    kind: str = Field(description="class of the error")
    message: Text


class _Asked(_Model):
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
    resize: tuple[int, int] = Field(description="height, width")


class CategoryReport(_Asked):
    """One category: a detector fitted, calibrated and measured."""

    status: Status
    score_threshold_strategy: str | None
    calibration_quantile: Rate | None
    threshold: Number | None
    calibration: CalibrationReport | None
    pixel_calibration: PixelCalibrationReport | None
    results: Results | None
    counts: Counts | None
    problems: list[Problem]
    notes: list[Text] = Field(description="what a reader of the results should know")
    detector: Plain = Field(description="parameters, backbone, weights, bank")
    timings: Timings | None
    failure: Failure | None = None


class RunFields(_Model):
    """What the top-level report of every run says of the run itself."""

    run_dir: Text | None
    pyimgano_version: str
    started_at: str = Field(description="ISO 8601 with offset")
    finished_at: str | None


class SingleReport(CategoryReport, RunFields):
    """Top-level report of a run over one category: the category's report and the run's."""

    kind: Literal["benchmark-category"] = "benchmark-category"


class SuiteReport(_Asked, RunFields):
    """Top-level report of a run over several categories."""

    kind: Literal["benchmark-suite"] = "benchmark-suite"
    status: Status
    calibration_quantile: Rate | None
    categories: list[Text]
    per_category: dict[Text, CategoryReport]
    failed_categories: list[Text]
    mean_metrics: dict[str, Number | None] = Field(
        description="over the categories in which the metric is defined"
    )
    std_metrics: dict[str, Number | None] = Field(description="population standard deviation")
    metric_categories: dict[str, int] = Field(description="over how many categories each is")
    failure: Failure | None = None


class ImageRecord(_Model):
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
    error: Text | None = None
    map: Text | None = Field(None, description="file of its anomaly map, relative to the run")


class RegionRecord(_Model):
    """A connected region of an anomaly map, in pixels of the original image."""

    box: tuple[int, int, int, int] = Field(description="x, y, width, height")
    area: int
    peak: Number
    peak_at: tuple[int, int] = Field(description="x, y")
    centroid: tuple[Number, Number] = Field(description="x, y")


class MapRecord(_Model):
    """An anomaly map: what it holds, and where it was saved."""

    path: Text | None
    shape: tuple[int, int] = Field(description="height, width of the map that was saved")
    peak: Number
    mean: Number


class WatchedFile(_Model):
    """What a watched file is known by: another size or time is another file."""

    path: Text = Field(description="relative to the watched folder, with /")
    size: int
    mtime_ns: int


class InferenceRecord(_Model):
    """A line of `pyimgano infer`; fields that were not asked for are left out."""

    index: int
    input: Text
    score: Number | None
    threshold: Number
    calibration: str = Field(description="how the normal scores of the threshold were obtained")
    pred: Literal[0, 1] | None
    error: Text | None
    remark: Text | None
    original_size: tuple[int, int] | None = Field(description="height, width")
    file: WatchedFile | None = None
    pixel_threshold: Number | None = None
    regions: list[RegionRecord] | None = None
    map: MapRecord | None = None
    overlay: Text | None = Field(None, description="file")
    mask: Text | None = Field(None, description="file")


class RunConfig(_Asked):
    """config.json: what was asked for, and what it came to."""

    pyimgano_version: str
    started_at: str
    categories: list[Text]
    allow_outside: bool
    detector_parameters: Plain = Field(description="keywords, with preset and defaults")
    calibration: str
    calibration_quantile: Rate | None
    contamination: Rate | None
    limit_train: int | None
    limit_test: int | None
    seed: int
    pixel: bool
    pixel_aupro_limit: Rate
    on_error: Literal["error", "skip"]
    per_image_jsonl: bool


#: The documents of a run, by the name of their schema file.
DOCUMENTS: dict[str, type[BaseModel]] = {
    "report.category": CategoryReport,
    "report.single": SingleReport,
    "report.suite": SuiteReport,
    "per_image": ImageRecord,
    "config": RunConfig,
    "inference": InferenceRecord,
}


def json_schemas() -> dict[str, str]:
    """File name to JSON Schema text, for every document of a run."""
    return {
        f"{name}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for name, model in DOCUMENTS.items()
    }
