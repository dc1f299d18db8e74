"""Which images are copies of each other: the same, re-encoded, resized, or of a still scene.

Every image that is read leaves a signature, a grey picture of 32 x 32 points, made from pixels
that are decoded anyway. Two images are copies if what is left between their signatures, after
brightness, contrast, a small shift and a little blur are taken out, is far less than what is left
between different images of the same set.

Images of one kind of part under a fixed camera are much alike without being copies. Measured on
bottles, magnetic tiles, solar cells, toys and cubes (docs/copies.md): of different images the two
that are most alike differ by 0.59 to 1.64 grey levels of a signature; JPEG of quality 50, a
reduction to half the side, and noise of three levels make 0.06 to 0.37.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

#: Points a side of a signature.
SIDE = 32
# What is left between two images, in grey levels, up to which they may be copies: the first that
# is small beside what is left between the images that are then different.
_LIMITS = (0.55, 0.45, 0.35, 0.25)
_SMALL = 0.3
# Images that differ by no more are copies whatever the others do: noise makes as much.
_NOISE = 0.15
# Of an image's own contrast, what may be left: two blank images differ by their noise alone.
_OF_CONTRAST = 0.2
# Deviation of the blur of a signature, in its points: so that a shift changes it smoothly.
_BLUR = 1.0
# Nearest signatures that are compared closely.
_NEAREST = 5
# Rows of signatures whose distances to all others are held at once, and pairs that are compared.
_ROWS = 512
_PAIRS = 256


@dataclass(frozen=True)
class Signature:
    """What is kept of an image to tell copies and other kinds of images by.

    Attributes
    ----------
    points
        (32, 32) float16: the image in grey, reduced and blurred a little, 0 to 255.
    colour
        How far the channels of its pixels differ, on average, in grey levels; 0 of a grey one.
    """

    points: npt.NDArray[np.float16]
    colour: float


def signature_of(image: npt.NDArray[np.uint8]) -> Signature:
    """Return the signature of an image (H, W, 3) uint8 RGB."""
    while min(image.shape[:2]) >= 1024:  # every other point of a large one tells as much
        image = image[::2, ::2]
    plain = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
    reduces = min(plain.shape) >= SIDE
    way = cv2.INTER_AREA if reduces else cv2.INTER_LINEAR
    points = cv2.GaussianBlur(cv2.resize(plain, (SIDE, SIDE), interpolation=way), (0, 0), _BLUR)
    some = image[::8, ::8].reshape(-1, 3).astype(np.int16)
    colour = float(np.abs(some[:, :2] - some[:, 1:]).mean(axis=0).max())
    return Signature(points.astype(np.float16), round(colour, 3))


@dataclass(frozen=True)
class CopyGroups:
    """Which of n images are copies of each other.

    Attributes
    ----------
    group
        (n,) int64: the number of the first image that an image is a copy of; its own if it is
        a copy of none before it.
    alike
        How many images differ by no more than noise or an encoder makes, where these are more
        than half of all; else 0. They may be pictures of one part, or of parts without
        texture that no two pictures tell apart, so that `group` then tells only the same images.
    """

    group: npt.NDArray[np.int64]
    alike: int = 0

    @classmethod
    def of(cls, signatures: Sequence[Signature]) -> CopyGroups:
        """Group images by their signatures, in the images' order."""
        if not signatures:
            return cls(np.zeros(0, np.int64))
        points = np.stack([one.points for one in signatures]).reshape(len(signatures), -1)
        _, first, which = np.unique(points, axis=0, return_index=True, return_inverse=True)
        same = first[which.ravel()].astype(np.int64)
        if len(first) == 1:
            return cls(same)
        near = _near(_Points(points), same)
        largest = int(np.bincount(near).max())
        of_one = int(np.bincount(same).max())
        if largest > len(near) / 2 and largest > of_one:
            return cls(same, largest)
        return cls(near)

    @property
    def distinct(self) -> int:
        """Return how many images there are, copies not counted."""
        return len(np.unique(self.group)) if not self.alike else 1 + len(self.group) - self.alike

    @property
    def copies(self) -> int:
        """Return how many images are copies of others."""
        return len(self.group) - self.distinct

    def positions(self, indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return `indices[number]` of the images of each group that has several.

        Where most images are `alike`, these are groups of the same images only.
        """
        return tuple(
            tuple(int(indices[number]) for number in some)
            for some in self.members()
            if len(some) > 1
        )

    def members(self) -> list[npt.NDArray[np.int64]]:
        """Return the numbers of the images of each group, in the order of their first."""
        order = np.argsort(self.group, kind="stable")
        _, starts = np.unique(self.group[order], return_index=True)
        return np.split(order, starts[1:]) if len(order) else []


def copies_among(
    known: Iterable[Signature], others: Sequence[Signature]
) -> list[tuple[int, int | None]]:
    """Return which of `others` are copies of known images.

    Returns
    -------
    list of (int, int)
        The number of the other image, and of the first known one that it is a copy of.
    """
    known = list(known)
    groups = CopyGroups.of([*known, *others])
    count = len(known)
    return [
        (number, int(groups.group[count + number]))
        for number in range(len(others))
        if groups.group[count + number] < count
    ]


class _Points:
    """Signatures, and what is compared of them."""

    def __init__(self, points: npt.NDArray[np.float16]) -> None:
        plain = points.astype(np.float64)  # (n, 1024)
        self.plain = plain - plain.mean(axis=1, keepdims=True)
        self.contrast = self.plain.std(axis=1)
        coarse = self.plain.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
        coarse = coarse.reshape(len(points), -1)
        length = np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-9)
        self.coarse = (coarse / length).astype(np.float32)  # (n, 256)

    def nearest(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return (m, 2) pairs of the numbers `chosen`, each with those nearest to it, roughly."""
        coarse = self.coarse[chosen]
        count = min(_NEAREST, len(chosen) - 1)
        pairs = []
        for start in range(0, len(chosen), _ROWS):
            alike = coarse[start : start + _ROWS] @ coarse.T
            rows = np.arange(len(alike))
            alike[rows, start + rows] = -np.inf
            near = np.argpartition(-alike, count - 1, axis=1)[:, :count]
            pairs.append(np.stack([(start + rows).repeat(count), near.ravel()], axis=1))
        found = np.sort(np.concatenate(pairs), axis=1)
        return chosen[np.unique(found, axis=0)]

    def left(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return (m,) grey levels that are left between the images of each pair.

        The larger way where the first is little enough for copies.
        """
        found = self._left_of(pairs)
        near = found < _LIMITS[0]
        found[near] = np.maximum(found[near], self._left_of(pairs[near][:, ::-1]))
        return found

    def _left_of(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return (m,) what is left of the second image of each pair when the first explains it."""
        found = np.empty(len(pairs))
        for start in range(0, len(pairs), _PAIRS):
            some = pairs[start : start + _PAIRS]
            numbers, which = np.unique(some[:, 0], return_inverse=True)
            image, basis = self.plain[some[:, 1]], _changes(self.plain[numbers])[which.ravel()]
            along = np.einsum("ikj,ij->ik", basis, image)
            rest = np.einsum("ij,ij->i", image, image) - np.square(along).sum(axis=1)
            found[start : start + _PAIRS] = np.sqrt(np.maximum(rest, 0.0) / image.shape[1])
        return found


def _changes(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return orthonormal bases (n, 5, 1024) of what light, contrast, a shift and a blur change.

    Of images (n, 1024) that are not constant.
    """
    image = points.reshape(-1, SIDE, SIDE)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    right, left = padded[:, 1:-1, 2:], padded[:, 1:-1, :-2]
    below, above = padded[:, 2:, 1:-1], padded[:, :-2, 1:-1]
    around = right + left + below + above
    changes = [np.ones_like(image), image, right - left, below - above, around - 4.0 * image]
    found = np.stack([one.reshape(len(image), -1) for one in changes], axis=1)
    for number in range(len(changes)):  # Gram and Schmidt
        own = found[:, number]
        for before in range(number):
            other = found[:, before]
            own -= np.einsum("ij,ij->i", own, other)[:, None] * other
        length = np.sqrt(np.einsum("ij,ij->i", own, own))[:, None]
        own /= np.where(length > 1e-6, length, np.inf)
    return found


def _near(points: _Points, same: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return (n,) groups of images that are copies, from those of the same images."""
    known: dict[tuple[int, int], float] = {}

    def left(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        new = [pair for pair in map(tuple, pairs.tolist()) if pair not in known]
        if new:
            known.update(zip(new, points.left(np.array(new)).tolist(), strict=True))
        return np.array([known[pair] for pair in map(tuple, pairs.tolist())])

    for limit in (*_LIMITS, _NOISE):
        group = same
        while True:
            leaders = np.unique(group)
            if len(leaders) == 1:
                break
            pairs = points.nearest(leaders)
            rest = left(pairs)
            bound = np.minimum(limit, _OF_CONTRAST * points.contrast[pairs].min(axis=1))
            joined = pairs[rest < bound]  # of flat images, which differ in brightness, none
            if not len(joined):
                break
            group = _merged(group, joined)
        if limit == _NOISE:
            return group
        if len(leaders) > 1 and limit <= _SMALL * _usual(pairs, rest, leaders):
            return group
    raise AssertionError("the last limit is always taken")


def _usual(
    pairs: npt.NDArray[np.int64],
    rest: npt.NDArray[np.float64],
    leaders: npt.NDArray[np.int64],
) -> float:
    """Return the median over different images of what is left between one and its nearest."""
    nearest = dict.fromkeys(leaders.tolist(), np.inf)
    for (one, other), value in zip(pairs.tolist(), rest.tolist(), strict=True):
        nearest[one] = min(nearest[one], value)
        nearest[other] = min(nearest[other], value)
    return float(np.median(list(nearest.values())))


def _merged(group: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Join the groups of each pair of leaders, (n,), by the first image of each."""
    root = {int(one): int(one) for one in np.unique(group)}

    def find(one: int) -> int:
        while root[one] != one:
            root[one] = root[root[one]]
            one = root[one]
        return one

    for one, other in pairs.tolist():
        low, high = sorted((find(one), find(other)))
        root[high] = low
    return np.array([find(int(one)) for one in group], np.int64)
