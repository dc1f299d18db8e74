"""Which training images are kept to calibrate on, where not all of them fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

# Training images whose features are kept for calibration, at most; and their bytes.
_IMAGES = 512
_BYTES = 2**30

#: Training images whose whole maps a threshold for pixels comes from, at most, where scores need
#: no whole maps or these cost time.
WHOLE_MAPS = 64


class EvenlySpread:
    """`part` of `whole` numbers, evenly spread; all of them if there are no more."""

    def __init__(self, whole: int, part: int) -> None:
        self._whole, self._part = whole, part

    @classmethod
    def of_images(cls, whole: int, image_bytes: int) -> EvenlySpread:
        """Take as many of `whole` images as calibrate a threshold well and fit: 512, and 1 GiB.

        `image_bytes` is what is kept of one.
        """
        return cls(whole, max(1, min(_IMAGES, _BYTES // image_bytes)))

    def takes(self, number: int) -> bool:
        if self._part >= self._whole:
            return True
        # the first of each stretch, so that there is one however many come
        return number * self._part % self._whole < self._part

    def __len__(self) -> int:
        """Return how many it takes, if all come."""
        return min(self._part, self._whole)


class KeptVectors:
    """What a spread takes of the vectors of images, in one tensor from the start.

    Parameters
    ----------
    spread
        Over the images that are announced.
    like
        (P, C), the vectors of one image.
    """

    def __init__(self, spread: EvenlySpread, like: Tensor) -> None:
        self._spread = spread
        self._room = like.new_empty((len(spread), *like.shape))
        self._seen = self._filled = 0
        self._numbers: list[int] = []

    def add(self, vectors: Tensor) -> None:
        """Take the vectors (B, P, C) of the next images."""
        for one in vectors:
            if self._spread.takes(self._seen):
                self._room[self._filled] = one
                self._filled += 1
                self._numbers.append(self._seen)
            self._seen += 1

    def all(self) -> Tensor:
        """Return the vectors (n, P, C) of those that came; not a copy."""
        return self._room[: self._filled]

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return (n,) which of the images that came these are, counted from 0."""
        return np.array(self._numbers, np.int64)


def evenly(numbers: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of `numbers`, evenly spread, in their order."""
    count = min(most, len(numbers))
    return numbers[np.arange(count) * len(numbers) // max(count, 1)]


def spread_notes(used: int, seen: int) -> tuple[str, ...]:
    """Return what a calibration on `used` of `seen` training images says of that."""
    if used == seen:
        return ()
    return (f"calibrated on {used} of the {seen} training images, evenly spread",)
