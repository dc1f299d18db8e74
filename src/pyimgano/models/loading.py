"""Loading a saved detector: nothing in the folder is run, and nothing is taken on trust."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration import PixelCalibration
from ..errors import PyimganoError, SavedModelError, UsageError, WeightsError
from ..foreign import quoted
from ..images import MAX_BIT_DEPTH, RegionOfInterest
from .detector import Detector, SkippedImage
from .parameters import parameter_names
from .registry import model_entry
from .saved_document import ARRAYS, BACKBONE, MAX_BYTES, SavedDocument, read_document, read_file
from .saved_state import SavedState
from .saving import STATE, can_be_saved, is_fetched
from .seen_images import SeenImages
from .suspects import ExcludedImage, TrainingSuspect
from .tiled import TiledDetector
from .tiled_settings import restore_tiled


def load_model(
    folder: str | Path,
    *,
    device: str | None = None,
    weights: str | Path | None = None,
    allow_outside: bool = False,
) -> Detector | TiledDetector:
    """A detector as `Detector.save`, or `TiledDetector.save`, left it.

    Scores and maps are those of the saved detector to the bit on the same engine and machine;
    on another engine a warning says so. The weights of the backbone are taken from `weights`,
    else from the folder if they were saved with it, else from where they came from when it was
    fitted: the installed package, the seed, or, with `allow_outside`, the file. They must be the
    same.

    Parameters
    ----------
    folder
        Of `Detector.save`.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`; None takes what was asked for when it was fitted.
    weights
        The file of the backbone's weights.
    allow_outside
        Whether a file of weights that the saved detector names is read: it may name any file of
        this machine.

    Returns
    -------
    Detector or TiledDetector
        Fitted. Its keywords are those of the fit, with `device` and `weights` as they are now,
        the region of interest itself for `roi`, and no `cache_dir`.

    Raises
    ------
    SavedModelError
        No saved detector, one of a newer version, or one that is damaged or was tampered with;
        a model that is not known here; weights that are missing or others. The line says which.
    UsageError
        A `device` that is not there, or an argument that does not apply to the model.
    """
    folder = Path(os.path.expanduser(folder))  # noqa: PTH111 -- an unknown user is no error
    document = read_document(folder)
    arrays = _read_arrays(folder / ARRAYS, document)
    try:
        entry = model_entry(document.model)
    except UsageError as error:
        raise SavedModelError(f"{folder}: {error}") from None
    if not can_be_saved(entry.detector):
        raise SavedModelError(f"{folder}: model {document.model!r} cannot be loaded here")
    detector = _make(folder, document, entry.detector, _region(folder, document, arrays))
    _override(detector, folder, document, device, weights, allow_outside)
    params = detector.validate_params()
    if "device" in vars(params):
        from ..backbones import resolve_device

        try:
            resolve_device(params.device)
        except UsageError as error:
            remedy = "" if device is not None else "; give it with load_model(..., device=)"
            raise UsageError(f"{folder}: {error}{remedy}") from None
    detector.params_ = params
    detector.roi_ = getattr(params, "roi", None)
    scores = arrays.pop("decision_scores")
    detector.decision_scores_ = scores
    try:
        detector.calibration_ = document.calibration.restored()
    except ValueError as error:
        raise SavedModelError(f"{folder}: {error}") from None
    # where it is another, as earlier versions left it, the calibration says so from now on
    detector.threshold_ = document.threshold
    pixels = document.pixel_calibration
    detector.pixel_calibration_ = (
        None if pixels is None else PixelCalibration(**pixels.model_dump())
    )
    detector.n_train_ = document.n_train
    detector.copies_ = ()  # positions in a list that is not there any more
    seen = document.training_images
    detector.seen_ = None if seen is None else SeenImages(**seen.model_dump())
    detector.skipped_ = [SkippedImage(**one.model_dump()) for one in document.skipped]
    detector.remarked_ = [SkippedImage(**one.model_dump()) for one in document.remarked]
    detector.training_suspects_ = [
        TrainingSuspect(**{**one.model_dump(), "reasons": tuple(one.reasons)})
        for one in document.suspects
    ]
    detector.excluded_ = [
        ExcludedImage(one.index, one.path, one.score, tuple(one.reasons), one.role)
        for one in document.excluded
    ]
    own = {name.removeprefix(STATE): array for name, array in arrays.items()}
    expected = None if document.backbone is None else document.backbone.state_sha256
    saved = SavedState(own, document.state, expected)
    try:
        if detector.roi_ is not None:
            detector.roi_.require_some(tuple(params.resize))
        detector._restore(saved)
        saved.require_all_used()
    except PyimganoError as error:
        remedy = ""
        if isinstance(error, WeightsError) and getattr(params, "weights", None) is not None:
            remedy = "; give the file of the backbone's weights with load_model(..., weights=)"
        raise SavedModelError(f"{folder}: {error}{remedy}") from error
    except Exception as error:  # numbers that no fit leaves behind, wherever they are noticed
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SavedModelError(f"{folder}: cannot be restored ({reason})") from error
    _tell_of_another_engine(folder, document, detector)
    if document.tiles is None:
        return detector
    return restore_tiled(detector, document.tiles, str(folder))


def _read_arrays(path: Path, document: SavedDocument) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load

    data = read_file(path, MAX_BYTES, document.arrays)
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(data)
    except Exception as error:  # the reader has errors of its own, and no code of the file runs
        reason = " ".join(str(error).split())[:200]
        raise SavedModelError(f"{path}: not a readable safetensors file ({reason})") from error
    for name, array in arrays.items():
        known = name == "decision_scores" or name.startswith(STATE)
        if not known and not (name == "roi" and _has_mask(document)):
            raise SavedModelError(f"{path}: an unexpected array {name!r}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SavedModelError(f"{path}: {name} holds values that are not finite")
    scores = arrays.get("decision_scores")
    if scores is None or scores.dtype != np.float64 or scores.ndim != 1 or not len(scores):
        raise SavedModelError(f"{path}: decision_scores, float64 of shape (any), is missing")
    return arrays


def _has_mask(document: SavedDocument) -> bool:
    return document.roi is not None and document.roi.polygons is None


def _region(
    folder: Path, document: SavedDocument, arrays: dict[str, npt.NDArray[Any]]
) -> RegionOfInterest | None:
    if document.roi is None:
        return None
    origin = f"{folder}: roi"
    try:
        if _has_mask(document):
            mask = arrays.pop("roi", None)
            if mask is None or mask.dtype != np.uint8 or mask.ndim != 2 or (mask > 1).any():
                raise SavedModelError(f"{origin}: the array 'roi', uint8 of 0 and 1, is missing")
            region = RegionOfInterest.from_mask(mask, origin)
        else:
            region = RegionOfInterest.from_polygons(document.roi.polygons, origin)
    except UsageError as error:
        raise SavedModelError(str(error)) from None
    if region.sha256 != document.roi.sha256:
        raise SavedModelError(f"{origin}: is not the region that was saved (its hash is another)")
    return region


def _make(
    folder: Path, document: SavedDocument, cls: type[Detector], region: RegionOfInterest | None
) -> Detector:
    """Not fitted, with the saved keywords, which are checked."""
    known = parameter_names(cls)
    for name in document.parameters:
        if name not in known or name == "roi":
            raise SavedModelError(
                f"{folder}: the model {document.model!r} has no keyword {name[:80]!r} here"
            )
    keywords = dict(document.parameters)
    if "cache_dir" in keywords:
        keywords["cache_dir"] = None  # a folder of the machine it was fitted on
    if "bit_depth" in known and "bit_depth" not in keywords:
        # saved when images were read over all 16 bits, whatever they declare
        keywords["bit_depth"] = MAX_BIT_DEPTH
    if region is not None:
        if "roi" not in known:
            raise SavedModelError(f"{folder}: model {document.model!r} has no roi here")
        keywords["roi"] = region
    if is_fetched(keywords.get("backbone")):
        raise SavedModelError(
            f"{folder}: its backbone would be fetched from elsewhere, which is not done"
        )
    try:
        detector = cls(**keywords)
        params = detector.validate_params()
    except UsageError as error:
        raise SavedModelError(f"{folder}: parameters: {error}") from None
    for name in keywords:  # as the keywords' types have it: tuples for lists
        setattr(detector, name, getattr(params, name))
    return detector


def _override(
    detector: Detector,
    folder: Path,
    document: SavedDocument,
    device: str | None,
    weights: str | Path | None,
    allow_outside: bool,
) -> None:
    given: dict[str, Any] = {}
    if device is not None:
        given["device"] = device
    if weights is not None:
        given["weights"] = str(weights)
    for name in given:
        if name not in parameter_names(type(detector)) or document.backbone is None:
            raise UsageError(f"{name} does not apply to the saved model {document.model!r}")
    if weights is None and document.backbone is not None and document.backbone.file is not None:
        file = folder / BACKBONE
        read_file(file, MAX_BYTES, document.backbone.file)
        given["weights"] = str(file.absolute())
    named = getattr(detector, "weights", None)
    if named is not None and "weights" not in given and not allow_outside:
        raise SavedModelError(
            f"{folder}: the file of its backbone's weights, {quoted(str(named), 200)}, lies "
            "outside it and is not read unasked; give it with load_model(..., weights=), or "
            "allow_outside=True (--allow-outside)"
        )
    detector.set_params(**given)


def _tell_of_another_engine(folder: Path, document: SavedDocument, detector: Detector) -> None:
    backbone = detector._frozen_backbone()
    if backbone is None or document.backbone is None:
        return
    then, now = document.backbone, backbone.describe()
    if then.precision != now["precision"]:
        warnings.warn(
            f"{folder}: fitted in {then.precision}, and computed in {now['precision']} here: "
            "scores differ, and the threshold does not hold for them",
            stacklevel=3,
        )
    was, is_now = f"{then.engine} on {then.device}", f"{now['engine']} on {now['device']}"
    if was != is_now:
        warnings.warn(
            f"{folder}: fitted with {was}, now {is_now}: scores may differ in their last digits",
            stacklevel=3,
        )
