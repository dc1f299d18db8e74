"""How much of a score its map does not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def context_share(
    detector: Any, score: float | None, anomaly_map: npt.NDArray[np.float32] | None
) -> float | None:
    """Return the share of a score, in [0, 1], that comes from context, which the map does not show.

    None where scores come from the map alone, and without a score or a map. `anomaly_map` is
    (H, W) as the detector gives it.
    """
    if score is None or anomaly_map is None or score <= 0:
        return None
    if not getattr(getattr(detector, "learned_", None), "context_counts", False):
        return None
    return float(np.clip(1.0 - float(anomaly_map.max()) / score, 0.0, 1.0))
