"""Decisions on new images by a fitted or loaded detector."""

from .calibrate import calibrate_threshold
from .regions import Region, find_regions
from .scoring import InferenceResult, infer, iter_infer

__all__ = [
    "InferenceResult",
    "Region",
    "calibrate_threshold",
    "find_regions",
    "infer",
    "iter_infer",
]
