"""What vision transformers share: attention, blocks, and features of blocks by name.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; LayerScale is that of Touvron et
al., "Going Deeper with Image Transformers", ICCV 2021. A network of its own is `dinov2.py` or
`dinov3.py`; parameters have the names that the authors of these gave them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError, unknown_name
from .network import TappedNetwork

#: Cosine and sine, (tokens, head dimension) each, that queries and keys are turned by.
Rotation = tuple[Tensor, Tensor]

_LAYER = re.compile(
    r"(?:block(?:s\.)?(?P<block>\d+)|(?P<depth>0?\.\d+|1(?:\.0+)?))"
    r"(?P<normed>\.normed)?(?P<part>\.class|\.registers)?(?P<unit>\.unit)?"
)


class Attention(nn.Module):
    """Multi-head self-attention.

    `scaled_dot_product_attention` is computed without the (tokens, tokens) matrix where torch
    can, and becomes one fused operation of OpenVINO.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        tokens, width = (int(side) for side in x.shape[1:])  # of an export N is left open
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, tokens, head dimension)
        if rotation is not None:
            q, k = _turned(q, rotation), _turned(k, rotation)
        y = functional.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.proj(y.transpose(1, 2).reshape(-1, tokens, width))
        return found


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of channels (i, i + half) of x (..., tokens, head dimension)."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + scaled attention of normed x, then x + scaled `mlp` of normed x."""

    def __init__(
        self, width: int, heads: int, mlp: nn.Module, *, eps: float, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, bias=qkv_bias)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class PatchEmbedding(nn.Module):
    """One linear map of all pixels of a patch: (N, 3, H, W) to (N, patches, width)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y.flatten(2).transpose(1, 2)


class Layer(NamedTuple):
    """One thing that can be tapped: tokens after a block.

    `part` is `patches`, `class` or `registers`; `normed`: after the network's last LayerNorm;
    `unit`: divided by their lengths, so that Euclidean distances order as cosine ones do.
    """

    block: int
    normed: bool
    part: str
    unit: bool

    def __str__(self) -> str:
        part = "" if self.part == "patches" else f".{self.part}"
        return f"block{self.block}{'.normed' * self.normed}{part}{'.unit' * self.unit}"


class VisionTransformer(TappedNetwork):
    """A plain vision transformer: all blocks have one width and one grid.

    Layers are `block0` and so on, the features of all patches after a block, or the block at a
    share of the depth: `0.5` is the last block of the first half. `.normed` puts the network's
    last LayerNorm on them; `.class` gives the class token instead, a map of one cell, and
    `.registers` the R register tokens, a map of 1 x R cells; `.unit` divides each vector by its
    length. So `block11.normed` is what the authors call the patch tokens of ViT-S, and
    `block11.normed.class` the class token.

    Images of any size are taken. A side that is no multiple of `multiple`, the side of a patch, is
    resized to the nearest one.
    """

    pyramid = False
    has_class = True
    mean = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    blocks: nn.ModuleList
    norm: nn.LayerNorm
    patch_embed: PatchEmbedding

    def __init__(self, *, width: int, depth: int, patch: int, registers: int) -> None:
        super().__init__()
        self.width = width
        self.multiple = patch
        self.registers = registers
        self.layer_names = tuple(
            f"block{i}{suffix}" for i in range(depth) for suffix in ("", ".normed")
        )
        # Not measured here. Of what the authors of RAD take (a quarter, half, three quarters and
        # all of the depth) the two in the middle.
        middle = {min(round(share * depth), depth - 1) for share in (0.5, 0.75)}
        self.default_layers = tuple(f"block{number}.normed" for number in sorted(middle))

    # ---- what a network of its own says

    def tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (N, 1 + R + hw, width) from pixels (N, 3, H, W): class, registers, patches."""
        raise NotImplementedError

    def rotation(self, grid: tuple[int, int], like: Tensor) -> Rotation | None:
        """Return what queries and keys are turned by; None where positions are added instead."""
        return None

    def block(self, number: int, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        """Return tokens after a block."""
        found: Tensor = self.blocks[number](tokens, rotation)
        return found

    def normed(self, tokens: Tensor) -> Tensor:
        """Return tokens after the network's last LayerNorm."""
        found: Tensor = self.norm(tokens)
        return found

    # ---- features by name

    def resolve_layer(self, layer: str, name: str) -> str:
        return str(self.parse_layer(layer, name))

    def parse_layer(self, layer: str, name: str = "the network") -> Layer:
        """Read the name of a layer.

        Raises
        ------
        UsageError
            It is none, of a block that is not there, or of registers of a network without.
        """
        found = _LAYER.fullmatch(layer)
        depth = len(self.layer_names) // 2
        if found is None:
            raise UsageError(
                f"{unknown_name(f'layer of {name}', layer, self.layer_names)}; a layer is a block, "
                f"block0 to block{depth - 1}, or a share of the depth such as 0.5, and then "
                ".normed, .class or .registers, .unit as wanted"
            )
        if found["block"] is not None:
            block = int(found["block"])
        else:
            block = max(0, round(float(found["depth"]) * depth) - 1)
        if block >= depth:
            raise UsageError(
                f"layer {layer!r} is not there: {name} has the blocks block0 to block{depth - 1}"
            )
        part = (found["part"] or ".patches")[1:]
        if part == "registers" and not self.registers:
            raise UsageError(f"layer {layer!r} is not there: {name} has no registers")
        if part == "class" and not self.has_class:
            raise UsageError(f"layer {layer!r} is not there: {name} has no class token")
        return Layer(block, found["normed"] is not None, part, found["unit"] is not None)

    def layer_kinds(self) -> dict[str, tuple[int, int]]:
        kind = (self.width, self.multiple)
        return {f"{name}{suffix}": kind for name in self.layer_names for suffix in ("", ".unit")}

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        wanted = [self.parse_layer(layer) for layer in layers]
        height, width = (round_to_multiple(int(side), self.multiple) for side in x.shape[-2:])
        if (height, width) != (int(x.shape[-2]), int(x.shape[-1])):
            x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        grid = height // self.multiple, width // self.multiple
        after = self.after_blocks(x, grid, sorted({one.block for one in wanted}))
        normed = {one.block: self.normed(after[one.block]) for one in wanted if one.normed}
        return [
            self._part((normed if one.normed else after)[one.block], one, grid) for one in wanted
        ]

    def after_blocks(
        self, x: Tensor, grid: tuple[int, int], numbers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return all tokens (N, 1 + R + hw, width) after each of the blocks `numbers`, ascending.

        `x` is (N, 3, H, W) with sides that are multiples of a patch's.
        """
        tokens = self.tokens(x, grid)
        rotation = self.rotation(grid, tokens)
        after = {}
        for number in range(1 + numbers[-1]):
            tokens = self.block(number, tokens, rotation)
            if number in numbers:
                after[number] = tokens
        return after

    def _part(self, tokens: Tensor, layer: Layer, grid: tuple[int, int]) -> Tensor:
        """Return (N, width, rows, columns) of the tokens that a layer names."""
        before = self.has_class + self.registers
        if layer.part == "class":
            tokens, grid = tokens[:, :1], (1, 1)
        elif layer.part == "registers":
            tokens, grid = tokens[:, self.has_class : before], (1, self.registers)
        else:
            tokens = tokens[:, before:]
        if layer.unit:
            tokens = functional.normalize(tokens, dim=-1)
        return tokens.transpose(1, 2).reshape(-1, self.width, *grid)

    def cut(self, layers: Sequence[str]) -> None:
        self.blocks = self.blocks[: 1 + max(self.parse_layer(one).block for one in layers)]

    def initialise(self, generator: torch.Generator) -> None:
        """Random weights of everything: scores for timing, and features that differ."""
        for name, value in self.named_parameters():
            with torch.no_grad():
                if name.endswith((".gamma", "norm.weight", "norm1.weight", "norm2.weight")):
                    value.fill_(1.0)
                elif name.endswith("bias"):
                    value.zero_()
                else:  # a map keeps the size of its input; tokens and positions are about as large
                    fan_in = value[0].numel() if name.endswith(".weight") else value.shape[-1]
                    value.normal_(0.0, fan_in**-0.5, generator=generator)


def round_to_multiple(side: int, multiple: int) -> int:
    """Return the multiple nearest to a number of pixels, the larger of two, and one at least."""
    return max(1, (2 * side + multiple) // (2 * multiple)) * multiple
