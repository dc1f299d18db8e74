"""The JSON that clients get; its fields are described in OpenAPI with examples."""

from __future__ import annotations

import base64
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..inference.outputs import as_record
from ..models.tiled import TiledDetector
from ..runs.inference_schema import RegionRecord
from .batching import Judged
from .detectors import LoadedDetector, NamedDetector

_EXAMPLE: dict[str, Any] = {
    "request_id": "6f1c2a3e9d7b4c55a0b1e2f3d4c5b6a7",
    "detector": "lid",
    "version": "3f9ac01d77e2",
    "decision": "defective",
    "score": 41.7,
    "threshold": 29.3,
    "score_ratio": 1.423,
    "p_value": 0.0048,
    "context_share": 0.12,
    "regions": [
        {
            "box": [212, 96, 41, 33],
            "area": 902,
            "peak": 36.9,
            "peak_ratio": 1.423,
            "peak_at": [231, 110],
            "centroid": [232.4, 111.8],
        }
    ],
    "original_size": [480, 640],
    "remark": "has 2 pages, of which the first is used",
    "image_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "seconds": 0.034,
    "map": {"png": "iVBORw0KGgo=", "low": 0.4, "high": 36.9, "normal": 2.1, "line": 26.6},
    "overlay_png": "iVBORw0KGgo=",
}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MapAnswer(_Answer):
    """An anomaly map as a picture, with what its values stand for."""

    png: str = Field(
        description="base64 of a PNG of 16-bit grey, at the size of the map; a pixel of value v "
        "stands for low + (high - low) v / 65535"
    )
    low: float = Field(description="the least value of the map")
    high: float = Field(description="the largest value of the map")
    normal: float = Field(description="the value that stands for 0 times the threshold")
    line: float = Field(description="the value that stands for 1 times the threshold")


class Answer(_Answer):
    """The decision on an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    request_id: str = Field(description="the X-Request-ID of the request, or a new one")
    detector: str = Field(description="the name under which the detector is served")
    version: str = Field(description="first digits of the detector's fingerprint")
    decision: Literal["good", "defective"] = Field(
        description="defective if score >= threshold. An image without a decision is an error"
    )
    score: float = Field(description="higher is more anomalous")
    threshold: float
    score_ratio: float | None = Field(
        description="score / threshold; 1 and more is defective; null for a threshold of 0"
    )
    p_value: float | None = Field(
        description="(1 + k) / (n + 1), where k of the n normal scores of the calibration are at "
        "least as large; null where the detector had seen the images behind them"
    )
    context_share: float | None = Field(
        description="share of the score that comes from context, which the map does not show; "
        "null where it shows all of it, or no map or region was asked for"
    )
    regions: list[RegionRecord] | None = Field(
        description="regions of the map, in pixels of the image, highest peak first; an image that "
        "is called good has none; null if not asked for, or where the method has no maps"
    )
    original_size: tuple[int, int] = Field(description="height, width")
    remark: str | None = Field(
        description="what was left out of the file, and how the image is of another kind than the "
        "training images; null if neither"
    )
    image_sha256: str = Field(description="of the body of the request, in hex")
    seconds: float = Field(description="from the acceptance of the request to this answer")
    map: MapAnswer | None = Field(description="null if not asked for, or of a method without maps")
    overlay_png: str | None = Field(
        description="base64 of a PNG of the image with its map and regions; null if not asked "
        "for, or of a method without maps"
    )


class Problem(_Answer):
    """Why a request has no decision, in one line."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "the image cannot be read: not an image in a known format",
                    "request_id": "6f1c2a3e9d7b4c55a0b1e2f3d4c5b6a7",
                }
            ]
        }
    )

    error: str
    request_id: str


class DetectorAnswer(_Answer):
    """One detector of the service."""

    name: str
    ready: bool = Field(description="whether it is loaded and warmed up")
    version: str | None = Field(description="first digits of the fingerprint; null until ready")
    fingerprint: str | None = Field(
        description="SHA-256 of detector.json, in which the hashes of all other files stand"
    )
    model: str | None = Field(description="the name of the method")
    saved_at: str | None
    threshold: float | None
    calibration: str | None = Field(description="how the normal scores were obtained")
    has_maps: bool | None
    tiled: bool | None


class Ready(_Answer):
    """Whether the service decides on images, and which detectors are loaded."""

    ready: bool
    detectors: dict[str, bool]


class Health(_Answer):
    """The service runs."""

    status: Literal["ok"]
    version: str = Field(description="of pyimgano")


class Reloaded(_Answer):
    """A detector was read again."""

    detector: str
    earlier: str | None = Field(description="the version that decided until now")
    version: str = Field(description="the version that decides from now on")


def make_answer(name: str, request_id: str, judged: Judged, seconds: float) -> Answer:
    """Return the answer to a request that was judged by the detector `name`."""
    result, pictures = judged.result, judged.pictures
    assert result.score is not None and result.threshold is not None
    assert result.label is not None and result.original_size is not None
    regions = None
    if result.regions is not None and result.map_scale is not None:
        regions = [as_record(region, result.map_scale) for region in result.regions]
    shown = pictures.anomaly_map
    return Answer(
        request_id=request_id,
        detector=name,
        version=judged.loaded.version,
        decision="defective" if result.label else "good",
        score=result.score,
        threshold=result.threshold,
        score_ratio=result.score_ratio,
        p_value=result.p_value,
        context_share=result.context_share,
        regions=regions,
        original_size=result.original_size,
        remark=result.remark,
        image_sha256=judged.sha256,
        seconds=round(seconds, 6),
        map=None
        if shown is None
        else MapAnswer(
            png=_text(shown.png),
            low=shown.low,
            high=shown.high,
            normal=shown.normal,
            line=shown.line,
        ),
        overlay_png=None if pictures.overlay is None else _text(pictures.overlay),
    )


def describe(named: NamedDetector) -> DetectorAnswer:
    """Return what clients may know of a detector."""
    loaded: LoadedDetector | None = named.current
    known: dict[str, Any] = {}
    if loaded is not None:
        document = loaded.document
        known = {
            "version": loaded.version,
            "fingerprint": loaded.fingerprint,
            "model": document.model,
            "saved_at": document.saved_at,
            "threshold": document.threshold,
            "calibration": document.calibration.method,
            "has_maps": loaded.detector.has_maps,
            "tiled": isinstance(loaded.detector, TiledDetector),
        }
    empty = dict.fromkeys(DetectorAnswer.model_fields)
    return DetectorAnswer(**{**empty, **known, "name": named.source.name, "ready": bool(known)})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
