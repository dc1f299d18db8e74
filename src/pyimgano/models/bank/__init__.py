"""Memory banks of patch features: choosing a coreset, and exact nearest neighbours."""

from .coreset import greedy_coreset, random_projection
from .grouped_points import GroupedPoints
from .memory_bank import MemoryBank
from .streamed_coreset import StreamedCoreset

__all__ = [
    "GroupedPoints",
    "MemoryBank",
    "StreamedCoreset",
    "greedy_coreset",
    "random_projection",
]
