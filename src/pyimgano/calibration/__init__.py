"""Thresholds from the scores and maps of normal images, and how far they can be trusted."""

from .choices import ChosenThreshold, threshold_for_costs, threshold_for_misses
from .disturbed import DisturbedScores, above_disturbed, raise_again
from .explained import ScoreScale, promise_of, score_ratio
from .operating_points import (
    Likeness,
    OperatingPoint,
    likeness,
    low_recall_note,
    operating_points,
    unlike_note,
)
from .pixel_threshold import (
    MapStatistics,
    PixelCalibration,
    calibrate_normal_pixel_quantile_threshold,
)
from .tail import (
    CALIBRATION_TAILS,
    DEFAULT_TAIL,
    CalibrationTail,
    ExponentialTail,
    fit_exponential_tail,
)
from .threshold import (
    CONFIDENCE,
    DEFAULT_QUANTILE,
    BinomialInterval,
    Calibration,
    calibrate,
    calibration_at,
    choose_quantile,
    clopper_pearson,
    float32_threshold,
    rank_bound,
)

__all__ = [
    "CALIBRATION_TAILS",
    "CONFIDENCE",
    "DEFAULT_QUANTILE",
    "DEFAULT_TAIL",
    "BinomialInterval",
    "Calibration",
    "CalibrationTail",
    "ChosenThreshold",
    "DisturbedScores",
    "ExponentialTail",
    "Likeness",
    "MapStatistics",
    "OperatingPoint",
    "PixelCalibration",
    "ScoreScale",
    "above_disturbed",
    "calibrate",
    "calibrate_normal_pixel_quantile_threshold",
    "calibration_at",
    "choose_quantile",
    "clopper_pearson",
    "fit_exponential_tail",
    "float32_threshold",
    "promise_of",
    "raise_again",
    "rank_bound",
    "score_ratio",
    "threshold_for_costs",
    "threshold_for_misses",
    "likeness",
    "low_recall_note",
    "operating_points",
    "unlike_note",
]
