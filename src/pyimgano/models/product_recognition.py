"""Which product an image shows, by the features of the network that the products share.

The features of an image are pooled: the mean of every channel over the cells of each layer. A
product is known by the pooled features of its good images, each channel in units of its deviation
over these images. How far an image is from a product is the distance to the nearest of them, as in
Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022, section 3.

How far is too far is told by the product's own images, each compared with all the others but its
copies (conformal anomaly detection: Laxhammar and Falkman, "Conformal prediction for
distribution-independent anomaly detection", 2010). From their distances the threshold comes as that
of a detector does (`pyimgano.calibration.calibrate`): a good image of the product lies beyond it
with the probability that was asked for, or with that which so few images can promise.

Pooled features of a defective part differ from those of good ones too, if by less than those of
another product. So an image beyond the threshold is not yet of an unknown product: it is if it lies
beyond the product's reach, the geometric mean of the threshold and of the distance at which the
nearest image of another known product lies. Between the two an image may be called defective, and
never good (`pyimgano.models.many_products`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ..calibration import Calibration, ScoreScale, calibrate
from ..errors import DataError
from .evenly_spread import evenly

if TYPE_CHECKING:
    from .detector import Detector

#: The images of a product that it is recognised by, at most: with fewer than 1,000 a rate of
#: 0.1 % cannot be promised.
MOST_IMAGES = 2000
# Of another product, images that tell how near it is.
_OTHERS = 64
# A channel that hardly varies over a product's images has this share of the mean variance too: it
# would otherwise make strangers of images that differ from these by next to nothing.
_LEAST_SHARE = 0.1

#: How the product of an image is known.
KnownBy = Literal["named", "recognised", "unknown"]


@dataclass(frozen=True)
class Product:
    """The product that an image was taken to show.

    Attributes
    ----------
    name
        Of the product; None where it is none that is known.
    known_by
        `named` by the caller, `recognised` by the image's features, or `unknown`.
    nearest
        The product whose images are nearest, as multiples of the products' reaches. None if the
        product was named.
    p_value
        (1 + k) / (n + 1), where k of the n good images of `nearest` are at least as far from the
        others of it; None if the product was named.
    as_good
        Whether the image is no farther from the product's good images than these from each other,
        so that it may be called good.
    """

    name: str | None
    known_by: KnownBy
    nearest: str | None = None
    p_value: float | None = None
    as_good: bool = True


@dataclass(frozen=True, eq=False)
class ProductImages:
    """What a product is recognised by.

    Attributes
    ----------
    vectors
        (n, D) float32: the pooled features of its good images.
    distances
        (m,) float64: of each distinct image to the nearest of the others.
    """

    vectors: npt.NDArray[np.float32]
    distances: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls, vectors: npt.NDArray[np.float32], groups: npt.NDArray[np.int64], name: str
    ) -> ProductImages:
        """Learn from pooled features (n, D), of which `groups` (n,) says which are of copies.

        Raises
        ------
        DataError
            Fewer than two images are distinct.
        """
        distinct = np.unique(groups)
        if len(distinct) < 2:
            raise DataError(
                f"product {name!r}: to be recognised it needs at least two good images that are "
                f"no copies of each other, got {len(distinct)}"
            )
        found = cls(vectors, np.zeros(0))
        nearest = []
        for first in distinct:
            to_all = found.to_each(vectors[first])
            nearest.append(to_all[groups != first].min())
        return cls(vectors, np.asarray(nearest))

    @cached_property
    def scale(self) -> npt.NDArray[np.float32]:
        """Return the unit of each channel, (D,)."""
        variances = self.vectors.var(axis=0, dtype=np.float64)
        scale = np.sqrt(variances + _LEAST_SHARE * variances.mean())
        return np.where(scale > 0, scale, 1.0).astype(np.float32)

    @cached_property
    def _in_units(self) -> npt.NDArray[np.float32]:
        return self.vectors / self.scale

    def to_each(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the distances (n,) of one image (D,) to each of the product's."""
        away = self._in_units - vector / self.scale
        # no product of matrices: an image's distance does not depend on others or on threads
        squared: npt.NDArray[np.float32] = np.square(away).sum(axis=1)
        return np.sqrt(squared, dtype=np.float64)

    def calibrated(self, rate: float) -> Calibration:
        """Return the threshold of distances, beyond which a good image lies at this rate."""
        return calibrate(self.distances, 1 - rate, method="leave-one-image-out")


class Recogniser:
    """Tells products apart.

    Parameters
    ----------
    products
        What each is recognised by.
    unknown_rate
        The share of a product's good images that may lie beyond its threshold, in (0, 0.5].

    Attributes
    ----------
    calibrations
        The thresholds of the products' distances, and what they promise.
    reaches
        The distances beyond which an image is not of the product.
    """

    def __init__(self, products: Mapping[str, ProductImages], unknown_rate: float) -> None:
        self.products = dict(products)
        self.unknown_rate = unknown_rate
        self.calibrations = {
            name: one.calibrated(unknown_rate) for name, one in self.products.items()
        }
        self.reaches = {name: self._reach(name) for name in self.products}
        self._scales = {
            name: ScoreScale(self.calibrations[name].threshold, one.distances)
            for name, one in self.products.items()
        }

    def _reach(self, name: str) -> float:
        own, threshold = self.products[name], self.calibrations[name].threshold
        others = [
            own.to_each(one.vectors[number]).min()
            for other, one in self.products.items()
            if other != name
            for number in evenly(np.arange(len(one.vectors)), _OTHERS)
        ]
        nearest = min(others, default=threshold)
        return float(max(threshold, np.sqrt(threshold) * np.sqrt(nearest)))

    def without(self, name: str) -> Recogniser:
        """Return one that does not know this product, to see what it would say of its images."""
        rest = {other: one for other, one in self.products.items() if other != name}
        return Recogniser(rest, self.unknown_rate)

    def recognise(self, vector: npt.NDArray[np.float32]) -> Product:
        """Return the product of an image by its pooled features (D,)."""
        distances = {name: float(one.to_each(vector).min()) for name, one in self.products.items()}
        nearest = min(distances, key=lambda name: distances[name] / self.reaches[name])
        distance = distances[nearest]
        p_value = self._scales[nearest].p_value(distance)
        if not distance < max(self.reaches[nearest], self.calibrations[nearest].threshold):
            return Product(None, "unknown", nearest, p_value, as_good=False)
        as_good = distance < self.calibrations[nearest].threshold
        return Product(nearest, "recognised", nearest, p_value, as_good)


def require_alike(detectors: Mapping[str, Detector]) -> tuple[int, int]:
    """Return the size that images are recognised at.

    Raises
    ------
    DataError
        The detectors do not work on the same network in the same way, so that they cannot share it.
    """
    first_name, first = next(iter(detectors.items()))
    for name, one in detectors.items():
        same = type(one) is type(first) and one.roi_ == first.roi_
        network, own = first.backbone_, one.backbone_
        if network is None or own is None or not same:
            raise DataError(f"products {first_name!r} and {name!r} have detectors of other kinds")
        if own is not network and (
            own.describe() != network.describe() or own.state_sha256 != network.state_sha256
        ):
            raise DataError(f"products {first_name!r} and {name!r} work on different networks")
    sizes = [tuple(one.params_.resize) for one in detectors.values()]
    height, width = min(sizes, key=lambda size: (size[0] * size[1], size))
    return height, width
