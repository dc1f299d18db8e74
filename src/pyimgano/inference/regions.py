"""Connected regions of an anomaly map, and how the map explains the decision about its image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..images import RegionOfInterest
from ..images.map_scale import REGION_EDGE, MapScale
from ..images.regions import Region, at_size, find_regions
from ..models import Detector
from ..models.context_share import context_share
from ..models.tiled import TiledDetector

__all__ = [
    "Region",
    "at_size",
    "context_share",
    "deciding_regions",
    "find_regions",
    "map_scale",
    "region_of",
]


def map_scale(
    detector: Detector | TiledDetector,
    anomaly_map: npt.NDArray[np.float32],
    score: float,
    pixel_threshold: float | None = None,
) -> MapScale:
    """Return the scale on which the map (H, W) of an image explains the image's score.

    Where the detector has no threshold for scores, `pixel_threshold` stands for 1.0, or else the
    detector's threshold for pixels.
    """
    pixels = detector.pixel_calibration_
    normal = 0.0 if pixels is None else pixels.mean
    threshold: float | None = detector.threshold_  # None of a detector of another program
    if threshold is None:
        line = pixel_threshold if pixels is None else pixels.threshold
        assert line is not None
        return MapScale(normal, line)
    roi = region_of(detector)
    counted = anomaly_map
    if roi is not None:
        counted = anomaly_map[roi.at((anomaly_map.shape[0], anomaly_map.shape[1]))]
    peak = float(counted.max()) if counted.size else normal
    return MapScale.of(peak, score=score, threshold=threshold, normal=normal)


def deciding_regions(
    anomaly_map: npt.NDArray[np.float32],
    scale: MapScale,
    *,
    pixel_threshold: float | None = None,
    min_area: int = 1,
    roi: RegionOfInterest | None = None,
) -> tuple[list[Region], npt.NDArray[np.bool_]]:
    """Return the regions that explain why an image is called defective, and their mask (H, W).

    A region surrounds a place at the threshold or above, as far as the map is at half of the
    threshold or above. So an image that is called good has none. With `pixel_threshold` regions
    are the pixels at or above it instead, whatever the image is called.
    """
    if pixel_threshold is not None:
        return find_regions(anomaly_map, pixel_threshold, min_area=min_area, roi=roi)
    edge = scale.value(REGION_EDGE)
    return find_regions(anomaly_map, edge, least_peak=scale.line, min_area=min_area, roi=roi)


def region_of(detector: Detector | TiledDetector) -> RegionOfInterest | None:
    """Return the detector's region of interest; one that works by tiles has none."""
    return detector.roi_ if isinstance(detector, Detector) else None
