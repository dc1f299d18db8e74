"""What drift does to an image: nine corruptions, each at five severities.

The idea of common corruptions at five severities, and most of their kinds, is that of Hendrycks
& Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019. The formulas (`distort`) and their parameters are made for an inspection line: severity
1 is what goes unnoticed in a day's work, severity 5 what a line still runs with until somebody
looks at the camera.

Corruptions work on the image as it was decoded, before any resizing, as drift does. Lengths are
shares of sqrt(H W), so that an image of 300 pixels and one of 4000 suffer alike; the one
exception is `jpeg`, whose blocks are 8 pixels in any image. A blur of less than about half a pixel
is none.

What is drawn depends on a seed, the corruption's name and the image's identity, and on nothing
else: not on the order of images, on threads, or on what other severities are asked for. All
severities of an image share its draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, unknown_name
from . import distort

#: From the mildest to the worst.
SEVERITIES = (1, 2, 3, 4, 5)

_IMAGENET_C = "Hendrycks & Dietterich, ICLR 2019"


@dataclass(frozen=True)
class Corruption:
    """One kind of drift.

    Attributes
    ----------
    name, about
        What it is called, and what it stands for, with its formula's parameters.
    apply
        The formula, of `distort`.
    parameters
        By name, the value at each of the five severities.
    source
        Where the idea comes from; None where it is ours.
    moves
        Whether what is seen moves in the frame, and the masks with it.
    """

    name: str
    about: str
    apply: Callable[..., npt.NDArray[np.uint8]]
    parameters: Mapping[str, tuple[float, float, float, float, float]]
    source: str | None = None
    moves: bool = False

    def at(self, severity: int) -> dict[str, float]:
        """Return the parameters at a severity of 1 to 5; raises `UsageError` for another."""
        if type(severity) is not int or severity not in SEVERITIES:
            raise UsageError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
        return {name: values[severity - 1] for name, values in self.parameters.items()}


_TABLE = (
    Corruption(
        "lighting",
        "gain, a gradient over the frame, gamma and offset: brighter or darker",
        distort.lighting,
        {
            "gain": (0.02, 0.05, 0.10, 0.18, 0.30),
            "gradient": (0.02, 0.05, 0.09, 0.15, 0.24),
            "gamma": (0.02, 0.05, 0.09, 0.14, 0.20),
            "offset": (0.004, 0.01, 0.02, 0.03, 0.04),
        },
        source=f"after brightness of {_IMAGENET_C}",
    ),
    Corruption(
        "jpeg",
        "recompression at a quality of libjpeg, colour at half the resolution",
        distort.jpeg,
        {"quality": (80, 60, 40, 25, 15)},
        source=_IMAGENET_C,
    ),
    Corruption(
        "blur",
        "Gaussian; sigma is a share of sqrt(H W)",
        distort.blur,
        {"sigma": (0.0015, 0.0026, 0.0040, 0.0058, 0.0080)},
        source=_IMAGENET_C,
    ),
    Corruption(
        "glare",
        "three soft white highlights, added; the radius is a share of sqrt(H W)",
        distort.glare,
        {
            "strength": (0.10, 0.20, 0.35, 0.60, 0.95),
            "radius": (0.05, 0.06, 0.075, 0.095, 0.12),
        },
    ),
    Corruption(
        "geo_jitter",
        "rotation, shift (a share of sqrt(H W)) and zoom about the centre, borders reflected; "
        "masks move too",
        distort.geo_jitter,
        {
            "degrees": (0.5, 1.0, 2.0, 3.5, 5.5),
            "shift": (0.004, 0.008, 0.015, 0.025, 0.040),
            "zoom": (0.004, 0.008, 0.015, 0.025, 0.040),
        },
        moves=True,
    ),
    Corruption(
        "noise",
        "of photons and of the amplifier, in linear light; the grain is a share of sqrt(H W)",
        distort.noise,
        {
            "shot": (0.00005, 0.0002, 0.0006, 0.0018, 0.0050),
            "read": (0.0005, 0.001, 0.002, 0.004, 0.008),
            "grain": (0.001, 0.001, 0.001, 0.001, 0.001),
        },
        source=f"after Gaussian and shot noise of {_IMAGENET_C}",
    ),
    Corruption(
        "contrast",
        "towards the mean of each channel; the share of the deviation that is kept",
        distort.contrast,
        {"kept": (0.95, 0.88, 0.78, 0.65, 0.50)},
        source=_IMAGENET_C,
    ),
    Corruption(
        "defocus",
        "a disc; the radius is a share of sqrt(H W)",
        distort.defocus,
        {"radius": (0.0026, 0.0042, 0.0062, 0.0092, 0.0135)},
        source=_IMAGENET_C,
    ),
    Corruption(
        "motion",
        "along a line of any direction; the length is a share of sqrt(H W)",
        distort.motion,
        {"length": (0.004, 0.008, 0.014, 0.022, 0.034)},
        source=_IMAGENET_C,
    ),
)

#: By name, in the order in which they are run unless the user says otherwise.
CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType({one.name: one for one in _TABLE})


def get_corruption(name: str) -> Corruption:
    """Return the corruption called `name`; an unknown one raises `UsageError`, with the near
    ones.
    """
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise UsageError(unknown_name("corruption", str(name), CORRUPTIONS))
    return CORRUPTIONS[name]


def corrupt_image(
    image: npt.NDArray[np.uint8],
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    identity: str = "",
) -> npt.NDArray[np.uint8]:
    """Return a corrupted copy of an image.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, of any size, as it was decoded.
    corruption
        A name of `CORRUPTIONS`.
    severity
        1 to 5.
    seed, identity
        Of the draws: what stands for the image, such as its path within the dataset. The
        same four words and numbers always draw the same.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8 RGB.

    Raises
    ------
    UsageError
        An unknown corruption, another severity, or an image of another kind.
    """
    kind = get_corruption(corruption)
    parameters = kind.at(severity)
    if not _is_picture(image, 3) or image.shape[2] != 3:
        raise UsageError(f"image must be an (H, W, 3) uint8 RGB array, got {_shown(image)}")
    return kind.apply(image, _draws(seed, kind.name, identity), **parameters)


def corrupt_mask(
    mask: npt.NDArray[np.uint8],
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    identity: str = "",
) -> npt.NDArray[np.uint8]:
    """Move the ground truth of a corrupted image exactly as the image is moved.

    Parameters
    ----------
    mask
        (H, W) uint8 of any values, of the image's own size.
    corruption, severity, seed, identity
        As `corrupt_image` was given them.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8, each pixel with the value of the nearest; the mask itself under a
        corruption that moves nothing.

    Raises
    ------
    UsageError
        As `corrupt_image`.
    """
    kind = get_corruption(corruption)
    parameters = kind.at(severity)
    if not _is_picture(mask, 2):
        raise UsageError(f"mask must be an (H, W) uint8 array, got {_shown(mask)}")
    if not kind.moves:
        return mask
    return kind.apply(mask, _draws(seed, kind.name, identity), **parameters, nearest=True)


def _draws(seed: int, corruption: str, identity: str) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed must be an integer of at least 0, got {seed!r}")
    # names of files may hold bytes that are no text
    text = f"{int(seed)}\0{corruption}\0{identity}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.PCG64(number))


def _is_picture(array: Any, dimensions: int) -> bool:
    return (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == dimensions
        and 0 not in array.shape
    )


def _shown(array: Any) -> str:
    if isinstance(array, np.ndarray):
        return f"shape {array.shape} of {array.dtype}"
    return type(array).__name__
