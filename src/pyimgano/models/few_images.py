"""What methods for few images share: turned copies, and scores from the largest distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


def turned(image: npt.NDArray[np.uint8], degrees: float) -> npt.NDArray[np.uint8]:
    """Return an image (H, W, 3) turned around its middle, counter-clockwise, at the same size.

    What comes in at the corners is the image reflected at its border.
    """
    if degrees % 360 == 0:
        return image
    height, width = image.shape[:2]
    middle = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    found = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(found, np.uint8)


def mean_of_top(values: Tensor, share: float) -> Tensor:
    """Return the mean (B,) of the largest `share` of values (B, k), of one at least."""
    count = max(1, round(share * int(values.shape[1])))
    found: Tensor = values.topk(count, dim=1).values.mean(dim=1)
    return found
