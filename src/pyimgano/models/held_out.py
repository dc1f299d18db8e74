"""A threshold from good images that a fitted detector has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration import DEFAULT_TAIL, MapStatistics, calibrate
from ..errors import UsageError
from ..images import CopyGroups, ImageSource, Signature, closed_after
from .method import TrainingScores
from .seen_images import calibrate_apart
from .training_images import LeftOut, OnError, Progress

if TYPE_CHECKING:
    from .image_score import ImageScore


def score_held_out(
    results: Iterator[ImageScore],
    sources: Sequence[ImageSource],
    left_out: LeftOut,
    *,
    counted: Callable[[tuple[int, int]], npt.NDArray[np.bool_] | None] | None = None,
    known: Sequence[Signature] = (),
    progress: Progress | None = None,
) -> TrainingScores:
    """Return the scores of good images that were not learned from.

    Copies of images that were learned from do not count, and copies among them count once
    (`seen_images.calibrate_apart`).

    Parameters
    ----------
    results
        What scoring the images gives, one for each of `sources`.
    sources
        The images.
    left_out
        Is told of those that could not be read, and of which a part was left out.
    counted
        Which pixels of the map of an image count, by its (height, width) before resizing; None
        for all.
    known
        The signatures of the images that were learned from.
    progress
        Called with (stage, done, total).

    Raises
    ------
    DataError
        None of the images can be read.
    """
    scores: list[float] = []
    positions: list[int] = []  # in `sources`
    signatures: list[Signature | None] = []
    maps = MapStatistics()
    with closed_after(results):
        for result in results:
            if progress is not None:
                progress("calibration images", result.index + 1, len(sources))
            if result.error is not None:
                left_out.skip(result.index, result.error, "calibration")
                continue
            assert result.score is not None
            left_out.remark(result.index, sources[result.index], result.remark, "calibration")
            scores.append(result.score)
            positions.append(result.index)
            signatures.append(result.signature)
            if result.anomaly_map is not None:
                inside = None
                if counted is not None and result.original_size is not None:
                    inside = counted(result.original_size)
                maps.add(
                    result.anomaly_map[None] if inside is None else result.anomaly_map[None, inside]
                )
            del result  # and its map, before the next is made
    if not scores:
        raise left_out.nothing_used("calibration", len(sources))
    found = np.asarray(scores)
    kept, unseen, notes = calibrate_apart(found, signatures, known)
    signed = [one for one in signatures if one is not None]
    copies = CopyGroups.of(signed if len(signed) == len(signatures) else [])
    return TrainingScores(
        found[kept],
        "held-out-images",
        unseen,
        notes,
        maps,
        np.asarray(positions)[kept],
        copies.positions(positions),
    )


def calibrate_on_held_out(
    detector: Any,
    sources: Sequence[ImageSource],
    quantile: float,
    *,
    tail: str = DEFAULT_TAIL,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    origin: str = "fit",
) -> None:
    """Take the threshold of a fitted detector, tiled or not, from good images it has not seen.

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
        raise UsageError("there are no images to calibrate on; give at least one good one")
    left_out = LeftOut()
    found = score_held_out(
        detector.score_images(
            sources,
            maps=detector.has_maps,
            on_error="raise" if on_error == "raise" else "record",
        ),
        sources,
        left_out,
        counted=detector.counted_pixels,
        known=detector.signatures_,
        progress=progress,
    )
    notes = found.notes
    if left_out.skipped:
        notes = (*notes, f"{len(left_out.skipped)} of the images to calibrate on could not be read")
    calibration = calibrate(
        found.scores,
        quantile,
        method=found.method,
        unseen=found.unseen,
        notes=notes,
        tail=tail,
        origin=origin,
    )
    detector._take_calibration(calibration, found.scores, found.maps)
