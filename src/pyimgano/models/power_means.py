"""One number for an image from the distances of its patches.

The largest distance alone is that of one patch, and the tail of good images' scores is made of such
patches. A power mean of all distances goes by the largest ones too, yet several that stand out
count more than one does, and many that are a little high count at all. Unlike the peak of a
smoothed map, it treats a patch at the border of the frame as it does any other.

What lies at a place and what lies around it are joined by a power mean as well: what one of the two
finds is hardly diluted by the other's finding nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Of the distances near patches have, and of those that what is around them has: a grid of a
#: quarter of the cells or less, on which a defect of the same size is a larger part.
NEAR_POWER = 24
CONTEXT_POWER = 16
#: Of the two means.
JOINT_POWER = 12
#: What the context counts in it, against what lies near.
CONTEXT_WEIGHT = 0.5
# What its largest distance counted in detectors saved before scores were power means.
_PEAK_CONTEXT_WEIGHT = 0.5


def image_scores(
    near: Tensor,
    context: Tensor | None,
    means_of: Callable[[Sequence[Tensor]], list[Tensor]] | None,
    peaks: Callable[[], Tensor],
) -> Tensor:
    """Return scores (B,) of near distances (B, k) and those around (B, l), in their units.

    `means_of` makes one number an image, (B,), of each: `power_means_of`, or what takes its place.

    Without it, for detectors saved before there were any, a score is the peak of the
    map and a half of the largest distance around; `peaks` gives those of the maps, (B,).
    """
    if means_of is not None:
        return joint_score(*means_of([near] if context is None else [near, context]))
    if context is None:
        return peaks()
    return peaks() + _PEAK_CONTEXT_WEIGHT * context.amax(dim=1)


def power_means_of(distances: Sequence[Tensor]) -> list[Tensor]:
    """Return (B,) each of the near distances (B, k) and, if there are any, of those around."""
    powers = NEAR_POWER, CONTEXT_POWER
    return [power_mean(some, power) for some, power in zip(distances, powers)]


def power_mean(distances: Tensor, power: int) -> Tensor:
    """Return (B,) the power means of distances (B, k), at least 0, of the same dtype.

    Each is between the largest of them divided by k^(1 / power), 0.75 of it for k = 1,024 and a
    power of 24, and the largest.
    """
    largest = distances.amax(dim=1, keepdim=True)
    # relative to the largest, so that no power overflows; in double precision
    relative = (distances / largest.clamp(min=_tiny(largest))).double()
    mean = (relative**power).mean(dim=1) ** (1 / power)
    return (largest.squeeze(1).double() * mean).to(distances.dtype)


def joint_score(near: Tensor, context: Tensor | None = None) -> Tensor:
    """Return scores (B,) of what was found near (B,) and around (B,), 1 where both are.

    Both at least 0, and in units of what they are in good images.
    """
    if context is None:
        return near
    largest = near.maximum(context).clamp(min=_tiny(near))
    powers = [(one / largest).double() ** JOINT_POWER for one in (near, context)]
    mean = (powers[0] + CONTEXT_WEIGHT * powers[1]) / (1 + CONTEXT_WEIGHT)
    return (largest.double() * mean ** (1 / JOINT_POWER)).to(near.dtype)


def _tiny(like: Tensor) -> float:
    import torch

    return float(torch.finfo(like.dtype).tiny)
