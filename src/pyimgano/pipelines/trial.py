"""One trial: fit a detector on good images, score test images, measure.

Every pipeline that evaluates goes through here: `run_benchmark` for each category, and
`mvtec_visa.evaluate_split`; `run_robust_benchmark` fits once and measures many times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..calibration import BinomialInterval, clopper_pearson
from ..datasets import Move, Sample
from ..errors import during
from ..memory import memory_in_words
from ..models import Detector, ImageScore
from ..models.detector import Progress
from ..runs import MeasuredRate, Problem, ProblemKind
from .operating_points import Likeness, OperatingPoint, likeness, operating_points
from .pixels import Mask, Pixels
from .results import USUAL_PROTOCOL, EvaluationProtocol, add_kinds, explain, measure_all

_UNREADABLE: dict[str, ProblemKind] = {
    "train": "unreadable_train_image",
    "calibration": "unreadable_calibration_image",
}


@dataclass
class Measurement:
    """What came out of scoring and measuring.

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
    score_seconds
        Wall clock.
    operating_points
        What each promise would lead to on these images.
    likeness
        Whether the good ones are like those of the calibration; None if there are none.
    """

    results: dict[str, Any]
    false_alarms: BinomialInterval
    problems: list[Problem]
    n_unreadable: int
    n_masks: int
    score_seconds: float
    operating_points: list[OperatingPoint]
    likeness: Likeness | None


@dataclass
class Trial(Measurement):
    """A measurement, and the fit before it.

    Attributes
    ----------
    problems
        Also those of the training images.
    fit_seconds
        Wall clock.
    """

    fit_seconds: float


def run_trial(
    detector: Detector,
    train: Sequence[str],
    test: Sequence[Sample],
    *,
    calibration_images: Sequence[str] | None = None,
    masks: Mask | None = None,
    protocol: EvaluationProtocol = USUAL_PROTOCOL,
    no_pixel_reason: str | None = None,
    on_error: str = "error",
    exclude_suspects: bool = False,
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
    train, calibration_images, on_error, exclude_suspects
        As `fit_detector`.
    test, masks, protocol, no_pixel_reason, keep_maps, on_score
        As `measure_detector`.
    on_fitted
        Called when the detector is fitted, before any test image is scored.
    progress
        Called with (stage, done, total).

    Raises
    ------
    PyimganoError
        As `Detector.fit`.
    """
    began = time.perf_counter()
    problems = fit_detector(
        detector,
        train,
        calibration_images=calibration_images,
        on_error=on_error,
        exclude_suspects=exclude_suspects,
        progress=progress,
    )
    fitted = time.perf_counter()
    if on_fitted is not None:
        with during("saving"):
            on_fitted()
    measured = measure_detector(
        detector,
        test,
        masks=masks,
        protocol=protocol,
        no_pixel_reason=no_pixel_reason,
        keep_maps=keep_maps,
        on_score=on_score,
        progress=progress,
    )
    measured.problems[:0] = problems
    return Trial(**vars(measured), fit_seconds=fitted - began)


def fit_detector(
    detector: Detector,
    train: Sequence[str],
    *,
    calibration_images: Sequence[str] | None = None,
    on_error: str = "error",
    exclude_suspects: bool = False,
    progress: Progress | None = None,
) -> list[Problem]:
    """Fit on `train`; gives what was wrong with its files.

    Parameters
    ----------
    detector
        Not fitted yet, or to be fitted anew.
    train
        Paths of good images.
    calibration_images
        Paths of further good images to calibrate the threshold on, instead of `train`.
    on_error
        `skip` leaves unreadable training images out; otherwise one is an error.
    exclude_suspects
        Whether to fit a second time without the suspects of the first.
    progress
        Called with (stage, done, total).

    Raises
    ------
    PyimganoError
        As `Detector.fit`.
    """
    with (
        during("fitting"),
        memory_in_words("to fit the detector", "lower resize, or fit on fewer images"),
    ):
        detector.fit(
            train,
            calibration_images=calibration_images,
            on_error="skip" if on_error == "skip" else "raise",
            **({"exclude_suspects": True} if exclude_suspects else {}),
            progress=progress,
        )
    problems = [
        Problem(kind=_UNREADABLE[skipped.role], path=skipped.path, message=skipped.reason)
        for skipped in detector.skipped_
    ]
    problems += [
        Problem(kind="several_pages", path=one.path, message=one.reason)
        for one in detector.remarked_
    ]
    return problems


@memory_in_words("to score and measure", "lower resize, or do without pixel metrics")
def measure_detector(
    detector: Detector,
    test: Sequence[Sample],
    *,
    scored: Callable[[bool], Iterable[ImageScore]] | None = None,
    masks: Mask | None = None,
    move: Callable[[Sample], Move | None] | None = None,
    protocol: EvaluationProtocol = USUAL_PROTOCOL,
    no_pixel_reason: str | None = None,
    keep_maps: bool = False,
    on_score: Callable[[Sample, ImageScore], None] | None = None,
    progress: Progress | None = None,
    stage: str = "test images",
) -> Measurement:
    """Score `test` once with a fitted detector, and measure.

    Parameters
    ----------
    detector
        Fitted; its thresholds are used as they are.
    test
        Samples. An unreadable one gets no score, and one without a label counts in no
        metric.
    scored
        Gives the scores of `test` in order, with maps if its argument says so; by default
        the detector's own, of the image files as they are.
    masks
        (N, H, W) of 0 and 1 at the detector's `resize`, if they are at hand; by default
        they are read from the samples' mask files.
    move
        Gives what moves a sample's mask files, where `scored` has moved its image.
    protocol
        What is measured.
    no_pixel_reason
        Why `protocol.pixel` is False, for the results.
    keep_maps
        Whether `on_score` needs the maps, whatever is measured.
    on_score
        Called with each scored image.
    progress, stage
        Called with (stage, done, total).
    """
    began = time.perf_counter()
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
    if scored is None:
        paths = [str(sample.path) for sample in test]
        found: Iterable[ImageScore] = detector.score_images(
            paths, maps=with_maps, on_error="record"
        )
    else:
        found = scored(with_maps)
    with during("scoring"):
        for result in found:
            sample = test[result.index]
            if on_score is not None:
                with during("writing"):
                    on_score(sample, result)
            if progress is not None:
                progress(stage, result.index + 1, len(test))
            if result.remark is not None:
                pixels.note("several_pages", sample.path, result.remark)
            if result.error is not None:
                unreadable.append(sample)
                pixels.note("unreadable_test_image", result.error.path, result.error.reason)
            elif sample.label is not None:
                assert result.score is not None
                scored_samples.append(sample)
                scores.append(result.score)
                pixels.add(sample, result, None if move is None else move(sample))
    done = time.perf_counter()

    with during("metrics"):
        results = measure_all(
            detector,
            protocol,
            pixels,
            scored_samples,
            scores,
            no_pixel_reason or pixels.reason(detector),
        )
        add_kinds(results, protocol, test)
        explain(results, test, labelled, unreadable)
        by_label: dict[bool, list[float]] = {False: [], True: []}
        for one, score in zip(scored_samples, scores, strict=True):
            by_label[bool(one.label)].append(score)
        points = operating_points(detector, by_label[False], by_label[True])
        like = likeness(detector, by_label[False])
    good = results["metrics"]["tn"] + results["metrics"]["fp"]
    return Measurement(
        results=results,
        false_alarms=clopper_pearson(results["metrics"]["fp"], good),
        problems=pixels.problems,
        n_unreadable=len(unreadable),
        n_masks=pixels.usable,
        score_seconds=done - began,
        operating_points=points,
        likeness=like,
    )


def measured_rate(measured: Measurement) -> MeasuredRate:
    """The false alarms as a report has them."""
    rate = measured.false_alarms
    return MeasuredRate(
        false_alarms=rate.events,
        good_images=rate.trials,
        rate=rate.rate,
        low=rate.low,
        high=rate.high,
        confidence=rate.confidence,
    )
