"""DINOv3: vision transformers with 16 x 16 patches and rotary positions.

Simeoni et al., "DINOv3", 2025 (arXiv 2508.10104); rotary positions are those of Su et al.,
"RoFormer", 2021, along two axes. The parameters are named as in the authors' weights files, which
are under the DINOv3 License and which every user gets from the authors.
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

from .transformer import Block, Mlp, PatchEmbedding, Rotation, VisionTransformer

#: The side of a patch in pixels.
PATCH = 16
_EPS = 1e-5
#: Positions turn by 2 pi / 1 to 2 pi / 100 from the middle of an image to its border.
_LONGEST_PERIOD = 100.0


class Size(NamedTuple):
    """How large a network is.

    `gated` is the multiple that the hidden width of a SwiGLU is rounded up to, 0 where the
    network has two linear layers and a GELU instead; `ratio` is that of the hidden width to the
    width before two thirds are taken for a SwiGLU.
    """

    width: int
    depth: int
    heads: int
    ratio: int = 4
    gated: int = 0
    qkv_bias: bool = True


SIZES = {
    "vits16": Size(384, 12, 6),
    "vits16plus": Size(384, 12, 6, ratio=6, gated=8),
    "vitb16": Size(768, 12, 12),
    "vitl16": Size(1024, 24, 16),
    "vitl16plus": Size(1024, 24, 16, ratio=6, gated=8),
    "vith16plus": Size(1280, 32, 20, ratio=6, gated=8),
    "vit7b16": Size(4096, 40, 32, ratio=3, gated=64, qkv_bias=False),
}


class SwiGlu(nn.Module):
    """A gated layer (Shazeer, "GLU Variants Improve Transformer", 2020): w3(SiLU(w1 x) w2 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w3(functional.silu(self.w1(x)) * self.w2(x))
        return y


class DinoV3(VisionTransformer):
    """A DINOv3 network.

    Parameters
    ----------
    size
        Width, depth and heads.
    registers
        How many register tokens there are, which the authors call storage tokens: 4.
    """

    def __init__(self, size: Size, *, registers: int = 4) -> None:
        super().__init__(width=size.width, depth=size.depth, patch=PATCH, registers=registers)
        self.head_width = size.width // size.heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.storage_tokens = nn.Parameter(torch.zeros(1, registers, size.width))
        self.patch_embed = PatchEmbedding(size.width, PATCH)
        hidden = size.ratio * size.width
        if size.gated:
            two_thirds = int(hidden * 2 / 3)
            mlp: Callable[[], nn.Module] = partial(
                SwiGlu, size.width, -(-two_thirds // size.gated) * size.gated
            )
        else:
            mlp = partial(Mlp, size.width, hidden)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, mlp(), eps=_EPS, qkv_bias=size.qkv_bias)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=_EPS)

    def tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        before = torch.cat([self.cls_token, self.storage_tokens], dim=1)
        return torch.cat([before.expand(x.shape[0], -1, -1), self.patch_embed(x)], dim=1)

    def rotation(self, grid: tuple[int, int], like: Tensor) -> Rotation:
        cosine, sine = rotary_positions(grid, self.head_width, 1 + self.registers)
        return torch.from_numpy(cosine).to(like), torch.from_numpy(sine).to(like)


@lru_cache(maxsize=8)
def rotary_positions(
    grid: tuple[int, int], head_width: int, before: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine and sine of the angles (before + hw, head_width) of all tokens.

    Centres of patches lie from -1 to 1 along each axis, whatever the size of the grid. The first
    quarter of the channels turns with the row, the second with the column, and the other half is
    paired with these (`transformer._turned`). The `before` tokens that are no patches are not
    turned.
    """
    rows, columns = ((2 * np.arange(side) + 1) / side - 1 for side in grid)
    place = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    frequency = _LONGEST_PERIOD ** -(np.arange(head_width // 4) * 4 / head_width)
    angle = 2 * np.pi * place[:, :, None] * frequency  # (hw, 2, head_width / 4)
    angle = np.tile(angle.reshape(len(place), -1), 2)
    angle = np.concatenate([np.zeros((before, head_width)), angle]).astype(np.float32)
    return np.cos(angle), np.sin(angle)
