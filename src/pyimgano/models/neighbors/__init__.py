"""Memory banks of patch features: coreset selection and exact nearest neighbours."""

from .coreset import greedy_coreset, random_projection
from .discriminated_coreset import DiscriminatedCoreset
from .local_outlier_factor import local_outlier_factors
from .memory_bank import MemoryBank
from .patch_memory import PatchMemory, PatchMemoryLearner
from .pooled_coreset import PooledCoreset
from .search import ExhaustiveSearch
from .streamed_coreset import StreamedCoreset
from .whitening import Moments, Whitening

__all__ = [
    "DiscriminatedCoreset",
    "ExhaustiveSearch",
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
