"""Ground-truth masks at the size that maps are compared at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import read_mask


class MaskError(DataError):
    """A mask of another size than its image."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def load_mask(
    paths: Sequence[Path], image_size: tuple[int, int] | None, resize: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The union of an image's masks, resized by nearest neighbour.

    A pixel means defect if its value is above 127, as in the published masks of 0 and 255
    and in anti-aliased ones; in a mask without any value above 127, whose values are numbers
    of defect kinds, if it is above 0.

    Parameters
    ----------
    paths
        One or more mask files.
    image_size
        (height, width) of the image, which the masks must have too; None skips the check.
    resize
        (height, width) of the result.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8 of 0 and 1.

    Raises
    ------
    MaskError
        Of another size than the image.
    ImageReadError
        Unreadable.
    """
    union: npt.NDArray[np.bool_] | None = None
    for path in paths:
        values = read_mask(path)
        size = (values.shape[0], values.shape[1])
        if image_size is not None and size != image_size:
            raise MaskError(
                path,
                f"the mask is {size[1]} x {size[0]} pixels, its image "
                f"{image_size[1]} x {image_size[0]}",
            )
        defect = values > 127
        if not defect.any():
            defect = values > 0
        union = defect if union is None else union | defect
    assert union is not None, "a mask without files"
    resized = cv2.resize(
        union.astype(np.uint8), (resize[1], resize[0]), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(resized, dtype=np.uint8)
