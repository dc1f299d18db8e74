"""Decisions on new images by a fitted or loaded detector."""

from .calibrate import calibrate_threshold, threshold_from_costs, threshold_from_defects
from .regions import Region, find_regions
from .result_face import results_to_frame
from .scoring import InferenceResult, infer, iter_infer

__all__ = [
    "InferenceResult",
    "Region",
    "calibrate_threshold",
    "find_regions",
    "infer",
    "iter_infer",
    "results_to_frame",
    "threshold_from_costs",
    "threshold_from_defects",
]
