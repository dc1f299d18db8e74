"""Forwards to `pyimgano.images.image_format`."""

from ..images.image_format import ImageFormat, parse_image_format

__all__ = ["ImageFormat", "parse_image_format"]
