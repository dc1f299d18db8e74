"""metadata.json: what a program needs to know of an exported model, and what it is."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ... import __version__
from ...calibration import float32_threshold
from ...models import Detector
from ...models.parameters import plain_value
from ...models.registry import registered_name as name_of
from ...runs.schema import Number, Plain
from .comparison import Comparison
from .formats import INPUT, Format

METADATA = "metadata.json"
#: Raised when a field changes its meaning or goes away; additions leave it alone.
EXPORT_SCHEMA_VERSION = 1

_RULE = (
    "Decode to 8-bit RGB, turned as EXIF says; of samples of 16 bits with a bit_depth, value v "
    "becomes 255 v / (2^bit_depth - 1). First resize to the lesser of old and wanted "
    "height and width, with `shrink`; then to the wanted ones, with `enlarge`. Other resizing "
    "gives other scores."
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resize(_Model):
    """How an image comes to the size of the input."""

    height: int
    width: int
    shrink: str = "cv2.INTER_AREA"
    enlarge: str = "cv2.INTER_LINEAR"
    rule: str = _RULE


class Input(_Model):
    """What the model takes."""

    name: str = INPUT
    shape: tuple[str, int, int, int] = Field(description="N is free, 1 or more")
    dtype: str = "uint8"
    layout: str = "NHWC"
    colour: str = "RGB"
    normalisation: str = "inside the model"
    resize: Resize
    bit_depth: int | None = Field(
        None,
        description="bits that count in images with 16 bits a sample; null for what each file "
        "declares, and else all 16",
    )
    original_size: tuple[int, int] | None = Field(
        description="height and width before resizing, if the model is for images of that size "
        "alone: it has a region of interest"
    )


class Output(_Model):
    """One thing that the model gives."""

    name: str
    shape: list[str | int]
    dtype: str
    meaning: str


class ModelFacts(_Model):
    """Which detector was exported."""

    name: str
    parameters: Plain
    description: Plain = Field(description="backbone with the hash of its weights, memory bank")
    calibration: Plain


class ExportedFile(_Model):
    """A file of the export, by its name."""

    bytes: int
    sha256: str


class ExportMetadata(_Model):
    """metadata.json."""

    schema_version: int = EXPORT_SCHEMA_VERSION
    kind: Literal["pyimgano-export"] = "pyimgano-export"
    format: str
    created_at: str
    model: ModelFacts
    input: Input
    outputs: list[Output]
    threshold: Number = Field(description="score >= threshold is called defective")
    threshold_in_model: Number = Field(description="the float32 that decides in the same way")
    pixel_threshold: Number | None
    engine_settings: dict[str, str] = Field(description="what the engine has to be told")
    versions: dict[str, str]
    files: dict[str, ExportedFile]
    check: Comparison


def describe_export(
    detector: Detector,
    form: Format,
    files: dict[str, ExportedFile],
    check: Comparison,
    original_size: tuple[int, int] | None,
) -> ExportMetadata:
    """Everything about an export; `files` are those written so far."""
    height, width = detector.params_.resize
    pixel = detector.pixel_calibration_
    threshold = float(detector.threshold_)
    return ExportMetadata(
        format=form.name,
        created_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        model=ModelFacts(
            name=registered_name(detector),
            parameters=_plain(vars(detector.params_)),
            description=detector.describe(),
            calibration=_plain(asdict(detector.calibration_)),
        ),
        input=Input(
            shape=("N", height, width, 3),
            resize=Resize(height=height, width=width),
            bit_depth=detector.bits_read(),
            original_size=original_size,
        ),
        outputs=[
            Output(name="score", shape=["N"], dtype="float32", meaning="higher is more anomalous"),
            Output(
                name="anomaly_map",
                shape=["N", height, width],
                dtype="float32",
                meaning="of each pixel of the resized image; at or above pixel_threshold defective",
            ),
            Output(
                name="label",
                shape=["N"],
                dtype="int64",
                meaning="0 good; 1 defective, or the score is not a number",
            ),
        ],
        threshold=threshold,
        threshold_in_model=float32_threshold(threshold),
        pixel_threshold=None if pixel is None else pixel.threshold,
        engine_settings=dict(form.settings),
        versions=_versions(),
        files=files,
        check=check,
    )


def registered_name(detector: Detector) -> str:
    """Return the name that a detector's class is registered under; else that of the class."""
    return name_of(type(detector)) or type(detector).__name__


def exported_file(path: Path) -> ExportedFile:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return ExportedFile(bytes=path.stat().st_size, sha256=digest.hexdigest())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return it as JSON can hold it; what it cannot, such as a region of interest, in its own
    words.
    """
    kinds = (str, int, float, list, tuple, dict, type(None))
    plain = {name: plain_value(value) for name, value in values.items()}
    return {k: v if isinstance(v, kinds) else repr(v) for k, v in plain.items()}


def _versions() -> dict[str, str]:
    found = {"pyimgano": __version__}
    for name in ("torch", "openvino", "onnx", "onnxruntime", "numpy", "opencv-python-headless"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
