"""Give the site the docstrings that are completed when the package is imported.

`run_benchmark` and `run_robust_benchmark` take their options, with types and meanings, from one
table (`pipelines/config.py`); what mkdocstrings reads in the source is the place where they go.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import griffe


class CompletedDocstrings(griffe.Extension):
    """Replaces docstrings that have a place for options by those of the imported functions."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring is not None and "{options}" in func.docstring.value:
            function = getattr(import_module(func.module.path), func.name)
            func.docstring.value = inspect.getdoc(function) or ""
