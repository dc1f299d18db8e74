"""How the distances of an image's patches become one number: three ways to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .few_images import mean_of_top
from .power_means import power_means_of

if TYPE_CHECKING:
    from torch import Tensor

#: The names of the ways: a recipe's own, the largest distance, the mean of the top share.
SummaryKind = Literal["own", "largest", "top_share"]


@dataclass(frozen=True)
class PatchSummary:
    """The way that a detector's keywords ask for.

    Attributes
    ----------
    kind
        `own` is that of the recipe: the re-weighted largest distance of the paper, or power means.
    share
        Of the patches with the largest distances, for `top_share`.
    """

    kind: SummaryKind = "own"
    share: float = 0.01

    def plain(self, distances: Tensor) -> Tensor:
        """Return (B,) the largest of distances (B, k), or the mean of the top share of them."""
        if self.kind == "top_share":
            return mean_of_top(distances, self.share)
        return distances.amax(dim=1)

    def of(self, distances: Sequence[Tensor]) -> list[Tensor]:
        """Return (B,) for the near distances (B, k) and those around; `own` is power means."""
        if self.kind == "own":
            return power_means_of(distances)
        return [self.plain(some) for some in distances]


#: Every recipe's own.
OWN = PatchSummary()
