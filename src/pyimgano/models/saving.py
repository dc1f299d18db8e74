"""Saving a fitted detector: arrays as safetensors, all else as one JSON document.

The folder is written under another name beside its place, `.<name>.<random>.tmp`, each file
flushed to the disk, and then renamed, so that at its place there is a whole detector or none.
A detector that is replaced is first moved to `.<name>.<random>.old` beside it and removed last:
a crash between the two leaves it there, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, SavedModelError, UsageError
from .detector import Detector
from .saved_document import (
    ARRAYS,
    BACKBONE,
    DOCUMENT,
    DROPPINGS,
    FILES,
    MAX_BYTES,
    SCHEMA_VERSION,
    BackboneFacts,
    CalibrationFacts,
    FileFacts,
    ImageFacts,
    PixelCalibrationFacts,
    RegionFacts,
    SavedDocument,
    SeenFacts,
    SuspectFacts,
    TileFacts,
    read_document,
)

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "pyimgano",
    "pyod",
    "safetensors",
    "scikit-learn",
    "scipy",
    "simplejpeg",
    "torch",
)
#: What a method's arrays are called in the file, before their own names.
STATE = "state."


def can_be_saved(detector: type[Detector]) -> bool:
    """Whether a class says how it is saved."""
    return detector._state is not Detector._state and detector._restore is not Detector._restore


def require_saveable(detector: Detector) -> str:
    """The registered name of the detector.

    Raises
    ------
    UsageError
        It has none, it does not say how it is saved, or it could not be loaded.
    """
    from .registry import registered_name

    cls = type(detector)
    if not can_be_saved(cls):
        raise UsageError(f"{cls.__name__} cannot be saved: it lacks _state or _restore")
    name = registered_name(cls)
    if name is None:
        raise UsageError(f"{cls.__name__} cannot be saved: it is not registered (register_model)")
    if is_fetched(getattr(detector, "backbone", None)):
        raise UsageError(
            f"a detector with backbone {detector.get_params()['backbone']!r} cannot be saved: "
            "loading it would fetch a network from elsewhere"
        )
    return name


def is_fetched(backbone: Any) -> bool:
    """Whether the name tells timm of a place on the network or on the disk."""
    short = str(backbone).removeprefix("timm:")
    return short != str(backbone) and (":" in short or "/" in short)


def save_detector(
    detector: Detector,
    folder: Path,
    include_backbone: bool,
    overwrite: bool,
    tiles: TileFacts | None = None,
) -> Path:
    """What `Detector.save` says; `tiles` if it is the detector of a `TiledDetector`."""
    require_saveable(detector)
    if "\0" in str(folder):
        raise UsageError(f"folder: {str(folder)!r} is no name of a folder")
    # a link stays a link, and so does the ~ of a user that is not there
    folder = Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111
    if folder == Path.cwd():
        raise UsageError(f"{folder}: is the working folder; give one in it")
    require_place(folder, overwrite)
    files = saved_files(detector, include_backbone, tiles)
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


def saved_files(
    detector: Detector, include_backbone: bool, tiles: TileFacts | None = None
) -> dict[str, bytes]:
    """Return the files of a saved detector by name, the document last.

    Raises
    ------
    UsageError, DataError
        As `save_detector`.
    """
    name = require_saveable(detector)
    include_backbone |= _weights_of_another(detector)
    files: dict[str, bytes] = {}
    document = _document(detector, name, include_backbone, tiles, files)
    text = document.model_dump_json(indent=2) + "\n"
    files[DOCUMENT] = text.encode()  # last, so that what is cut has none
    return files


def _weights_of_another(detector: Detector) -> bool:
    """Whether the backbone's weights lie with a saved detector, which may be moved or replaced."""
    weights = getattr(detector.params_, "weights", None)
    if weights is None:
        return False
    path = Path(weights)
    return path.name == BACKBONE and (path.parent / DOCUMENT).is_file()


def require_place(folder: Path, overwrite: bool = False) -> None:
    """See that a detector can be saved in `folder`, as far as can be told before.

    Raises
    ------
    UsageError
        Something lies there that is not replaced.
    DataError
        It cannot be read.
    """
    if not folder.name:
        raise UsageError(f"folder: {folder} is no place for a saved detector")
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and not folder.is_symlink():
        try:
            if not any(folder.iterdir()):
                return
        except OSError as error:
            raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    if not overwrite:
        raise UsageError(f"{folder}: exists already; overwrite=True replaces a saved detector")
    try:
        if folder.is_symlink():
            raise SavedModelError("is a link")
        if any(one.is_symlink() or not one.is_file() for one in folder.iterdir()):
            raise SavedModelError("holds something else")
        read_document(folder)
    except (SavedModelError, OSError) as error:
        raise UsageError(
            f"{folder}: is no saved detector of this version and is not replaced ({error})"
        ) from error


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


def _document(
    detector: Detector,
    name: str,
    include_backbone: bool,
    tiles: TileFacts | None,
    files: dict[str, bytes],
) -> SavedDocument:
    """The document, and in `files` what it tells of."""
    state = detector._state()
    arrays = {f"{STATE}{key}": value for key, value in state.arrays.items()}
    arrays["decision_scores"] = detector.decision_scores_
    region = detector.roi_
    roi = None
    if region is not None:
        if region.mask is not None:
            arrays["roi"] = region.mask.astype(np.uint8)
        roi = RegionFacts(
            polygons=None
            if region.polygons is None
            else [[list(point) for point in ring] for ring in region.polygons],
            sha256=region.sha256,
            share=float(region.counted(tuple(detector.params_.resize)).mean()),
        )
    backbone = detector._frozen_backbone()
    network = None
    if backbone is not None:
        network = BackboneFacts(
            **backbone.describe(),
            state_sha256=backbone.state_sha256,
            file=_serialize(BACKBONE, backbone.state(), files) if include_backbone else None,
        )
    pixels, seen = detector.pixel_calibration_, detector.seen_
    parameters = {key: value for key, value in vars(detector.params_).items() if key != "roi"}
    versions = _versions()
    return SavedDocument(
        schema_version=SCHEMA_VERSION,
        kind="pyimgano-detector",
        pyimgano_version=versions.pop("pyimgano", "unknown"),
        versions=versions,
        saved_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        model=name,
        parameters=_plain(parameters),
        threshold=float(detector.threshold_),
        calibration=CalibrationFacts.of(detector.calibration_),
        pixel_calibration=None if pixels is None else PixelCalibrationFacts(**asdict(pixels)),
        n_train=detector.n_train_,
        skipped=[ImageFacts.of(one) for one in detector.skipped_],
        remarked=[ImageFacts.of(one) for one in detector.remarked_],
        suspects=[SuspectFacts.of(one) for one in getattr(detector, "training_suspects_", [])],
        excluded=[SuspectFacts.of(one) for one in getattr(detector, "excluded_", [])],
        roi=roi,
        state=_plain(dict(state.facts)),
        arrays=_serialize(ARRAYS, arrays, files),
        backbone=network,
        training_images=None if seen is None else SeenFacts(**asdict(seen)),
        tiles=tiles,
    )


def _serialize(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], files: dict[str, bytes]
) -> FileFacts:
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


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False, default=str))
    return plain


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
    """A folder of ours with what we put there; anything else in it stays."""
    for name in (*FILES, *DROPPINGS):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
