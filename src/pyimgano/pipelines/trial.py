"""One trial: fit a detector on good images, score test images, measure.

Every pipeline that evaluates goes through here: `run_benchmark` for each category, and
`mvtec_visa.evaluate_split`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration import BinomialInterval, clopper_pearson
from ..datasets import MaskError, Sample, load_mask
from ..errors import ImageReadError
from ..evaluation import evaluate_detector
from ..models import Detector, ImageScore
from ..models.detector import Progress
from ..runs import Problem

Mask = npt.NDArray[np.uint8]


@dataclass
class Trial:
    """What came out of fitting, scoring and measuring.

    Attributes
    ----------
    results
        As `evaluate_detector` gives them.
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


@dataclass
class _Pixels:
    """Masks and maps of the test images so far, or why pixel metrics are out of reach."""

    resize: tuple[int, int]
    wanted: bool
    given: Mask | None  # (N, H, W), beats the samples' own mask files
    masks: list[Mask] = field(default_factory=list)
    maps: list[npt.NDArray[np.float32]] = field(default_factory=list)
    usable: int = 0
    unusable: list[str] = field(default_factory=list)  # names of defective images without one
    problems: list[Problem] = field(default_factory=list)

    def add(self, sample: Sample, result: ImageScore) -> None:
        if not self.wanted or result.anomaly_map is None:
            return
        mask: Mask | None = np.zeros(self.resize, np.uint8)
        if self.given is not None:
            mask = self.given[result.index]
        elif sample.label:
            mask = self._mask_of(sample, result.original_size)
        if mask is None:
            self.unusable.append(sample.path.name)
            self.masks, self.maps = [], []  # of no use any more
        elif not self.unusable:
            self.masks.append(mask)
            self.maps.append(result.anomaly_map)

    def _mask_of(self, sample: Sample, image_size: tuple[int, int] | None) -> Mask | None:
        if not sample.mask_paths:
            self._note("mask_missing", sample.path, "the defective image has no mask")
            return None
        try:
            mask = load_mask(sample.mask_paths, image_size, self.resize)
        except ImageReadError as error:
            self._note("mask_unreadable", Path(error.path), error.reason)
            return None
        except MaskError as error:
            self._note("mask_size", error.path, error.reason)
            return None
        self.usable += 1
        if not mask.any():
            if load_mask(sample.mask_paths, None, image_size or self.resize).any():
                height, width = self.resize
                reason = f"nothing is left of the mask at {width} x {height} pixels"
                self._note("mask_vanishes", sample.mask_paths[0], reason)
            else:
                reason = "the mask of a defective image is empty"
                self._note("mask_empty", sample.mask_paths[0], reason)
        return mask

    def _note(self, kind: Any, path: Path, message: str) -> None:
        self.problems.append(Problem(kind=kind, path=str(path), message=message))

    def reason(self, detector: Detector) -> str:
        """Why there are no pixel metrics."""
        if not detector.has_maps:
            return "the method scores whole images and has no anomaly maps"
        if not self.wanted:
            return "pixel metrics were not asked for"
        if self.unusable:
            named = ", ".join(self.unusable[:3]) + ", ..." * (len(self.unusable) > 3)
            plural = "s have" if len(self.unusable) > 1 else " has"
            return f"{len(self.unusable)} defective image{plural} no usable mask: {named}"
        return "no test image could be scored"


def run_trial(
    detector: Detector,
    train: Sequence[str],
    test: Sequence[Sample],
    *,
    masks: Mask | None = None,
    pixel: bool = True,
    pro_integration_limit: float = 0.3,
    no_pixel_reason: str | None = None,
    on_error: str = "error",
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
        Labelled samples. An unreadable one gets no score and counts in no metric.
    masks
        (N, H, W) of 0 and 1 at the detector's `resize`, if they are at hand; by default
        they are read from the samples' mask files.
    pixel
        Whether pixel metrics are wanted.
    no_pixel_reason
        Why `pixel` is False, for the results.
    on_error
        `skip` leaves unreadable training images out; otherwise one is an error.
    on_score
        Called with each scored image; the detector's threshold is known then.

    Raises
    ------
    PyimganoError
        As `Detector.fit`.
    """
    began = time.perf_counter()
    detector.fit(train, on_error="skip" if on_error == "skip" else "raise", progress=progress)
    fitted = time.perf_counter()
    problems = [
        Problem(kind="unreadable_train_image", path=skipped.path, message=skipped.reason)
        for skipped in detector.skipped_
    ]
    pixels = _Pixels(detector.params_.resize, pixel and detector.has_maps, masks)
    labels: list[int] = []
    scores: list[float] = []
    paths = [str(sample.path) for sample in test]
    for result in detector.score_images(paths, maps=pixels.wanted, on_error="record"):
        sample = test[result.index]
        if on_score is not None:
            on_score(sample, result)
        if progress is not None:
            progress("test images", result.index + 1, len(test))
        if result.error is not None:
            problems.append(
                Problem(
                    kind="unreadable_test_image",
                    path=result.error.path,
                    message=result.error.reason,
                )
            )
            continue
        assert result.score is not None
        labels.append(sample.label)
        scores.append(result.score)
        pixels.add(sample, result)
    scored = time.perf_counter()

    results = evaluate_detector(
        labels,
        scores,
        threshold=detector.threshold_,
        pixel_masks=np.stack(pixels.masks) if pixels.masks else None,
        pixel_scores=np.stack(pixels.maps) if pixels.maps else None,
        pro_integration_limit=pro_integration_limit,
        no_pixel_reason=no_pixel_reason or pixels.reason(detector),
    )
    results["pixel_aupro_limit"] = pro_integration_limit
    unreadable = len(test) - len(scores)
    if unreadable:
        results["undefined"] = {
            name: f"{reason} ({unreadable} unreadable test images left out)"
            for name, reason in results["undefined"].items()
        }
    good = results["metrics"]["tn"] + results["metrics"]["fp"]
    return Trial(
        results=results,
        false_alarms=clopper_pearson(results["metrics"]["fp"], good),
        problems=problems + pixels.problems,
        n_unreadable=unreadable,
        n_masks=pixels.usable,
        fit_seconds=fitted - began,
        score_seconds=scored - fitted,
    )
