"""What a user asks for: a benchmark, end to end or step by step."""

from .benchmark import list_dataset_categories, run_benchmark

__all__ = ["list_dataset_categories", "run_benchmark"]
