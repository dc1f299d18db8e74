"""One trial: fit a detector on good images, score test images, measure.

Every pipeline that evaluates goes through here: `run_benchmark` for each category, and
`mvtec_visa.evaluate_split`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration import BinomialInterval, clopper_pearson
from ..datasets import MaskError, Sample, Saturation, load_mask, load_regions
from ..errors import ImageReadError
from ..evaluation import evaluate_detector, evaluate_kinds
from ..models import Detector, ImageScore
from ..models.detector import Progress
from ..runs import Problem, ProblemKind

Mask = npt.NDArray[np.uint8]
_Regions = list[tuple[npt.NDArray[np.bool_], float]]

_UNREADABLE: dict[str, ProblemKind] = {
    "train": "unreadable_train_image",
    "calibration": "unreadable_calibration_image",
}
#: What a kind of defect is reported with.
_KIND_METRICS = ("auroc", "average_precision", "recall")


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


@dataclass
class _Pixels:
    """Masks and maps of the test images so far, or why pixel metrics are out of reach."""

    resize: tuple[int, int]
    wanted: bool
    given: Mask | None  # (N, H, W), beats the samples' own mask files
    saturation: Mapping[int, Saturation] | None  # set where regions are wanted
    masks: list[Mask] = field(default_factory=list)
    maps: list[npt.NDArray[np.float32]] = field(default_factory=list)
    regions: list[_Regions] = field(default_factory=list)
    usable: int = 0
    unusable: list[str] = field(default_factory=list)  # names of defective images without one
    no_regions: str | None = None
    problems: list[Problem] = field(default_factory=list)

    def add(self, sample: Sample, result: ImageScore) -> None:
        if not self.wanted or result.anomaly_map is None:
            return
        mask: Mask | None = np.zeros(self.resize, np.uint8)
        regions: _Regions = []
        if self.given is not None:
            mask = self.given[result.index]
        elif sample.label:
            mask, regions = self._masks_of(sample, result.original_size)
        if mask is None:
            self.unusable.append(sample.path.name)
            self.masks, self.maps, self.regions = [], [], []  # of no use any more
        elif not self.unusable:
            self.masks.append(mask)
            self.maps.append(result.anomaly_map)
            self.regions.append(regions)

    def _masks_of(
        self, sample: Sample, image_size: tuple[int, int] | None
    ) -> tuple[Mask | None, _Regions]:
        """The united masks, None if they will not do; and the regions, if they are wanted."""
        if not sample.mask_paths:
            self.note("mask_missing", sample.path, "the defective image has no mask")
            return None, []
        try:
            mask = load_mask(sample.mask_paths, image_size, self.resize)
        except ImageReadError as error:
            there = Path(error.path).exists()
            self.note("mask_unreadable" if there else "mask_missing", error.path, error.reason)
            return None, []
        except MaskError as error:
            self.note(error.kind, error.path, error.reason)
            return None, []
        self.usable += 1
        if not mask.any():
            if load_mask(sample.mask_paths, None, image_size or self.resize).any():
                self._vanishes(sample.mask_paths[0])
            else:
                reason = "the mask of a defective image is empty"
                self.note("mask_empty", sample.mask_paths[0], reason)
        return mask, self._regions_of(sample, image_size)

    def _regions_of(self, sample: Sample, image_size: tuple[int, int] | None) -> _Regions:
        if self.saturation is None or self.no_regions is not None:
            return []
        try:
            found = load_regions(sample.mask_paths, image_size, self.resize, self.saturation)
        except MaskError as error:
            self.note(error.kind, error.path, error.reason)
            self.no_regions = f"{error.path.name}: {error.reason}"
            return []
        kept = [(mask, area) for mask, area in found if area > 0]
        if 0 < len(kept) < len(found):  # all of them: said of the united mask
            self._vanishes(sample.mask_paths[0])
        return kept

    def _vanishes(self, path: Path) -> None:
        height, width = self.resize
        reason = f"nothing is left of a mask at {width} x {height} pixels"
        self.note("mask_vanishes", path, reason)

    def note(self, kind: ProblemKind, path: str | Path, message: str) -> None:
        self.problems.append(Problem(kind=kind, path=str(path), message=message))

    def arrays(self) -> dict[str, Any]:
        """Keywords of `evaluate_detector`."""
        if not self.masks:
            return {}
        with_regions = self.saturation is not None and self.no_regions is None
        return {
            "pixel_masks": np.stack(self.masks),
            "pixel_scores": np.stack(self.maps),
            "regions": self.regions if with_regions else None,
        }

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
    calibration_images: Sequence[str] | None = None,
    masks: Mask | None = None,
    saturation: Mapping[int, Saturation] | None = None,
    pixel: bool = True,
    kinds_apart: bool = False,
    pro_integration_limit: float = 0.3,
    no_pixel_reason: str | None = None,
    spro: bool = False,
    on_error: str = "error",
    keep_maps: bool = False,
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
    saturation
        By value of a mask's pixels, where sPRO is wanted.
    pixel
        Whether pixel metrics are wanted.
    kinds_apart
        Whether they are also wanted for each kind of defect, and the mean over the kinds.
    no_pixel_reason
        Why `pixel` is False, for the results.
    spro
        Whether sPRO is reported, be it only with the reason why it is null.
    on_error
        `skip` leaves unreadable training images out; otherwise one is an error.
    keep_maps
        Whether `on_score` needs the maps, whatever is measured.
    on_score
        Called with each scored image; the detector's thresholds are known then.

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
    problems = [
        Problem(kind=_UNREADABLE[skipped.role], path=skipped.path, message=skipped.reason)
        for skipped in detector.skipped_
    ]
    problems += [
        Problem(kind="several_pages", path=one.path, message=one.reason)
        for one in detector.remarked_
    ]
    labelled = any(sample.label is not None for sample in test)
    pixels = _Pixels(
        detector.params_.resize, pixel and detector.has_maps and labelled, masks, saturation
    )
    labels: list[int] = []
    scores: list[float] = []
    kinds: list[str] = []
    unreadable = 0
    paths = [str(sample.path) for sample in test]
    with_maps = pixels.wanted or keep_maps
    for result in detector.score_images(paths, maps=with_maps, on_error="record"):
        sample = test[result.index]
        if on_score is not None:
            on_score(sample, result)
        if progress is not None:
            progress("test images", result.index + 1, len(test))
        if result.remark is not None:
            pixels.note("several_pages", sample.path, result.remark)
        if result.error is not None:
            unreadable += 1
            pixels.note("unreadable_test_image", result.error.path, result.error.reason)
            continue
        assert result.score is not None
        if sample.label is not None:
            labels.append(sample.label)
            scores.append(result.score)
            kinds.append(sample.defect)
            pixels.add(sample, result)
    scored = time.perf_counter()

    calibration = detector.pixel_calibration_
    keywords: dict[str, Any] = {
        "threshold": detector.threshold_,
        "pixel_threshold": None if calibration is None else calibration.threshold,
        "pro_integration_limit": pro_integration_limit,
        "no_pixel_reason": no_pixel_reason or pixels.reason(detector),
    }
    if spro:
        keywords["no_regions_reason"] = (
            pixels.no_regions or "it is not known where regions saturate"
        )
    arrays = pixels.arrays()
    results = evaluate_detector(labels, scores, **keywords, **arrays)
    results["pixel_aupro_limit"] = pro_integration_limit
    _add_kinds(results, labels, scores, kinds, keywords, arrays if kinds_apart else None)
    _explain(results, test, labelled, unreadable)
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


def _add_kinds(
    results: dict[str, Any],
    labels: list[int],
    scores: list[float],
    kinds: list[str],
    keywords: dict[str, Any],
    arrays: dict[str, Any] | None,
) -> None:
    """The metrics of each kind of defect; those of pixels, and the mean, with `arrays`."""
    found = evaluate_kinds(labels, scores, kinds, **keywords, **(arrays or {}))
    results["per_defect"] = {}
    rows = []
    for kind, one in found.items():
        row = {name: one.get(name, one["metrics"].get(name)) for name in _KIND_METRICS}
        pixels = one["pixel_metrics"] if arrays is not None else None
        shown = {*row, *(pixels or ())}
        undefined = {name: why for name, why in one["undefined"].items() if name in shown}
        results["per_defect"][kind] = {
            "count": one["count"],
            **row,
            "pixel_metrics": pixels,
            "undefined": undefined,
        }
        rows.append({**row, **(pixels or {})})
    results["mean_over_defects"] = None
    if arrays is not None and rows:
        results["mean_over_defects"] = {
            name: None
            if any(row[name] is None for row in rows)
            else float(np.mean([row[name] for row in rows]))
            for name in rows[0]
        }


def _explain(
    results: dict[str, Any], test: Sequence[Sample], labelled: bool, unreadable: int
) -> None:
    """Reasons that only the test set as a whole knows."""
    undefined = results["undefined"]
    if not labelled:
        reason = "no test image has a label" if test else "there are no test images"
        undefined.update(dict.fromkeys(undefined, reason))
    elif unreadable:
        undefined.update(
            {
                name: f"{reason} ({unreadable} unreadable test images left out)"
                for name, reason in undefined.items()
            }
        )
