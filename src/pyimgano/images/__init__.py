"""Pixels: decode, resize, stream in order with a bounded number ahead.

`images` knows nothing of datasets, models or runs.
"""

from .read import IMAGE_SUFFIXES, image_size, read_image, read_mask, resize_image
from .stream import ImageSource, LoadedImage, as_sources, stream_images

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageSource",
    "LoadedImage",
    "as_sources",
    "image_size",
    "read_image",
    "read_mask",
    "resize_image",
    "stream_images",
]
