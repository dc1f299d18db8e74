"""Smoothing, cleaning and scaling of anomaly maps, one map at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError

NormalizeMethod = Literal["minmax", "percentile"]


@dataclass(frozen=True)
class AnomalyMapPostprocess:
    """Steps that are applied to a map in this order: smooth, open, close, scale, drop specks.

    They change what is shown, or what pixel metrics are computed on when `evaluate_split` is
    given them, and never the score of an image. A scaled map can no longer be compared with the
    map of another image, because each is scaled by its own values: thresholds for pixels hold
    for maps that were not scaled.

    Parameters
    ----------
    normalize
        Whether a map is scaled to 0 to 1 at the end.
    normalize_method
        `minmax` scales between the least and the largest value; `percentile` between the two
        `percentile_range` percentiles, and clips what lies outside. A map of one value becomes 0.
    percentile_range
        (low, high) in percent, 0 <= low < high <= 100.
    gaussian_sigma
        Standard deviation in pixels of a Gaussian that smooths the map; 0 leaves it.
    morph_open_ksize, morph_close_ksize
        Side in pixels of the square of a grey opening, which removes bright specks, and of a
        grey closing, which fills dark ones; 0 leaves the map.
    component_threshold
        Pixels at or above it, after scaling, make up 8-connected components; those with fewer
        than `min_component_area` pixels are set to 0. None leaves the map.
    min_component_area
        In pixels.

    Raises
    ------
    UsageError
        A value is out of its range.
    """

    normalize: bool = True
    normalize_method: NormalizeMethod = "minmax"
    percentile_range: tuple[float, float] = (1.0, 99.0)
    gaussian_sigma: float = 0.0
    morph_open_ksize: int = 0
    morph_close_ksize: int = 0
    component_threshold: float | None = None
    min_component_area: int = 0

    def __post_init__(self) -> None:
        if self.normalize_method not in get_args(NormalizeMethod):
            raise UsageError(
                f"normalize_method must be 'minmax' or 'percentile', got {self.normalize_method!r}"
            )
        low, high = self.percentile_range
        if not 0 <= low < high <= 100:
            raise UsageError(
                "percentile_range must be (low, high) with 0 <= low < high <= 100, "
                f"got {self.percentile_range!r}"
            )
        for name in (
            "gaussian_sigma",
            "morph_open_ksize",
            "morph_close_ksize",
            "min_component_area",
        ):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be 0 or more, got {value!r}")

    def __call__(self, anomaly_map: Any) -> npt.NDArray[np.float32]:
        """Return the processed copy (H, W) float32 of a map (H, W).

        Raises
        ------
        UsageError
            The map has another number of dimensions, or values that are not finite.
        """
        found = np.array(anomaly_map, dtype=np.float32)
        if found.ndim != 2 or found.size == 0:
            raise UsageError(f"anomaly_map must be (H, W), got shape {found.shape}")
        if not np.isfinite(found).all():
            raise UsageError("anomaly_map must be finite")
        if self.gaussian_sigma > 0:
            found = np.asarray(
                cv2.GaussianBlur(
                    found, (0, 0), self.gaussian_sigma, borderType=cv2.BORDER_REFLECT_101
                ),
                np.float32,
            )
        for size, step in (
            (self.morph_open_ksize, cv2.MORPH_OPEN),
            (self.morph_close_ksize, cv2.MORPH_CLOSE),
        ):
            if size > 0:
                kernel = np.ones((int(size), int(size)), np.uint8)
                found = np.asarray(cv2.morphologyEx(found, step, kernel), np.float32)
        if self.normalize:
            found = self._scaled(found)
        if self.component_threshold is not None and self.min_component_area > 0:
            found = self._without_specks(found)
        return found

    def all(self, maps: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the processed copies (N, H, W) float32 of maps (N, H, W)."""
        return np.stack([self(one) for one in maps])

    def _scaled(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.normalize_method == "minmax":
            low, high = float(found.min()), float(found.max())
        else:
            low, high = (float(one) for one in np.percentile(found, self.percentile_range))
        if not high > low:
            return np.zeros_like(found)
        return np.asarray(np.clip((found - low) / (high - low), 0.0, 1.0), np.float32)

    def _without_specks(self, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert self.component_threshold is not None
        above = (found >= self.component_threshold).astype(np.uint8)
        _, labels, facts, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        small = facts[:, cv2.CC_STAT_AREA] < self.min_component_area  # by label
        small[0] = False  # label 0 is what lies below the threshold
        return np.where(small[labels], np.float32(0), found)


def resize_map(anomaly_map: npt.NDArray[np.float32], size: Sequence[int]) -> npt.NDArray[Any]:
    """Return a map (h, w) at another size (H, W) by bilinear interpolation; itself if it fits."""
    height, width = (int(one) for one in size)
    if anomaly_map.shape == (height, width):
        return anomaly_map
    resized = cv2.resize(
        np.asarray(anomaly_map, np.float32), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(resized, np.float32)
