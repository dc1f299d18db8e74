"""Whole fitted detectors as torch modules, from pixels to the decision, for export.

A package of its own because its modules import torch, which listing models must not.
"""

from .patchcore import PatchCoreGraph
from .region import Region, region_of
from .transformers import AnomalyDINOGraph, RADGraph, SubspaceGraph, TrainedGraph
from .whitened import WhitenedGraph

__all__ = [
    "AnomalyDINOGraph",
    "PatchCoreGraph",
    "RADGraph",
    "Region",
    "SubspaceGraph",
    "TrainedGraph",
    "WhitenedGraph",
    "region_of",
]
