"""What a category's report says of the fit: threshold, counts, region, detector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..calibration import BinomialInterval
from ..datasets import Category
from ..models import Detector
from ..runs import (
    CalibrationReport,
    Counts,
    ExcludedReport,
    LikenessReport,
    OperatingPointReport,
    PixelCalibrationReport,
    RegionReport,
    ShareReport,
)
from .config import Options
from .operating_points import Likeness, OperatingPoint, low_recall_note, unlike_note
from .trial import Measurement, measured_rate

# Suspects that a note names; all of them stand in the report.
_NAMED = 3


def plain_parameters(parameters: Mapping[str, Any], config: Options) -> dict[str, Any]:
    """A detector's keywords as documents have them: plain JSON values.

    `calibration` is the run's word for where the threshold comes from, which a detector does not
    know.
    """
    plain: dict[str, Any] = json.loads(json.dumps(dict(parameters), default=_in_words))
    return {**plain, "calibration": config.calibration}


def _in_words(value: Any) -> str:
    """A value that JSON does not know; never with an address, which differs from run to run."""
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text


def decision_notes(detector: Detector, measured: Measurement, excluded: Sequence[str]) -> list[str]:
    """What a reader should know before trusting the decisions."""
    results = measured.results
    notes = [
        unlike_note(measured.likeness, measured.false_alarms),
        low_recall_note(
            measured.operating_points,
            results["metrics"]["recall"],
            results["auroc"],
            detector.threshold_,
        ),
    ]
    found = [note for note in notes if note is not None]
    suspects = detector.training_suspects_
    if suspects:
        first = ", ".join(one.path for one in suspects[:_NAMED])
        more = f" and {len(suspects) - _NAMED} more" if len(suspects) > _NAMED else ""
        found.append(
            f"{len(suspects)} good image{'s' * (len(suspects) > 1)} to look at, whose scores "
            f"decide the threshold or stand apart: {first}{more}; --exclude-suspects fits "
            "without them"
        )
    if excluded:
        plural = "s" * (len(excluded) > 1)
        found.append(
            f"{len(excluded)} training image{plural} left out by the list of images to exclude: "
            "the promised rate holds for parts like those that were kept"
        )
    return found


def _share(found: BinomialInterval) -> ShareReport:
    return ShareReport(
        events=found.events,
        images=found.trials,
        rate=found.rate,
        low=found.low,
        high=found.high,
    )


def _point(one: OperatingPoint) -> OperatingPointReport:
    return OperatingPointReport(
        asked_false_alarm_rate=one.asked,
        promised_false_alarm_rate=one.calibration.promised_false_alarm_rate,
        false_alarm_rate_bound=one.calibration.false_alarm_rate_bound,
        tail=one.calibration.tail,
        threshold=one.calibration.threshold,
        false_alarms=_share(one.false_alarms),
        recall=_share(one.recall),
        confidence=one.recall.confidence,
    )


def _likeness(found: Likeness | None) -> LikenessReport | None:
    if found is None:
        return None
    return LikenessReport(
        good_images=found.good_images,
        false_alarm_p_value=found.false_alarm_p_value,
        rank_p_value=found.rank_p_value,
        p_value=found.p_value,
        unlike=found.unlike,
    )


def fitted_fields(
    config: Options, category: Category, detector: Detector, measured: Measurement
) -> dict[str, Any]:
    """The fields of a category's report that say how it was fitted and calibrated.

    Parameters that are None, for the method or the training images to decide, are what they
    came to.
    """
    # a region of interest is named as it was given
    parameters = dict(vars(detector.params_))
    if "roi" in parameters:
        parameters["roi"] = detector.get_params()["roi"]
    parameters = plain_parameters(parameters, config)
    calibration = detector.calibration_
    pixels = detector.pixel_calibration_
    held_out = config.calibration == "validation"
    skipped = [one.role for one in detector.skipped_]
    region = _region(detector)
    return {
        "device": str(detector.describe().get("backbone", {}).get("device", config.device)),
        "resize": parameters["resize"],
        "score_threshold_strategy": f"{calibration.method}-quantile",
        "calibration_quantile": calibration.quantile_asked,
        "threshold": detector.threshold_,
        "calibration": CalibrationReport(
            value=calibration.threshold,
            method=calibration.method,
            quantile_asked=calibration.quantile_asked,
            quantile_reached=calibration.quantile_reached,
            n_scores=calibration.n_scores,
            promised_false_alarm_rate=calibration.promised_false_alarm_rate,
            measured_false_alarm_rate=measured_rate(measured),
            notes=list(calibration.notes),
            tail=calibration.tail,
            tail_asked=calibration.tail_asked,
            false_alarm_rate_bound=calibration.false_alarm_rate_bound,
            confidence=calibration.confidence,
            estimate_interval=calibration.estimate_interval,
            tail_fit_p_value=calibration.tail_fit_p_value,
            origin=calibration.origin,
            unseen=calibration.unseen,
        ),
        "operating_points": [_point(one) for one in measured.operating_points],
        "likeness": _likeness(measured.likeness),
        "excluded": [
            ExcludedReport(path=one.path, role=one.role, score=one.score, reasons=list(one.reasons))
            for one in detector.excluded_
        ],
        "pixel_calibration": None
        if pixels is None
        else PixelCalibrationReport(
            value=pixels.threshold,
            method=pixels.method,
            mean=pixels.mean,
            std=pixels.std,
            n_images=pixels.n_images,
            unseen=pixels.unseen,
        ),
        "counts": Counts(
            train=len(category.train),
            train_used=detector.n_train_,
            train_skipped=skipped.count("train"),
            validation=len(category.validation),
            validation_used=calibration.n_scores if held_out else 0,
            test=len(category.test),
            test_good=sum(sample.label == 0 for sample in category.test),
            test_defective=sum(sample.label == 1 for sample in category.test),
            test_unlabelled=sum(sample.label is None for sample in category.test),
            test_unreadable=measured.n_unreadable,
            masks=measured.n_masks,
        ),
        "roi": region,
        "detector": {"parameters": parameters, **detector.describe()},
    }


def region_notes(region: RegionReport | None) -> list[str]:
    """What a reader should know of it."""
    if region is None:
        return []
    share = f"{100 * region.share:.1f} %"
    return [f"a region of interest of {share} of the frame counts, nothing outside it"]


def _region(detector: Detector) -> RegionReport | None:
    region = detector.roi_
    if region is None:
        return None
    counted = region.counted(tuple(detector.params_.resize))
    return RegionReport(origin=region.origin, sha256=region.sha256, share=float(counted.mean()))
