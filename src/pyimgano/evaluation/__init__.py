"""Image-level and pixel-level metrics on arrays; knows no detector and no dataset."""

from .detector_results import evaluate_detector, print_evaluation_summary
from .evaluate import evaluate_kinds, evaluate_scores
from .image_level import (
    DECISION_METRICS,
    compute_auroc,
    compute_average_precision,
    compute_classification_metrics,
    find_optimal_threshold,
)
from .pixel_level import (
    PIXEL_METRICS,
    compute_aupro,
    compute_bg_fpr,
    compute_pixel_auroc,
    compute_pixel_average_precision,
    compute_pixel_segf1,
    compute_pro_score,
    compute_spro,
)

__all__ = [
    "DECISION_METRICS",
    "PIXEL_METRICS",
    "compute_aupro",
    "compute_auroc",
    "compute_average_precision",
    "compute_bg_fpr",
    "compute_classification_metrics",
    "compute_pixel_auroc",
    "compute_pixel_average_precision",
    "compute_pixel_segf1",
    "compute_pro_score",
    "compute_spro",
    "evaluate_detector",
    "evaluate_kinds",
    "evaluate_scores",
    "find_optimal_threshold",
    "print_evaluation_summary",
]
