"""`pyimgano benchmark` with the stubs registered: python -m tests.faults.interrupting OPTIONS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyimgano.pipelines.measure as measuring
from pyimgano.cli import benchmark
from tests import stubs

_measure = measuring.measure_all


def measure_all(detector: Any, *rest: Any) -> Any:
    if getattr(detector, "at", "") == "metrics":
        Path(detector.sign).touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(1000))
    return _measure(detector, *rest)


if __name__ == "__main__":
    stubs.register()
    measuring.measure_all = measure_all
    benchmark()
