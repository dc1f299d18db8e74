"""The networks of Dinomaly: the noisy bottleneck and a decoder with linear attention.

Imports torch; `dinomaly` imports it inside its functions. Tensors of tokens are (N, T, C): N
images, T tokens each, which are the class token, R registers and h w patches, of C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.network import FeatureGraph
from ..backbones.transformer import Mlp
from .pyramid import LevelMaps
from .reverse_distillation import cosine_distances

# Of the decoder's LayerNorms.
_EPS = 1e-8
# The least sum of weights of linear attention: it is above 0, but may be rounded to 0.
_LEAST_SUM = 1e-12
# Deviation of the normal distribution that weights are drawn from, and what it is cut at.
_STD, _CUT = 0.01, 0.03


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Return x with a share of its elements set to 0, and the others divided by what is left.

    Without a generator it is x as it is.
    """
    if generator is None or share == 0:
        return x
    kept = torch.empty_like(x).bernoulli_(1 - share, generator=generator)
    return x * kept / (1 - share)


class NoisyBottleneck(nn.Module):
    """Two linear layers with a GELU between them; dropout before, between and after (section 3.3).

    Parameters
    ----------
    width
        C; the hidden layer has four times as many channels.
    dropout
        The share of elements that is dropped.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, noise: torch.Generator | None) -> Tensor:
        hidden = functional.gelu(self.fc1(dropped(x, self.dropout, noise)))  # (N, T, 4 C)
        found: Tensor = self.fc2(dropped(hidden, self.dropout, noise))
        return dropped(found, self.dropout, noise)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return f(q) (f(k)^T v) / (f(q) f(k)^T 1), with f(x) = elu(x) + 1 (section 3.4).

    All are (N, heads, T, channels of a head). The (T, T) matrix of softmax attention is never made,
    and no token can attend to itself alone.
    """
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    total = q @ k.sum(dim=-2, keepdim=True).transpose(-1, -2)  # (N, heads, T, 1)
    return (q @ (k.transpose(-1, -2) @ v)) / total.clamp(min=_LEAST_SUM)


class LinearAttention(nn.Module):
    """Multi-head self-attention that is linear in the number of tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens, width = (int(side) for side in x.shape[1:])
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, C / heads)
        y = linear_attention(q, k, v).transpose(1, 2).reshape(-1, tokens, width)
        found: Tensor = self.proj(y)
        return found


class DecoderBlock(nn.Module):
    """x + attention of normed x, then x + MLP of normed x."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = LinearAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def grouped(count: int, groups: int) -> list[list[int]]:
    """Return the numbers 0 to count - 1 in so many runs, as even as can be, longer ones first."""
    return [part.tolist() for part in np.array_split(np.arange(count), groups)]


class EncoderGroups(nn.Module):
    """What the network sees of the encoder and is to give back, from the features of its blocks.

    Takes for each of `blocks` blocks the patches (N, C, h, w), then for each the class token
    (N, C, 1, 1) and the registers (N, C, 1, R) where the encoder has them. Gives the tokens
    (N, T, C), the mean over the blocks, and for each group the mean of its blocks' patches
    (N, C, h, w).
    """

    def __init__(self, blocks: int, groups: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.groups = grouped(blocks, groups)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        means = [
            torch.stack(list(features[i : i + self.blocks])).mean(dim=0)
            for i in range(0, len(features), self.blocks)
        ]
        tokens = torch.cat([one.flatten(2) for one in (*means[1:], means[0])], dim=2)
        patches = features[: self.blocks]
        targets = [torch.stack([patches[i] for i in group]).mean(dim=0) for group in self.groups]
        return [tokens.transpose(1, 2), *targets]


class DinomalyNetwork(nn.Module):
    """Bottleneck and decoder: for each group a map (N, C, h, w), from the encoder's tokens.

    Parameters
    ----------
    width
        C.
    grid
        (h, w).
    blocks
        How many blocks of the encoder are given back; the decoder has as many.
    groups
        How many groups they are in.
    dropout
        Of the bottleneck.
    """

    def __init__(
        self, width: int, grid: tuple[int, int], *, blocks: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid = grid
        # the encoders' own: heads of 64 channels, or the nearest that divide C
        heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        self.bottleneck = NoisyBottleneck(width, dropout)
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(blocks))
        # the decoder's first block gives back the encoder's last one
        self.groups = [[blocks - 1 - i for i in group] for group in grouped(blocks, groups)]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD, a=-_CUT, b=_CUT)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, noise: torch.Generator | None = None) -> list[Tensor]:
        """Return the maps; without `noise`, a generator on the device, nothing is dropped."""
        x = self.bottleneck(tokens, noise)
        after = []
        for block in self.decoder:
            x = block(x)
            after.append(x)  # (N, T, C)
        found = []
        first = int(tokens.shape[1]) - self.grid[0] * self.grid[1]  # what is no patch
        for group in self.groups:
            mean = torch.stack([after[i] for i in group]).mean(dim=0)[:, first:]
            found.append(mean.transpose(1, 2).reshape(-1, mean.shape[2], *self.grid))
        return found


class DinomalyGraph(nn.Module):
    """Pixels (N, H, W, 3) uint8 in; score (N,) and map (N, H, W) out: what scores images."""

    def __init__(
        self,
        encoder: FeatureGraph,
        groups: EncoderGroups,
        network: DinomalyNetwork,
        maps: LevelMaps,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.groups = groups
        self.network = network
        self.maps = maps

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens, *wanted = self.groups(self.encoder(pixels))
        found = self.network(tokens)
        distances = [cosine_distances(t, s) for t, s in zip(wanted, found)]  # (N, h, w) each
        score, anomaly_map = self.maps([torch.stack(distances).mean(dim=0)])
        return score, anomaly_map
