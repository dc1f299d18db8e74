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
from .origin import ImageOrigin, differences, origin_of, origins_of, strangers
from .passed_over import is_passed_over
from .read import (
    IMAGE_SUFFIXES,
    UNREAD_IMAGE_SUFFIXES,
    DecodedImage,
    decode_image,
    join_remarks,
    pages_remark,
    read_image,
    read_mask,
    resize_image,
)
from .roi import FILL, RegionOfInterest, read_roi
from .samples import MAX_BIT_DEPTH, MIN_BIT_DEPTH, SampleRange, check_bit_depth, dim_note
from .sources import ImageSource, as_sources, comes_one_by_one
from .stream import (
    AlteredImage,
    ImageStream,
    KeyedImage,
    LoadedImage,
    NetworkInput,
    Recall,
    Recalled,
    closed_after,
    stream_images,
)

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FILL",
    "MAX_BIT_DEPTH",
    "MIN_BIT_DEPTH",
    "IMAGE_SUFFIXES",
    "UNREAD_IMAGE_SUFFIXES",
    "CORRUPTIONS",
    "SEVERITIES",
    "AlteredImage",
    "CopyGroups",
    "Corruption",
    "DecodedImage",
    "ImageHeader",
    "ImageOrigin",
    "ImageSource",
    "ImageStream",
    "KeyedImage",
    "LoadedImage",
    "NetworkInput",
    "Recall",
    "Recalled",
    "RegionOfInterest",
    "SampleRange",
    "Signature",
    "as_sources",
    "closed_after",
    "check_bit_depth",
    "comes_one_by_one",
    "copies_among",
    "corrupt_image",
    "corrupt_mask",
    "decode_image",
    "differences",
    "dim_note",
    "get_corruption",
    "image_size",
    "is_passed_over",
    "join_remarks",
    "limited_pixels",
    "max_pixels",
    "origin_of",
    "origins_of",
    "pages_remark",
    "read_header",
    "read_image",
    "read_mask",
    "read_roi",
    "resize_image",
    "set_max_pixels",
    "signature_of",
    "strangers",
    "stream_images",
]
