"""Pixels: decode, corrupt, resize, stream in order with a bounded number ahead.

`images` knows nothing of datasets, models or runs.
"""

from .copies import CopyGroups, Signature, copies_among, signature_of
from .corrupt import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    corrupt_image,
    corrupt_mask,
    get_corruption,
)
from .header import ImageHeader, image_size, read_header
from .limit import DEFAULT_MAX_PIXELS, limited_pixels, max_pixels, set_max_pixels
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
    "DEFAULT_MAX_PIXELS",
    "FILL",
    "IMAGE_SUFFIXES",
    "CORRUPTIONS",
    "SEVERITIES",
    "AlteredImage",
    "CopyGroups",
    "Corruption",
    "ImageHeader",
    "ImageSource",
    "KeyedImage",
    "LoadedImage",
    "NetworkInput",
    "Recall",
    "Recalled",
    "RegionOfInterest",
    "Signature",
    "as_sources",
    "copies_among",
    "corrupt_image",
    "corrupt_mask",
    "get_corruption",
    "image_size",
    "limited_pixels",
    "max_pixels",
    "pages_remark",
    "read_header",
    "read_image",
    "read_mask",
    "read_roi",
    "resize_image",
    "set_max_pixels",
    "signature_of",
    "stream_images",
]
