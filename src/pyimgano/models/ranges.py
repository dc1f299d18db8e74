"""Types of values with their ranges, which detectors and the options of a benchmark share.

This module imports pydantic and nothing else, so that a command's `--help` stays quick.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

_Side = Annotated[int, Strict(), Field(ge=1, le=16384)]
#: (height, width) in pixels.
Size = tuple[_Side, _Side]
Count = Annotated[int, Strict(), Field(ge=1)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Ratio = Annotated[float, Strict(), Field(gt=0, le=1)]
Flag = Annotated[bool, Strict()]
Contamination = Annotated[float, Strict(), Field(ge=1e-9, le=0.5)]
Quantile = Annotated[float, Strict(), Field(gt=0, lt=1)]
#: Bits that count of the 16 that a sample of an image has, as `pyimgano.images` takes them.
BitDepth = Annotated[int, Strict(), Field(ge=9, le=16)]
