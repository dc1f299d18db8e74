"""One trial: fit a detector on good images, score test images, measure.

Every pipeline that evaluates goes through here: `run_benchmark` for each category, and
`mvtec_visa.evaluate_split`; `run_robust_benchmark` fits once and measures many times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration import BinomialInterval, clopper_pearson
from ..datasets import Move, Sample
from ..errors import during
from ..images import Signature, closed_after, copies_among
from ..memory import memory_in_words
from ..models import Detector, ImageScore
from ..models.training_images import Progress
from ..runs import MeasuredRate, Problem, ProblemKind
from .operating_points import Likeness, OperatingPoint, likeness, operating_points
from .pixels import Mask, Pixels
from .results import (
    USUAL_PROTOCOL,
    EvaluationProtocol,
    NormalPixelQuantile,
    add_background,
    add_kinds,
    explain,
    measure_all,
)

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
    given_maps: npt.NDArray[np.float32] | None = None,
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
    test, masks, protocol, no_pixel_reason, keep_maps, given_maps, on_score
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
    held_out: Sequence[str] = ()
    strategy = protocol.pixel_quantile
    if strategy is not None and protocol.pixel and detector.has_maps:
        train, held_out = _hold_out(train, strategy)
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
    notes: list[str] = []
    pixel_threshold = None
    if held_out and strategy is not None:
        with during("calibration"):
            size = _measured_size(detector, masks)
            pixel_threshold = _normal_pixel_threshold(detector, held_out, protocol, size)
        source = "that the detector was fitted on too" if held_out is train else "held out for it"
        notes.append(
            f"pixel threshold: the {strategy.quantile:g} quantile of the pixels of "
            f"{len(held_out)} good training image{'s' * (len(held_out) > 1)} {source}"
        )
    measured = measure_detector(
        detector,
        test,
        masks=masks,
        protocol=protocol,
        no_pixel_reason=no_pixel_reason,
        keep_maps=keep_maps,
        given_maps=given_maps,
        pixel_threshold=pixel_threshold,
        on_score=on_score,
        progress=progress,
    )
    measured.problems[:0] = problems
    measured.notes[:0] = notes
    return Trial(**vars(measured), fit_seconds=fitted - began)


def _hold_out(
    train: Sequence[str], strategy: NormalPixelQuantile
) -> tuple[Sequence[str], Sequence[str]]:
    """Training images to fit on, and those to take the threshold of pixels from.

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
    """The (height, width) that pixels are measured at."""
    height, width = detector.params_.resize if masks is None else masks.shape[1:]
    return height, width


def _normal_pixel_threshold(
    detector: Detector,
    images: Sequence[str],
    protocol: EvaluationProtocol,
    size: tuple[int, int],
) -> float:
    """The quantile of the pixels of good images' maps, prepared as they are measured.

    Raises
    ------
    ImageReadError
        One of the images cannot be read.
    """
    from ..calibration.pixel_threshold import calibrate_normal_pixel_quantile_threshold

    strategy = protocol.pixel_quantile
    assert strategy is not None
    counted_of, postprocess = detector.counted_pixels, protocol.postprocess
    pixels = Pixels(size, True, None, None, counted_of, postprocess=postprocess)
    found = []
    for result in detector.score_images(list(images), maps=True):
        assert result.anomaly_map is not None
        prepared = pixels.prepared(result.anomaly_map)
        counted = pixels.counted_at(result.original_size)
        found.append(prepared.reshape(-1) if counted is None else prepared[counted])
    return float(
        calibrate_normal_pixel_quantile_threshold(np.concatenate(found), q=strategy.quantile)
    )


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
    given_maps: npt.NDArray[np.float32] | None = None,
    pixel_threshold: float | None = None,
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
        (N, H, W) of 0 and 1 if they are at hand, of any size, to which maps are then brought;
        by default they are read from the samples' mask files at the detector's `resize`.
    move
        Gives what moves a sample's mask files, where `scored` has moved its image.
    protocol
        What is measured.
    no_pixel_reason
        Why `protocol.pixel` is False, for the results.
    keep_maps
        Whether `on_score` needs the maps, whatever is measured.
    given_maps
        (N, H, W) of the test images, to be measured instead of the detector's.
    pixel_threshold
        A pixel at or above it is called defective; by default that of the detector.
    on_score
        Called with each scored image.
    progress, stage
        Called with (stage, done, total).
    """
    began = time.perf_counter()
    labelled = any(sample.label is not None for sample in test)
    pixels = Pixels(
        _measured_size(detector, masks),
        protocol.pixel and (detector.has_maps or given_maps is not None) and labelled,
        masks,
        protocol.saturation,
        detector.counted_pixels,
        postprocess=protocol.postprocess,
    )
    scored_samples: list[Sample] = []
    unreadable: list[Sample] = []
    scores: list[float] = []
    known = _TestImages(detector)
    with_maps = (pixels.wanted and given_maps is None) or keep_maps
    if scored is None:
        paths = [str(sample.path) for sample in test]
        found: Iterable[ImageScore] = detector.score_images(
            paths, maps=with_maps, on_error="record"
        )
    else:
        found = scored(with_maps)
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
                if given_maps is not None:
                    measured = replace(result, anomaly_map=given_maps[result.index])
                pixels.add(sample, measured, None if move is None else move(sample))
    notes = known.notes()
    done = time.perf_counter()

    with during("metrics"):
        results = measure_all(
            detector,
            protocol,
            pixels,
            scored_samples,
            scores,
            no_pixel_reason or pixels.reason(detector),
            pixel_threshold,
        )
        add_kinds(results, protocol, test)
        if protocol.background:
            add_background(results, pixels)
        explain(results, test, labelled, unreadable)
        by_label: dict[bool, list[float]] = {False: [], True: []}
        for one, score in zip(scored_samples, scores, strict=True):
            by_label[bool(one.label)].append(score)
        # a detector of somebody else's may have a threshold of its own and no scores behind it
        decides = detector.threshold_ is not None and len(detector.decision_scores_) > 0
        points = operating_points(detector, by_label[False], by_label[True]) if decides else []
        like = likeness(detector, by_label[False]) if decides else None
    alarms = results["metrics"]["fp"] or 0  # None where the detector has no threshold
    good = (results["metrics"]["tn"] or 0) + alarms
    return Measurement(
        results=results,
        false_alarms=clopper_pearson(alarms, good),
        problems=pixels.problems,
        n_unreadable=len(unreadable),
        n_masks=pixels.usable,
        notes=notes,
        score_seconds=done - began,
        operating_points=points,
        likeness=like,
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
