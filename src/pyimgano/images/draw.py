"""A heat map over its image, for people to look at.

Colours and opacity stand for multiples of the threshold that decides, on the same scale for every
image of every detector: nothing up to half of the threshold, yellow at the threshold, and red from
twice the threshold on. So a good part looks calm beside a defective one.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from .map_scale import MapScale

_Image = npt.NDArray[np.uint8]

#: Multiples of the threshold: nothing is drawn up to the first, the second is the threshold, and
#: from the last on colour and opacity do not change.
MULTIPLES = (0.5, 1.0, 2.0)
# At these multiples, the place in OpenCV's map of colours: dark blue, yellow and red. Beyond that
# red turns into a brown that hides the part.
_COLOUR_PLACES = (0.0, 155.0, 235.0)
# At these multiples, the share of the heat map's colour: the part can still be seen.
_OPACITIES = (0.0, 0.25, 0.5)
# Rows drawn at a time, so that a large image takes little memory besides itself.
_ROWS = 256
_COLOURS = cv2.COLORMAP_TURBO
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# A legend in fewer pixels cannot be read.
_LEGEND_WIDTH = 160


def draw_overlay(
    image: _Image,
    anomaly_map: npt.NDArray[np.float32],
    scale: MapScale,
    *,
    outline: npt.NDArray[np.bool_] | None = None,
    caption: str = "",
    legend: bool = True,
) -> _Image:
    """Draw a heat map over its image.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    anomaly_map
        (H, W) float32, finite.
    scale
        Which multiples of the threshold the map's values stand for.
    outline
        (H, W) bool; the borders of its regions are drawn.
    caption
        ASCII, for the legend below the image.
    legend
        Whether there is a legend.

    Returns
    -------
    numpy.ndarray
        (H + h, W, 3) uint8 RGB: the picture, and below it h rows with the caption and the scale;
        h is 0 without a legend, and where the image is narrower than 160 pixels.
    """
    height, width = image.shape[:2]
    strip = _legend(width if legend else 0, caption)
    drawn = np.empty((height + len(strip), width, 3), np.uint8)
    if len(strip):
        drawn[height:] = strip
    for start in range(0, height, _ROWS):
        rows = np.s_[start : min(start + _ROWS, height)]
        multiples = scale.multiples(anomaly_map[rows])
        share = np.interp(multiples, MULTIPLES, _OPACITIES).astype(np.float32)[:, :, None]
        mixed = image[rows] * (1.0 - share) + _colours(multiples) * share
        drawn[:height][rows] = np.rint(mixed).astype(np.uint8)
    if outline is not None:
        _draw_outline(drawn[:height], outline)
    return drawn


def _colours(multiples: npt.NDArray[np.floating]) -> _Image:
    """Return the colours (H, W, 3) uint8 RGB of multiples (H, W)."""
    places = np.rint(np.interp(multiples, MULTIPLES, _COLOUR_PLACES)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(places, _COLOURS), cv2.COLOR_BGR2RGB)
    return np.asarray(colours, np.uint8)


def _draw_outline(drawn: _Image, mask: npt.NDArray[np.bool_]) -> None:
    """Draw the borders of `mask` in white on black, so that they are seen on any image."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    width = int(np.clip(round(min(drawn.shape[:2]) / 450), 1, 5))
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), 3 * width, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), width, cv2.LINE_AA)


def _legend(width: int, caption: str) -> _Image:
    """Return (h, width, 3): the caption on the left, the scale of colours on the right."""
    if width < _LEGEND_WIDTH:
        return np.zeros((0, width, 3), np.uint8)
    height = int(np.clip(width // 24, 20, 240))
    strip = np.full((height, width, 3), 24, np.uint8)
    margin = max(2, height // 6)
    bar_x = width - width // 4
    _write(strip, caption, margin, bar_x - 2 * margin, height)
    bar_width = width - margin - bar_x
    # doubling takes as much room everywhere, so the threshold is in the middle
    ramp = np.geomspace(MULTIPLES[0], MULTIPLES[-1], bar_width)
    middle = height // 2
    strip[margin:middle, bar_x : bar_x + bar_width] = _colours(ramp[None])
    size = _font_size((height - middle) * 0.62)
    baseline = height - max(2, margin // 2)
    thickness = max(1, round(size))
    centre = bar_x + bar_width // 2
    cv2.line(
        strip, (centre, margin - 2), (centre, middle + 1), (255, 255, 255), max(1, width // 450)
    )
    for text, at in zip(("0.5", "1", "2 x"), (0.0, 0.5, 1.0), strict=True):
        (wide, _), _ = cv2.getTextSize(text, _FONT, size, thickness)
        left = bar_x + round(at * (bar_width - wide))
        cv2.putText(
            strip, text, (left, baseline), _FONT, size, (210, 210, 210), thickness, cv2.LINE_AA
        )
    return strip


def _write(strip: _Image, text: str, left: int, right: int, height: int) -> None:
    """Write one line between `left` and `right`, as large as fits."""
    size = _font_size(height * 0.45)
    thickness = max(1, round(size * 1.2))
    (wide, _), _ = cv2.getTextSize(text, _FONT, size, thickness)
    if wide > right - left:
        size *= (right - left) / wide
        thickness = max(1, round(size * 1.2))
    (_, high), _ = cv2.getTextSize(text, _FONT, size, thickness)
    cv2.putText(
        strip,
        text,
        (left, (height + high) // 2),
        _FONT,
        size,
        (240, 240, 240),
        thickness,
        cv2.LINE_AA,
    )


def _font_size(pixels: float) -> float:
    """Return the scale at which capitals of OpenCV's font are so many pixels high."""
    return pixels / 22.0
