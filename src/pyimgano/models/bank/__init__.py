"""Memory banks of patch features: choosing a coreset, and exact nearest neighbours."""

from .coreset import greedy_coreset, random_projection
from .grouped_points import GroupedPoints, exact_distances
from .memory_bank import MemoryBank

__all__ = [
    "GroupedPoints",
    "MemoryBank",
    "exact_distances",
    "greedy_coreset",
    "random_projection",
]
