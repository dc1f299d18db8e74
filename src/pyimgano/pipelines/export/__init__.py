"""A fitted detector as one folder of plain files that run without pyimgano."""

from .comparison import TOLERANCE, Comparison, Difference
from .formats import FORMATS, find_format
from .metadata import ExportMetadata
from .source import check_images_in, check_images_of_run, load_detector
from .writing import export_detector, require_free

__all__ = [
    "FORMATS",
    "TOLERANCE",
    "Comparison",
    "Difference",
    "ExportMetadata",
    "check_images_in",
    "check_images_of_run",
    "export_detector",
    "find_format",
    "load_detector",
    "require_free",
]
