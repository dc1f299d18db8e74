"""Small pictures for a page: an image, and the same with its map, of a bounded size."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..datasets import MaskError, load_mask
from ..errors import ImageReadError
from ..images import read_image, resize_image
from ..images.draw import MULTIPLES, draw_overlay
from ..images.map_scale import REGION_EDGE, MapScale
from ..images.regions import find_regions

Image = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

#: The longer side of a picture in pixels, at most.
LONGEST_SIDE = 448
# From the best to the smallest: the share of the longest side, and the quality of the JPEG.
_ATTEMPTS = ((1.0, 82), (1.0, 70), (0.8, 70), (0.6, 65), (0.45, 55), (0.3, 45), (0.2, 35))
# RGB of the outlines of the ground truth, on black: no colour of the heat map is near it.
_TRUTH = (0, 245, 255)


@dataclass(frozen=True)
class MapFacts:
    """What the colours of an image's map depend on.

    Attributes
    ----------
    score, threshold
        Of the image; score >= threshold is defective.
    normal
        Mean of the pixels of normal images' maps; None if it is not known.
    pixel_threshold
        Outlines surround the pixels at or above it, whatever the image is called. None for
        regions that explain the decision: an image that is called good has none.
    """

    score: float
    threshold: float
    normal: float | None
    pixel_threshold: float | None = None


@dataclass(frozen=True)
class Picture:
    """Pictures of one image, as addresses that hold the pictures themselves.

    Attributes
    ----------
    width, height
        Of each picture, in pixels.
    image
        The image; None where it could not be read.
    overlay
        The same with map and outlines; None without a map and without ground truth.
    has_map, has_truth
        Whether the overlay has colours, and outlines of the ground truth.
    regions
        How many regions it outlines.
    missing
        Why there is no image.
    """

    width: int
    height: int
    image: str | None
    overlay: str | None
    has_map: bool = False
    regions: int = 0
    has_truth: bool = False
    missing: str | None = None

    @property
    def size(self) -> int:
        """Return how many bytes it takes in a page."""
        return sum(len(one) for one in (self.image, self.overlay) if one is not None)


def draw_map(image: Image, anomaly_map: Map, facts: MapFacts) -> tuple[Image, int]:
    """Draw a map (H, W) and the outlines of its regions over an image (H, W, 3) uint8.

    The one place that decides on the scale of colours, for all pages.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8.
    int
        How many regions are outlined.
    """
    scale = MapScale.of(
        float(anomaly_map.max()),
        score=facts.score,
        threshold=facts.threshold,
        normal=facts.normal or 0.0,
    )
    limit, peak = facts.pixel_threshold, None
    if limit is None:
        limit, peak = scale.value(REGION_EDGE), scale.line
    found, mask = find_regions(anomaly_map, limit, least_peak=peak)
    drawn = draw_overlay(image, anomaly_map, scale, outline=mask, legend=False)
    return drawn, len(found)


def take_picture(
    path: str | Path,
    anomaly_map: Map | None,
    facts: MapFacts | None,
    masks: Sequence[Path] = (),
    *,
    most_bytes: int,
    bit_depth: int | None = None,
) -> Picture:
    """Read an image and make the pictures that a page shows of it.

    Parameters
    ----------
    path
        Of the image.
    anomaly_map
        (h, w) float32 of any size, stretched over the image; None without.
    facts
        What its colours depend on; None draws none.
    masks
        Files of the ground truth, whose outlines are drawn.
    most_bytes
        That each of the two pictures takes in the page.
    bit_depth
        As `read_image`.

    Returns
    -------
    Picture
        With `missing` where the image cannot be read.
    """
    try:
        image = read_image(path, bit_depth=bit_depth)
    except ImageReadError as error:
        return Picture(0, 0, None, None, missing=error.reason)
    original = (image.shape[0], image.shape[1])
    # a small image is enlarged, so that outlines on it are fine lines
    scale = min(2.0, LONGEST_SIDE / max(original))
    height, width = (max(1, round(scale * side)) for side in original)
    small = resize_image(image, (height, width))
    del image
    drawn, has_map, regions = small, False, 0
    if anomaly_map is not None and facts is not None:
        full = np.asarray(
            cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32
        )
        drawn, regions = draw_map(small, full, facts)
        has_map = True
    truth = _outlines(masks, original, (height, width))
    if truth:
        drawn = drawn.copy()
        line = max(1, round(min(height, width) / 200))
        cv2.drawContours(drawn, truth, -1, (0, 0, 0), line + 2, cv2.LINE_AA)
        cv2.drawContours(drawn, truth, -1, _TRUTH, line, cv2.LINE_AA)
    return Picture(
        width,
        height,
        _address(small, most_bytes),
        _address(drawn, most_bytes) if drawn is not small else None,
        has_map,
        regions,
        bool(truth),
    )


def _outlines(
    masks: Sequence[Path], image_size: tuple[int, int], size: tuple[int, int]
) -> list[npt.NDArray[np.int32]]:
    """Return the borders of the ground truth; none where it cannot be used, as problems say."""
    if not masks:
        return []
    try:
        mask = load_mask(masks, image_size, size)
    except (ImageReadError, MaskError):
        return []
    # around the defect, so that the line does not hide a thin one
    mask = np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=3), np.uint8)
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    return [np.asarray(one, np.int32) for one in contours]


def _address(image: Image, most_bytes: int) -> str:
    """Return the picture as a `data:` address of at most so many characters, if that can be."""
    address = ""
    for share, quality in _ATTEMPTS:
        small = image
        if share < 1.0:
            height, width = (max(1, round(share * side)) for side in image.shape[:2])
            small = resize_image(image, (height, width))
        swapped = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        encoded, data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert encoded
        address = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
        if len(address) <= most_bytes:
            break
    return address


def scale_of_colours() -> str:
    """Return a narrow picture of the scale, from half to twice the threshold, for the legend."""
    width, height = 220, 8
    multiples = np.geomspace(MULTIPLES[0], MULTIPLES[-1], width, dtype=np.float32)
    grey = np.full((height, width, 3), 128, np.uint8)
    drawn = draw_overlay(grey, np.tile(multiples, (height, 1)), MapScale(0.0, 1.0), legend=False)
    encoded, data = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    assert encoded
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode("ascii")
