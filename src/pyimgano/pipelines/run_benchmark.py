"""The module `pyimgano.pipelines.run_benchmark`, which can be called as the function of that name.

Scripts import both `pyimgano.pipelines.run_benchmark.run_benchmark` and
`pyimgano.pipelines.run_benchmark`. Python binds a submodule in its package under the name of the
function, whenever it is imported first; so the one object that stands there serves as both.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .benchmark import list_dataset_categories, run_benchmark

__all__ = ["list_dataset_categories", "run_benchmark"]


class _CallableModule(ModuleType):
    """Calls `run_benchmark`, as the module has it now: a test may have put another there."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run_benchmark(*args, **kwargs)


_module = sys.modules[__name__]
_module.__class__ = _CallableModule
# help() and inspect.signature() look through to the function
vars(_module)["__wrapped__"] = run_benchmark
