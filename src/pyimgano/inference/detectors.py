"""Where a detector for new images comes from: a saved one, or one fitted on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import create_model
from ..models.registry import default_keywords, preset_keywords
from ..models.tiled import TiledDetector
from ..models.tiles import Sides
from .scoring import Scorer


def open_detector(
    *,
    model_dir: Path | None = None,
    run_dir: Path | None = None,
    category: str | None = None,
    device: str = "cpu",
    allow_outside: bool = False,
) -> Scorer:
    """A saved detector: that in `model_dir`, or that which `run_dir` keeps of `category`;
    `allow_outside` as `load_model` has it.

    Raises
    ------
    DataError, UsageError
        There is none, it cannot be read, or the run has several and no category is given.
    """
    from .. import models, runs

    if model_dir is None:
        assert run_dir is not None
        model_dir = Path(runs.find_model(run_dir, category=category))
    return models.load_model(model_dir, device=device, allow_outside=allow_outside)


def tiled(detector: Scorer, tile_size: Sides | None, tile_stride: Sides | None) -> Scorer:
    """The detector, working by tiles of that size; itself where no size is given.

    A detector that was saved with tiles has them already; other ones than its own would make
    its threshold mean nothing.

    Raises
    ------
    UsageError
        A stride without a size, or other tiles than the detector's own.
    """
    if tile_size is None:
        if tile_stride is not None:
            raise UsageError("tile_stride means nothing without tile_size")
        return detector
    if not isinstance(detector, TiledDetector):
        return TiledDetector(detector, tile_size=tile_size, tile_stride=tile_stride)
    asked = TiledDetector(detector.detector, tile_size=tile_size, tile_stride=tile_stride)
    own = (detector.tile_size, detector.tile_stride)
    if (asked.tile_size, asked.tile_stride) != own:
        raise UsageError(
            f"the detector was saved with tiles of {own[0]} at a stride of {own[1]}; "
            f"leave tile_size out, or fit anew"
        )
    return detector


def make_detector(
    model: str,
    *,
    preset: str | None = None,
    device: str = "cpu",
    resize: tuple[int, int] | None = None,
    calibration_quantile: float | None = None,
    calibration_tail: str | None = None,
    roi: Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    tile_size: Sides | None = None,
    tile_stride: Sides | None = None,
) -> Scorer:
    """A detector to fit; what is given beats the preset, that the model's default.

    Raises
    ------
    UsageError
        An unknown name or keyword, a value out of range, or one that is given twice.
    """
    own: dict[str, Any] = {
        "device": device,
        "resize": resize,
        "calibration_quantile": calibration_quantile,
        "calibration_tail": calibration_tail,
        "roi": None if roi is None else str(roi),
    }
    further = dict(model_kwargs or {})
    for name in own:
        if name in further:
            option = name.replace("_", "-")
            raise UsageError(f"{name} in model_kwargs: it has an option of its own, --{option}")
    accepted = default_keywords(model)
    given = {k: v for k, v in own.items() if v is not None and k in accepted}
    if roi is not None and "roi" not in accepted:
        raise UsageError(f"roi means nothing to model {model!r}")
    detector = create_model(model, **{**preset_keywords(model, preset), **given, **further})
    return tiled(detector, tile_size, tile_stride)
