"""The folder of a saved detector: what stands in it, writing it, and reading it without trust.

`detector.json` is one document, and arrays lie beside it as safetensors. Nothing here knows what a
detector is: whoever saves one hands over a document and arrays.

The folder is written under another name beside its place, `.<name>.<random>.tmp`, each file
flushed to the disk, and then renamed, so that at its place there is a whole detector or none.
A detector that is replaced is first moved to `.<name>.<random>.old` beside it and removed last:
a crash between the two leaves it there, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..calibration import CALIBRATION_TAILS, CONFIDENCE, Calibration
from ..errors import DataError, SavedModelError, UsageError
from ..untrusted_files import parse_json, reason_of_failure

if TYPE_CHECKING:
    from .suspects import ExcludedImage, TrainingSuspect
    from .training_images import SkippedImage

#: Raised when a saved detector means something else, or lacks something that is needed.
SCHEMA_VERSION = 1

DOCUMENT = "detector.json"
ARRAYS = "arrays.safetensors"
BACKBONE = "backbone.safetensors"
FILES = (DOCUMENT, ARRAYS, BACKBONE)
#: Of a detector of many products: what tells these apart.
RECOGNITION = "recognition.safetensors"
#: What file managers leave in folders; nobody's doing, and never opened.
FILES_OF_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})

# What may be removed with a folder.
_OURS = {*FILES, RECOGNITION, *FILES_OF_SYSTEMS}
_ARRAYS_OF_PRODUCT = re.compile(r"arrays-\d{3,}\.safetensors")

#: What a method's arrays are called in the file, before their own names.
STATE = "state."

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
    disturbed_score: Number | None = None
    disturbance: str | None = None

    @classmethod
    def of(cls, calibration: Calibration) -> CalibrationFacts:
        facts = asdict(calibration)
        facts["notes"] = list(calibration.notes)
        facts["score_notes"] = list(calibration.score_notes)
        interval = calibration.estimate_interval
        facts["estimate_interval"] = None if interval is None else list(interval)
        return cls(**facts)

    def restored(self) -> Calibration:
        """Return the calibration that the facts are of.

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

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files that may lie in the folder."""
        return FILES

    @property
    def holds_backbone(self) -> bool:
        """Return whether the weights of the backbone lie there too."""
        return self.backbone is not None and self.backbone.file is not None


class SavedProduct(_Model):
    """One product of a detector of many, whose arrays are in a file of its own."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    detector: SavedDocument


class ProductsDocument(_Model):
    """`detector.json` of a detector of many products (`pyimgano.models.many_products`)."""

    schema_version: int
    kind: Literal["pyimgano-products"]
    pyimgano_version: str
    saved_at: str = Field(description="ISO 8601 with offset")
    unknown_rate: Annotated[float, Field(gt=0, le=0.5)]
    recognition_size: _Sides = Field(description="height, width")
    recognition: FileFacts
    products: Annotated[list[SavedProduct], Field(min_length=2)]

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files that may lie in the folder."""
        arrays = [product_arrays(number) for number in range(len(self.products))]
        return (DOCUMENT, BACKBONE, RECOGNITION, *arrays)

    @property
    def holds_backbone(self) -> bool:
        """Return whether the weights of the backbone lie there too."""
        return any(one.detector.holds_backbone for one in self.products)


def product_arrays(number: int) -> str:
    """Return the name of the file of a product's arrays, by its number among the products."""
    return f"arrays-{number:03d}.safetensors"


def read_document(folder: Path) -> SavedDocument:
    """Read the document of one detector, as `read_saved` does.

    Raises
    ------
    SavedModelError
        As `read_saved`; or it is a detector of many products.
    """
    document = read_saved(folder)
    if isinstance(document, ProductsDocument):
        raise SavedModelError(f"{folder}: is a detector of many products, and one of one is wanted")
    return document


def read_saved(folder: Path) -> SavedDocument | ProductsDocument:
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
        if name not in document.files and name not in FILES_OF_SYSTEMS:
            raise SavedModelError(
                f"{folder}: an unexpected file {name!r}; a saved detector has only "
                f"{', '.join(document.files)}"
            )
    if BACKBONE in names and not document.holds_backbone:
        raise SavedModelError(
            f"{folder}: an unexpected file {BACKBONE!r}, of which {DOCUMENT} does not tell"
        )
    return document


def read_file(path: Path, limit: int, facts: FileFacts | None = None) -> bytes:
    """Return the content of a regular file of the folder, no link, if it is what `facts` say.

    Raises
    ------
    SavedModelError
        It is missing, something else, too large, of another length or another hash.
    """
    # a pipe would wait for ever, a link may lead anywhere
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise SavedModelError(f"{path}: is not a regular file (links are not followed)")
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


def _parse(path: Path, data: bytes) -> SavedDocument | ProductsDocument:
    try:
        content = parse_json(data)
    except ValueError as error:  # also what is no UTF-8
        raise SavedModelError(f"{path}: is not JSON ({reason_of_failure(error)})") from error
    if not isinstance(content, dict):
        raise SavedModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    version = content.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise SavedModelError(f"{path}: has no schema_version, it is not a saved detector")
    if version != SCHEMA_VERSION:
        written = "a newer" if version > SCHEMA_VERSION else "another"
        raise SavedModelError(
            f"{path}: schema_version {_short(version)} is of {written} version of pyimgano; "
            f"this one reads {SCHEMA_VERSION}"
        )
    of_many = content.get("kind") == "pyimgano-products"
    try:
        if of_many:
            return ProductsDocument.model_validate(content)
        return SavedDocument.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        message = first["msg"]
        raise SavedModelError(f"{path}: {where}: {message[0].lower()}{message[1:]}") from None


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**9 else "out of range"


def read_arrays(
    folder: Path, document: SavedDocument, file: str = ARRAYS
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a saved detector by name, which the document says belong to it.

    Raises
    ------
    SavedModelError
        The file is damaged or another one, or holds arrays that nobody saved.
    """
    path = folder / file
    arrays = read_tensors(path, document.arrays)
    for name in arrays:
        known = name == "decision_scores" or name.startswith(STATE)
        if not known and not (name == "roi" and has_mask(document)):
            raise SavedModelError(f"{path}: an unexpected array {name!r}")
    scores = arrays.get("decision_scores")
    if scores is None or scores.dtype != np.float64 or scores.ndim != 1 or not len(scores):
        raise SavedModelError(f"{path}: decision_scores, float64 of shape (any), is missing")
    return arrays


def read_tensors(path: Path, facts: FileFacts) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a safetensors file of the folder, if it is what `facts` say.

    Raises
    ------
    SavedModelError
        It is damaged or another one, or holds values that are not finite.
    """
    from safetensors.numpy import load

    data = read_file(path, MAX_BYTES, facts)
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(data)
    except Exception as error:  # the reader has errors of its own, and no code of the file runs
        reason = " ".join(str(error).split())[:200]
        raise SavedModelError(f"{path}: not a readable safetensors file ({reason})") from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SavedModelError(f"{path}: {name} holds values that are not finite")
    return arrays


def has_mask(document: SavedDocument) -> bool:
    """Return whether the region of interest is the array `roi`."""
    return document.roi is not None and document.roi.polygons is None


# ---- writing


def serialized(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], files: dict[str, bytes]
) -> FileFacts:
    """Put arrays as the safetensors file `name` into `files`, and return what the document says.

    Raises
    ------
    UsageError
        They are more than a saved detector may have.
    DataError
        Some numbers are not finite.
    """
    from safetensors.numpy import save

    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_BYTES - 2**20:
        raise UsageError(f"{name}: {total} bytes are more than a saved detector may have")
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{name}: {key} holds values that are not finite")
    data = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    files[name] = data
    return FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_folder(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> Path:
    """Write the files of a saved detector, all or none; return the folder's full path.

    Raises
    ------
    UsageError
        `folder` is not a place for it, or something lies there that is not replaced.
    DataError
        It cannot be written.
    """
    folder = require_place(folder, overwrite)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        try:
            for file, data in files.items():
                _write(beside / file, data)
            _flush(beside)
            _move_into_place(beside, folder)
        finally:
            _remove(beside)
        _flush(folder.parent)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder


def require_place(folder: Path, overwrite: bool = False) -> Path:
    """Return the full path of a folder, if a detector can be saved there as far as can be told.

    Raises
    ------
    UsageError
        It is not a place for it, or something lies there that is not replaced.
    DataError
        It cannot be read.
    """
    if "\0" in str(folder):
        raise UsageError(f"folder: {str(folder)!r} is not a name of a folder")
    # a link stays a link, and so does the ~ of a user that is not there
    folder = Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111
    if folder == Path.cwd():
        raise UsageError(f"{folder}: is the working folder; give one in it")
    if not folder.name:
        raise UsageError(f"folder: {folder} is not a place for a saved detector")
    if not os.path.lexists(folder):
        return folder
    if folder.is_dir() and not folder.is_symlink():
        try:
            if not any(folder.iterdir()):
                return folder
        except OSError as error:
            raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    if not overwrite:
        raise UsageError(f"{folder}: exists already; overwrite=True replaces a saved detector")
    try:
        if folder.is_symlink():
            raise SavedModelError("is a link")
        if any(one.is_symlink() or not one.is_file() for one in folder.iterdir()):
            raise SavedModelError("holds something else")
        read_saved(folder)
    except (SavedModelError, OSError) as error:
        raise UsageError(
            f"{folder}: is not a saved detector of this version and is not replaced ({error})"
        ) from error
    return folder


def _move_into_place(beside: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        beside.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    folder.rename(old)
    try:
        beside.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    _remove(old)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders, and needs no such flush
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove what we put into a folder of ours; anything else in it stays."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name in _OURS or _ARRAYS_OF_PRODUCT.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
