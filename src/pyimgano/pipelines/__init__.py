"""What a user asks for: a benchmark, end to end or step by step; what drift does; an export."""

from typing import TYPE_CHECKING

from .benchmark import list_dataset_categories
from .export import export_detector
from .robustness import run_robust_benchmark

if TYPE_CHECKING:
    from .benchmark import run_benchmark
else:
    # the function, and the module of its name, whichever is imported
    from . import run_benchmark

__all__ = [
    "export_detector",
    "list_dataset_categories",
    "run_benchmark",
    "run_robust_benchmark",
]
