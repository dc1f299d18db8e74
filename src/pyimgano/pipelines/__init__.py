"""What a user asks for: a benchmark, end to end or step by step; an export."""

from .benchmark import list_dataset_categories, run_benchmark
from .export import export_detector

__all__ = ["export_detector", "list_dataset_categories", "run_benchmark"]
