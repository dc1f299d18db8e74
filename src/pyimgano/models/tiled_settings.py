"""How a tiled detector is saved and restored: its tiles, and its calibration on whole images."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..calibration import PixelCalibration
from ..errors import SavedModelError, UsageError
from .detector import Detector, SkippedImage
from .saved_document import CalibrationFacts, ImageFacts, PixelCalibrationFacts, TileFacts

if TYPE_CHECKING:
    from .tiled import TiledDetector


def tile_facts(tiled: TiledDetector) -> TileFacts:
    """What `detector.json` says of the tiles."""
    pixels = tiled.pixel_calibration_
    return TileFacts(
        tile_size=list(tiled.tile_size),
        tile_stride=list(tiled.tile_stride),
        score_reduce=tiled.score_reduce,
        score_topk=tiled.score_topk,
        map_reduce=tiled.map_reduce,
        calibrated_on_tiles=tiled.calibrated_on_tiles_,
        n_train=tiled.n_train_,
        decision_scores=[float(score) for score in tiled.decision_scores_],
        calibration=CalibrationFacts.of(tiled.calibration_),
        pixel_calibration=None if pixels is None else PixelCalibrationFacts(**asdict(pixels)),
        skipped=[ImageFacts.of(one) for one in tiled.skipped_],
        remarked=[ImageFacts.of(one) for one in tiled.remarked_],
    )


def restore_tiled(detector: Detector, facts: TileFacts, origin: str) -> TiledDetector:
    """The detector of the tiles, tiled as it was.

    Raises
    ------
    SavedModelError
        The facts contradict one another; it begins with `origin`.
    """
    from .tiled import TiledDetector

    height, width = facts.tile_size
    down, across = facts.tile_stride
    try:
        tiled = TiledDetector(
            detector,
            tile_size=(height, width),
            tile_stride=(down, across),
            score_reduce=facts.score_reduce,
            score_topk=facts.score_topk,
            map_reduce=facts.map_reduce,
        )
    except UsageError as error:
        raise SavedModelError(f"{origin}: tiles: {error}") from None
    scores = np.asarray(facts.decision_scores, np.float64)
    if not len(scores) or not math.isfinite(facts.calibration.threshold):
        raise SavedModelError(f"{origin}: tiles: a calibration without scores or threshold")
    tiled.decision_scores_ = scores
    try:
        tiled.calibration_ = facts.calibration.restored()
    except ValueError as error:
        raise SavedModelError(f"{origin}: tiles: {error}") from None
    tiled.threshold_ = tiled.calibration_.threshold
    pixels = facts.pixel_calibration
    tiled.pixel_calibration_ = None if pixels is None else PixelCalibration(**pixels.model_dump())
    tiled.n_train_ = facts.n_train
    tiled.calibrated_on_tiles_ = facts.calibrated_on_tiles
    tiled.skipped_ = [SkippedImage(**one.model_dump()) for one in facts.skipped]
    tiled.remarked_ = [SkippedImage(**one.model_dump()) for one in facts.remarked]
    return tiled
