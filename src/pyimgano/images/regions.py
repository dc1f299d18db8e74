"""Connected regions of an anomaly map: what a person is to look at."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .roi import RegionOfInterest


@dataclass(frozen=True)
class Region:
    """Pixels at or above the threshold that touch each other, also by a corner.

    Attributes
    ----------
    box
        (x, y, width, height) in pixels, x to the right and y down from the upper left corner.
    area
        Pixels.
    peak
        The largest score in it.
    peak_at
        (x, y) of the first pixel with that score.
    centroid
        (x, y), the mean over its pixels.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]
    centroid: tuple[float, float]


def find_regions(
    anomaly_map: npt.NDArray[np.float32],
    threshold: float,
    *,
    least_peak: float | None = None,
    min_area: int = 1,
    roi: RegionOfInterest | None = None,
) -> tuple[list[Region], npt.NDArray[np.bool_]]:
    """Return the regions of at least `min_area` pixels, and their mask.

    Parameters
    ----------
    anomaly_map
        (H, W) float32, finite.
    threshold
        A pixel at or above it belongs to a region.
    least_peak
        Regions whose largest score is below it are in neither result.
    min_area
        In pixels; smaller regions are in neither result.
    roi
        Pixels outside it belong to no region, whatever the threshold.

    Returns
    -------
    list of Region
        Highest peak first.
    numpy.ndarray
        (H, W) bool.
    """
    mask = np.asarray(anomaly_map >= threshold)
    if roi is not None:
        mask &= roi.at((mask.shape[0], mask.shape[1]))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return [], mask
    if least_peak is not None and not (anomaly_map[mask] >= least_peak).any():
        return [], np.zeros_like(mask)
    # labels take four bytes a pixel, so they are made only where something is
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(part).view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    large = stats[:, cv2.CC_STAT_AREA] >= min_area
    large[0] = False  # the background
    found = []
    for label in np.flatnonzero(large):
        x, y, width, height, area = (int(value) for value in stats[label])
        window = np.s_[y : y + height, x : x + width]
        values = np.where(
            labels[window] == label,
            anomaly_map[top + y : top + y + height, left + x : left + x + width],
            -np.inf,
        )
        peak_y, peak_x = divmod(int(values.argmax()), width)
        if least_peak is not None and not values[peak_y, peak_x] >= least_peak:
            large[label] = False
            continue
        found.append(
            Region(
                box=(left + x, top + y, width, height),
                area=area,
                peak=float(values[peak_y, peak_x]),
                peak_at=(left + x + peak_x, top + y + peak_y),
                centroid=(left + float(centroids[label][0]), top + float(centroids[label][1])),
            )
        )
    if len(found) < count - 1:
        part &= large[labels]  # a view: it changes the mask
    found.sort(key=lambda region: (-region.peak, region.box))
    return found, mask


def at_size(
    anomaly_map: npt.NDArray[np.float32],
    size: tuple[int, int],
    roi: RegionOfInterest | None = None,
) -> npt.NDArray[np.float32]:
    """Return the map at (height, width), bilinear with half-pixel centres; itself at its own size.

    Outside the region of interest it is 0 there too.
    """
    if anomaly_map.shape == size:
        return anomaly_map
    resized = cv2.resize(anomaly_map, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    full = np.asarray(resized, np.float32)
    if roi is not None:
        full[~roi.at(size)] = 0.0
    return full
