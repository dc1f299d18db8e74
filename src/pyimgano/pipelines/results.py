"""The results of scored images: what is measured, kind by kind, and why something is null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets import Sample, Saturation
from ..evaluation import evaluate_kinds, evaluate_scores
from ..models import Detector
from .pixels import Pixels

#: What a kind of defect is reported with.
_KIND_METRICS = ("auroc", "average_precision", "recall")


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
    """

    pixel: bool = True
    pro_integration_limit: float = 0.3
    spro: bool = False
    saturation: Mapping[int, Saturation] | None = None
    kinds: tuple[str, ...] | None = None
    kinds_apart: bool = False


#: Pixel metrics where masks exist, AUPRO to 0.3.
USUAL_PROTOCOL = EvaluationProtocol()


def measure_all(
    detector: Detector,
    protocol: EvaluationProtocol,
    pixels: Pixels,
    samples: list[Sample],
    scores: list[float],
    no_pixel_reason: str,
) -> dict[str, Any]:
    """All metrics, and under `per_defect` all of each kind that was scored."""
    calibration = detector.pixel_calibration_
    labels = [sample.label for sample in samples]
    keywords: dict[str, Any] = {
        "threshold": detector.threshold_,
        "pixel_threshold": None if calibration is None else calibration.threshold,
        "pro_integration_limit": protocol.pro_integration_limit,
        "no_pixel_reason": no_pixel_reason,
    }
    if protocol.spro:
        unknown = "it is not known where the masks' regions saturate"
        keywords["no_regions_reason"] = pixels.no_regions or unknown
    arrays = pixels.arrays()
    results = evaluate_scores(labels, scores, **keywords, **arrays)
    results["pixel_aupro_limit"] = protocol.pro_integration_limit
    results["per_defect"] = evaluate_kinds(
        labels,
        scores,
        [sample.defect for sample in samples],
        **keywords,
        **(arrays if protocol.kinds_apart else {}),
    )
    return results


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
