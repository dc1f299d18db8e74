"""What is left of each image besides its record: map, overlay, mask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError
from ..images import read_image
from ..images.draw import draw_overlay
from ..images.map_scale import REGION_EDGE, MapScale
from ..models import Detector
from ..models.tiled import TiledDetector
from ..runs import (
    InferenceRecord,
    MapFile,
    MapRecord,
    RegionRecord,
    WatchedFile,
    write_bytes,
    write_map,
    write_mask,
)
from ..untrusted_files import leads_out
from .detectors import bits_of
from .regions import Region, at_size, context_share, deciding_regions, map_scale, region_of
from .result_face import rounded_ratio
from .scoring import InferenceResult, MapPostprocess, Scorer, judge_of


@dataclass(frozen=True)
class Wanted:
    """What to leave of each image; folders are made as need be.

    Attributes
    ----------
    maps, overlays, masks
        Folders, or None.
    map_format
        `tiff` (16-bit float) or `npy` (float32).
    map_size
        `original`: maps at the size of their image; `working`: as the detector gives them.
    describe_maps
        Whether records say what the map holds.
    regions
        Whether records list regions.
    min_area
        Regions of fewer pixels are left out, of masks and outlines too.
    postprocess
        What is done to a map (H, W) before it is saved or described. Scores, regions, masks and
        overlays come from the map as the detector gives it.
    """

    maps: Path | None = None
    overlays: Path | None = None
    masks: Path | None = None
    map_format: Literal["tiff", "npy"] = "tiff"
    map_size: Literal["original", "working"] = "original"
    describe_maps: bool = False
    regions: bool = False
    min_area: int = 1
    postprocess: MapPostprocess | None = None

    @property
    def folders(self) -> list[Path]:
        return [one for one in (self.maps, self.overlays, self.masks) if one is not None]

    @property
    def needs_maps(self) -> bool:
        return bool(self.folders) or self.describe_maps or self.regions

    @property
    def needs_regions(self) -> bool:
        return self.regions or self.overlays is not None or self.masks is not None


class Recorder:
    """Makes the record of a result, after its files are on disk.

    Parameters
    ----------
    detector
        Its calibration stands in the records, and says what a map explains.
    wanted
        What to leave.
    pixel_threshold
        Of regions, masks and outlines; None for regions that explain the decision
        (`pyimgano.inference.regions`).
    """

    def __init__(self, detector: Scorer, wanted: Wanted, pixel_threshold: float | None) -> None:
        self._detector = detector
        self._bit_depth = bits_of(detector)
        self._wanted = wanted
        self._limit = pixel_threshold

    def record(
        self,
        result: InferenceResult,
        index: int,
        path: str,
        place: Sequence[str],
        file: WatchedFile | None = None,
    ) -> InferenceRecord:
        """Save what is wanted of the image at `path` under `place`, and make its record.

        Raises
        ------
        DataError
            Something cannot be written.
        """
        judge = judge_of(self._detector, result.product)
        given: dict[str, Any] = {
            "index": index,
            "input": path,
            "score": result.score,
            "threshold": result.threshold,
            "calibration": "none" if judge is None else judge.calibration_.method,
            "pred": result.label,
            "label": result.label,
            "score_ratio": result.score_ratio,
            "p_value": result.p_value,
            "error": result.error,
            "remark": result.remark,
            "original_size": result.original_size,
        }
        if result.product_known_by is not None:
            given["product"] = result.product
            given["product_known_by"] = result.product_known_by
            given["product_p_value"] = result.product_p_value
        if file is not None:
            given["file"] = file
        if result.anomaly_map is not None and result.original_size is not None:
            assert judge is not None
            working = result.anomaly_map
            full = at_size(working, result.original_size, region_of(judge))
            given.update(self._regions(judge, path, place, full, result))
            given.update(self._map(place, working, full))
        return InferenceRecord(**given)

    def _regions(
        self,
        judge: Detector | TiledDetector,
        path: str,
        place: Sequence[str],
        full: npt.NDArray[np.float32],
        result: InferenceResult,
    ) -> dict[str, Any]:
        wanted = self._wanted
        if not wanted.needs_regions:
            return {}
        assert result.score is not None and result.anomaly_map is not None
        scale = map_scale(judge, full, result.score, self._limit)
        found, mask = deciding_regions(
            full,
            scale,
            pixel_threshold=self._limit,
            min_area=wanted.min_area,
            roi=region_of(judge),
        )
        limit = scale.value(REGION_EDGE) if self._limit is None else self._limit
        given: dict[str, Any] = {"pixel_threshold": limit}
        share = context_share(judge, result.score, result.anomaly_map)
        if share is not None:
            given["context_share"] = share
        if wanted.regions:
            given["regions"] = [as_record(region, scale) for region in found]
        if wanted.masks is not None:
            target = _target(wanted.masks, place, ".mask.png")
            write_mask(target, mask)
            given["mask"] = str(target)
        if wanted.overlays is not None:
            try:
                image = read_image(path, bit_depth=self._bit_depth)
                if image.shape[:2] != full.shape:
                    raise ImageReadError(path, "is another image than the one that was scored")
            except ImageReadError as error:
                said = f"no overlay: the image could not be read again: {error.reason}"
                given["remark"] = f"{result.remark}; {said}" if result.remark else said
                return given
            target = _target(wanted.overlays, place, ".overlay.png")
            caption = caption_of(result, share)
            drawn = draw_overlay(image, full, scale, outline=mask, caption=caption)
            del image
            _write_png(target, drawn)
            given["overlay"] = str(target)
        return given

    def _map(
        self,
        place: Sequence[str],
        working: npt.NDArray[np.float32],
        full: npt.NDArray[np.float32],
    ) -> dict[str, Any]:
        wanted = self._wanted
        if wanted.maps is None and not wanted.describe_maps:
            return {}
        chosen = full if wanted.map_size == "original" else working
        if wanted.postprocess is not None:
            chosen = wanted.postprocess(chosen)
        target = None
        if wanted.maps is not None:
            target = _target(wanted.maps, place, f".map.{wanted.map_format}")
            if wanted.map_format == "tiff":
                write_map(target, chosen)
            else:
                buffer = io.BytesIO()
                np.save(buffer, chosen, allow_pickle=False)
                make_folder(target.parent)
                write_bytes(target, buffer.getvalue(), durable=False)
        path, shape = None if target is None else str(target), (chosen.shape[0], chosen.shape[1])
        kept: Literal["float16", "float32"] = "float32"
        if target is not None and wanted.map_format == "tiff":
            kept = "float16"
        return {
            "map": MapRecord(
                path=path,
                shape=shape,
                peak=float(chosen.max()),
                mean=float(chosen.mean(dtype=np.float64)),
            ),
            "anomaly_map": MapFile(path=path, shape=shape, dtype=kept),
        }


def caption_of(result: InferenceResult, context_share: float | None = None) -> str:
    """Say the decision on an image in one line of ASCII."""
    if result.threshold is None:
        return f"score {result.score:.3f}"
    said = ["DEFECT" if result.label else "good"]
    if result.score_ratio is None:  # for a threshold of 0
        said.append(f"score {result.score:.3f}, threshold {result.threshold:.3f}")
    else:
        said.append(f"{rounded_ratio(result.score_ratio)} x threshold")
    if context_share is not None:
        said.append(f"{100 * context_share:.0f} % of it context")
    return "  ".join(said)


def as_record(region: Region, scale: MapScale) -> RegionRecord:
    """Return the region as records have it, with its peak as a multiple of the threshold too."""
    return RegionRecord(
        box=region.box,
        area=region.area,
        peak=region.peak,
        peak_ratio=scale.multiple(region.peak),
        peak_at=region.peak_at,
        centroid=region.centroid,
    )


def _target(folder: Path, place: Sequence[str], suffix: str) -> Path:
    """Raises `DataError` where a link in the folder leads out of it: nothing is written there."""
    target = folder.joinpath(*place[:-1], place[-1] + suffix)
    if leads_out(target.parent, folder):
        raise DataError(
            f"{target.parent}: leads out of {folder} by way of a link; nothing is written there"
        )
    return target


def encode_png(image: npt.NDArray[np.uint8], name: str | Path = "the picture") -> bytes:
    """Return a picture (H, W, 3) uint8 RGB as the content of a PNG file; its pixels are changed.

    Raises
    ------
    DataError
        It cannot be encoded; `name` is what the message calls it.
    """
    cv2.cvtColor(image, cv2.COLOR_RGB2BGR, dst=image)  # in place: it may be large
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise DataError(f"{name}: cannot be encoded as PNG")
    found: bytes = data.tobytes()
    return found


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    data = encode_png(image, path)
    make_folder(path.parent)
    write_bytes(path, data, durable=False)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs; raises `DataError` where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
