"""What a user asks for: a benchmark, end to end or step by step; what drift does; an export."""

from .benchmark import list_dataset_categories, run_benchmark
from .export import export_detector
from .robustness import run_robust_benchmark

__all__ = [
    "export_detector",
    "list_dataset_categories",
    "run_benchmark",
    "run_robust_benchmark",
]
