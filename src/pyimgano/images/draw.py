"""A heat map over its image, for people to look at.

The scale of colours and of opacity is given from outside and is the same for every image of
a detector, so that a good image looks calm beside a defective one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

_Image = npt.NDArray[np.uint8]

# Share of the heat map's colour at the top of the scale: the part is still to be seen.
_OPACITY = 0.5
# Of the map of colours, the last that is used: beyond it red turns into a brown that hides.
_LAST_COLOUR = 235
# Rows drawn at a time, so that a large image takes little memory besides itself.
_ROWS = 256
_COLOURS = cv2.COLORMAP_TURBO
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# A legend in fewer pixels cannot be read.
_LEGEND_WIDTH = 160


@dataclass(frozen=True)
class HeatScale:
    """Which scores the colours stand for.

    Attributes
    ----------
    low
        At and below it nothing is drawn.
    high
        From it on colour and opacity do not change; above `low`.
    threshold
        Marked in the legend, if there is one.
    """

    low: float
    high: float
    threshold: float | None = None


def draw_overlay(
    image: _Image,
    anomaly_map: npt.NDArray[np.float32],
    scale: HeatScale,
    *,
    outline: npt.NDArray[np.bool_] | None = None,
    caption: str = "",
) -> _Image:
    """Draw a heat map over its image.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB.
    anomaly_map
        (H, W) float32, finite.
    scale
        Scores from `low` to `high` go from blue to red, and from clear to opaque.
    outline
        (H, W) bool; the borders of its regions are drawn.
    caption
        ASCII, for the legend below the image.

    Returns
    -------
    numpy.ndarray
        (H + h, W, 3) uint8 RGB: the picture, and below it h rows with caption and scale;
        none where the image is narrower than 160 pixels.
    """
    height, width = image.shape[:2]
    strip = _legend(width, scale, caption)
    drawn = np.empty((height + len(strip), width, 3), np.uint8)
    drawn[height:] = strip
    span: float = max(scale.high - scale.low, 1e-30)
    for start in range(0, height, _ROWS):
        rows = np.s_[start : min(start + _ROWS, height)]
        level = np.clip((anomaly_map[rows] - scale.low) / span, 0.0, 1.0).astype(np.float32)
        heat = cv2.cvtColor(
            cv2.applyColorMap(np.rint(_LAST_COLOUR * level).astype(np.uint8), _COLOURS),
            cv2.COLOR_BGR2RGB,
        )
        share = (_OPACITY * level)[:, :, None]
        mixed = image[rows] * (1.0 - share) + heat * share
        drawn[:height][rows] = np.rint(mixed).astype(np.uint8)
    if outline is not None:
        _draw_outline(drawn[:height], outline)
    return drawn


def _draw_outline(drawn: _Image, mask: npt.NDArray[np.bool_]) -> None:
    """White on black, so that it is seen on any image."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    width = int(np.clip(round(min(drawn.shape[:2]) / 450), 1, 5))
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), 3 * width, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), width, cv2.LINE_AA)


def _legend(width: int, scale: HeatScale, caption: str) -> _Image:
    """Draw the legend (h, width, 3): caption on the left, scale of colours on the right."""
    if width < _LEGEND_WIDTH:
        return np.zeros((0, width, 3), np.uint8)
    height = int(np.clip(width // 24, 20, 240))
    strip = np.full((height, width, 3), 24, np.uint8)
    margin = max(2, height // 6)
    bar_x = width - width // 4
    _write(strip, caption, margin, bar_x - 2 * margin, height)
    bar_width = width - margin - bar_x
    ramp = np.rint(np.linspace(0, _LAST_COLOUR, bar_width)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(ramp[None], _COLOURS), cv2.COLOR_BGR2RGB)
    middle = height // 2
    strip[margin:middle, bar_x : bar_x + bar_width] = colours
    if scale.threshold is not None and scale.high > scale.low:
        at = (scale.threshold - scale.low) / (scale.high - scale.low)
        if 0 <= at <= 1:
            x = bar_x + round(at * (bar_width - 1))
            cv2.line(strip, (x, margin - 2), (x, middle + 1), (255, 255, 255), max(1, width // 450))
    low, high = f"{scale.low:.3g}", f"{scale.high:.3g}"
    size = _font_size((height - middle) * 0.62)
    baseline = height - max(2, margin // 2)
    thickness = max(1, round(size))
    (wide, _), _ = cv2.getTextSize(high, _FONT, size, thickness)
    for text, left in ((low, bar_x), (high, width - margin - wide)):
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
