"""Thresholds from the scores and maps of normal images, and how far they can be trusted."""

from .pixel_threshold import (
    MapStatistics,
    PixelCalibration,
    calibrate_normal_pixel_quantile_threshold,
)
from .threshold import (
    DEFAULT_QUANTILE,
    BinomialInterval,
    Calibration,
    calibrate,
    choose_quantile,
    clopper_pearson,
    float32_threshold,
)

__all__ = [
    "DEFAULT_QUANTILE",
    "BinomialInterval",
    "Calibration",
    "MapStatistics",
    "PixelCalibration",
    "calibrate",
    "calibrate_normal_pixel_quantile_threshold",
    "choose_quantile",
    "clopper_pearson",
    "float32_threshold",
]
