"""One trial: fit a detector on good images, score test images, measure.

Every pipeline that evaluates goes through here: `run_benchmark` for each category, and
`mvtec_visa.evaluate_split`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration import BinomialInterval, clopper_pearson
from ..datasets import Sample, Saturation
from ..evaluation import evaluate_detector, evaluate_kinds
from ..models import Detector, ImageScore
from ..models.detector import Progress
from ..runs import Problem, ProblemKind
from .pixels import Mask, Pixels

_UNREADABLE: dict[str, ProblemKind] = {
    "train": "unreadable_train_image",
    "calibration": "unreadable_calibration_image",
}
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


@dataclass
class Trial:
    """What came out of fitting, scoring and measuring.

    Attributes
    ----------
    results
        As `evaluate_detector` gives them, with `pixel_aupro_limit`, `per_defect` (by kind
        of defect) and `mean_over_defects`.
    false_alarms
        Rate on the good test images that could be read.
    problems
        One for each file that something was wrong with.
    n_unreadable
        Test images without a score.
    n_masks
        Defective test images with a usable mask.
    fit_seconds, score_seconds
        Wall clock.
    """

    results: dict[str, Any]
    false_alarms: BinomialInterval
    problems: list[Problem]
    n_unreadable: int
    n_masks: int
    fit_seconds: float
    score_seconds: float


def run_trial(
    detector: Detector,
    train: Sequence[str],
    test: Sequence[Sample],
    *,
    calibration_images: Sequence[str] | None = None,
    masks: Mask | None = None,
    protocol: EvaluationProtocol = EvaluationProtocol(),
    no_pixel_reason: str | None = None,
    on_error: str = "error",
    keep_maps: bool = False,
    on_fitted: Callable[[], None] | None = None,
    on_score: Callable[[Sample, ImageScore], None] | None = None,
    progress: Progress | None = None,
) -> Trial:
    """Fit on `train`, score `test` once, measure.

    Parameters
    ----------
    detector
        Not fitted yet, or to be fitted anew.
    train
        Paths of good images.
    test
        Samples. An unreadable one gets no score, and one without a label counts in no
        metric.
    calibration_images
        Paths of further good images to calibrate the threshold on, instead of `train`.
    masks
        (N, H, W) of 0 and 1 at the detector's `resize`, if they are at hand; by default
        they are read from the samples' mask files.
    protocol
        What is measured.
    no_pixel_reason
        Why `protocol.pixel` is False, for the results.
    on_error
        `skip` leaves unreadable training images out; otherwise one is an error.
    keep_maps
        Whether `on_score` needs the maps, whatever is measured.
    on_fitted
        Called when the detector is fitted, before any test image is scored.
    on_score
        Called with each scored image; the detector's thresholds are known then.
    progress
        Called with (stage, done, total).

    Raises
    ------
    PyimganoError
        As `Detector.fit`.
    """
    began = time.perf_counter()
    detector.fit(
        train,
        calibration_images=calibration_images,
        on_error="skip" if on_error == "skip" else "raise",
        progress=progress,
    )
    fitted = time.perf_counter()
    if on_fitted is not None:
        on_fitted()
    scoring = time.perf_counter()
    problems = [
        Problem(kind=_UNREADABLE[skipped.role], path=skipped.path, message=skipped.reason)
        for skipped in detector.skipped_
    ]
    problems += [
        Problem(kind="several_pages", path=one.path, message=one.reason)
        for one in detector.remarked_
    ]
    labelled = any(sample.label is not None for sample in test)
    pixels = Pixels(
        detector.params_.resize,
        protocol.pixel and detector.has_maps and labelled,
        masks,
        protocol.saturation,
        detector.counted_pixels,
    )
    scored_samples: list[Sample] = []
    unreadable: list[Sample] = []
    scores: list[float] = []
    with_maps = pixels.wanted or keep_maps
    paths = [str(sample.path) for sample in test]
    for result in detector.score_images(paths, maps=with_maps, on_error="record"):
        sample = test[result.index]
        if on_score is not None:
            on_score(sample, result)
        if progress is not None:
            progress("test images", result.index + 1, len(test))
        if result.remark is not None:
            pixels.note("several_pages", sample.path, result.remark)
        if result.error is not None:
            unreadable.append(sample)
            pixels.note("unreadable_test_image", result.error.path, result.error.reason)
        elif sample.label is not None:
            assert result.score is not None
            scored_samples.append(sample)
            scores.append(result.score)
            pixels.add(sample, result)
    scored = time.perf_counter()

    results = _measure(
        detector,
        protocol,
        pixels,
        scored_samples,
        scores,
        no_pixel_reason or pixels.reason(detector),
    )
    _add_kinds(results, protocol, test)
    _explain(results, test, labelled, unreadable)
    good = results["metrics"]["tn"] + results["metrics"]["fp"]
    return Trial(
        results=results,
        false_alarms=clopper_pearson(results["metrics"]["fp"], good),
        problems=problems + pixels.problems,
        n_unreadable=len(unreadable),
        n_masks=pixels.usable,
        fit_seconds=fitted - began,
        score_seconds=scored - scoring,
    )


def _measure(
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
    results = evaluate_detector(labels, scores, **keywords, **arrays)
    results["pixel_aupro_limit"] = protocol.pro_integration_limit
    results["per_defect"] = evaluate_kinds(
        labels,
        scores,
        [sample.defect for sample in samples],
        **keywords,
        **(arrays if protocol.kinds_apart else {}),
    )
    return results


def _add_kinds(
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


def _explain(
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
