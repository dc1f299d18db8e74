"""The ground truth of pixels: masks beside maps, gathered image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError
from .layout import Sample, Saturation
from .masks import NO_MASK, MaskError, Move, Region, load_mask, load_regions

Mask = npt.NDArray[np.uint8]


class ScoredImage(Protocol):
    """What is asked of the score of an image."""

    @property
    def index(self) -> int: ...
    @property
    def anomaly_map(self) -> npt.NDArray[np.float32] | None: ...
    @property
    def original_size(self) -> tuple[int, int] | None: ...


class PixelProblem(NamedTuple):
    """Something wrong with a file, of a kind that reports know."""

    kind: str
    path: str
    message: str


@dataclass
class Pixels:
    """Masks and maps of the test images so far, or why pixel metrics are out of reach.

    Attributes
    ----------
    resize
        (height, width) of masks and maps.
    wanted
        Whether any are gathered.
    given
        (N, H, W) masks that beat the samples' own mask files.
    saturation
        By value of a mask's pixels, where regions are wanted.
    counted_of
        By (height, width) of an image, which pixels of its map count; None if all do. Pixels
        outside the region of interest are in no metric.
    counted
        Of every image so far; empty without a region of interest.
    masks, maps, regions
        One of each for every image so far; empty once one image has no usable mask.
    usable
        Defective images with a usable mask.
    unusable
        Names of those without.
    postprocess
        What is done to each map before it is measured.
    no_regions
        Why there is no sPRO although regions are wanted.
    problems
        One for each file that something was wrong with.
    """

    resize: tuple[int, int]
    wanted: bool
    given: Mask | None
    saturation: Mapping[int, Saturation] | None
    counted_of: Callable[[tuple[int, int]], npt.NDArray[np.bool_] | None] = lambda size: None
    counted: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    maps: list[npt.NDArray[np.float32]] = field(default_factory=list)
    regions: list[list[Region]] = field(default_factory=list)
    usable: int = 0
    unusable: list[str] = field(default_factory=list)
    no_regions: str | None = None
    postprocess: Callable[[npt.NDArray[np.float32]], Any] | None = None
    problems: list[PixelProblem] = field(default_factory=list)

    def add(self, sample: Sample, result: ScoredImage, move: Move | None = None) -> None:
        """Take in a scored image; `move` moves its mask files as the image was moved."""
        if not self.wanted or result.anomaly_map is None:
            return
        mask: Mask | None = np.zeros(self.resize, np.uint8)
        regions: list[Region] = []
        if self.given is not None:
            mask = self.given[result.index]
        elif sample.label:
            mask, regions = self._masks_of(sample, result.original_size, move)
        if mask is None:
            self.unusable.append(sample.path.name)
            self.masks, self.maps, self.regions = [], [], []  # of no use any more
            self.counted = []
        elif not self.unusable:
            counted = self.counted_at(result.original_size)
            if counted is not None:
                mask, regions = self._within(sample, mask, regions, counted)
                self.counted.append(counted)
            self.masks.append(mask)
            self.maps.append(self.prepared(result.anomaly_map))
            self.regions.append(regions)

    def counted_at(self, image_size: tuple[int, int] | None) -> npt.NDArray[np.bool_] | None:
        """Return (H, W) bool, which pixels count of an image of that size; None if all do."""
        counted = self.counted_of(image_size or self.resize)
        if counted is None or counted.shape == self.resize:
            return counted
        # masks that were given have a size of their own
        size = (self.resize[1], self.resize[0])
        small = counted.astype(np.uint8)
        return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_NEAREST) > 0)

    def prepared(self, anomaly_map: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the map as it is measured: at the masks' size, and post-processed.

        Raises
        ------
        DataError
            What post-processes it gives another size, or values that are not finite.
        """
        if anomaly_map.shape != self.resize:
            size = (self.resize[1], self.resize[0])
            resized = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)
            anomaly_map = np.asarray(resized, np.float32)
        if self.postprocess is None:
            return anomaly_map
        done = np.asarray(self.postprocess(anomaly_map), np.float32)
        if done.shape != self.resize or not np.isfinite(done).all():
            raise DataError(
                f"postprocess gave a map of shape {done.shape}, wanted {self.resize}, all finite"
            )
        return done

    def _within(
        self, sample: Sample, mask: Mask, regions: list[Region], counted: npt.NDArray[np.bool_]
    ) -> tuple[Mask, list[Region]]:
        """Return what of a mask and of its regions lies in the region of interest."""
        inside = np.where(counted, mask, 0).astype(np.uint8)
        if mask.any() and not inside.any():
            path = sample.mask_paths[0] if sample.mask_paths else sample.path
            reason = "no pixel of the defect lies in the region of interest"
            self.note("mask_outside_roi", path, reason)
        kept = []
        for one in regions:
            part = one.mask & counted
            area = int(part.sum())
            if area:
                kept.append(replace(one, mask=part, saturation=min(one.saturation, float(area))))
        return inside, kept

    def _masks_of(
        self, sample: Sample, image_size: tuple[int, int] | None, move: Move | None
    ) -> tuple[Mask | None, list[Region]]:
        """Return the united masks, None if they will not do; and the regions, if they are
        wanted.
        """
        if not sample.mask_paths:
            self.note("mask_missing", sample.path, NO_MASK)
            return None, []
        try:
            if self.saturation is not None:
                return self._regions_of(sample, image_size, self.saturation, move)
            mask = load_mask(sample.mask_paths, image_size, self.resize, move)
        except ImageReadError as error:
            kind = "mask_missing" if error.missing else "mask_unreadable"
            self.note(kind, error.path, error.reason)
            return None, []
        except MaskError as error:
            self.note(error.kind, error.path, error.reason)
            return None, []
        self.usable += 1
        if not mask.any():
            if load_mask(sample.mask_paths, None, image_size or self.resize).any():
                self._vanishes(sample.mask_paths[0])
            else:
                self._empty(sample.mask_paths[0])
        return mask, []

    def _regions_of(
        self,
        sample: Sample,
        image_size: tuple[int, int] | None,
        saturation: Mapping[int, Saturation],
        move: Move | None,
    ) -> tuple[Mask, list[Region]]:
        try:
            regions = load_regions(sample.mask_paths, image_size, self.resize, saturation, move)
        except MaskError as error:
            if error.kind != "mask_value":
                raise
            self.note(error.kind, error.path, error.reason)
            self.no_regions = f"{error.path.name}: {error.reason}"
            mask = load_mask(sample.mask_paths, image_size, self.resize, move)
            self.usable += 1
            return mask, []
        self.usable += 1
        if not regions:
            self._empty(sample.mask_paths[0])
        for region in regions:
            if not region.saturation:
                self._vanishes(region.path)
        united = np.zeros(self.resize, np.uint8)
        for region in regions:
            united |= region.mask
        return united, [region for region in regions if region.saturation]

    def _empty(self, path: Path) -> None:
        self.note("mask_empty", path, "the mask of a defective image is empty")

    def _vanishes(self, path: Path) -> None:
        height, width = self.resize
        reason = f"nothing is left of the mask at {width} x {height} pixels"
        self.note("mask_vanishes", path, reason)

    def note(self, kind: str, path: str | Path, message: str) -> None:
        """Note that something is wrong with a file."""
        self.problems.append(PixelProblem(kind, str(path), message))

    def arrays(self) -> dict[str, Any]:
        """Keywords of `evaluate_scores`; none without usable masks."""
        if not self.masks:
            return {}
        regions = None
        if self.saturation is not None and self.no_regions is None:
            regions = [[(one.mask, one.saturation) for one in image] for image in self.regions]
        return {
            "pixel_masks": np.stack(self.masks),
            "pixel_scores": np.stack(self.maps),
            "regions": regions,
            "pixel_counted": np.stack(self.counted) if self.counted else None,
        }

    def reason(self, has_maps: bool) -> str:
        """Return why there are no pixel metrics."""
        if not has_maps:
            return "the method scores whole images and has no anomaly maps"
        if not self.wanted:
            return "pixel metrics were not asked for"
        if self.unusable:
            named = ", ".join(self.unusable[:3]) + ", ..." * (len(self.unusable) > 3)
            plural = "s have" if len(self.unusable) > 1 else " has"
            return f"{len(self.unusable)} defective image{plural} no usable mask: {named}"
        return "no test image could be scored"
