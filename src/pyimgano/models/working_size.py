"""The size that images are looked at, where the user names none: as large as pays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError
from ..images import ImageSource, image_size
from .evenly_spread import evenly

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
# Shapes that are squares, by how often the longer side has the shorter: what a network trained on
# photographs cropped at random does not mind. And how far from their median the shapes of more than
# half of the images may be, if that is to be the shape of all.
_SQUARE = 1.25
_ALIKE = 1.2
# The longer side has the shorter no more often: beyond, a network sees nothing of a line.
_LONGEST = 4.0


def working_size(sources: Sequence[ImageSource]) -> tuple[int, int]:
    """Return (height, width) for images of these sizes: their shape, and as many pixels as pay.

    Four fifths of the side of a square of as many pixels as the images have, the median of up to
    64 of them; from 256 to 512. Images that are clearly no squares, most of them of about one
    shape, get a rectangle of that shape with as many pixels as that square; others the square.
    Sides are multiples of 32. Of files the headers are read alone; those that cannot be read say
    nothing here.
    """
    sizes = []
    for index in evenly(np.arange(len(sources)), _ASKED):
        size = _size(sources[index])
        if size is not None:
            sizes.append(size)
    if not sizes:
        return LEAST, LEAST
    height, width = np.array(sizes, np.float64).T
    side = int(
        np.clip(_DETAIL * np.median(np.sqrt(height * width)) // _STEP * _STEP, LEAST, LARGEST)
    )
    shape = _shape(height / width)
    return _rounded(side * np.sqrt(shape)), _rounded(side / np.sqrt(shape))


def _shape(shapes: npt.NDArray[np.float64]) -> float:
    """Height by width that stands for those of the images; 1 for a square."""
    logarithms = np.log(shapes)
    median = float(np.median(logarithms))
    alike = np.abs(logarithms - median) <= np.log(_ALIKE)
    if abs(median) < np.log(_SQUARE) or alike.mean() <= 0.5:
        return 1.0
    return float(np.exp(np.clip(median, -np.log(_LONGEST), np.log(_LONGEST))))


def _rounded(side: float) -> int:
    return max(1, round(side / _STEP)) * _STEP


def _size(source: ImageSource) -> tuple[int, int] | None:
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    try:
        return image_size(source)
    except ImageReadError:  # said by who decodes it
        return None
