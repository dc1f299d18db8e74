"""The results of scored images: what is measured, kind by kind, and why something is null."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import Sample, Saturation
from ..evaluation import (
    compute_bg_fpr,
    compute_pixel_segf1,
    evaluate_kinds,
    evaluate_scores,
)
from ..models import Detector
from .pixels import Pixels

#: What a kind of defect is reported with.
_KIND_METRICS = ("auroc", "average_precision", "recall")


#: Why the detector's own threshold of pixels does not serve.
_POSTPROCESSED = (
    "the maps are post-processed, and the detector's threshold for pixels is one for maps as they "
    "are; a pixel threshold strategy gives one for these"
)


@dataclass(frozen=True)
class NormalPixelQuantile:
    """The threshold of pixels from maps of training images that are held out for it.

    Attributes
    ----------
    quantile
        Of all pixels of their maps, in (0, 1).
    fraction
        Of the training images, in (0, 1).
    seed
        Of the choice of images.
    """

    quantile: float = 0.999
    fraction: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is measured, and how the dataset's authors do it.

    Attributes
    ----------
    pixel
        Whether pixel metrics are wanted.
    pro_integration_limit
        Of AUPRO and sPRO, in (0, 1].
    spro
        Whether sPRO is reported, be it only with the reason why it is null.
    saturation
        By value of a mask's pixels, as sPRO needs it; None where it is not known.
    kinds
        Kinds of defect to report; by default those of the test images.
    kinds_apart
        Whether pixel metrics are also wanted for each kind, and the mean over the kinds.
    segf1
        Whether SegF1 is measured.
    background
        Whether `pixel_threshold`, `pixel_segf1` and `bg_fpr` are wanted among the pixel metrics.
        The last two count pixels strictly above the threshold.
    pixel_quantile
        Where the threshold of pixels comes from; None for the detector's own.
    postprocess
        What is done to each map (H, W) before pixels are measured; scores are not touched.
    """

    pixel: bool = True
    pro_integration_limit: float = 0.3
    spro: bool = False
    saturation: Mapping[int, Saturation] | None = None
    kinds: tuple[str, ...] | None = None
    kinds_apart: bool = False
    segf1: bool = True
    background: bool = False
    pixel_quantile: NormalPixelQuantile | None = None
    postprocess: Callable[[npt.NDArray[np.float32]], Any] | None = None


#: Pixel metrics where masks exist, AUPRO to 0.3.
USUAL_PROTOCOL = EvaluationProtocol()


def measure_all(
    detector: Detector,
    protocol: EvaluationProtocol,
    pixels: Pixels,
    samples: list[Sample],
    scores: list[float],
    no_pixel_reason: str,
    pixel_threshold: float | None = None,
    pro_curve: list[list[float]] | None = None,
) -> dict[str, Any]:
    """All metrics, and under `per_defect` all of each kind that was scored.

    `pixel_threshold` beats that of the detector. `pro_curve` is as in `evaluate_scores`.
    """
    threshold, no_threshold = _pixel_threshold(detector, protocol, pixel_threshold)
    labels = [sample.label for sample in samples]
    keywords: dict[str, Any] = {
        "threshold": detector.threshold_,
        "pixel_threshold": threshold,
        "pro_integration_limit": protocol.pro_integration_limit,
        "no_pixel_reason": no_pixel_reason,
    }
    if protocol.spro:
        unknown = "it is not known where the masks' regions saturate"
        keywords["no_regions_reason"] = pixels.no_regions or unknown
    arrays = pixels.arrays()
    results = evaluate_scores(labels, scores, **keywords, **arrays, pro_curve=pro_curve)
    results["pixel_aupro_limit"] = protocol.pro_integration_limit
    results["per_defect"] = evaluate_kinds(
        labels,
        scores,
        [sample.defect for sample in samples],
        **keywords,
        **(arrays if protocol.kinds_apart else {}),
    )
    if no_threshold is not None:
        for one in (results, *results["per_defect"].values()):
            names = [name for name in ("pixel_threshold", "segf1") if name in one["undefined"]]
            one["undefined"].update(dict.fromkeys(names, no_threshold))
    return results


def _pixel_threshold(
    detector: Detector, protocol: EvaluationProtocol, given: float | None
) -> tuple[float | None, str | None]:
    """The threshold of pixels, or None and, if there is more to say than that, why."""
    if not protocol.segf1:
        return None, "SegF1 was not asked for"
    if given is not None:
        return given, None
    if protocol.postprocess is not None:
        return None, _POSTPROCESSED
    calibration = detector.pixel_calibration_
    return None if calibration is None else calibration.threshold, None


def add_background(results: dict[str, Any], pixels: Pixels) -> None:
    """Add `pixel_threshold`, `pixel_segf1` and `bg_fpr` to the pixel metrics."""
    threshold = results["pixel_threshold"]
    arrays = pixels.arrays()
    found: dict[str, float | None] = {"pixel_threshold": threshold}
    reasons = results["undefined"]
    for name, metric, missing in (
        ("pixel_segf1", compute_pixel_segf1, "no pixel is, or is called, anomalous"),
        ("bg_fpr", compute_bg_fpr, "every pixel of the masks is anomalous"),
    ):
        value = None
        if threshold is None or not arrays:
            reasons[name] = reasons.get("segf1") or reasons["pixel_threshold"]
        else:
            masks, maps = arrays["pixel_masks"], arrays["pixel_scores"]
            counted = arrays["pixel_counted"]
            if counted is not None:
                masks, maps = masks[counted][None], maps[counted][None]
            value = metric(masks, maps, threshold=threshold)
            if value is None or not np.isfinite(value):
                value, reasons[name] = None, missing
        found[name] = value
    results["pixel_metrics"].update(found)


def add_kinds(
    results: dict[str, Any], protocol: EvaluationProtocol, test: Sequence[Sample]
) -> None:
    """Bring `per_defect` to what a report shows, and add the mean over the kinds."""
    kinds = protocol.kinds
    if kinds is None:
        kinds = tuple(sorted({sample.defect for sample in test if sample.label}))
    measured = results["per_defect"]
    pixel_names = tuple(results["pixel_metrics"]) if protocol.kinds_apart else ()
    names = (*_KIND_METRICS, *pixel_names)
    nothing = dict.fromkeys(names, "no image of this kind was scored")
    shown: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, float | None]] = {}
    for kind in kinds:
        one = measured.get(kind)
        rows[kind] = row = dict.fromkeys(names)
        undefined = nothing
        if one is not None:
            values = {**one, **one["metrics"], **one["pixel_metrics"]}
            row.update({name: values[name] for name in names})
            undefined = {name: one["undefined"][name] for name in names if row[name] is None}
        shown[kind] = {
            "count": 0 if one is None else one["count"],
            **{name: row[name] for name in _KIND_METRICS},
            "pixel_metrics": {name: row[name] for name in pixel_names} or None,
            "undefined": undefined,
        }
    results["per_defect"] = shown
    results["mean_over_defects"] = None
    if protocol.kinds_apart and rows:
        mean: dict[str, float | None] = {}
        results["mean_over_defects"] = mean
        for name in names:
            values_of = [row[name] for row in rows.values()]
            known = [value for value in values_of if value is not None]
            mean[name] = float(np.mean(known)) if len(known) == len(rows) else None
            if mean[name] is None:
                missing = next(kind for kind in rows if rows[kind][name] is None)
                reason = f"{missing}: {shown[missing]['undefined'][name]}"
                results["undefined"][f"mean_over_defects/{name}"] = reason


def explain(
    results: dict[str, Any], test: Sequence[Sample], labelled: bool, unreadable: Sequence[Sample]
) -> None:
    """Reasons that only the test set as a whole knows."""
    undefined = results["undefined"]
    if not labelled:
        reason = "no test image has a label" if test else "there are no test images"
        undefined.update(dict.fromkeys(undefined, reason))
        return
    for label, word in ((0, "good"), (1, "defective")):
        count = sum(sample.label == label for sample in unreadable)
        if not count:
            continue
        missing = f"the test set has no {word} image"
        said = f"{missing} ({count} unreadable {word} image{'s' * (count > 1)} left out)"
        for reasons in (undefined, *(one["undefined"] for one in results["per_defect"].values())):
            for name, reason in reasons.items():
                if reason == missing:
                    reasons[name] = said
