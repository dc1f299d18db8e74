"""Perlin noise, and masks of it: blobs of many sizes and shapes.

Perlin, "Improving noise", SIGGRAPH 2002, with gradients of length one on a lattice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def perlin_noise(
    size: tuple[int, int], periods: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Noise (h, w) float32 in [-1, 1], smooth, 0 at the points of the lattice.

    Parameters
    ----------
    size
        (h, w).
    periods
        How many cells of the lattice go over the height and over the width.
    generator
        Of the directions of the gradients; on the CPU.
    """
    angles = torch.rand((periods[0] + 1, periods[1] + 1), generator=generator) * (2 * math.pi)
    gradients = torch.stack([angles.sin(), angles.cos()], dim=-1)  # (p + 1, q + 1, 2)
    rows = torch.arange(size[0], dtype=torch.float32) * (periods[0] / size[0])
    columns = torch.arange(size[1], dtype=torch.float32) * (periods[1] / size[1])
    top, left = rows.long(), columns.long()
    down, across = (rows - top)[:, None], (columns - left)[None, :]  # in [0, 1)

    def corner(below: int, right: int) -> Tensor:
        found = gradients[top + below][:, left + right]  # (h, w, 2)
        return found[..., 0] * (down - below) + found[..., 1] * (across - right)

    u, v = _fade(down), _fade(across)
    upper = torch.lerp(corner(0, 0), corner(0, 1), v.expand(size))
    lower = torch.lerp(corner(1, 0), corner(1, 1), v.expand(size))
    # of unit gradients the noise stays within half the diagonal of a cell
    return math.sqrt(2.0) * torch.lerp(upper, lower, u.expand(size))


def perlin_masks(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    threshold: float,
    chance: float = 0.5,
    octaves: int = 6,
) -> Tensor:
    """Masks (count, 1, h, w) float32 of 0 and 1: where Perlin noise is above `threshold`.

    Parameters
    ----------
    threshold
        In [-1, 1]; the higher, the less is set.
    chance
        With which a mask has anything set at all.
    octaves
        The periods over an axis are 2^k, k uniform in 0..octaves - 1, each axis by itself; and
        at least two pixels long.
    """
    masks = torch.zeros((count, 1, *size))
    most = [max(1, min(octaves, int(math.log2(max(2, n))))) for n in size]
    for mask in masks:
        down, across = (2 ** int(torch.randint(0, n, (1,), generator=generator)) for n in most)
        noise = perlin_noise(size, (down, across), generator)
        if float(torch.rand(1, generator=generator)) < chance:
            mask[0] = (noise > threshold).float()
    return masks


def _fade(t: Tensor) -> Tensor:
    return t * t * t * (t * (t * 6 - 15) + 10)
