"""The images that a network is trained on, kept as they were read, and what each is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...images import KeyedImage, NetworkInput
from ..evenly_spread import EvenlySpread

# Of kept images: 5,461 of 256 x 256.
_BYTES = 2**30
# Images to watch the loss on, and to set a threshold on, at most: they cost time.
_WATCHED = 32
_CALIBRATED = 512
# Fewer images than this are all learned from, and training ends after its steps.
_LEAST_TO_WATCH = 10


class KeptImages:
    """Images of one size, (n, H, W, 3) uint8: all, or an evenly spread part that takes 1 GiB.

    Parameters
    ----------
    expected
        How many come, at most.
    size
        (H, W).

    Attributes
    ----------
    seen
        How many came.
    numbers
        Which of these are kept, counted from 0.
    """

    def __init__(self, expected: int, size: tuple[int, int]) -> None:
        room = max(1, _BYTES // (3 * size[0] * size[1]))
        self._spread = EvenlySpread(expected, room)
        # takes memory only as it is filled
        self._pixels = np.empty((min(expected, room), *size, 3), np.uint8)
        self._count = 0
        self.seen = 0
        self.numbers: list[int] = []

    def add(self, images: Sequence[NetworkInput]) -> None:
        """Take in the next images."""
        for image in images:
            pixels = image.pixels if isinstance(image, KeyedImage) else image
            if self._spread.takes(self.seen):
                assert pixels is not None
                self._pixels[self._count] = pixels
                self._count += 1
                self.numbers.append(self.seen)
            self.seen += 1

    def __len__(self) -> int:
        return self._count

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return (n, H, W, 3), not a copy."""
        return self._pixels[: self._count]

    def digest(self) -> str:
        """Hash of all kept pixels and their shape."""
        found = hashlib.sha256(repr(self.pixels.shape).encode())
        for image in self.pixels:
            found.update(image)
        return found.hexdigest()


@dataclass(frozen=True)
class Parts:
    """What each kept image is for, by number; no number is in two of them.

    Attributes
    ----------
    learn
        The network is trained on these.
    watch
        The loss on these decides when training ends, and which state is kept; may be empty.
    calibrate
        The threshold is set on these; empty where other images serve.
    """

    learn: npt.NDArray[np.int64]
    watch: npt.NDArray[np.int64]
    calibrate: npt.NDArray[np.int64]


def divide(count: int, *, calibrate: bool, groups: npt.NDArray[np.int64] | None = None) -> Parts:
    """Divide `count` images, each part evenly spread over them.

    `groups` (count,) are equal for images that are copies of each other, which are all put into
    the part of the first of them.

    To calibrate on (if `calibrate`, and there are two): a tenth, at least 10 or a third if
    that is less, at most 512. To watch: of 10 images or more a tenth, at most 32.
    """
    if groups is not None:
        first, group = np.unique(groups, return_inverse=True)
        if len(first) < count:
            parts = divide(len(first), calibrate=calibrate)
            every = (parts.learn, parts.watch, parts.calibrate)
            return Parts(*(np.flatnonzero(np.isin(group, some)) for some in every))
    held_out = 0
    if calibrate and count > 1:
        held_out = max(1, -(-count // 10), min(10, count // 3))
    watched = count // 10 if count >= _LEAST_TO_WATCH else 0
    numbers = np.arange(count)
    calibrated = _spread(numbers, min(held_out, _CALIBRATED))
    others = np.setdiff1d(numbers, calibrated)
    watch = _spread(others, min(watched, _WATCHED))
    return Parts(np.setdiff1d(others, watch), watch, calibrated)


def _spread(numbers: npt.NDArray[np.int64], part: int) -> npt.NDArray[np.int64]:
    # the middle of each of `part` stretches
    places: npt.NDArray[Any] = (2 * np.arange(part) + 1) * len(numbers) // max(1, 2 * part)
    chosen: npt.NDArray[np.int64] = numbers[places]
    return chosen
