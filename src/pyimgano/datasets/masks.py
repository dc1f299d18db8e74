"""Ground-truth masks at the size that maps are compared at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import read_mask
from .layout import Saturation


class MaskError(DataError):
    """A mask that does not go with its image (`mask_size`) or its dataset (`mask_value`)."""

    def __init__(
        self, path: Path, reason: str, kind: Literal["mask_size", "mask_value"] = "mask_size"
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.kind = kind


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
        values = _read(path, image_size)
        defect = values > 127
        if not defect.any():
            defect = values > 0
        union = defect if union is None else union | defect
    assert union is not None, "a mask without files"
    return _shrink(union, resize)


def load_regions(
    paths: Sequence[Path],
    image_size: tuple[int, int] | None,
    resize: tuple[int, int],
    saturation: Mapping[int, Saturation],
) -> list[tuple[npt.NDArray[np.bool_], float]]:
    """The regions of an image's masks, kept apart: one for each value of each file.

    Parameters
    ----------
    paths, image_size, resize
        As `load_mask`.
    saturation
        By value of a mask's pixels.

    Returns
    -------
    list of (mask, area)
        Mask (H, W) bool at `resize`, without pixels where nothing is left of the region at
        that size, and its saturation area in pixels of `resize`: a number of pixels of the
        file shrinks as the image does, and is at most the region.

    Raises
    ------
    MaskError
        Of another size than the image, or with a value without a saturation.
    ImageReadError
        Unreadable.
    """
    regions = []
    for path in paths:
        values = _read(path, image_size)
        shrinks = resize[0] * resize[1] / values.size
        for value in np.unique(values[values > 0]).tolist():
            if value not in saturation:
                known = ", ".join(str(v) for v in sorted(saturation))
                raise MaskError(
                    path, f"no defect has the pixel value {value}; known: {known}", "mask_value"
                )
            mask = _shrink(values == value, resize).astype(np.bool_)
            rule, area = saturation[value], float(mask.sum())
            wanted = rule.threshold * (area if rule.relative else shrinks)
            regions.append((mask, min(wanted, area)))
    return regions


def _read(path: Path, image_size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    values = read_mask(path)
    size = (values.shape[0], values.shape[1])
    if image_size is not None and size != image_size:
        raise MaskError(
            path,
            f"the mask is {size[1]} x {size[0]} pixels, its image "
            f"{image_size[1]} x {image_size[0]}",
        )
    return values


def _shrink(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    resized = cv2.resize(
        mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(resized, dtype=np.uint8)
