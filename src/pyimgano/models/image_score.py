"""What scoring one image gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError
from ..images import Signature
from .product_recognition import Product


@dataclass(frozen=True)
class ImageScore:
    """One scored image.

    Attributes
    ----------
    index
        Position in the input.
    score
        Higher is more anomalous; None if `error` is set.
    anomaly_map
        (H, W) float32 at the detector's `resize`; None if `error` is set, if no map was
        asked for, or if the method has none.
    original_size
        (height, width) of the image before resizing; None if `error` is set.
    error
        Why the image could not be scored.
    remark
        What was left out of the image file, in words; None if nothing was.
    signature
        Of its pixels, to tell copies by (`pyimgano.images.Signature`); None if `error` is set.
    unlike_training
        How the image is of another kind than all training images, in words: in colour where
        they are grey, or of another shape. None if it is not.
    product
        Which product it shows, and how that is known, of a detector of many products
        (`pyimgano.models.many_products`); None of others.
    """

    index: int
    score: float | None
    anomaly_map: npt.NDArray[np.float32] | None
    original_size: tuple[int, int] | None
    error: ImageReadError | None = None
    remark: str | None = None
    signature: Signature | None = None
    unlike_training: str | None = None
    product: Product | None = None
