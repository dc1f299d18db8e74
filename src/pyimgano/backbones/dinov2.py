"""DINOv2: vision transformers with 14 x 14 patches and learned positions.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023 (arXiv
2304.07193); with registers Darcet et al., "Vision Transformers Need Registers", ICLR 2024. The
parameters are named as in the authors' weights files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .transformer import Block, Mlp, PatchEmbedding, VisionTransformer

#: The side of a patch in pixels.
PATCH = 14
_EPS = 1e-6


class Size(NamedTuple):
    """How large a network is; `gated`: SwiGLU instead of two linear layers and a GELU."""

    width: int
    depth: int
    heads: int
    gated: bool = False


SIZES = {
    "vits14": Size(384, 12, 6),
    "vitb14": Size(768, 12, 12),
    "vitl14": Size(1024, 24, 16),
    "vitg14": Size(1536, 40, 24, gated=True),
}


class SwiGlu(nn.Module):
    """A gated layer (Shazeer, "GLU Variants Improve Transformer", 2020): w3(SiLU(a) b).

    a and b are the halves of w12(x).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        y: Tensor = self.w3(functional.silu(a) * b)
        return y


class DinoV2(VisionTransformer):
    """A DINOv2 network.

    Parameters
    ----------
    size
        Width, depth and heads.
    registers
        4 for the networks with registers, 0 for the others.
    native
        Rows and columns of the grid that `pos_embed` was learned on: 37, images of 518 pixels.
    offset
        What the authors' program adds to the number of rows and columns when it scales the
        positions: 0.1 without registers, for then it was trained and evaluated so, and 0 with
        them. Programs that leave it out (Hugging Face transformers, timm) give features that
        differ a little at any other grid than the native one.
    """

    def __init__(
        self, size: Size, *, registers: int = 0, native: int = 37, offset: float | None = None
    ) -> None:
        super().__init__(width=size.width, depth=size.depth, patch=PATCH, registers=registers)
        self.native = native
        self.offset = (0.0 if registers else 0.1) if offset is None else offset
        self.smooth = registers > 0  # the authors' interpolate_antialias
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + native * native, size.width))
        self.patch_embed = PatchEmbedding(size.width, PATCH)
        hidden = 4 * size.width
        if size.gated:  # two thirds, so that it has as many parameters, in multiples of 8
            mlp: Callable[[], nn.Module] = partial(
                SwiGlu, size.width, (int(hidden * 2 / 3) + 7) // 8 * 8
            )
        else:
            mlp = partial(Mlp, size.width, hidden)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, mlp(), eps=_EPS) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=_EPS)

    def tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = self.patch_embed(x) + self.positions(grid)
        first = self.cls_token + self.pos_embed[:, :1]
        before = [first.expand(x.shape[0], -1, -1)]
        if self.registers:  # these have no position
            before.append(self.register_tokens.expand(x.shape[0], -1, -1))
        return torch.cat([*before, patches], dim=1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embeddings (1, hw, width) of a grid."""
        native = self.native, self.native
        return resized(self.pos_embed[:, 1:], native, grid, offset=self.offset, smooth=self.smooth)


def resized(
    positions: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    *,
    offset: float = 0.0,
    smooth: bool = False,
) -> Tensor:
    """Return position embeddings (1, native cells, C) for another grid, (1, hw, C), bicubically.

    As products of matrices, which every engine computes alike; their own bicubic interpolations
    differ by percents. `offset` and `smooth` are those of `DinoV2` and `cubic_resize`.
    """
    if grid == native:
        return positions
    square = positions.reshape(*native, -1).permute(2, 0, 1)  # (C, native rows, native columns)
    rows, columns = (
        torch.from_numpy(cubic_resize(have, wanted, (wanted + offset) / have, smooth)).to(square)
        for have, wanted in zip(native, grid)
    )
    scaled = rows @ (square @ columns.T)  # (C, h, w)
    return scaled.flatten(1).T[None]


@lru_cache(maxsize=32)
def cubic_resize(cells: int, wanted: int, scale: float, smooth: bool) -> npt.NDArray[np.float32]:
    """Return the matrix (wanted, cells) that resizes one axis as torch's bicubic interpolation.

    Parameters
    ----------
    cells, wanted
        How many cells there are, and are to be.
    scale
        Cells wanted for each that is there; about wanted / cells.
    smooth
        Whether the kernel is widened where there are fewer cells than before (torch's
        `antialias`, which also takes another kernel: a = -0.5 instead of -0.75).
    """
    centre = (np.arange(wanted) + 0.5) / scale - 0.5  # where each lies among the cells
    a, wide = (-0.5, max(1.0, 1.0 / scale)) if smooth else (-0.75, 1.0)
    reach = int(np.ceil(2 * wide)) + 1
    near = np.floor(centre).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weights = _cubic((near - centre[:, None]) / wide, a)
    if smooth:  # cells beyond the border do not count
        weights[(near < 0) | (near >= cells)] = 0.0
        weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros((wanted, cells))
    # without `smooth` the last cell stands for them
    np.add.at(found, (np.arange(wanted)[:, None], near.clip(0, cells - 1)), weights)
    return found.astype(np.float32)


def _cubic(x: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Return the weights of cells at a distance x by the cubic convolution of Keys, 1981."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
