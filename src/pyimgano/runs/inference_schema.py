"""The lines that `pyimgano infer` writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .schema import Model, Number, Rate, Text


class RegionRecord(Model):
    """A connected region of an anomaly map, in pixels of the original image."""

    box: tuple[int, int, int, int] = Field(description="x, y, width, height")
    area: int
    peak: Number
    peak_ratio: Number | None = Field(
        None, description="of the peak, as a multiple of the threshold: 1 and more is defective"
    )
    peak_at: tuple[int, int] = Field(description="x, y")
    centroid: tuple[Number, Number] = Field(description="x, y")


class MapRecord(Model):
    """An anomaly map: what it holds, and where it was saved."""

    path: Text | None
    shape: tuple[int, int] = Field(description="height, width of the map that was saved")
    peak: Number
    mean: Number


class MapFile(Model):
    """An anomaly map as a file, by the names that older scripts read."""

    path: Text | None = Field(description="null if the map was not saved")
    shape: tuple[int, int] = Field(description="height, width")
    dtype: Literal["float16", "float32"] = Field(description="of the numbers in the file")


class WatchedFile(Model):
    """What a watched file is known by: another size or time is another file."""

    path: Text = Field(description="relative to the watched folder, with /")
    size: int
    mtime_ns: int


class InferenceRecord(Model):
    """A line of `pyimgano infer`; fields that were not asked for are left out."""

    index: int
    input: Text
    score: Number | None
    threshold: Number | None = Field(
        description="null where the detector, one of somebody else's, has none"
    )
    calibration: str = Field(description="how the normal scores of the threshold were obtained")
    pred: Literal[0, 1] | None
    label: Literal[0, 1] | None = Field(None, description="the same as pred")
    score_ratio: Number | None = Field(
        None, description="score / threshold; 1 and more is defective; null for a threshold of 0"
    )
    p_value: Rate | None = Field(
        None,
        description="(1 + k) / (n + 1), where k of the n normal scores are at least as large; null "
        "where the detector had seen the images behind them",
    )
    product: Text | None = Field(
        None, description="of a detector of many products; null where it is unknown"
    )
    product_known_by: Literal["named", "recognised", "unknown"] | None = Field(
        None, description="how the product is known, of a detector of many products"
    )
    product_p_value: Rate | None = Field(
        None,
        description="share of the product's good images that are as far from the others of it; "
        "null where the product was named",
    )
    error: Text | None
    remark: Text | None
    original_size: tuple[int, int] | None = Field(description="height, width")
    file: WatchedFile | None = None
    context_share: Rate | None = Field(
        None, description="share of the score that comes from context, which the map does not show"
    )
    pixel_threshold: Number | None = Field(
        None, description="pixels of regions lie at or above it in this image's map"
    )
    regions: list[RegionRecord] | None = None
    map: MapRecord | None = None
    anomaly_map: MapFile | None = None
    overlay: Text | None = Field(None, description="file")
    mask: Text | None = Field(None, description="file")
