"""Whole fitted detectors as torch modules, from pixels to the decision, for export.

A package of its own because its modules import torch, which listing models must not.
"""

from .patchcore import PatchCoreGraph
from .region import Region, region_of
from .whitened import WhitenedGraph

__all__ = ["PatchCoreGraph", "Region", "WhitenedGraph", "region_of"]
