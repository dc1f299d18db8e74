"""Visual anomaly detection for industrial inspection.

>>> from pyimgano import run_benchmark
>>> report = run_benchmark(dataset="demo")  # doctest: +SKIP

Importing the package imports nothing heavy: names are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import load_dataset
    from .models import create_model, list_models, load_model, model_info, register_model
    from .pipelines import list_dataset_categories, run_robust_benchmark
    from .pipelines.benchmark import run_benchmark
    from .sweep import merge_sweeps, run_sweep
    from .threads import set_num_threads

__version__ = "0.1.0"

_HOMES = {
    "create_model": "models",
    "list_models": "models",
    "load_model": "models",
    "model_info": "models",
    "register_model": "models",
    "load_dataset": "datasets",
    "set_num_threads": "threads",
    "run_benchmark": "pipelines.benchmark",
    "run_robust_benchmark": "pipelines",
    "run_sweep": "sweep",
    "merge_sweeps": "sweep",
    "list_dataset_categories": "pipelines",
}

__all__ = [
    "__version__",
    "create_model",
    "list_dataset_categories",
    "list_models",
    "load_dataset",
    "load_model",
    "merge_sweeps",
    "model_info",
    "register_model",
    "run_benchmark",
    "set_num_threads",
    "run_robust_benchmark",
    "run_sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
