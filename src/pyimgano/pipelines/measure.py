"""Fit a detector on good images, and measure it on test images.

Every pipeline that evaluates goes through `fit` and `measure`: `run_benchmark` for each category,
`run_robust_benchmark` with one fit and many measurements, and `mvtec_visa.evaluate_split`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..calibration import (
    BinomialInterval,
    Likeness,
    OperatingPoint,
    clopper_pearson,
    likeness,
    operating_points,
)
from ..datasets import Category, Mask, Move, Pixels, Sample, Saturation
from ..errors import during
from ..evaluation import compute_bg_fpr, compute_pixel_segf1, evaluate_kinds, evaluate_scores
from ..images import Signature, closed_after, copies_among
from ..memory import memory_in_words
from ..models import Detector, ImageScore
from ..models.training_images import Progress
from ..runs import MeasuredRate, Problem, ProblemKind

_UNREADABLE: dict[str, ProblemKind] = {
    "train": "unreadable_train_image",
    "calibration": "unreadable_calibration_image",
}


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


@dataclass(frozen=True)
class Task:
    """Images to fit a detector on and to measure it with, and how.

    Attributes
    ----------
    train
        Paths of good images.
    test
        Samples. An unreadable one gets no score, and one without a label counts in no metric.
    protocol
        What is measured.
    calibration_images
        Paths of further good images to calibrate the threshold on, instead of `train`.
    on_error
        `skip` leaves unreadable training images out; otherwise one is an error.
    exclude_suspects
        Whether to fit a second time without the suspects of the first.
    masks
        (N, H, W) of 0 and 1 if they are at hand, of any size, to which maps are then brought;
        by default they are read from the samples' mask files at the detector's `resize`.
    maps
        (N, H, W) of the test images, to be measured instead of the detector's.
    no_pixel_reason
        Why `protocol.pixel` is False, for the results.
    category
        The category of a dataset that the images are of.
    excluded
        Training images that the user's list left out.
    """

    train: Sequence[str]
    test: Sequence[Sample]
    protocol: EvaluationProtocol = EvaluationProtocol()
    calibration_images: Sequence[str] | None = None
    on_error: str = "error"
    exclude_suspects: bool = False
    masks: Mask | None = None
    maps: npt.NDArray[np.float32] | None = None
    no_pixel_reason: str | None = None
    category: Category | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """What came out of fitting, besides the detector.

    Attributes
    ----------
    seconds
        Wall clock.
    problems
        One for each training image that something was wrong with.
    notes
        What a reader of the results should know of it.
    pixel_threshold
        A pixel at or above it is called defective; None for the detector's own.
    """

    seconds: float
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixel_threshold: float | None = None


@dataclass
class Measurement:
    """What came out of scoring and measuring.

    Attributes
    ----------
    results
        As `evaluate_scores` gives them, with `pixel_aupro_limit`, `per_defect` (by kind
        of defect) and `mean_over_defects`.
    false_alarms
        Rate on the good test images that could be read.
    problems
        One for each file that something was wrong with.
    n_unreadable
        Test images without a score.
    n_masks
        Defective test images with a usable mask.
    notes
        What a reader of the results should know of how they were measured.
    score_seconds
        Wall clock.
    operating_points
        What each promise would lead to on these images.
    likeness
        Whether the good ones are like those of the calibration; None if there are none.
    pro_curve
        Rates and overlaps of the curve under which AUPRO is the area; empty without it.
    """

    results: dict[str, Any]
    false_alarms: BinomialInterval
    problems: list[Problem]
    n_unreadable: int
    n_masks: int
    notes: list[str]
    score_seconds: float
    operating_points: list[OperatingPoint]
    likeness: Likeness | None
    pro_curve: list[list[float]]


class ScoredTest(Protocol):
    """Scores of test images that were altered before."""

    def scores(self, maps: bool) -> Iterator[ImageScore]:
        """Yield the score of each test image in order, with its map if `maps` says so."""
        ...

    def move(self, sample: Sample) -> Move | None:
        """Return what moves a sample's masks as its image was moved."""
        ...


def fit(detector: Detector, task: Task, progress: Progress | None = None) -> Fit:
    """Fit a detector, new or to be fitted anew, on the training images of a task.

    `progress` is called with (stage, done, total).

    Raises
    ------
    PyimganoError
        As `Detector.fit`.
    """
    train, held_out = task.train, task.train[:0]
    strategy = task.protocol.pixel_quantile
    if strategy is not None and task.protocol.pixel and detector.has_maps:
        train, held_out = _hold_out(task.train, strategy)
    began = time.perf_counter()
    with (
        during("fitting"),
        memory_in_words("to fit the detector", "lower resize, or fit on fewer images"),
    ):
        detector.fit(
            train,
            calibration_images=task.calibration_images,
            on_error="skip" if task.on_error == "skip" else "raise",
            **({"exclude_suspects": True} if task.exclude_suspects else {}),
            progress=progress,
        )
    seconds = time.perf_counter() - began
    problems = [
        Problem(kind=_UNREADABLE[skipped.role], path=skipped.path, message=skipped.reason)
        for skipped in detector.skipped_
    ]
    problems += [
        Problem(kind="several_pages", path=one.path, message=one.reason)
        for one in detector.remarked_
    ]
    if strategy is None or not held_out:
        return Fit(seconds, problems)
    with during("calibration"):
        threshold = _normal_pixel_threshold(detector, held_out, task)
    source = "that the detector was fitted on too" if held_out is train else "held out for it"
    note = (
        f"pixel threshold: the {strategy.quantile:g} quantile of the pixels of "
        f"{len(held_out)} good training image{'s' * (len(held_out) > 1)} {source}"
    )
    return Fit(seconds, problems, [note], threshold)


def _hold_out(
    train: Sequence[str], strategy: NormalPixelQuantile
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the images to fit on, and those to take the threshold of pixels from.

    A single one serves for both.
    """
    from ..utils.splits import split_train_calibration

    if len(train) < 2:
        return train, train
    fitted, held_out = split_train_calibration(
        train, calibration_fraction=strategy.fraction, seed=strategy.seed
    )
    return list(fitted), list(held_out)


def _measured_size(detector: Detector, masks: Mask | None) -> tuple[int, int]:
    """Return the (height, width) that pixels are measured at."""
    height, width = detector.params_.resize if masks is None else masks.shape[1:]
    return height, width


def _normal_pixel_threshold(
    detector: Detector,
    images: Sequence[str],
    task: Task,
) -> float:
    """Return the quantile of the pixels of good images' maps, prepared as they are measured.

    Raises
    ------
    ImageReadError
        One of the images cannot be read.
    """
    from ..calibration.pixel_threshold import calibrate_normal_pixel_quantile_threshold

    strategy = task.protocol.pixel_quantile
    assert strategy is not None
    size = _measured_size(detector, task.masks)
    counted_of, postprocess = detector.counted_pixels, task.protocol.postprocess
    pixels = Pixels(size, True, None, None, counted_of, postprocess=postprocess)
    found = []
    with closed_after(detector.score_images(list(images), maps=True)) as results:
        for result in results:
            assert result.anomaly_map is not None
            prepared = pixels.prepared(result.anomaly_map)
            counted = pixels.counted_at(result.original_size)
            found.append(prepared.reshape(-1) if counted is None else prepared[counted])
    return float(
        calibrate_normal_pixel_quantile_threshold(np.concatenate(found), q=strategy.quantile)
    )


@memory_in_words("to score and measure", "lower resize, or do without pixel metrics")
def measure(
    detector: Detector,
    task: Task,
    fitted: Fit,
    *,
    altered: ScoredTest | None = None,
    keep_maps: bool = False,
    on_score: Callable[[Sample, ImageScore], None] | None = None,
    progress: Progress | None = None,
    stage: str = "test images",
) -> Measurement:
    """Return score the test images of a task once with a fitted detector, and measure.

    Parameters
    ----------
    detector, fitted
        The detector and what came out of its fit; its thresholds are used as they are.
    task
        Whose test images are scored.
    altered
        Scores the test images after something was done to them; by default the detector scores
        the image files as they are.
    keep_maps
        Whether `on_score` needs the maps, whatever is measured.
    on_score
        Called with each scored image.
    progress, stage
        Called with (stage, done, total).
    """
    began = time.perf_counter()
    test, protocol = task.test, task.protocol
    labelled = any(sample.label is not None for sample in test)
    pixels = Pixels(
        _measured_size(detector, task.masks),
        protocol.pixel and (detector.has_maps or task.maps is not None) and labelled,
        task.masks,
        protocol.saturation,
        detector.counted_pixels,
        postprocess=protocol.postprocess,
    )
    scored_samples: list[Sample] = []
    unreadable: list[Sample] = []
    scores: list[float] = []
    known = _TestImages(detector)
    with_maps = (pixels.wanted and task.maps is None) or keep_maps
    if altered is None:
        paths = [str(sample.path) for sample in test]
        found = detector.score_images(paths, maps=with_maps, on_error="record")
    else:
        found = altered.scores(with_maps)
    with during("scoring"), closed_after(found):
        for result in found:
            sample = test[result.index]
            if on_score is not None:
                with during("writing"):
                    on_score(sample, result)
            if progress is not None:
                progress(stage, result.index + 1, len(test))
            known.add(sample, result)
            if result.remark is not None:
                pixels.note("several_pages", sample.path, result.remark)
            if result.error is not None:
                unreadable.append(sample)
                pixels.note("unreadable_test_image", result.error.path, result.error.reason)
            elif sample.label is not None:
                assert result.score is not None
                scored_samples.append(sample)
                scores.append(result.score)
                measured = result
                if task.maps is not None:
                    measured = replace(result, anomaly_map=task.maps[result.index])
                pixels.add(sample, measured, None if altered is None else altered.move(sample))
    notes = known.notes()
    done = time.perf_counter()

    pro_curve: list[list[float]] = []
    with during("metrics"):
        results = measure_all(
            detector,
            protocol,
            pixels,
            scored_samples,
            scores,
            task.no_pixel_reason or pixels.reason(detector.has_maps),
            fitted.pixel_threshold,
            pro_curve,
        )
        add_kinds(results, protocol, test)
        if protocol.background:
            add_background(results, pixels)
        explain(results, test, labelled, unreadable)
        by_label: dict[bool, list[float]] = {False: [], True: []}
        for one, score in zip(scored_samples, scores, strict=True):
            by_label[bool(one.label)].append(score)
        # a detector of somebody else's may have a threshold of its own and no scores behind it
        points, like = list[OperatingPoint](), None
        if detector.threshold_ is not None and len(detector.decision_scores_) > 0:
            now, normal = detector.calibration_, detector.decision_scores_
            points = operating_points(now, normal, by_label[False], by_label[True])
            like = likeness(now, normal, by_label[False])
    alarms = results["metrics"]["fp"] or 0  # None where the detector has no threshold
    good = (results["metrics"]["tn"] or 0) + alarms
    return Measurement(
        results=results,
        false_alarms=clopper_pearson(alarms, good),
        problems=[Problem.model_validate(one._asdict()) for one in pixels.problems],
        n_unreadable=len(unreadable),
        n_masks=pixels.usable,
        notes=notes,
        score_seconds=done - began,
        operating_points=points,
        likeness=like,
        pro_curve=pro_curve,
    )


class _TestImages:
    """Tells test images that are copies of training images, or of another kind than these."""

    def __init__(self, detector: Detector) -> None:
        self._learned = detector.signatures_
        self._paths: list[Path] = []
        self._signatures: list[Signature] = []
        self._unlike: list[tuple[Path, str]] = []

    def add(self, sample: Sample, result: ImageScore) -> None:
        if result.unlike_training is not None:
            self._unlike.append((sample.path, result.unlike_training))
        if result.signature is not None:
            self._paths.append(sample.path)
            self._signatures.append(result.signature)

    def notes(self) -> list[str]:
        found = []
        if self._unlike:
            path, how = self._unlike[0]
            count = len(self._unlike)
            found.append(
                f"{count} of {len(self._paths)} test images {'is' if count == 1 else 'are'} of "
                "another kind than the training images, and their scores may show only this; "
                f"the first is {path}: {how}"
            )
        shared = copies_among(self._learned, self._signatures) if self._learned else []
        if shared:
            count = len(shared)
            found.append(
                f"{count} of {len(self._paths)} test images "
                f"{'is a copy' if count == 1 else 'are copies'} of training images (the same, "
                "re-encoded, resized, or of the same scene), and what is measured there says "
                f"nothing of new images; the first is {self._paths[shared[0][0]]}"
            )
        return found


def measured_rate(measured: Measurement) -> MeasuredRate:
    """Return the false alarms as a report has them."""
    rate = measured.false_alarms
    return MeasuredRate(
        false_alarms=rate.events,
        good_images=rate.trials,
        rate=rate.rate,
        low=rate.low,
        high=rate.high,
        confidence=rate.confidence,
    )


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
    """Return all metrics, and under `per_defect` all of each kind that was scored.

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
    """Return the threshold of pixels, or None and, if there is more to say than that, why."""
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
