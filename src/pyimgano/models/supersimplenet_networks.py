"""The networks of SuperSimpleNet, its losses, and what it makes of features.

Shapes: features (B, D, h, w); segmentation logits (B, 1, h, w); classification logits (B,).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .anomaly_map import SIGMA, map_operators

# Of a cell that counts, in a pixel's map; as in `anomaly_map`.
_LEAST_WEIGHT = 1e-4


def upscaled(layers: Sequence[Tensor]) -> Tensor:
    """Return (B, D, 2h, 2w) of layers (B, C_l, h_l, w_l), (h, w) that of the first: section III-A.

    Each is brought to twice the resolution of the first, bilinearly with half-pixel centres,
    and averaged over 3x3 cells, at the border over those that exist.
    """
    height, width = layers[0].shape[-2:]
    size = (2 * int(height), 2 * int(width))
    same = [
        functional.interpolate(one, size, mode="bilinear", align_corners=False) for one in layers
    ]
    return functional.avg_pool2d(
        torch.cat(same, dim=1), 3, stride=1, padding=1, count_include_pad=False
    )


class Heads(nn.Module):
    """Feature adaptor, segmentation head and classification head.

    Parameters
    ----------
    channels
        D.
    hidden
        Channels inside the segmentation head.
    pooled
        Channels of the classification head's convolution.
    counted
        (h, w) of 0 and 1: the cells that the classification head pools over; None for all.
    """

    scale: Tensor
    counted: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 1024,
        pooled: int = 128,
        counted: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, 1, 1, bias=False),
        )
        self.classification = nn.Sequential(
            nn.Conv2d(channels + 1, pooled, 5, padding=2), nn.BatchNorm2d(pooled), nn.ReLU()
        )
        self.score = nn.Linear(2 * pooled + 2, 1)
        # what features are divided by before all else, (1, D, 1, 1)
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))
        self.register_buffer("counted", counted, persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_normal_(module.weight)

    def adapted(self, features: Tensor) -> Tensor:
        """Return the adaptor's features (B, D, h, w)."""
        found: Tensor = self.adaptor(features / self.scale)
        return found

    def forward(self, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation logits (B, 1, h, w) and classification logits (B,).

        No gradient flows from the classification into the segmentation head.
        """
        segmented = self.segmentation(adapted)
        seen = segmented.detach()
        found = self.classification(torch.cat([adapted, seen], dim=1))
        pooled = [*self._pooled(found), *self._pooled(seen)]
        return segmented, self.score(torch.cat(pooled, dim=1))[:, 0]

    def _pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Largest and mean value over the cells that count, (B, C) each."""
        if self.counted is None:
            return x.amax(dim=(2, 3)), x.mean(dim=(2, 3))
        counted = self.counted[None, None]
        least = torch.finfo(torch.float32).min
        largest = torch.where(counted > 0, x, torch.full_like(x, least)).amax(dim=(2, 3))
        return largest, (x * counted).sum(dim=(2, 3)) / counted.sum()


def truncated_l1(logits: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Mean over normal cells of max(0, th + s), plus mean over anomalous ones of max(0, th - s).

    Equation 3; `logits` s and `mask` of 0 and 1, of one shape. A kind that has no cells adds 0.
    """
    normal, anomalous = 1.0 - mask, mask
    above = (logits + threshold).clamp(min=0.0) * normal
    below = (threshold - logits).clamp(min=0.0) * anomalous
    return above.sum() / normal.sum().clamp(min=1.0) + below.sum() / anomalous.sum().clamp(min=1.0)


def focal(logits: Tensor, target: Tensor, gamma: float = 4.0) -> Tensor:
    """Mean of -(1 - p_t)^gamma log p_t, p_t the probability given to the right class.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, without the weight alpha.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((1.0 - torch.exp(-entropy)) ** gamma * entropy).mean()


def loss_of(
    segmented: Tensor, score: Tensor, mask: Tensor, counted: Tensor | None = None
) -> Tensor:
    """L = L_seg + L_cls (equations 4 and 5): truncated L1 and focal, and focal of the image.

    `mask` (B, 1, h, w) of 0 and 1. With `counted` (h, w) only cells that count are compared.
    """
    anomalous = mask.flatten(1).amax(dim=1)
    if counted is not None:
        which = counted.flatten() > 0
        segmented, mask = segmented.flatten(2)[..., which], mask.flatten(2)[..., which]
    return truncated_l1(segmented, mask) + focal(segmented, mask) + focal(score, anomalous)


class SuperSimpleNetGraph(nn.Module):
    """Pixels (N, H, W, 3) uint8 to scores (N,) and maps (N, H, W), float32.

    Parameters
    ----------
    features
        The backbone's graph: pixels to layers.
    heads
        Trained.
    grid, size
        (h, w) of the logits, (H, W) of the maps.
    by_map
        Whether the score is the largest value of the map, over cells that count, instead of
        the classification's logit.
    """

    rows: Tensor
    columns: Tensor
    weight: Tensor
    used: Tensor
    within: Tensor

    def __init__(
        self,
        features: nn.Module,
        heads: Heads,
        grid: tuple[int, int],
        size: tuple[int, int],
        *,
        by_map: bool,
    ) -> None:
        super().__init__()
        self.features = features
        self.heads = heads
        rows, columns = (torch.from_numpy(one) for one in map_operators(grid, size, SIGMA))
        counted = torch.ones(grid) if heads.counted is None else heads.counted.cpu()
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        weight = rows @ counted @ columns.T
        self.register_buffer("weight", weight.clamp(min=_LEAST_WEIGHT))
        self.register_buffer("used", counted)
        self.by_map = by_map
        pixels = functional.interpolate(counted[None, None], size, mode="nearest")
        self.register_buffer("within", pixels[0, 0])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.heads
        segmented, score = heads(heads.adapted(upscaled(self.features(pixels))))
        smooth = self.rows @ (segmented[:, 0] * self.used) @ self.columns.T / self.weight
        # log(1 + e^x): the same order, and 0 or more
        maps = functional.softplus(smooth)
        return (maps * self.within).amax(dim=(1, 2)) if self.by_map else score, maps
