"""A threshold from good images that a fitted detector has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..calibration import DEFAULT_TAIL, MapStatistics, calibrate
from ..errors import DataError, UsageError
from ..images import ImageSource, Signature, closed_after
from .detector import Detector, OnError, Progress, SkippedImage
from .seen_images import calibrate_apart

if TYPE_CHECKING:
    from .tiled import TiledDetector

    _D = TypeVar("_D", bound="Detector | TiledDetector")

_METHOD = "held-out-images"


@dataclass(frozen=True)
class HeldOut:
    """Scores of held-out images, and the statistics of their maps."""

    scores: list[float]
    maps: MapStatistics
    skipped: list[SkippedImage] = field(default_factory=list)
    remarked: list[SkippedImage] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    unseen: bool = True

    def numbered(self, index: Sequence[int]) -> HeldOut:
        """With the images' positions in the list that they were taken from."""
        skipped, remarked = (
            [replace(one, index=index[one.index]) for one in some]
            for some in (self.skipped, self.remarked)
        )
        return replace(self, skipped=skipped, remarked=remarked)

    def calibrate(
        self,
        detector: Detector | TiledDetector,
        quantile: float,
        tail: str = DEFAULT_TAIL,
        origin: str = "fit",
    ) -> None:
        """Set `threshold_`, and what goes with it, on a detector."""
        calibration = calibrate(
            self.scores,
            quantile,
            method=_METHOD,
            unseen=self.unseen,
            notes=self.notes,
            tail=tail,
            origin=origin,
        )
        pixels = self.maps.calibrate(_METHOD, unseen=self.unseen)
        if isinstance(detector, Detector):
            pixels = detector.above_outside(pixels)
        # in one step, for threads that score meanwhile
        detector.__dict__ = {
            **vars(detector),
            "decision_scores_": np.asarray(self.scores, np.float64),
            "calibration_": calibration,
            "pixel_calibration_": pixels,
            "threshold_": calibration.threshold,
            **({} if isinstance(detector, Detector) else {"calibrated_on_tiles_": True}),
        }


def score_held_out(
    detector: Detector | TiledDetector,
    sources: Sequence[ImageSource],
    on_error: OnError,
    progress: Progress | None,
    known: Sequence[Signature] = (),
) -> HeldOut:
    """Score good images that were not learned from.

    Those that are copies of images learned from, whose signatures are `known`, do not count, and
    copies among them count once (`seen_images.calibrate_apart`).

    Raises
    ------
    UsageError
        There are no images.
    ImageReadError
        One cannot be read, unless `on_error="skip"`.
    DataError
        None can be read.
    """
    if len(sources) == 0:
        raise UsageError("there are no images to calibrate on: at least one good one is wanted")
    found = HeldOut([], MapStatistics())
    signatures: list[Signature | None] = []
    handling = "raise" if on_error == "raise" else "record"
    results = detector.score_images(sources, maps=detector.has_maps, on_error=handling)  # type: ignore[arg-type]
    with closed_after(results):
        for result in results:
            if progress is not None:
                progress("calibration images", result.index + 1, len(sources))
            if result.error is not None:
                found.skipped.append(
                    SkippedImage(
                        result.index, result.error.path, result.error.reason, "calibration"
                    )
                )
                continue
            assert result.score is not None
            if result.remark is not None:
                name = str(sources[result.index])
                found.remarked.append(
                    SkippedImage(result.index, name, result.remark, "calibration")
                )
            found.scores.append(result.score)
            signatures.append(result.signature)
            if result.anomaly_map is not None:
                counted = None
                if isinstance(detector, Detector) and result.original_size is not None:
                    counted = detector.counted_pixels(result.original_size)
                if counted is None:
                    found.maps.add(result.anomaly_map[None])
                else:
                    found.maps.add(result.anomaly_map[counted][None])
            del result  # and its map, before the next is made
    if not found.scores:
        first = found.skipped[0]
        raise DataError(
            f"none of {len(sources)} images to calibrate on could be read; the first: "
            f"{first.path}: {first.reason}"
        )
    if not known and isinstance(detector, Detector):
        known = detector._signatures
    kept, unseen, notes = calibrate_apart(np.asarray(found.scores), signatures, known)
    scores = [found.scores[position] for position in kept]
    return replace(found, scores=scores, unseen=unseen, notes=notes)
