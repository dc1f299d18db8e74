"""Pixels: decode, corrupt, resize, stream in order with a bounded number ahead.

`images` knows nothing of datasets, models or runs.
"""

from .corrupt import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    corrupt_image,
    corrupt_mask,
    get_corruption,
)
from .header import ImageHeader, image_size, read_header
from .read import IMAGE_SUFFIXES, pages_remark, read_image, read_mask, resize_image
from .roi import FILL, RegionOfInterest, read_roi
from .stream import (
    AlteredImage,
    ImageSource,
    KeyedImage,
    LoadedImage,
    NetworkInput,
    Recall,
    Recalled,
    as_sources,
    stream_images,
)

__all__ = [
    "FILL",
    "IMAGE_SUFFIXES",
    "CORRUPTIONS",
    "SEVERITIES",
    "AlteredImage",
    "Corruption",
    "ImageHeader",
    "ImageSource",
    "KeyedImage",
    "LoadedImage",
    "NetworkInput",
    "Recall",
    "Recalled",
    "RegionOfInterest",
    "as_sources",
    "corrupt_image",
    "corrupt_mask",
    "get_corruption",
    "image_size",
    "pages_remark",
    "read_header",
    "read_image",
    "read_mask",
    "read_roi",
    "resize_image",
    "stream_images",
]
