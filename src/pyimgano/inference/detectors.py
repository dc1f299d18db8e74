"""Where a detector for new images comes from: a saved one, or one fitted on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import Detector, create_model
from ..models.adapted import adapt
from ..models.many_products import ManyProducts
from ..models.parameters import understand
from ..models.registry import default_keywords, preset_keywords
from ..models.tiled import TiledDetector
from ..models.tiles import Sides
from .scoring import OneProduct, Scorer


def open_detector(
    *,
    model_dir: Path | None = None,
    run_dir: Path | None = None,
    category: str | None = None,
    device: str | None = "cpu",
    allow_outside: bool = False,
) -> Scorer:
    """Return a saved detector: that in `model_dir`, or that which `run_dir` keeps of `category`;
    `device` and `allow_outside` as `load_model` has them.

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


def tiled(
    detector: OneProduct,
    tile_size: Sides | None,
    tile_stride: Sides | None,
    rules: Mapping[str, Any] | None = None,
) -> OneProduct:
    """Return the detector working by tiles of that size; itself where no size is given.

    `rules` are the keywords of `TiledDetector` about how tiles' scores and maps become the
    image's; those that are None are left out.

    A detector that was saved with tiles has them already; other ones than its own would make
    its threshold do not apply.

    Raises
    ------
    UsageError
        A stride without a size, or other tiles than the detector's own.
    """
    if tile_size is None:
        if tile_stride is not None:
            raise UsageError("tile_stride has no effect without tile_size")
        return detector
    given = {name: value for name, value in (rules or {}).items() if value is not None}
    if not isinstance(detector, TiledDetector):
        return TiledDetector(detector, tile_size=tile_size, tile_stride=tile_stride, **given)
    asked = TiledDetector(detector.detector, tile_size=tile_size, tile_stride=tile_stride, **given)
    own = (detector.tile_size, detector.tile_stride)
    for name in given:
        was, is_now = getattr(detector, name), getattr(asked, name)
        if was != is_now:
            raise UsageError(
                f"the detector was saved with {name} {was!r}, got {is_now!r}; leave it out, or "
                "fit anew"
            )
    if (asked.tile_size, asked.tile_stride) != own:
        raise UsageError(
            f"the detector was saved with tiles of {own[0]} at a stride of {own[1]}; "
            f"leave tile_size out, or fit anew"
        )
    return detector


def bits_of(detector: Scorer) -> int | None:
    """Return the bit depth that a detector reads images with; None for what each file declares."""
    inner = detector.detector if isinstance(detector, TiledDetector) else detector
    return inner.bits_read() if isinstance(inner, (Detector, ManyProducts)) else None


def require_bit_depth(detector: Scorer, bit_depth: int | None) -> None:
    """Raise `UsageError` where `bit_depth` is not what the fitted detector was fitted with.

    None asks for nothing: the detector reads images as it did when it was fitted.
    """
    own = bits_of(detector)
    if bit_depth is None or bit_depth == own:
        return
    how = "without a bit depth, by what each file declares" if own is None else f"with {own}"
    raise UsageError(
        f"bit_depth {bit_depth} contradicts the detector, which was fitted {how}; leave it out, or "
        "fit anew"
    )


def make_detector(
    model: str,
    *,
    preset: str | None = None,
    device: str = "cpu",
    pretrained: bool | None = None,
    contamination: float | None = None,
    resize: tuple[int, int] | None = None,
    calibration_quantile: float | None = None,
    calibration_tail: str | None = None,
    roi: Path | None = None,
    bit_depth: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    tile_size: Sides | None = None,
    tile_stride: Sides | None = None,
    tile_rules: Mapping[str, Any] | None = None,
    create: Callable[..., Any] = create_model,
) -> OneProduct:
    """Make a detector to fit; what is given beats the preset, that the model's default.

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
        "bit_depth": bit_depth,
    }
    # these two may stand in model_kwargs as well, where the options do not give them
    own |= {
        name: value
        for name, value in (("pretrained", pretrained), ("contamination", contamination))
        if value is not None
    }
    if create is not create_model:  # it may know other names, and be fitted already
        asked = {name: value for name, value in own.items() if value is not None}
        quantile = (
            {} if calibration_quantile is None else {"calibration_quantile": calibration_quantile}
        )
        made = adapt(create(model, **{**asked, **(model_kwargs or {})}), fitted=True, **quantile)
        return tiled(made, tile_size, tile_stride, tile_rules)
    accepted = default_keywords(model)
    further = dict(model_kwargs or {})
    if resize is None:
        further = understand(further, accepted)
    for name in own:
        if name in (model_kwargs or {}):
            option = name.replace("_", "-")
            raise UsageError(f"{name} in model_kwargs: it has an option of its own, --{option}")
    given = {k: v for k, v in own.items() if v is not None and k in accepted}
    if roi is not None and "roi" not in accepted:
        raise UsageError(f"roi does not apply to model {model!r}")
    if bit_depth is not None and "bit_depth" not in accepted:
        raise UsageError(f"bit_depth does not apply to model {model!r}")
    detector = create_model(model, **{**preset_keywords(model, preset), **given, **further})
    return tiled(detector, tile_size, tile_stride, tile_rules)
