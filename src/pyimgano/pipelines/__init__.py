"""What a user asks for: a benchmark, end to end or step by step, and what drift does to it."""

from .benchmark import list_dataset_categories, run_benchmark
from .robustness import run_robust_benchmark

__all__ = ["list_dataset_categories", "run_benchmark", "run_robust_benchmark"]
