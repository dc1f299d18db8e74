"""Where tiles lie on an image, how their maps are weighted, and those that are learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError, UsageError
from ..images import DecodedImage, ImageSource, SampleRange, Signature, decode_image, signature_of
from ..images.samples import narrow_array
from .training_images import OnError, SkippedImage

#: One number of pixels for both axes, or (height, width).
Sides: TypeAlias = "int | tuple[int, int]"

_Image = npt.NDArray[np.uint8]
_SMALLEST, _LARGEST = 1, 16384


def sides(value: object, name: str) -> tuple[int, int]:
    """Read `value` as (height, width); raises `UsageError` naming `name`."""
    pair: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value, value]
    pair = [one.item() if isinstance(one, np.generic) else one for one in pair]
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in pair)
    if len(pair) != 2 or not whole or not all(_SMALLEST <= one <= _LARGEST for one in pair):
        raise UsageError(
            f"{name} must be a number of pixels or (height, width), from {_SMALLEST} to "
            f"{_LARGEST}, got {value!r}"
        )
    return pair[0], pair[1]


def default_stride(tile_size: tuple[int, int]) -> tuple[int, int]:
    """Three quarters of a tile, so that neighbours share a quarter."""
    return max(1, tile_size[0] * 3 // 4), max(1, tile_size[1] * 3 // 4)


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin along an axis of `length` pixels, so that they cover all of it.

    The last is shifted inwards to end where the axis does. An axis shorter than a tile has
    one start, 0.
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


#: How a tile's pixels are weighted along an axis where tiles overlap, by their place in a tile of
#: so many pixels.
_WINDOWS: dict[str, Callable[[Any, int], Any]] = {
    # highest in the middle of the tile, where the network saw what lies on both sides
    "triangle": lambda place, side: np.minimum(place, side - place),
    "mean": lambda place, side: np.ones_like(place),
    "hann": lambda place, side: np.sin(np.pi * place / side) ** 2,
    "gaussian": lambda place, side: np.exp(-0.5 * ((place / side - 0.5) / 0.2) ** 2),
}

#: How the tiles' scores become the image's score.
SCORE_RULES = ("max", "mean", "topk_mean")
#: How maps of tiles that overlap become one.
MAP_RULES = (*_WINDOWS, "max")


def reduce_scores(scores: Sequence[float], rule: str, topk: float) -> float:
    """Return the image's score from the scores of its tiles.

    Parameters
    ----------
    scores
        At least one.
    rule
        One of `SCORE_RULES`.
    topk
        Of `topk_mean`: the share of tiles, in (0, 1], whose mean is taken, the highest ones and
        at least one.
    """
    if rule == "max":
        return max(scores)
    if rule == "mean":
        return float(np.mean(scores))
    count = max(1, math.ceil(topk * len(scores)))
    return float(np.mean(sorted(scores)[-count:]))


def blend_weights(
    length: int, tile: int, stride: int, window: str = "triangle"
) -> list[npt.NDArray[np.float32]]:
    """Return for each tile along an axis its weights (min(tile, length),) float32, in (0, 1].

    Those of a window, divided by the sum over all tiles, so that at each pixel the weights add up
    to 1.
    """
    starts = tile_starts(length, tile, stride)
    side = min(tile, length)
    weights = _WINDOWS[window](np.arange(side) + 0.5, side)
    total = np.zeros(length)
    for start in starts:
        total[start : start + side] += weights
    return [(weights / total[start : start + side]).astype(np.float32) for start in starts]


class TrainingTiles(Sequence[ImageSource]):
    """The tiles of some images, side by side, as a sequence that holds one image at a time.

    Each image is decoded again whenever tiles are asked for in order. Tiles do not overlap,
    except for the last of each row and column, which is shifted inwards.

    Attributes
    ----------
    images
        Which of the sources are in it.
    skipped
        Those left out under `on_error="skip"`.
    remarked
        Those of which a part was left out.
    samples
        How each image in it was read.

    Raises
    ------
    ImageReadError, DataError
        An image cannot be read, or under `skip` none can.
    """

    #: Many tiles are alike, and none is a copy of another.
    may_hold_copies = False

    def __init__(
        self,
        sources: Sequence[ImageSource],
        chosen: Sequence[int],
        tile_size: tuple[int, int],
        on_error: OnError,
        bit_depth: int | None = None,
    ) -> None:
        self._bit_depth = bit_depth
        self.samples: list[SampleRange | None] = []
        self._sources = sources
        self._tile = tile_size
        self.images: list[int] = []
        self.signatures: list[Signature] = []
        self.skipped: list[SkippedImage] = []
        self.remarked: list[SkippedImage] = []
        self._places: list[tuple[int, int, int]] = []  # image, y, x
        self._last: tuple[int, _Image] | None = None
        for index in chosen:
            try:
                image, remark, samples = self._read(index)
            except ImageReadError as error:
                if on_error == "raise":
                    raise
                self.skipped.append(SkippedImage(index, error.path, error.reason))
                continue
            self.images.append(index)
            self.samples.append(samples)
            self.signatures.append(signature_of(image))
            if remark is not None:
                self.remarked.append(SkippedImage(index, str(sources[index]), remark))
            self._places += [
                (index, y, x)
                for y in tile_starts(image.shape[0], tile_size[0], tile_size[0])
                for x in tile_starts(image.shape[1], tile_size[1], tile_size[1])
            ]
            del image  # before the next is decoded
        if not self.images:
            first = self.skipped[0]
            raise DataError(
                f"none of {len(chosen)} training images could be used; the first: "
                f"{first.path}: {first.reason}"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[ImageSource]:
        held: tuple[int, _Image] | None = None  # its own: a stream reads ahead of __getitem__
        for place in self._places:
            if held is None or held[0] != place[0]:
                held = None  # let go before the next is decoded
                held = (place[0], self._read(place[0]).pixels)
            yield self._cut(held[1], place)

    @overload
    def __getitem__(self, index: int) -> ImageSource: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageSource]: ...
    def __getitem__(self, index: int | slice) -> ImageSource | Sequence[ImageSource]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._places[index]
        if self._last is None or self._last[0] != place[0]:
            self._last = None
            self._last = (place[0], self._read(place[0]).pixels)
        return self._cut(self._last[1], place)

    def _cut(self, image: _Image, place: tuple[int, int, int]) -> _Image:
        _, y, x = place
        return np.ascontiguousarray(image[y : y + self._tile[0], x : x + self._tile[1]])

    def _read(self, index: int) -> DecodedImage:
        source = self._sources[index]
        if isinstance(source, np.ndarray):
            pixels, samples, remark = narrow_array(f"image {index}", source, self._bit_depth)
            return DecodedImage(pixels, remark, samples)
        return decode_image(source, bit_depth=self._bit_depth)
