"""Changes of an image that are no defect, and the training images that are seen under them.

A whitening raises the directions in which clean training images hardly vary, and that is where
compression, noise of the sensor and a lamp that ages show. How far features move under such changes
is measured on disturbed copies of training images, and counts less from then on
(`neighbors.PooledCoreset`). In speaker recognition this is within-class covariance normalisation
(Hatch, Kajarekar, Stolcke, "Within-class covariance normalization for SVM-based speaker
recognition", Interspeech 2006), with an image and its copies for a class.

Copies are made at the images' own size, before they are resized, as the changes themselves happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ..images import CORRUPTIONS, AlteredImage, ImageSource, RegionOfInterest, distort
from ..images.samples import narrow_array

_Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Disturbance:
    """One kind of change.

    Attributes
    ----------
    name
        Stands for the kind and its parameters in the draws and in the keys of a cache.
    apply
        Takes an (H, W, 3) uint8 RGB image and a generator, gives the changed image.
    """

    name: str
    apply: Callable[[_Image, np.random.Generator], _Image]


def _blur(image: _Image, rng: np.random.Generator, *, pixels: float) -> _Image:
    return distort.blur(image, rng, sigma=pixels / distort.extent(*image.shape[:2]))


#: What a line's images go through in a day's work: files that are compressed, a sensor that is
#: warm, a lamp that ages, a lens that is not quite in focus.
EVERYDAY: tuple[Disturbance, ...] = (
    Disturbance("jpeg 75", partial(distort.jpeg, quality=75)),
    Disturbance("jpeg 50", partial(distort.jpeg, quality=50)),
    Disturbance("noise 3", partial(distort.white_noise, deviation=3.0)),
    Disturbance("light 1.06", partial(distort.gain, factor=1.06)),
    Disturbance("light 0.94", partial(distort.gain, factor=0.94)),
    Disturbance("blur 0.8", partial(_blur, pixels=0.8)),
)
# Radii of spots of light, as shares of sqrt(H W). The glare that robustness is measured with has
# three ellipses: what is measured there is another disturbance than the one that was learned.
_SPOT_RADII = (0.02, 0.035, 0.06)
#: The mildest form of each corruption that robustness is measured with, but for glare.
DRIFT_OF_FEW: tuple[Disturbance, ...] = tuple(
    Disturbance(f"{kind.name} 1", partial(kind.apply, **kind.at(1)))
    for kind in CORRUPTIONS.values()
    if kind.name != "glare"
)
#: These, and spots of light in place of glare. Spots lie all over the frame: those of one highlight
#: move so few patches that they would hardly count among the others. Some of these look like
#: defects, so that they count only where the others are not enough.
DRIFT: tuple[Disturbance, ...] = (
    *DRIFT_OF_FEW,
    *(
        Disturbance(f"spots {radius:g}", partial(distort.spots, strength=0.1, radius=radius))
        for radius in _SPOT_RADII
    ),
)
# Of each everyday disturbance there is a copy for so many images, within these bounds, and no more
# than give so many patches: a large image says as much of a disturbance as several small ones, and
# takes the network as long.
_IMAGES_A_COPY = 16
_FEWEST, _MOST = 3, 12
_PATCHES = 6144
# Copies of each of the others, and of those that few images are disturbed by.
_DRIFT_COPIES, _COPIES_OF_FEW = 4, 2
# Fewer images than this have two copies of each everyday disturbance, so that small fits are quick.
_FEW_IMAGES = 18


@dataclass(frozen=True)
class DisturbedCopy:
    """A copy of one training image under one disturbance.

    Attributes
    ----------
    image
        Which training image, by its number among those that were read.
    disturbance
        What is done to it.
    seed
        Of the draws, which depend on nothing else than the image's number and the disturbance.
    """

    image: int
    disturbance: Disturbance
    seed: int

    @property
    def everyday(self) -> bool:
        """Return whether its disturbance is one of `EVERYDAY`."""
        return self.disturbance in EVERYDAY

    def alter(self, image: _Image) -> _Image:
        """Make the copy of the image (H, W, 3) uint8 RGB, at its own size."""
        name = list(self.disturbance.name.encode())
        return self.disturbance.apply(image, np.random.default_rng([self.seed, self.image, *name]))

    def source(
        self,
        original: ImageSource,
        bit_depth: int | None = None,
        roi: RegionOfInterest | None = None,
    ) -> ImageSource | AlteredImage:
        """Return the copy as a stream of images takes it; `bit_depth` as `read_image` has it.

        What lies outside of `roi` is filled before the image is disturbed, so that a blur or a
        block of JPEG carries nothing of it inside.
        """
        name = f"image {self.image}" if isinstance(original, np.ndarray) else str(original)

        def altered(image: _Image) -> _Image:
            if roi is not None:
                image = roi.fill(image, (image.shape[0], image.shape[1]), name)
            return self.alter(image)

        if isinstance(original, np.ndarray):
            pixels, _, _ = narrow_array(name, original, bit_depth)
            return altered(pixels)
        key = f"{self.disturbance.name}-{self.seed}-{self.image}".replace(" ", "")
        return AlteredImage(name, altered, key)


def everyday_copies(images: Sequence[int], cells: int, seed: int) -> list[DisturbedCopy]:
    """Choose which copies under everyday disturbances are made, image by image in their order.

    Parameters
    ----------
    images
        Numbers of the training images that there may be copies of, ascending; at least one.
    cells
        Patches that each has.
    seed
        Of the draws.

    Returns
    -------
    list of DisturbedCopy
        For each of `EVERYDAY` as many as a 16th of the images, but no more than have 6,144 patches,
        and three to twelve, or two of fewer than 18 images; spread evenly over the images. Of few
        images each has several; of two or one each has every kind.
    """
    if len(images) <= 2:
        return [DisturbedCopy(number, kind, seed) for number in images for kind in EVERYDAY]
    fewest = _FEWEST if len(images) >= _FEW_IMAGES else _FEWEST - 1
    rounds = min(max(min(len(images) // _IMAGES_A_COPY, _PATCHES // cells), fewest), _MOST)
    return _spread(EVERYDAY * rounds, images, seed)


def drift_copies(images: Sequence[int], seed: int) -> list[DisturbedCopy]:
    """Choose which copies are made where everyday ones are not enough; else as `everyday_copies`.

    Four of each kind of `DRIFT`; of fewer images than these are, two of each of `DRIFT_OF_FEW`.
    """
    if not are_enough_for_drift(len(images)):
        return _spread(DRIFT_OF_FEW * _COPIES_OF_FEW, images, seed)
    return _spread(DRIFT * _DRIFT_COPIES, images, seed)


def are_enough_for_drift(images: int) -> bool:
    """Return whether there are as many images as copies under `DRIFT`.

    With fewer, spots of light outweigh the images themselves, and a defect that is a spot is
    discounted with them.
    """
    return images >= len(DRIFT) * _DRIFT_COPIES


def words_for(name: str) -> str:
    """Return what a report calls a disturbance of `DRIFT` with this name."""
    kind, strength = name.rsplit(" ", 1)
    return "soft spots of light" if kind == "spots" else f"{kind} at severity {strength}"


def _spread(
    order: tuple[Disturbance, ...], images: Sequence[int], seed: int
) -> list[DisturbedCopy]:
    # neighbours are disturbed differently, and each kind in several places
    numbers = (images[j * len(images) // len(order)] for j in range(len(order)))
    return [DisturbedCopy(number, kind, seed) for number, kind in zip(numbers, order)]
