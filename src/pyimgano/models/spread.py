"""Which training images are kept to calibrate on, where not all of them fit."""

from __future__ import annotations

# Training images whose features are kept for calibration, at most; and their bytes.
_IMAGES = 512
_BYTES = 2**30


class Spread:
    """`part` of `whole` numbers, evenly spread; all of them if there are no more."""

    def __init__(self, whole: int, part: int) -> None:
        self._whole, self._part = whole, part

    @classmethod
    def of_images(cls, whole: int, image_bytes: int) -> Spread:
        """As many of `whole` images as calibrate a threshold well and fit: 512, and 1 GiB.

        `image_bytes` is what is kept of one.
        """
        return cls(whole, max(1, min(_IMAGES, _BYTES // image_bytes)))

    def takes(self, number: int) -> bool:
        if self._part >= self._whole:
            return True
        # the first of each stretch, so that there is one however many come
        return number * self._part % self._whole < self._part


def spread_notes(used: int, seen: int) -> tuple[str, ...]:
    """What a calibration on `used` of `seen` training images says of that."""
    if used == seen:
        return ()
    return (f"calibrated on {used} of the {seen} training images, evenly spread",)
