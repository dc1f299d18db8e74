"""`detector.json`: what stands in it, and reading it without trusting it."""

from __future__ import annotations

import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..calibration import CALIBRATION_TAILS, CONFIDENCE, Calibration
from ..errors import SavedModelError
from ..foreign import parse_json, reason_of_failure

if TYPE_CHECKING:
    from .detector import SkippedImage
    from .suspects import ExcludedImage, TrainingSuspect

#: Raised when a saved detector means something else, or lacks something that is needed.
SCHEMA_VERSION = 1

DOCUMENT = "detector.json"
ARRAYS = "arrays.safetensors"
BACKBONE = "backbone.safetensors"
FILES = (DOCUMENT, ARRAYS, BACKBONE)
#: What file managers leave in folders; nobody's doing, and never opened.
DROPPINGS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})

#: No saved detector has larger files.
MAX_BYTES = 2**33
_MAX_DOCUMENT = 2**26

Number = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Side = Annotated[int, Field(ge=1)]
_Sides = Annotated[list[_Side], Field(min_length=2, max_length=2)]
_Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileFacts(_Model):
    """A file of the folder."""

    bytes: _Count
    sha256: _Hash


class WeightsFacts(_Model):
    """Where weights came from."""

    source: str = Field(description="file, package, timm or random")
    detail: str
    sha256: str | None = Field(description="of the file they were read from")


class BackboneFacts(_Model):
    """The frozen network, as `Backbone.describe` tells of it, and its weights."""

    name: str
    layers: list[str]
    engine: str
    precision: str = "float32"
    device: str
    weights: WeightsFacts
    state_sha256: _Hash = Field(description="of the weights themselves")
    file: FileFacts | None = Field(description="null if the weights are not in the folder")


class CalibrationFacts(_Model):
    """`pyimgano.calibration.Calibration`."""

    threshold: Number
    method: str
    quantile_asked: Rate
    quantile_reached: Rate
    n_scores: _Count
    promised_false_alarm_rate: Rate | None
    notes: list[str]
    # what follows is missing in documents of earlier versions
    tail: str = "conformal"
    tail_asked: str = "conformal"
    false_alarm_rate_bound: Rate | None = None
    confidence: Rate = CONFIDENCE
    estimate_interval: Annotated[list[Rate], Field(min_length=2, max_length=2)] | None = None
    tail_fit_p_value: Rate | None = None
    origin: str = "fit"
    unseen: bool | None = Field(None, description="null where an earlier version did not say")
    score_notes: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, calibration: Calibration) -> CalibrationFacts:
        facts = asdict(calibration)
        facts["notes"] = list(calibration.notes)
        facts["score_notes"] = list(calibration.score_notes)
        interval = calibration.estimate_interval
        facts["estimate_interval"] = None if interval is None else list(interval)
        return cls(**facts)

    def restored(self) -> Calibration:
        """The calibration that the facts are of.

        Raises
        ------
        ValueError
            The tail that was asked for is none that is known here.
        """
        facts = self.model_dump()
        if self.tail_asked not in CALIBRATION_TAILS:
            raise ValueError(f"calibration: an unknown tail {self.tail_asked[:80]!r}")
        for name in ("notes", "score_notes"):
            facts[name] = tuple(facts[name])
        if self.estimate_interval is not None:
            low, high = self.estimate_interval
            facts["estimate_interval"] = (low, high)
        if self.unseen is None:
            facts["unseen"] = self.promised_false_alarm_rate is not None
        return Calibration(**facts)


class PixelCalibrationFacts(_Model):
    """`pyimgano.calibration.PixelCalibration`."""

    threshold: Number
    mean: Number
    std: Annotated[Number, Field(ge=0)]
    method: str
    n_images: _Count
    unseen: bool


class SuspectFacts(_Model):
    """`TrainingSuspect` or `ExcludedImage`."""

    index: _Count
    path: str
    score: Number
    score_ratio: Number | None = None
    reasons: list[str]
    role: Literal["train", "calibration"]

    @classmethod
    def of(cls, image: TrainingSuspect | ExcludedImage) -> SuspectFacts:
        return cls(
            index=image.index,
            path=_text(image.path),
            score=image.score,
            score_ratio=getattr(image, "score_ratio", None),
            reasons=list(image.reasons),
            role=image.role,
        )


class ImageFacts(_Model):
    """`SkippedImage`."""

    index: _Count
    path: str
    reason: str
    role: Literal["train", "calibration"]

    @classmethod
    def of(cls, image: SkippedImage) -> ImageFacts:
        return cls(
            index=image.index,
            path=_text(image.path),
            reason=_text(image.reason),
            role=image.role,
        )


def _text(text: str) -> str:
    """Bytes of a file name that are no UTF-8 become \\xNN."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte either
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


class SeenFacts(_Model):
    """`pyimgano.models.seen_images.SeenImages`."""

    images: _Count
    distinct: _Count
    narrowest: Annotated[Number, Field(gt=0)]
    widest: Annotated[Number, Field(gt=0)]
    least_colour: Annotated[Number, Field(ge=0)]
    most_colour: Annotated[Number, Field(ge=0)]


class TileFacts(_Model):
    """Of a `TiledDetector`: its tiles, and its calibration on whole images."""

    tile_size: _Sides = Field(description="height, width")
    tile_stride: _Sides
    calibrated_on_tiles: bool
    n_train: Annotated[int, Field(ge=1)]
    decision_scores: list[Number]
    calibration: CalibrationFacts
    pixel_calibration: PixelCalibrationFacts | None
    skipped: list[ImageFacts]
    remarked: list[ImageFacts]
    score_reduce: str = Field("max", description="how the tiles' scores become the image's")
    score_topk: float = Field(0.1, gt=0, le=1, description="of topk_mean: the share of tiles")
    map_reduce: str = Field("triangle", description="how maps of tiles that overlap become one")


class RegionFacts(_Model):
    """The region of interest: polygons, or the array `roi`."""

    polygons: list[Any] | None
    sha256: _Hash
    share: Rate = Field(description="of the pixels at `resize`")


class SavedDocument(_Model):
    """`detector.json`."""

    schema_version: int
    kind: Literal["pyimgano-detector"]
    pyimgano_version: str
    versions: dict[str, str] = Field(description="of what scores depend on")
    saved_at: str = Field(description="ISO 8601 with offset")
    model: str
    parameters: dict[str, Any] = Field(description="the checked keywords of the fit, but for roi")
    threshold: Number
    calibration: CalibrationFacts
    pixel_calibration: PixelCalibrationFacts | None
    n_train: Annotated[int, Field(ge=1)]
    skipped: list[ImageFacts]
    remarked: list[ImageFacts]
    suspects: list[SuspectFacts] = Field(default_factory=list, description="training_suspects_")
    excluded: list[SuspectFacts] = Field(default_factory=list, description="excluded_")
    roi: RegionFacts | None
    state: dict[str, Any] = Field(description="what the method keeps besides arrays")
    arrays: FileFacts
    backbone: BackboneFacts | None
    training_images: SeenFacts | None = Field(
        None, description="of what kind the training images were; null of older detectors"
    )
    tiles: TileFacts | None = Field(None, description="of a detector that works by tiles")


def read_document(folder: Path) -> SavedDocument:
    """Read `detector.json`, and see that nothing else lies in the folder than should.

    Raises
    ------
    SavedModelError
        Names the folder or file, and what is wrong with it.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        raise SavedModelError(f"{folder}: no such folder") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise SavedModelError(f"{folder}: cannot be read as a folder ({reason})") from error
    if DOCUMENT not in names:
        raise SavedModelError(f"{folder}: no saved detector, {DOCUMENT} is missing")
    path = folder / DOCUMENT
    document = _parse(path, read_file(path, _MAX_DOCUMENT))  # first, for its version
    for name in names:
        if name not in FILES and name not in DROPPINGS:
            raise SavedModelError(
                f"{folder}: an unexpected file {name!r}; a saved detector has only "
                f"{', '.join(FILES)}"
            )
    has_weights = document.backbone is not None and document.backbone.file is not None
    if BACKBONE in names and not has_weights:
        raise SavedModelError(
            f"{folder}: an unexpected file {BACKBONE!r}, of which {DOCUMENT} does not tell"
        )
    return document


def read_file(path: Path, limit: int, facts: FileFacts | None = None) -> bytes:
    """The content of a regular file of the folder, no link, if it is what `facts` say.

    Raises
    ------
    SavedModelError
        It is missing, something else, too large, of another length or another hash.
    """
    import hashlib

    # a pipe would wait for ever, a link may lead anywhere
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise SavedModelError(f"{path}: is no regular file (links are not followed)")
        with os.fdopen(os.open(path, flags), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if facts is not None and size != facts.bytes:
                raise SavedModelError(
                    f"{path}: has {size} bytes, {DOCUMENT} says {facts.bytes}; it is cut or "
                    "was replaced"
                )
            if size > limit:
                raise SavedModelError(f"{path}: has {size} bytes, at most {limit} are read")
            data = file.read(size)
    except FileNotFoundError:
        raise SavedModelError(f"{path}: is missing") from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SavedModelError(f"{path}: cannot be read ({reason})") from error
    if facts is not None and hashlib.sha256(data).hexdigest() != facts.sha256:
        raise SavedModelError(f"{path}: is not the file that was saved (its hash is another)")
    return data


def _parse(path: Path, data: bytes) -> SavedDocument:
    try:
        content = parse_json(data)
    except ValueError as error:  # also what is no UTF-8
        raise SavedModelError(f"{path}: is not JSON ({reason_of_failure(error)})") from error
    if not isinstance(content, dict):
        raise SavedModelError(f"{path}: a JSON object is wanted, got {type(content).__name__}")
    version = content.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise SavedModelError(f"{path}: has no schema_version, it is no saved detector")
    if version != SCHEMA_VERSION:
        written = "a newer" if version > SCHEMA_VERSION else "another"
        raise SavedModelError(
            f"{path}: schema_version {_short(version)} is of {written} version of pyimgano; "
            f"this one reads {SCHEMA_VERSION}"
        )
    try:
        return SavedDocument.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        message = first["msg"]
        raise SavedModelError(f"{path}: {where}: {message[0].lower()}{message[1:]}") from None


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**9 else "out of range"
