"""The good images that a detector learns from: reading them, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError, UsageError
from ..images import (
    AlteredImage,
    CopyGroups,
    ImageSource,
    ImageStream,
    LoadedImage,
    NetworkInput,
    Recall,
    SampleRange,
    Signature,
    stream_images,
)
from .region_cells import RegionCells

OnError = Literal["raise", "skip"]
Role = Literal["train", "calibration"]
#: Which scores of the training images calibrate the threshold; none if others are held out for it.
Calibrate = Literal["out-of-sample", "in-sample", "held-out-images"]
#: Called with the name of the stage, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SkippedImage:
    """A training or calibration image that was left out, or of which a part was."""

    index: int
    path: str
    reason: str
    role: Role = "train"


@dataclass
class LeftOut:
    """The images that were left out as they were read, and those of which a part was."""

    skipped: list[SkippedImage] = field(default_factory=list)
    remarked: list[SkippedImage] = field(default_factory=list)

    def skip(self, index: int, error: ImageReadError, role: Role = "train") -> None:
        """Note that an image could not be read."""
        self.skipped.append(SkippedImage(index, error.path, error.reason, role))

    def remark(
        self, index: int, source: ImageSource, remark: str | None, role: Role = "train"
    ) -> None:
        """Note what was left out of an image, if anything was."""
        if remark is not None:
            self.remarked.append(SkippedImage(index, str(source), remark, role))

    def nothing_used(self, role: Role, count: int) -> DataError:
        """Return the error that says that every one of `count` images was skipped."""
        first = next(one for one in self.skipped if one.role == role)
        what = "training" if role == "train" else role
        return DataError(
            f"none of {count} {what} images could be used; the first: {first.path}: {first.reason}"
        )


class TrainingImages:
    """Good images to learn from, read once in batches; a context manager that ends the reading.

    Parameters
    ----------
    sources
        Paths or arrays.
    region
        The size that they are resized to, and what of them counts.
    calibrate
        Which scores are wanted of them.
    batch_size
        How many images are in a batch.
    bit_depth
        How many bits count in images with 16 bits a sample, as `read_image` has it.
    recall
        A cache of the backbone's features.
    on_error
        Whether an image that cannot be read raises its error, or is left out.
    look_for_copies
        Whether copies among them are looked for; not among tiles of images, of which many are
        alike and none is a copy.
    progress
        Called with (stage, done, total); None for nobody.

    Attributes
    ----------
    left_out
        The images that were skipped, and those of which a part was left out.
    used
        How many were read, and went into a batch.
    positions
        Of those, in `sources`.
    sizes
        (height, width) of those before resizing; each size once.
    samples
        How each of those was read.
    signatures
        Of those, to tell copies by; fewer where a cache knows none.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        region: RegionCells,
        *,
        calibrate: Calibrate = "out-of-sample",
        batch_size: int = 8,
        bit_depth: int | None = None,
        recall: Recall | None = None,
        on_error: OnError = "raise",
        look_for_copies: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._sources = sources
        self.region = region
        self.calibrate = calibrate
        self.bit_depth = bit_depth
        self.progress = progress
        self.left_out = LeftOut()
        self.used = 0
        self.positions: list[int] = []
        self.sizes: set[tuple[int, int]] = set()
        self.samples: list[SampleRange | None] = []
        self.signatures: list[Signature] = []
        self._batch_size, self._recall, self._on_error = batch_size, recall, on_error
        self._look_for_copies = look_for_copies
        self._copies: CopyGroups | None = None
        self._open: ImageStream | None = None

    def __enter__(self) -> TrainingImages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # a method that failed has left its loop over the batches where it was
        if self._open is not None:
            self._open.__exit__(kind, *error)

    def __len__(self) -> int:
        """Return how many images there are, at most: some may turn out to be unreadable."""
        return len(self._sources)

    def batches(self) -> Iterator[list[NetworkInput]]:
        """Yield batches of (H, W, 3) uint8 images that could be read, once.

        With a cache they are `KeyedImage`s, which a backbone takes as they are.

        Raises
        ------
        ImageReadError
            An image cannot be read, unless it is to be skipped.
        DataError
            None can be read.
        """
        batch: list[NetworkInput] = []
        self._open = self.stream(self._sources)
        for loaded in self._open:
            if loaded.pixels is None:
                assert loaded.error is not None
                if self._on_error == "raise":
                    raise loaded.error
                self.left_out.skip(loaded.index, loaded.error)
            else:
                batch.append(loaded.pixels)
                self._note(loaded)
            if self.progress is not None:
                self.progress("training images", loaded.index + 1, len(self))
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
        if not self.used:
            raise self.left_out.nothing_used("train", len(self))

    def _note(self, loaded: LoadedImage) -> None:
        assert loaded.original_size is not None
        self.used += 1
        self.positions.append(loaded.index)
        self.sizes.add(loaded.original_size)
        self.samples.append(loaded.samples)
        if loaded.signature is not None:
            self.signatures.append(loaded.signature)
        self.left_out.remark(loaded.index, self._sources[loaded.index], loaded.remark)

    def stream(self, sources: Iterable[ImageSource | AlteredImage]) -> ImageStream:
        """Return a stream of other images that are read as these are (`stream_images`)."""
        return stream_images(
            sources,
            self.region.size,
            recall=self._recall,
            roi=self.region.roi,
            bit_depth=self.bit_depth,
        )

    # ---- once all batches have come

    def copies(self) -> CopyGroups:
        """Return which of the images that were used are copies of each other."""
        if self._copies is None:
            if self._look_for_copies and len(self.signatures) == self.used:
                self._copies = CopyGroups.of(self.signatures)
            else:
                self._copies = CopyGroups(np.arange(self.used))
        return self._copies

    def copy_groups(self) -> npt.NDArray[np.int64]:
        """Return for each image the number of the first image that it is a copy of, (n,).

        That is its own number where it is a copy of none before it. An image is scored as unseen
        only where all its copies are left out with it.
        """
        return self.copies().group

    def source(self, number: int) -> ImageSource:
        """Return the image that was read as the one with this number, counted from 0.

        Its file has the size of the image itself, which batches no longer show.
        """
        return self._sources[self.positions[number]]

    def counted_pixels(self) -> npt.NDArray[np.bool_] | None:
        """Return which pixels count in the maps of all images, (H, W) bool; None if all do."""
        return self.region.pixels_of_all(self.sizes)


def require_apart(train: Sequence[ImageSource], held_out: Sequence[ImageSource]) -> None:
    """Raise `UsageError` where an image to calibrate on is one to learn from.

    Its score would promise nothing. Files are the same if their real paths are; arrays if they
    are the same object.
    """
    # what other sequences give may be made anew each time, and have the address of another
    lists = isinstance(train, (list, tuple)) and isinstance(held_out, (list, tuple))

    def identity(source: ImageSource) -> str | int | None:
        if isinstance(source, np.ndarray):
            return id(source) if lists else None
        return os.path.realpath(source)

    learned = {identity(one) for one in train} - {None}
    for index, one in enumerate(held_out):
        if identity(one) in learned:
            name = f"image {index}" if isinstance(one, np.ndarray) else str(one)
            raise UsageError(
                f"{name}: is learned from and to be calibrated on; images to calibrate on must be "
                "others, or the threshold promises nothing"
            )
