"""Metrics that have no value on the data at hand, and why."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import PyimganoError


class UndefinedMetric(PyimganoError):
    """The metric has no value here; the message is the reason that a report gives."""


def value_or_nan(compute: Callable[[], float]) -> float:
    """Return the metric, or nan where it is undefined, as numpy and scikit-learn do."""
    try:
        return compute()
    except UndefinedMetric:
        return math.nan


class MetricTable:
    """Metrics by name, None where undefined, with the reasons beside them."""

    def __init__(self) -> None:
        self.values: dict[str, float | None] = {}
        self.reasons: dict[str, str] = {}

    def add(self, name: str, compute: Callable[[], float]) -> None:
        try:
            self.values[name] = compute()
        except UndefinedMetric as error:
            self.fail(name, str(error))

    def fail(self, name: str, reason: str) -> None:
        """Note that the metric has no value, and why."""
        self.values[name] = None
        self.reasons[name] = reason
