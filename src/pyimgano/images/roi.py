"""Region of interest: the part of the frame that counts.

A region is a mask, stretched to the frame of whatever image it is laid over, or polygons in
fractions of width and height. What is outside is replaced by one constant before anything looks
at the image, so that nothing which happens there can change a score, not in its last bit. Since
resizing mixes pixels, a pixel of the resized image counts only if every pixel of the file that
goes into it counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError, PyimganoError, UsageError
from ..untrusted_files import parse_json, quoted, read_regular, reason_of_failure
from .read import read_mask, reason_of

#: What pixels outside the region are filled with, in all three channels: the middle of the range.
FILL = 127
# Bounds of a polygon file, far beyond what anybody draws.
_FILE_BYTES = 2**24
_POINTS = 100_000

Mask = npt.NDArray[np.bool_]


class RegionOfInterest:
    """The part of the frame that counts; made by `read_roi`, `from_mask` or `from_polygons`.

    Immutable; equal regions are those of equal masks or polygons, wherever they came from.

    Attributes
    ----------
    mask
        (h, w) bool of any size, or None.
    polygons
        Tuples of (x, y) in fractions of width and height, or None. Their union counts; within
        a polygon that crosses itself, what the even-odd rule says.
    origin
        Where it came from, for messages.
    sha256
        Hash of what it is.
    """

    def __init__(
        self,
        mask: Mask | None,
        polygons: tuple[tuple[tuple[float, float], ...], ...] | None,
        origin: str,
    ) -> None:
        self.mask = mask
        self.polygons = polygons
        self.origin = origin
        digest = hashlib.sha256()
        if mask is not None:
            mask.setflags(write=False)
            digest.update(f"mask {mask.shape}".encode())
            digest.update(np.packbits(mask).tobytes())
        else:
            digest.update(f"polygons {polygons!r}".encode())
        self.sha256 = digest.hexdigest()

    @classmethod
    def from_mask(cls, mask: npt.ArrayLike, origin: str = "roi") -> RegionOfInterest:
        """Make a region of a mask (h, w), bool or numbers of which every one but 0 counts.

        Raises
        ------
        UsageError
            Another shape, or no pixel that counts.
        """
        values = np.asarray(mask)
        if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "buif":
            raise UsageError(
                f"{origin}: a mask must be (h, w), got shape {values.shape} of {values.dtype}"
            )
        counted = np.ascontiguousarray(values != 0)
        if not counted.any():
            raise UsageError(f"{origin}: the region is empty, every pixel of the mask is 0")
        return cls(counted, None, origin)

    @classmethod
    def from_polygons(cls, polygons: Any, origin: str = "roi") -> RegionOfInterest:
        """Make a region of one polygon, [x, y] pairs in 0..1, or of a sequence of polygons.

        Raises
        ------
        UsageError
            Something else, fewer than three points, or a point outside the frame.
        """
        rings = _rings(polygons, origin)
        return cls(None, rings, origin)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionOfInterest) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        if self.mask is not None:
            return f"RegionOfInterest(mask {self.mask.shape[1]} x {self.mask.shape[0]})"
        assert self.polygons is not None
        return f"RegionOfInterest({len(self.polygons)} polygon{'s' * (len(self.polygons) != 1)})"

    def __copy__(self) -> RegionOfInterest:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RegionOfInterest:
        return self

    def at(self, size: tuple[int, int]) -> Mask:
        """Return which pixels of an image of `size` (height, width) count, (H, W) bool.

        Of a mask: those that overlap no cell of it that does not count. Of polygons: those
        whose centre lies in one.
        """
        if self.mask is not None:
            if self.mask.shape == size:
                return self.mask.copy()
            rows = _overlap(self.mask.shape[0], size[0])
            columns = _overlap(self.mask.shape[1], size[1])
            return _all_within(self.mask, rows, columns)
        assert self.polygons is not None
        counted = np.zeros(size, np.bool_)
        for ring in self.polygons:
            counted |= _fill_polygon(ring, size)
        return counted

    def counted(self, size: tuple[int, int], source: tuple[int, int] | None = None) -> Mask:
        """Return which pixels count of an image that `resize_image` brings from `source` to `size`.

        Parameters
        ----------
        size
            (height, width) after resizing.
        source
            (height, width) before; by default the same.

        Returns
        -------
        numpy.ndarray
            (H, W) bool, not to be written to. A pixel that counts is made of such pixels of
            the source alone.
        """
        return _counted(self, size, source or size)

    def require_some(self, size: tuple[int, int]) -> None:
        """Raise `DataError` if no pixel of images of `size` (height, width) counts."""
        if not self.counted(size).any():
            raise DataError(
                f"{self.origin}: nothing of the region of interest is left at "
                f"{size[1]} x {size[0]} pixels"
            )

    def fill(
        self, image: npt.NDArray[np.uint8], source: tuple[int, int], name: str
    ) -> npt.NDArray[np.uint8]:
        """Return a copy of a resized image (H, W, 3) with `FILL` wherever it does not count.

        Raises
        ------
        ImageReadError
            No pixel of it counts: `source` is too small for the region.
        """
        counted = self.counted((image.shape[0], image.shape[1]), source)
        if not counted.any():
            raise ImageReadError(
                name,
                "nothing of the region of interest is left of an image of "
                f"{source[1]} x {source[0]} pixels",
            )
        filled = image.copy()
        filled[~counted] = FILL
        return filled


def read_roi(value: Any, name: str = "roi") -> RegionOfInterest:
    """Read a region of interest from what a user gives.

    Parameters
    ----------
    value
        A path: of a mask image (any size, every value but 0 counts) or of a .json file of
        polygons; a list as `RegionOfInterest.from_polygons` takes it; or a region.
    name
        Of the argument, for messages.

    Raises
    ------
    UsageError
        Polygons that will not do.
    DataError
        A file that is missing, unreadable or empty, or holds something else.
    """
    if isinstance(value, RegionOfInterest):
        return value
    if not isinstance(value, (str, Path)):
        return RegionOfInterest.from_polygons(value, name)
    origin = f"{name} {value}"
    try:
        if Path(value).suffix.lower() == ".json":
            return RegionOfInterest.from_polygons(_read_json(Path(value)), origin)
        return RegionOfInterest.from_mask(read_mask(value), origin)
    except ImageReadError as error:
        raise DataError(f"{origin}: {error.reason}") from error
    except PyimganoError as error:
        raise DataError(str(error)) from error


def _read_json(path: Path) -> Any:
    try:
        text = read_regular(path, _FILE_BYTES)
    except (OSError, ValueError) as error:
        raise ImageReadError(str(path), reason_of(error)) from error
    try:
        return parse_json(text)
    except ValueError as error:
        raise ImageReadError(str(path), f"is not JSON ({reason_of_failure(error)})") from error


def _rings(polygons: Any, origin: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    if isinstance(polygons, np.ndarray):
        polygons = polygons.tolist()
    wanted = "expected a list of [x, y] points, or a list of such lists"
    if not _is_list(polygons):
        raise UsageError(f"{origin}: {wanted}, got {quoted(polygons)}")
    if not polygons:
        raise UsageError(f"{origin}: the region is empty, there is no polygon")
    single = _is_list(polygons[0]) and bool(polygons[0]) and not _is_list(polygons[0][0])
    rings = []
    total = 0
    for number, ring in enumerate([polygons] if single else polygons):
        if not _is_list(ring):
            raise UsageError(f"{origin}: {wanted}, got {quoted(ring)} for polygon {number}")
        if len(ring) < 3:
            raise UsageError(
                f"{origin}: polygon {number} has {len(ring)} points and needs at least 3"
            )
        total += len(ring)
        if total > _POINTS:
            raise UsageError(f"{origin}: more than {_POINTS} points")
        rings.append(tuple(_point(point, number, origin) for point in ring))
    return tuple(rings)


def _point(point: Any, number: int, origin: str) -> tuple[float, float]:
    fits = _is_list(point) and len(point) == 2
    if fits:
        fits = all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in point
        )
    if not fits:
        raise UsageError(
            f"{origin}: a point must be [x, y], fractions of width and height from 0 to 1, "
            f"got {quoted(point)} in polygon {number}"
        )
    return float(point[0]), float(point[1])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


@lru_cache(maxsize=64)
def _counted(roi: RegionOfInterest, size: tuple[int, int], source: tuple[int, int]) -> Mask:
    # also at the size itself, so that an image of another size counts nowhere else
    counted = roi.at(size)
    if source != size:
        rows, columns = (_footprint(m, n) for m, n in zip(source, size))
        counted &= _all_within(roi.at(source), rows, columns)
    counted.setflags(write=False)
    return counted


Ranges = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _overlap(cells: int, pixels: int) -> Ranges:
    """First and one past the last of the `cells` that each of `pixels` overlaps."""
    number = np.arange(pixels, dtype=np.int64)
    return number * cells // pixels, -(-(number + 1) * cells // pixels)


def _footprint(old: int, new: int) -> Ranges:
    """First and one past the last pixel that `resize_image` makes each new one of."""
    if old >= new:
        return _overlap(old, new)
    # bilinear, with half-pixel centres: the neighbours of (i + 0.5) old / new - 0.5
    numerator = (2 * np.arange(new, dtype=np.int64) + 1) * old - new
    first = numerator // (2 * new)
    last = first + (numerator % (2 * new) != 0)
    return np.maximum(first, 0), np.minimum(last, old - 1) + 1


def _all_within(mask: Mask, rows: Ranges, columns: Ranges) -> Mask:
    """Return whether all of `mask` is True within each pair of a range of rows and one of
    columns.
    """
    tall = np.stack([mask[a:b].all(axis=0) for a, b in zip(*rows)])  # (H, w)
    turned = np.ascontiguousarray(tall.T)  # (w, H), so that ranges of it lie together
    return np.stack([turned[a:b].all(axis=0) for a, b in zip(*columns)], axis=1)


def _fill_polygon(ring: Sequence[tuple[float, float]], size: tuple[int, int]) -> Mask:
    """Pixels whose centre lies inside, by the even-odd rule."""
    height, width = size
    crossings = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(ring, (*ring[1:], ring[0])):
        if y0 == y1:
            continue
        # rows whose centre lies in [low, high), so that a corner is crossed once
        low, high = min(y0, y1), max(y0, y1)
        first, last = math.ceil(low * height - 0.5), math.ceil(high * height - 0.5)
        rows = np.arange(max(0, first), min(height, last))
        x = x0 + ((rows + 0.5) / height - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(x * width - 0.5), 0, width).astype(np.int64)
        np.add.at(crossings, (rows, columns), 1)
    return np.asarray(crossings.cumsum(axis=1)[:, :width] % 2 == 1)
