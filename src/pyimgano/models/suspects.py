"""Suspects among the training images of a detector, and fitting without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..calibration import calibrate
from ..calibration.suspects import find_suspects
from ..errors import DataError
from ..images import ImageSource

# So many copies of a suspect are named.
_NAMED = 3


@dataclass(frozen=True)
class TrainingSuspect:
    """A training or calibration image that deserves a look.

    Attributes
    ----------
    index
        Position in the images that `fit` was given, training or calibration images by `role`.
    path
        Of the image, or `image <index>` for an array.
    score
        That it was calibrated with.
    score_ratio
        The score over the threshold; None for a threshold of 0.
    reasons
        Why it is named, one or two sentences.
    role
        `train` or `calibration`.
    """

    index: int
    path: str
    score: float
    score_ratio: float | None
    reasons: tuple[str, ...]
    role: Literal["train", "calibration"] = "train"


@dataclass(frozen=True)
class ExcludedImage:
    """A training or calibration image that was left out because it was a suspect.

    Attributes are as of `TrainingSuspect`, with the score of the fit before. A copy of a suspect
    has the suspect's score and reasons.
    """

    index: int
    path: str
    score: float
    reasons: tuple[str, ...]
    role: Literal["train", "calibration"] = "train"


def name_suspects(
    detector: Any,
    sources: Sequence[ImageSource],
    positions: Sequence[int] | npt.NDArray[np.integer],
    role: Literal["train", "calibration"],
    copies: Sequence[Sequence[int]] = (),
) -> list[TrainingSuspect]:
    """Suspects by `decision_scores_`, of which the i-th is of `sources[positions[i]]`.

    `copies` are positions of images that are copies of each other. One of them has a score, and
    the reasons name the others, for whoever deletes a suspect has to delete these as well.
    """
    now = detector.calibration_

    def threshold_of(scores: npt.NDArray[np.float64]) -> float:
        found = calibrate(scores, now.quantile_asked, method=now.method, tail=now.tail_asked)
        return found.threshold

    scale = detector.score_scale()
    together = _together(copies)
    found = []
    for one in find_suspects(detector.decision_scores_, threshold_of):
        index = int(positions[one.position])
        others = [_name(sources[i], i) for i in together.get(index, ()) if i != index]
        reasons = one.reasons
        if others:
            names = ", ".join(others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
            what = "1 image is a copy" if len(others) == 1 else f"{len(others)} images are copies"
            reasons = (*reasons, f"{what} of it: {names}")
        ratio = scale.ratio(one.score)
        name = _name(sources[index], index)
        found.append(TrainingSuspect(index, name, one.score, ratio, reasons, role))
    return found


def image_names(
    sources: Sequence[ImageSource], positions: Sequence[int] | npt.NDArray[np.integer]
) -> tuple[str, ...]:
    """Return the names of the images at these positions: paths, or `image <index>` for arrays."""
    return tuple(_name(sources[int(i)], int(i)) for i in positions)


def _together(copies: Sequence[Sequence[int]]) -> dict[int, Sequence[int]]:
    """Return all copies of an image, itself included, by the position of each."""
    return {index: some for some in copies for index in some}


def refit_without_suspects(
    detector: Any,
    sources: Sequence[ImageSource],
    held_out: Sequence[ImageSource] | None,
    copies: Mapping[str, Sequence[Sequence[int]]],
    **keywords: Any,
) -> None:
    """Fit once more without the suspects, and say what that does to the promise.

    `copies` are, by role, the positions of images that are copies of each other: a suspect is
    left out with all its copies, or the same defect would be learned from another file.

    Raises
    ------
    DataError
        Nothing would be left.
    """
    suspects = detector.training_suspects_
    before = detector.calibration_
    kept = {"train": sources, "calibration": held_out or ()}
    index: dict[str, list[int]] = {}
    excluded: list[ExcludedImage] = []
    for role, images in kept.items():
        together = _together(copies.get(role, ()))
        some = {
            index: ExcludedImage(
                index, _name(images[index], index), one.score, one.reasons, one.role
            )
            for one in suspects
            if one.role == role
            for index in together.get(one.index, (one.index,))
        }
        excluded += [some[index] for index in sorted(some)]
        left_out = set(some)
        index[role] = [i for i in range(len(images)) if i not in left_out]
    if not index["train"] or (held_out is not None and not index["calibration"]):
        raise DataError("every image is a suspect: none would be left to fit on")
    detector.fit(
        [sources[i] for i in index["train"]],
        calibration_images=None
        if held_out is None
        else [held_out[i] for i in index["calibration"]],
        **keywords,
    )
    for name in ("skipped_", "remarked_", "training_suspects_"):
        facts = getattr(detector, name)
        setattr(detector, name, [replace(one, index=index[one.role][one.index]) for one in facts])
    detector.copies_ = tuple(
        tuple(index["train"][position] for position in group) for group in detector.copies_
    )
    detector.excluded_ = excluded
    note = exclusion_note(
        len(suspects), before.n_scores, detector.calibration_.promised_false_alarm_rate
    )
    now = detector.calibration_
    detector.calibration_ = replace(
        now, notes=(*now.notes, note), score_notes=(*now.score_notes, note)
    )


def exclusion_note(excluded: int, total: int, promised: float | None) -> str:
    """Return what having looked does to the promise."""
    verb = "were" if excluded != 1 else "was"
    note = (
        f"{excluded} of {total} good images {verb} left out as suspect after their scores were "
        "seen: the promised rate holds for parts like those that were kept"
    )
    if promised is None:
        return note
    # as many odd ones among new parts, all of them false alarms
    share = (excluded + 1) / (total + 1)
    rate = share + (1 - share) * promised
    return f"{note}; of parts like all {total}, expect up to {100 * rate:.2g} %"


def _name(source: ImageSource, index: int) -> str:
    return f"image {index}" if isinstance(source, np.ndarray) else str(source)
