"""Datasets as their authors ship them: one file a layout, one catalog of names."""

from .catalog import get_layout, list_datasets, open_root
from .dataset import Dataset, load_dataset
from .layout import Category, Layout, Sample
from .masks import MaskError, load_mask
from .sampling import limit_samples

__all__ = [
    "Category",
    "Dataset",
    "Layout",
    "MaskError",
    "Sample",
    "get_layout",
    "limit_samples",
    "list_datasets",
    "load_dataset",
    "load_mask",
    "open_root",
]
