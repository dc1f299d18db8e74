"""Datasets as their authors ship them: one file a layout, one catalog of names."""

from .catalog import get_layout, list_datasets, open_root
from .check import CategoryCheck, DatasetCheck, Finding, check_dataset
from .dataset import Dataset, DatasetInfo, load_dataset
from .exclusion import read_exclusions, without_excluded
from .layout import Category, Layout, Sample, Saturation, Unused
from .masks import NO_MASK, MaskError, Move, Region, load_mask, load_regions
from .own_folders import require_good_parts
from .pixels import Mask, Pixels
from .sampling import limit_category, limit_samples
from .stay_inside import load_category
from .unused import outside_of_categories

__all__ = [
    "NO_MASK",
    "Category",
    "CategoryCheck",
    "Dataset",
    "DatasetCheck",
    "DatasetInfo",
    "Finding",
    "Layout",
    "Mask",
    "MaskError",
    "Move",
    "Pixels",
    "Region",
    "Sample",
    "Saturation",
    "Unused",
    "check_dataset",
    "get_layout",
    "limit_category",
    "limit_samples",
    "list_datasets",
    "load_category",
    "load_dataset",
    "load_mask",
    "load_regions",
    "open_root",
    "outside_of_categories",
    "read_exclusions",
    "require_good_parts",
    "without_excluded",
]
