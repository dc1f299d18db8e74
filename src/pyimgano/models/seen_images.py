"""What a fit remembers of its training images: which are copies, what kind of images they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..images import CopyGroups, Signature, copies_among

if TYPE_CHECKING:
    from .method import TrainingScores

# Mean difference between the channels of an image, in grey levels: that of a grey one is no
# larger, and that of one in colour no smaller. Between them nothing is said.
_GREY, _COLOUR = 1.0, 4.0
# Factor that an image's width over its height may go beyond those of the training images.
_STRETCHED = 1.25


@dataclass(frozen=True)
class SeenImages:
    """What kind of images a detector was fitted on, to tell images that are of another kind.

    Attributes
    ----------
    images, distinct
        How many there were, and how many of them are no copies of others.
    narrowest, widest
        The least and the largest width over height, before resizing.
    least_colour, most_colour
        The least and the largest `pyimgano.images.Signature.colour`.
    """

    images: int
    distinct: int
    narrowest: float
    widest: float
    least_colour: float
    most_colour: float

    @classmethod
    def of(
        cls, sizes: Sequence[tuple[int, int]], signatures: Sequence[Signature], distinct: int
    ) -> SeenImages:
        """Sum up images by their (height, width) and signatures; there is at least one."""
        shapes = [width / height for height, width in sizes]
        colours = [one.colour for one in signatures]
        return cls(len(signatures), distinct, min(shapes), max(shapes), min(colours), max(colours))

    def unlike(self, size: tuple[int, int], signature: Signature | None) -> str | None:
        """Say how an image of `size` (height, width) is of another kind; None if it is not.

        Its score then says that it is of another kind, not that there is a defect.
        """
        shape = size[1] / size[0]
        if shape < self.narrowest / _STRETCHED or shape > self.widest * _STRETCHED:
            trained = f"{self.narrowest:.2f}"
            if f"{self.widest:.2f}" != trained:
                trained += f" to {self.widest:.2f}"
            return (
                f"{size[1]} x {size[0]} pixels are {shape:.2f} times as wide as high, and the "
                f"training images {trained} times"
            )
        if signature is None:
            return None
        if self.most_colour <= _GREY and signature.colour >= _COLOUR:
            return "it is in colour, and all training images are grey"
        if self.least_colour >= _COLOUR and signature.colour <= _GREY:
            return "it is grey, and all training images are in colour"
        return None


def calibrate_on_distinct(training: TrainingScores, copies: CopyGroups) -> TrainingScores:
    """Count one score for each distinct image, the largest of its copies.

    Where all or most images are copies of one, or differ by no more than noise, or the model had
    seen them, all scores stay, and nothing is promised.
    """
    total = len(copies.group)
    if not copies.copies:
        return training
    if copies.alike or copies.distinct == 1:
        alike = copies.alike or total
        some = f"the {total}" if alike == total else f"{alike} of the {total}"
        note = (
            f"{some} training images are copies of one, or differ by no more than noise: no "
            "false-alarm rate is promised"
        )
        return replace(training, unseen=False, notes=(note, *training.notes))
    note = (
        f"{copies.copies} of the {total} training images are copies of others (the same, "
        f"re-encoded, resized, or of a still scene): {copies.distinct} are distinct"
    )
    images = training.images
    if images is None and len(training.scores) == total:
        images = np.arange(total)
    if images is None or not training.unseen:
        return replace(training, notes=(note, *training.notes))
    kept = largest_of_each(training.scores, copies.group[images])
    note += ", and each is scored without all its copies; the largest score of them counts"
    notes = (note, *training.notes)
    return replace(training, scores=training.scores[kept], images=images[kept], notes=notes)


def largest_of_each(
    scores: npt.NDArray[np.float64], group: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the position (m,) of the largest score of each group, in the order of their first.

    `scores` (n,) and `group` (n,) belong to the same images; of equal scores the first is taken.
    """
    found: dict[int, int] = {}
    for position, number in enumerate(group.tolist()):
        if number not in found or scores[position] > scores[found[number]]:
            found[number] = position
    return np.fromiter(found.values(), np.int64, len(found))


def calibrate_apart(
    scores: npt.NDArray[np.float64],
    signatures: Sequence[Signature | None],
    known: Sequence[Signature],
) -> tuple[npt.NDArray[np.int64], bool, tuple[str, ...]]:
    """Drop held-out images that are copies of training images, or of each other.

    Parameters
    ----------
    scores, signatures
        Of n held-out images.
    known
        Of the training images.

    Returns
    -------
    kept, unseen, notes
        Positions (m,) of one score for each distinct image that was not learned from, the
        largest of its copies. All of them, and False, where none is left.
    """
    held = [one for one in signatures if one is not None]
    if len(held) < len(signatures):
        return np.arange(len(scores)), True, ()
    learned = {number for number, _ in copies_among(known, held)}
    stay = np.array([n for n in range(len(held)) if n not in learned], np.int64)
    total = len(held)
    notes = []
    if learned:
        notes.append(
            f"{len(learned)} of the {total} images to calibrate on are copies of training images"
        )
    if not len(stay):
        return np.arange(total), False, tuple(notes)
    copies = CopyGroups.of([held[n] for n in stay])
    if learned:
        notes[0] += " and do not count"
    if not copies.copies:
        return stay, True, tuple(notes)
    notes.append(
        f"{copies.copies} of the images to calibrate on are copies of others, or differ by no more "
        f"than noise: {copies.distinct} are distinct, and the largest score of each counts"
    )
    kept = stay[largest_of_each(scores[stay], copies.group)]
    return kept, not copies.alike, tuple(notes)
