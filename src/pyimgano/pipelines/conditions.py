"""The conditions that a fitted detector is tried under, and scoring under one of them.

Images stream: a few at a time are decoded, corrupted and resized, then scored as the detector
does it. Nothing of one condition is kept for the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ..datasets import Move, Sample
from ..errors import ImageReadError
from ..images import (
    AlteredImage,
    ImageSource,
    LoadedImage,
    corrupt_image,
    corrupt_mask,
    image_size,
    stream_images,
)
from ..models import Detector, ImageScore
from ..runs import image_identity
from ..threads import thread_count

# Corrupting takes some ten arrays of floats of an image's size, the colours counted.
_BYTES_A_PIXEL = 120
# That the images being corrupted at one time may take together.
_CORRUPTING_BYTES = 2**30


@dataclass(frozen=True)
class Condition:
    """One corruption at one severity, or neither.

    Attributes
    ----------
    corruption
        None for clean images.
    severity
        0 for clean images.
    seed
        Of the draws.
    root
        Of the dataset: an image's identity is its path from there.
    """

    corruption: str | None
    severity: int
    seed: int
    root: Path

    def __str__(self) -> str:
        return "clean" if self.corruption is None else f"{self.corruption} {self.severity}"

    def source(self, sample: Sample) -> str | AlteredImage:
        """Return the sample's image under this condition."""
        path = str(sample.path)
        if self.corruption is None:
            return path
        return AlteredImage(
            path,
            partial(
                corrupt_image,
                corruption=self.corruption,
                severity=self.severity,
                seed=self.seed,
                identity=image_identity(sample.path, self.root),
            ),
        )

    def move(self, sample: Sample) -> Move | None:
        """Return what moves the sample's masks as its image is moved; None for clean images."""
        if self.corruption is None:
            return None
        return partial(
            corrupt_mask,
            corruption=self.corruption,
            severity=self.severity,
            seed=self.seed,
            identity=image_identity(sample.path, self.root),
        )


class TimedScorer:
    """Scores prepared images, and times the detector alone.

    While a few images are scored none are being prepared, so that the corruptions' own cost
    does not show in the time.

    Parameters
    ----------
    detector
        Fitted.
    test
        The samples, for how much memory preparing them takes.
    """

    def __init__(self, detector: Detector, test: Sequence[Sample]) -> None:
        self._detector = detector
        self._threads = _preparing_threads(test)
        batches = -(-2 * self._threads // detector.batch_size)
        self._chunk = batches * detector.batch_size
        self._warm = False
        self._seconds, self._images = 0.0, 0

    def take_milliseconds(self) -> float | None:
        """Mean of an image since it was last asked for; None if none was scored."""
        seconds, images = self._seconds, self._images
        self._seconds, self._images = 0.0, 0
        return 1e3 * seconds / images if images else None

    def score(self, sources: Iterable[str | AlteredImage], maps: bool) -> Iterator[ImageScore]:
        """Score as `Detector.score_images` does with `on_error="record"`."""
        remaining = iter(sources)
        first = 0
        while chunk := list(islice(remaining, self._chunk)):
            with stream_images(
                chunk,
                self._detector.params_.resize,
                threads=self._threads,
                roi=self._detector.roi_,
                bit_depth=self._detector.bits_read(),
            ) as stream:
                loaded = list(stream)
            yield from self._score_loaded(loaded, first, maps)
            first += len(chunk)

    def _score_loaded(
        self, loaded: list[LoadedImage], first: int, maps: bool
    ) -> Iterator[ImageScore]:
        pixels: list[ImageSource] = [
            one.pixels for one in loaded if isinstance(one.pixels, np.ndarray)
        ]
        score = self._scores_of
        if pixels and not self._warm:  # what a first call sets up is not part of the time
            score(pixels[: self._detector.batch_size], maps)
            self._warm = True
        began = time.perf_counter()
        scores = iter(score(pixels, maps))
        self._seconds += time.perf_counter() - began
        self._images += len(pixels)
        for one in loaded:
            index = first + one.index
            if one.pixels is None:
                yield ImageScore(index, None, None, None, one.error)
                continue
            result = next(scores)
            error = result.error
            if error is not None:
                error = ImageReadError(one.name, error.reason)
            yield replace(
                result,
                index=index,
                original_size=None if error is not None else one.original_size,
                error=error,
                remark=one.remark,
            )

    def _scores_of(self, pixels: list[ImageSource], maps: bool) -> list[ImageScore]:
        return list(self._detector.score_images(pixels, maps=maps, on_error="record"))


@dataclass(frozen=True)
class TestUnder:
    """The test images under a condition, as `measure` wants them."""

    condition: Condition
    scorer: TimedScorer
    test: Sequence[Sample]

    def scores(self, maps: bool) -> Iterator[ImageScore]:
        """Yield the score of each image in order, with its map if `maps` says so."""
        return self.scorer.score((self.condition.source(one) for one in self.test), maps)

    def move(self, sample: Sample) -> Move | None:
        """Return what moves the sample's masks as its image is moved; None for clean images."""
        return self.condition.move(sample)


def _preparing_threads(test: Sequence[Sample]) -> int:
    """Return as many threads as there are cores, but fewer where images are large."""
    for sample in test:
        try:
            height, width = image_size(sample.path)
        except ImageReadError:
            continue
        fitting = _CORRUPTING_BYTES // (_BYTES_A_PIXEL * height * width)
        return max(1, min(thread_count(), fitting))
    return 1
