"""How a saved detector is tiled: one JSON document in the detector's folder.

It is written after the detector, so that a folder with it holds all that it speaks of.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..calibration import Calibration, PixelCalibration
from ..errors import DataError
from .detector import Detector
from .tiled import TiledDetector

#: The document's name in the folder of a saved detector.
SETTINGS_FILE = "tiled.json"

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1)]


class TiledSettings(BaseModel):
    """The document: tiles, and the calibration on whole images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    tile_size: tuple[_Side, _Side]
    tile_stride: tuple[_Side, _Side]
    calibrated_on_tiles: bool
    n_train: int
    decision_scores: list[_Number]
    calibration: Calibration
    pixel_calibration: PixelCalibration | None


def save_tiled(tiled: TiledDetector, folder: Path) -> None:
    """Save the detector of the tiles into `folder`, then the document beside its files."""
    save: Any = getattr(tiled.detector, "save", None)
    if save is None:
        raise DataError(f"{type(tiled.detector).__name__} cannot be saved")
    save(folder)
    settings = TiledSettings(
        tile_size=tiled.tile_size,
        tile_stride=tiled.tile_stride,
        calibrated_on_tiles=tiled.calibrated_on_tiles_,
        n_train=tiled.n_train_,
        decision_scores=[float(score) for score in tiled.decision_scores_],
        calibration=Calibration(**asdict(tiled.calibration_)),
        pixel_calibration=tiled.pixel_calibration_,
    )
    path = folder / SETTINGS_FILE
    beside = folder / f".{SETTINGS_FILE}.{os.getpid()}.tmp"
    try:
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(settings.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def as_saved(detector: Detector, folder: Path) -> Detector | TiledDetector:
    """A loaded detector, tiled as the document in its folder says; itself without one.

    Raises
    ------
    DataError
        The document cannot be read, or is none.
    """
    path = folder / SETTINGS_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return detector
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        found = TiledSettings.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: no tile settings: {where}: {first['msg']}") from None
    if not math.isfinite(found.calibration.threshold):  # NaN would call everything good
        raise DataError(f"{path}: no tile settings: the threshold is not finite")
    tiled = TiledDetector(detector, tile_size=found.tile_size, tile_stride=found.tile_stride)
    tiled.calibration_ = found.calibration
    tiled.threshold_ = found.calibration.threshold
    tiled.pixel_calibration_ = found.pixel_calibration
    tiled.decision_scores_ = np.asarray(found.decision_scores, np.float64)
    tiled.n_train_ = found.n_train
    tiled.calibrated_on_tiles_ = found.calibrated_on_tiles
    return tiled
