"""Ground-truth masks at the size that maps are compared at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError
from ..images import read_mask
from .layout import Saturation

#: What is wrong with a defective image without `mask_paths`.
NO_MASK = "the defective image has no mask"


def size_mismatch(mask: tuple[int, int], image: tuple[int, int]) -> str:
    """Return what is wrong with a mask of another (height, width) than its image."""
    return f"the mask is {mask[1]} x {mask[0]} pixels, its image {image[1]} x {image[0]}"


class MaskError(DataError):
    """A mask that does not go with its image (`mask_size`) or its dataset (`mask_value`)."""

    def __init__(
        self, path: Path, reason: str, kind: Literal["mask_size", "mask_value"] = "mask_size"
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.kind = kind


@dataclass(frozen=True)
class Region:
    """One defect of one image, as sPRO counts it.

    Attributes
    ----------
    path
        The mask file.
    mask
        (H, W) bool; without a pixel where nothing is left of it at that size.
    saturation
        From how many pixels of it on it counts as found; 0 where nothing is left.
    """

    path: Path
    mask: npt.NDArray[np.bool_]
    saturation: float


#: What is done to the values (H, W) uint8 of a mask file before they are resized.
Move = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


def load_mask(
    paths: Sequence[Path],
    image_size: tuple[int, int] | None,
    resize: tuple[int, int],
    move: Move | None = None,
) -> npt.NDArray[np.uint8]:
    """Load the union of an image's masks, resized by nearest neighbour.

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
    move
        Where the image was moved after it was decoded: what moves its masks alike.

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
    UsageError
        No files.
    """
    union: npt.NDArray[np.bool_] | None = None
    for path in paths:
        values = _read(path, image_size)
        # which values mean defect is told before some may have left the frame
        defect = values > (127 if (values > 127).any() else 0)
        if move is not None:
            defect = move(defect.astype(np.uint8)).astype(np.bool_)
        union = defect if union is None else union | defect
    if union is None:
        raise UsageError("paths is empty: a mask has at least one file")
    return _shrink(union, resize)


def load_regions(
    paths: Sequence[Path],
    image_size: tuple[int, int] | None,
    resize: tuple[int, int],
    saturation: Mapping[int, Saturation],
    move: Move | None = None,
) -> list[Region]:
    """Load the regions of an image's masks, kept apart: one for each value of each file.

    Parameters
    ----------
    paths, image_size, resize, move
        As `load_mask`.
    saturation
        By value of a mask's pixels.

    Returns
    -------
    list of Region
        Their union is what `load_mask` gives for masks of one value each. The saturation of
        a number of pixels of the file shrinks as the image does, and is at most the region.

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
            whole = values == value
            if move is not None:
                whole = move(whole.astype(np.uint8)).astype(np.bool_)
            mask = _shrink(whole, resize).astype(np.bool_)
            rule, area = saturation[value], float(mask.sum())
            wanted = rule.threshold * (area if rule.relative else shrinks)
            regions.append(Region(path, mask, min(wanted, area)))
    return regions


def _read(path: Path, image_size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    values = read_mask(path)
    size = (values.shape[0], values.shape[1])
    if image_size is not None and size != image_size:
        raise MaskError(path, size_mismatch(size, image_size))
    return values


def _shrink(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    resized = cv2.resize(
        mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(resized, dtype=np.uint8)
