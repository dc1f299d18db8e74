"""From feature maps to one embedding an image, and embeddings on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

#: How a layer's features become numbers of the image; those joined by + stand side by side.
Pooling = Literal["mean", "max", "std", "gem", "mean+max", "mean+std"]

# Of generalised-mean pooling: Radenovic, Tolias & Chum, "Fine-tuning CNN Image Retrieval with No
# Human Annotation", TPAMI 2019, section 3.2; p = 3 is what they start from.
_P, _LEAST = 3.0, 1e-6

# Of the root mean square deviation over all channels: what a channel's own counts as at least.
_FLOOR = 0.1


def pooled_width(pooling: Pooling, channels: Sequence[int]) -> int:
    """D, the length of an embedding of layers with so many channels each."""
    return len(pooling.split("+")) * sum(channels)


def pool(layer: npt.NDArray[np.float32], pooling: Pooling) -> list[npt.NDArray[np.float32]]:
    """Pool one image's layer (C, cells) to one (C,) float32 for each part of `pooling`.

    `gem` is the generalised mean with p = 3 of the positive part. Sums are taken in double
    precision and one image at a time, so that they do not depend on what else is scored.
    """
    layer = np.ascontiguousarray(layer)
    found: list[npt.NDArray[np.float32]] = []
    for part in pooling.split("+"):
        if part == "mean":
            pooled = layer.mean(axis=1, dtype=np.float64)
        elif part == "max":
            pooled = layer.max(axis=1)
        elif part == "std":
            pooled = layer.std(axis=1, dtype=np.float64)
        else:
            powers = np.maximum(layer, _LEAST).astype(np.float64) ** _P
            pooled = powers.mean(axis=1) ** (1.0 / _P)
        found.append(pooled.astype(np.float32))
    return found


@dataclass(frozen=True)
class Scaling:
    """What brings the channels of embeddings to one scale: (x - mean) / deviation."""

    mean: npt.NDArray[np.float64]  # (D,)
    deviation: npt.NDArray[np.float64]  # (D,), above 0

    @classmethod
    def of(cls, rows: npt.NDArray[np.float64]) -> Scaling:
        """Scale by the rows (n, D), with the population's deviation.

        A channel that hardly moves in them would drown all others as soon as it does: its
        deviation counts as a tenth of the root mean square over all channels at least. Where no
        channel moves at all, it is 1.
        """
        deviation = rows.std(axis=0)
        least = _FLOOR * float(np.sqrt(np.square(deviation).mean()))
        return cls(
            rows.mean(axis=0),
            np.maximum(deviation, least) if least > 0 else np.ones_like(deviation),
        )

    @classmethod
    def none(cls, width: int) -> Scaling:
        return cls(np.zeros(width), np.ones(width))

    def __call__(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (rows - self.mean) / self.deviation
