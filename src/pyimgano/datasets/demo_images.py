"""The demo's pictures: a woven texture and a metal washer, good and with defects.

Everything is drawn from a seed: good parts differ in weave, lighting, position and grain as
real ones do, and each defect comes with the mask of the pixels that it changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

SIZE = 256

Rng = np.random.Generator
Canvas = npt.NDArray[np.float32]  # (SIZE, SIZE, 3), 0 to 255
Weight = npt.NDArray[np.float32]  # (SIZE, SIZE), 0 to 1
Defect = Callable[[Canvas, Rng], Weight]

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


@dataclass(frozen=True)
class DemoPart:
    """A category of the demo: how a good part is drawn, and its kinds of defects."""

    name: str
    draw: Callable[[Rng], Canvas]
    defects: dict[str, Defect]


def draw_good(part: DemoPart, rng: Rng) -> npt.NDArray[np.uint8]:
    """Return (SIZE, SIZE, 3) uint8 RGB."""
    return _finish(part.draw(rng), rng)


def draw_defective(
    part: DemoPart, kind: str, rng: Rng
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a defective part and its mask (SIZE, SIZE) uint8 of 0 and 255, which is never
    empty.
    """
    canvas = part.draw(rng)
    weight = part.defects[kind](canvas, rng)
    return _finish(canvas, rng), np.where(weight > 0.3, 255, 0).astype(np.uint8)


def _finish(canvas: Canvas, rng: Rng) -> npt.NDArray[np.uint8]:
    """Lighting that falls off to one side, a little blur, and the camera's grain."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.08)
    slope = (np.cos(angle) * (_COLUMNS / SIZE - 0.5) + np.sin(angle) * (_ROWS / SIZE - 0.5)) * 2
    lit = canvas * ((1 + strength * slope) * rng.uniform(0.96, 1.04))[:, :, None]
    lit = cv2.GaussianBlur(lit, (0, 0), 0.7) + rng.normal(0, 2.5, canvas.shape)
    return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _smooth_noise(rng: Rng, scale: float) -> Weight:
    """Noise of mean 0 and standard deviation 1 with blobs of about `scale` pixels."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (SIZE, SIZE)).astype(np.float32), (0, 0), scale)
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)


def _blend(canvas: Canvas, weight: Weight, colour: Canvas | tuple[float, float, float]) -> None:
    canvas += weight[:, :, None] * (np.asarray(colour, np.float32) - canvas)


def _blob(rng: Rng, centre: tuple[float, float], radius: float) -> Weight:
    """Return a soft-edged irregular disc."""
    wobble = radius * (1 + 0.25 * _smooth_noise(rng, 8))
    away = np.hypot(_ROWS - centre[0], _COLUMNS - centre[1])
    return np.asarray(np.clip((wobble - away) / 2 + 0.5, 0, 1), np.float32)


def _stroke(
    rng: Rng, start: tuple[float, float], angle: float, length: float, width: float
) -> Weight:
    """Return a line that wanders a little, from `start` (row, column) in direction `angle`."""
    points = [start]
    for _ in range(12):
        angle += rng.normal(0, 0.12)
        row, column = points[-1]
        points.append((row + np.sin(angle) * length / 12, column + np.cos(angle) * length / 12))
    # drawn four times too large and shrunk, for soft edges
    large = np.zeros((SIZE * 4, SIZE * 4), np.uint8)
    corners = np.array([[column * 4, row * 4] for row, column in points], np.int32)
    cv2.polylines(large, [corners.reshape(-1, 1, 2)], False, 255, max(1, round(width * 4)))
    small = cv2.resize(large, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)


# ---- fabric: a texture


def _fabric(rng: Rng) -> Canvas:
    period = 8.0
    shift = rng.uniform(0, period, 2)
    tilt = rng.normal(0, 0.02)
    warp = 0.6 * _smooth_noise(rng, 20)
    across = _COLUMNS + tilt * _ROWS + shift[0] + warp
    down = _ROWS - tilt * _COLUMNS + shift[1] + warp
    over = (np.floor(across / period) + np.floor(down / period)) % 2
    thread = np.where(
        over > 0, np.abs(np.sin(np.pi * down / period)), np.abs(np.sin(np.pi * across / period))
    )
    height = 0.55 + 0.45 * thread + 0.03 * _smooth_noise(rng, 3)
    return np.asarray(height[:, :, None] * np.array([150.0, 165.0, 190.0]), np.float32)


def _somewhere(rng: Rng) -> tuple[float, float]:
    row, column = rng.uniform(40, SIZE - 40, 2)
    return float(row), float(column)


def _fabric_hole(canvas: Canvas, rng: Rng) -> Weight:
    weight = _blob(rng, _somewhere(rng), rng.uniform(7, 16))
    _blend(canvas, weight, (35.0, 33.0, 30.0))
    return weight


def _fabric_stain(canvas: Canvas, rng: Rng) -> Weight:
    weight = _blob(rng, _somewhere(rng), rng.uniform(14, 28))
    _blend(canvas, weight * np.float32(rng.uniform(0.35, 0.55)), (120.0, 85.0, 40.0))
    return weight


def _fabric_thread(canvas: Canvas, rng: Rng) -> Weight:
    weight = _stroke(
        rng, _somewhere(rng), rng.uniform(0, 2 * np.pi), rng.uniform(60, 110), rng.uniform(2.5, 4)
    )
    _blend(canvas, weight, (225.0, 215.0, 200.0))
    return weight


def _fabric_misweave(canvas: Canvas, rng: Rng) -> Weight:
    """Return a patch where one set of threads is missing: seen by structure, hardly by colour."""
    weight = _blob(rng, _somewhere(rng), rng.uniform(16, 26))
    stripes = 0.55 + 0.45 * np.abs(np.sin(np.pi * _ROWS / 8.0))
    _blend(canvas, weight, (stripes[:, :, None] * np.array([150.0, 165.0, 190.0])).astype("f4"))
    return weight


# ---- washer: an object

_OUTER, _INNER = 88.0, 40.0


def _washer(rng: Rng) -> Canvas:
    row, column = SIZE / 2 + rng.uniform(-4, 4, 2)
    radius = np.hypot(_ROWS - row, _COLUMNS - column)
    angle = np.arctan2(_ROWS - row, _COLUMNS - column)
    table = 58 + 3 * _smooth_noise(rng, 12)
    canvas = np.repeat(table[:, :, None], 3, axis=2).astype(np.float32)
    shadow = np.clip((_OUTER + 5 - np.hypot(_ROWS - row - 3, _COLUMNS - column - 3)) / 6, 0, 1)
    canvas *= (1 - 0.4 * shadow)[:, :, None].astype(np.float32)
    light = rng.uniform(0, 2 * np.pi)
    rings = np.sin(radius * 1.7 + rng.uniform(0, 2 * np.pi))
    steel = 165 + 22 * np.cos(2 * (angle - light)) + 5 * rings + 2 * _smooth_noise(rng, 2)
    edge = np.minimum(_OUTER - radius, radius - _INNER)  # distance to the nearer rim
    steel = steel + 30 * np.exp(-(((edge - 3) / 2) ** 2))  # the chamfer shines
    ring = np.clip(edge + 0.5, 0, 1).astype(np.float32)
    _blend(canvas, ring, (steel[:, :, None] * np.array([1.0, 1.0, 1.03])).astype(np.float32))
    return canvas


def _on_ring(rng: Rng) -> tuple[float, float, float]:
    """Row and column of a point on the ring, and its angle."""
    angle = float(rng.uniform(0, 2 * np.pi))
    radius = float(rng.uniform(_INNER + 14, _OUTER - 14))
    return SIZE / 2 + radius * np.sin(angle), SIZE / 2 + radius * np.cos(angle), angle


def _washer_scratch(canvas: Canvas, rng: Rng) -> Weight:
    row, column, angle = _on_ring(rng)
    weight = _stroke(
        rng,
        (row, column),
        angle + rng.uniform(0.5, 2.6),
        rng.uniform(30, 60),
        rng.uniform(1.5, 2.5),
    )
    _blend(canvas, weight, (238.0, 238.0, 240.0))
    return weight


def _washer_crack(canvas: Canvas, rng: Rng) -> Weight:
    angle = float(rng.uniform(0, 2 * np.pi))
    start = (SIZE / 2 + _INNER * np.sin(angle), SIZE / 2 + _INNER * np.cos(angle))
    weight = _stroke(rng, start, angle, _OUTER - _INNER, rng.uniform(1.8, 3.2))
    _blend(canvas, weight, (30.0, 28.0, 28.0))
    return weight


def _washer_chip(canvas: Canvas, rng: Rng) -> Weight:
    """Return a piece of the outer rim is missing: the table shows."""
    angle = float(rng.uniform(0, 2 * np.pi))
    centre = (SIZE / 2 + _OUTER * np.sin(angle), SIZE / 2 + _OUTER * np.cos(angle))
    weight = _blob(rng, centre, rng.uniform(9, 16))
    # outside the rim nothing is missing
    inside = np.hypot(_ROWS - SIZE / 2, _COLUMNS - SIZE / 2) < _OUTER + 2
    weight = np.asarray(weight * inside, np.float32)
    _blend(canvas, weight, (48.0, 48.0, 48.0))
    return weight


def _washer_rust(canvas: Canvas, rng: Rng) -> Weight:
    row, column, _ = _on_ring(rng)
    weight = _blob(rng, (row, column), rng.uniform(7, 15))
    grain = np.clip(0.55 + 0.15 * _smooth_noise(rng, 2), 0, 1).astype(np.float32)
    _blend(canvas, weight * grain, (140.0, 72.0, 28.0))
    return weight


PARTS = (
    DemoPart(
        "fabric",
        _fabric,
        {
            "hole": _fabric_hole,
            "misweave": _fabric_misweave,
            "stain": _fabric_stain,
            "thread": _fabric_thread,
        },
    ),
    DemoPart(
        "washer",
        _washer,
        {
            "chip": _washer_chip,
            "crack": _washer_crack,
            "rust": _washer_rust,
            "scratch": _washer_scratch,
        },
    ),
)
