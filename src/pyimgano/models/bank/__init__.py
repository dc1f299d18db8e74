"""Memory banks of patch features: choosing a coreset, and exact nearest neighbours."""

from .coreset import greedy_coreset, random_projection
from .discriminated_coreset import DiscriminatedCoreset
from .grouped_points import GroupedPoints, Search
from .half_precision import Rounded, is_quick
from .memory_bank import MemoryBank
from .outlier_factors import local_outlier_factors
from .patch_memory import PatchMemory, PatchMemoryLearner
from .pooled_coreset import PooledCoreset
from .streamed_coreset import StreamedCoreset
from .whitening import Moments, Whitening

__all__ = [
    "DiscriminatedCoreset",
    "GroupedPoints",
    "MemoryBank",
    "Moments",
    "PatchMemory",
    "PatchMemoryLearner",
    "PooledCoreset",
    "Rounded",
    "Search",
    "StreamedCoreset",
    "Whitening",
    "greedy_coreset",
    "is_quick",
    "local_outlier_factors",
    "random_projection",
]
