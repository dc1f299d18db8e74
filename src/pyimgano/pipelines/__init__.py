"""What a user asks for: a benchmark, end to end or step by step; what drift does; an export.

Names are looked up when they are first used, so that a command's `--help` waits for none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmark import list_dataset_categories, run_benchmark
    from .export import export_detector
    from .robustness import run_robust_benchmark

_HOMES = {
    "export_detector": "export",
    "list_dataset_categories": "benchmark",
    "run_robust_benchmark": "robustness",
}

__all__ = [
    "export_detector",
    "list_dataset_categories",
    "run_benchmark",
    "run_robust_benchmark",
]


def __getattr__(name: str) -> Any:
    if name == "run_benchmark":  # the function, and the module of its name: one object is both
        return import_module(".run_benchmark", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
