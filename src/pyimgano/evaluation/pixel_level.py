"""Metrics of pixels: a map and a mask for each image. All are exact, at every threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .image_level import check_threshold
from .undefined import MetricTable, UndefinedMetric, value_or_nan
from .weighted_curve import Interleaving, NormalScores, average_precision

#: The limit of the false-positive rate that AUPRO is integrated to by default.
AUPRO_LIMIT = 0.3

#: Metrics of maps: at every threshold, but for SegF1, which has one. sPRO joins them where
#: the regions of masks are known.
PIXEL_METRICS = ("pixel_auroc", "pixel_average_precision", "aupro", "segf1")

#: The limit that sPRO is integrated to by default.
SPRO_LIMIT = 0.05

#: Points of a curve that is to be drawn.
CURVE_POINTS = 200

#: Why there is no SegF1 where no threshold is given.
NO_PIXEL_THRESHOLD = "there is no threshold for pixels"

#: Regions of one image: a mask (H, W) and a saturation area in pixels, for each.
Regions: TypeAlias = "Sequence[tuple[Any, float]]"


def compute_pixel_auroc(masks: Any, maps: Any) -> float:
    """Area under the ROC curve over all pixels of all images.

    Parameters
    ----------
    masks
        (N, H, W), (H, W) or (P,) pixels; bool, or numbers of which every one above 0 means defect.
    maps
        Scores of the same shape, finite, higher is more anomalous.

    Returns
    -------
    float
        In [0, 1]; nan where no pixel, or every pixel, is anomalous.

    Raises
    ------
    UsageError
        Shapes differ, or scores are not finite.
    """
    return value_or_nan(lambda: PixelScores.of(masks, maps, flat=True).auroc())


def compute_pixel_average_precision(masks: Any, maps: Any) -> float:
    """Average precision over all pixels; parameters and errors as `compute_pixel_auroc`."""
    return value_or_nan(lambda: PixelScores.of(masks, maps, flat=True).average_precision())


def compute_aupro(
    masks: Any,
    maps: Any,
    integration_limit: float = AUPRO_LIMIT,
    num_thresholds: int | None = None,
) -> float:
    """Area under the per-region-overlap curve, divided by the limit.

    At each threshold the overlap is the mean, over the 8-connected regions of all masks, of
    the share of a region's pixels that score at or above it; the curve runs over the
    false-positive rate of all normal pixels and is cut at the limit by linear interpolation
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.2).

    Parameters
    ----------
    masks, maps
        As `compute_pixel_auroc`.
    integration_limit
        In (0, 1].
    num_thresholds
        Ignored. Other programs sample the curve at so many thresholds, which is wrong by up to
        0.04 where scores are tied; this one takes every threshold.

    Returns
    -------
    float
        In [0, 1]; nan where no pixel, or every pixel, is anomalous.
    """
    _check_limit(integration_limit)
    return value_or_nan(lambda: PixelScores.of(masks, maps).aupro(integration_limit))


def compute_spro(
    regions: Sequence[Regions], maps: Any, integration_limit: float = SPRO_LIMIT
) -> float:
    """Area under the saturated per-region-overlap curve, divided by the limit.

    At each threshold the overlap of a region with saturation area s is min(pixels found / s,
    1), and the curve is the mean over the regions of all images against the false-positive
    rate of all pixels outside every region (Bergmann et al., "Beyond Dents and Scratches",
    IJCV 2022, section 5). Regions of an image may overlap.

    Parameters
    ----------
    regions
        For each of N images a sequence of (mask, s): mask (H, W), of which every value above
        0 belongs to the region, and 0 < s <= pixels of the mask. Empty for good images.
    maps
        (N, H, W) scores, finite, higher is more anomalous.
    integration_limit
        In (0, 1].

    Returns
    -------
    float
        In [0, 1]; nan where there is no region, or no pixel outside them.

    Raises
    ------
    UsageError
        Numbers or shapes differ, scores are not finite, or an s is out of range.
    """
    _check_limit(integration_limit)
    scores = _one_array(maps, "maps")
    if scores.ndim != 3:
        raise UsageError(f"maps must be (N, H, W), got shape {scores.shape}")
    _, scores = _check(np.zeros(scores.shape, np.bool_), scores)
    return value_or_nan(lambda: _spro(regions, scores, integration_limit, None))


def compute_pro_score(
    masks: Any,
    maps: Any,
    threshold: float | None = None,
    *,
    integration_limit: float = 1.0,
    num_thresholds: int | None = None,
) -> float:
    """Return the mean overlap of the regions at one threshold; without one, `compute_aupro`.

    A pixel is found if its score is greater than or equal to `threshold`. Without a threshold
    the curve is integrated to `integration_limit`, by default to a false-positive rate of 1;
    `num_thresholds` is ignored, as in `compute_aupro`.
    """
    if threshold is None:
        return compute_aupro(masks, maps, integration_limit)
    limit = check_threshold(threshold)

    def overlap() -> float:
        scores = PixelScores.of(masks, maps)
        found = _found(scores.anomalous, limit)
        return float((found * scores.region_weights).sum())

    return value_or_nan(overlap)


def compute_pixel_segf1(masks: Any, maps: Any, *, threshold: float) -> float:
    """Return the F1 of the pixels strictly above one threshold, over all images together.

    The segmentation F1 of MVTec AD 2 (Heckler-Kram et al. 2025). nan where no pixel is, or
    is called, anomalous.
    """
    truth, scores = _check(masks, maps, flat=True)
    return value_or_nan(lambda: _segf1(truth, scores, _strictly_above(threshold)))


def compute_bg_fpr(masks: Any, maps: Any, *, threshold: float) -> float:
    """Return the share of the normal pixels that score strictly above `threshold`.

    nan where no pixel is normal.
    """
    truth, scores = _check(masks, maps, flat=True)
    alarms = _found(scores, _strictly_above(threshold)) & ~truth
    normal = int((~truth).sum())
    return math.nan if normal == 0 else int(alarms.sum()) / normal


class PixelScores:
    """Scores of the anomalous pixels, and those of the normal ones sorted.

    Attributes
    ----------
    anomalous
        (P,) scores of the anomalous pixels, image by image in row order.
    normal
        Scores of the normal pixels.
    masks
        (N, H, W) bool.
    """

    def __init__(
        self,
        truth: npt.NDArray[np.bool_],
        scores: npt.NDArray[np.floating],
        counted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Split and sort checked arrays; pixels that are not `counted` are in neither class.

        Raises `UndefinedMetric` where a class has no pixel.
        """
        not_normal = truth
        if counted is not None:
            truth, not_normal = truth & counted, truth | ~counted
        self.anomalous = scores[truth]
        if len(self.anomalous) == 0:
            raise UndefinedMetric("no pixel of the masks is anomalous")
        if not_normal.all():
            raise UndefinedMetric("every pixel of the masks is anomalous")
        hits = len(self.anomalous)
        self.normal = NormalScores.of_all_but(not_normal, scores, self.anomalous.min(), hits)
        self.masks = truth

    @classmethod
    def of(cls, masks: Any, maps: Any, *, flat: bool = False) -> PixelScores:
        """Check what a caller gives, as `_check` does, and divide its pixels."""
        return cls(*_check(masks, maps, flat=flat))

    @cached_property
    def _interleaving(self) -> Interleaving:
        return Interleaving.of(self.anomalous, self.normal)

    def auroc(self) -> float:
        return self._interleaving.curve().area()

    def average_precision(self) -> float:
        return average_precision(self._interleaving.curve())

    def aupro(self, limit: float, points: list[list[float]] | None = None) -> float:
        """Return AUPRO; rates and overlaps of the curve's points are added to `points`."""
        curve = self._interleaving.curve(self.region_weights)
        area = curve.area(limit)
        if points is not None:
            points.extend(curve.points(limit, CURVE_POINTS))
        return area

    @cached_property
    def region_weights(self) -> npt.NDArray[np.float64]:
        """Return (P,) one over (regions times pixels of the pixel's region): they sum to 1."""
        weights = []
        regions = 0
        for mask in self.masks:
            if not mask.any():
                continue
            count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            inside = labels[mask]  # (p,) 1 to count - 1
            weights.append(1.0 / np.bincount(inside, minlength=count)[inside])
            regions += count - 1
        return np.concatenate(weights) / regions


def pixel_metrics(
    masks: Any,
    maps: Any,
    *,
    integration_limit: float = AUPRO_LIMIT,
    threshold: float | None = None,
    regions: Sequence[Regions] | None = None,
    counted: Any = None,
    pro_curve: list[list[float]] | None = None,
) -> MetricTable:
    """Compute all of `PIXEL_METRICS`; those that sort the pixels share one sorting.

    `threshold` is that of SegF1. With `regions` there is `spro` too, integrated to the same
    limit as AUPRO; their union is usually what `masks` says, and then shares the sorting.
    With `counted`, bool of the shape of `masks`, the other pixels are in no metric; regions
    must not have any of them. Into the list `pro_curve`, if one is given, go the false-positive
    rates and the overlaps of points of the curve that AUPRO is the area under.
    """
    _check_limit(integration_limit)
    truth, checked = _check(masks, maps)
    within: npt.NDArray[np.bool_] | None = None
    if counted is not None:
        within = _one_array(counted, "pixel_counted").astype(np.bool_).reshape(-1, *truth.shape[1:])
        if within.shape != truth.shape:
            raise UsageError(f"pixel_counted has shape {within.shape}, wanted {truth.shape}")
        truth = truth & within
    table = MetricTable()
    scores: PixelScores | None = None
    try:
        scores = PixelScores(truth, checked, within)
    except UndefinedMetric as error:
        for name in ("pixel_auroc", "pixel_average_precision", "aupro"):
            table.fail(name, str(error))
    else:
        table.add("pixel_auroc", scores.auroc)
        table.add("pixel_average_precision", scores.average_precision)
        table.add("aupro", lambda: scores.aupro(integration_limit, pro_curve))
    if threshold is None:
        table.fail("segf1", NO_PIXEL_THRESHOLD)
    else:
        table.add("segf1", lambda: _segf1(truth, checked, threshold, within))
    if regions is not None:
        table.add("spro", lambda: _spro(regions, checked, integration_limit, scores, within))
    return table


def _strictly_above(threshold: float) -> float:
    """Return the threshold t for which `score >= t` is `score > threshold` in float64."""
    return float(np.nextafter(check_threshold(threshold), np.inf))


def _found(scores: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.bool_]:
    """Tell which scores are at or above the threshold, not rounded to their precision."""
    return np.asarray(scores >= np.float64(threshold))


def _segf1(
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.floating],
    threshold: float,
    counted: npt.NDArray[np.bool_] | None = None,
) -> float:
    found = _found(scores, threshold)
    if counted is not None:
        found &= counted
    whole = int(found.sum()) + int(truth.sum())
    if whole == 0:
        raise UndefinedMetric("no pixel is, or was called, anomalous")
    return 2 * int((found & truth).sum()) / whole


def _spro(
    regions: Sequence[Regions],
    scores: npt.NDArray[np.floating],
    limit: float,
    known: PixelScores | None,
    counted: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Compute `compute_spro` on checked maps; `known` saves a sorting of the same pixels."""
    if len(regions) != len(scores):
        raise UsageError(f"{len(regions)} images with regions, but {len(scores)} maps")
    anomalous, weights = [], []
    anywhere = np.zeros(scores.shape, dtype=np.bool_)
    for index, image in enumerate(regions):
        for mask, saturation in image:
            inside = np.asarray(mask) > 0
            if inside.shape != scores.shape[1:]:
                raise UsageError(
                    f"regions[{index}]: a mask of shape {inside.shape}, wanted {scores.shape[1:]}"
                )
            anywhere[index] |= inside
            found = np.sort(scores[index][inside])[::-1]
            if not 0 < saturation <= len(found):
                raise UsageError(
                    f"regions[{index}]: a saturation area of {saturation:g}, wanted one in "
                    f"(0, {len(found)}], the region's pixels"
                )
            # the first s pixels of a region to be found weigh 1 / s each, the others nothing
            weight = np.clip(saturation - np.arange(len(found)), 0.0, 1.0) / saturation
            counts = weight > 0
            anomalous.append(found[counts])
            weights.append(weight[counts])
    if not anomalous:
        raise UndefinedMetric("the masks have no region")
    if known is None or not np.array_equal(known.masks, anywhere):
        known = PixelScores(anywhere, scores, counted)
    joined = np.concatenate(weights) / len(weights)
    interleaving = Interleaving.of(np.concatenate(anomalous), known.normal)
    return interleaving.curve(joined).area(limit)


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise UsageError(f"the AUPRO integration limit must lie in (0, 1], got {limit!r}")


def _one_array(values: Any, name: str) -> npt.NDArray[Any]:
    """Return one array of what may be a list of arrays, which must be of one size."""
    if isinstance(values, (list, tuple)):
        shapes = [np.shape(one) if isinstance(one, np.ndarray) else None for one in values]
        known = {shape: index for index, shape in reversed(list(enumerate(shapes)))}
        if None not in known and len(known) > 1:
            (first, i), (other, j) = sorted(known.items(), key=lambda item: item[1])[:2]
            raise UsageError(
                f"{name} are of several sizes: {name}[{i}] has shape {first} and {name}[{j}] "
                f"{other}; pixel metrics take masks and maps of one size, so bring all to it"
            )
    return np.asarray(values)


def _check(
    masks: Any, maps: Any, *, flat: bool = False
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.floating]]:
    """Masks as (N, H, W) bool and maps as (N, H, W) floating.

    With `flat`, (P,) pixels may be given for metrics that do not ask where a pixel lies.
    """
    truth, scores = _one_array(masks, "masks"), _one_array(maps, "maps")
    if flat and truth.ndim == 1 and truth.shape == scores.shape:
        truth, scores = truth[None], scores[None]
    if truth.shape != scores.shape or truth.ndim not in (2, 3):
        raise UsageError(
            "masks and maps must both be (N, H, W) or (H, W), "
            f"got shapes {truth.shape} and {scores.shape}"
        )
    if scores.dtype.kind not in "fiub" or truth.dtype.kind not in "fiub":
        raise UsageError(
            f"masks and maps must hold real numbers, got {truth.dtype} and {scores.dtype}"
        )
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    # of the extremes, which NaN passes through: a quarter of the memory traffic
    if scores.size and not np.isfinite([scores.min(), scores.max()]).all():
        raise UsageError("maps must be finite")
    if truth.dtype.kind == "f" and not np.isfinite(truth).all():
        raise UsageError("masks must be finite")
    if truth.dtype != np.bool_:
        truth = truth > 0
    if truth.ndim == 2:
        truth, scores = truth[None], scores[None]
    return truth, scores
