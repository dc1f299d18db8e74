"""The size that images are looked at, where the user names none: as large as pays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ImageReadError
from ..images import ImageSource, image_size
from .spread import evenly

#: Sides of what images are resized to, least and largest: what the embedded backbone's budget
#: of time allows, and what its features still mean something at.
LEAST, LARGEST = 256, 512
# Sides are multiples of it, so that every stride up to it divides them.
_STEP = 32
# Of a side in the file, the part that is still detail. Enlarged images, or hardly reduced ones,
# have none that smaller ones lack, and every cell of the network then sees less of the part.
_DETAIL = 0.8
# Images that are asked for their size.
_ASKED = 64


def working_size(sources: Sequence[ImageSource]) -> tuple[int, int]:
    """(height, width), both the same, for images of these sizes.

    Four fifths of the side of a square of as many pixels as the images have, the median of up to
    64 of them; a multiple of 32, from 256 to 512. Of files the headers are read alone; those
    that cannot be read say nothing here.
    """
    sides = []
    for index in evenly(np.arange(len(sources)), _ASKED):
        size = _size(sources[index])
        if size is not None:
            sides.append(np.sqrt(float(size[0]) * size[1]))
    if not sides:
        return LEAST, LEAST
    side = int(np.clip(_DETAIL * np.median(sides) // _STEP * _STEP, LEAST, LARGEST))
    return side, side


def _size(source: ImageSource) -> tuple[int, int] | None:
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    try:
        return image_size(source)
    except ImageReadError:  # said by who decodes it
        return None
