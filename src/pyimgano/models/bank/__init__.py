"""Memory banks of patch features: choosing a coreset, and exact nearest neighbours."""

from .coreset import greedy_coreset, random_projection
from .discriminated_coreset import DiscriminatedCoreset
from .exhaustive import ExhaustiveSearch
from .grouped_points import GroupedPoints
from .memory_bank import MemoryBank
from .outlier_factors import local_outlier_factors
from .patch_memory import PatchMemory, PatchMemoryLearner
from .pooled_coreset import PooledCoreset
from .streamed_coreset import StreamedCoreset
from .whitening import Moments, Whitening

__all__ = [
    "DiscriminatedCoreset",
    "ExhaustiveSearch",
    "GroupedPoints",
    "MemoryBank",
    "Moments",
    "PatchMemory",
    "PatchMemoryLearner",
    "PooledCoreset",
    "StreamedCoreset",
    "Whitening",
    "greedy_coreset",
    "local_outlier_factors",
    "random_projection",
]
