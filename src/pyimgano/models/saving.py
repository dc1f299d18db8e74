"""From a fitted detector to the files of its folder, and back.

It knows what a fitted detector consists of, and neither the registry nor any class of detectors:
whoever restores one gives the class.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration import PixelCalibration
from ..errors import PyimganoError, SavedModelError, UsageError, WeightsError
from ..images import MAX_BIT_DEPTH, RegionOfInterest
from ..untrusted_files import quoted
from .method import Method
from .parameters import parameter_defaults
from .saved import (
    ARRAYS,
    BACKBONE,
    DOCUMENT,
    MAX_BYTES,
    SCHEMA_VERSION,
    STATE,
    BackboneFacts,
    CalibrationFacts,
    ImageFacts,
    PixelCalibrationFacts,
    RegionFacts,
    SavedDocument,
    SeenFacts,
    SuspectFacts,
    TileFacts,
    has_mask,
    read_file,
    serialized,
)
from .saved_state import SavedState
from .seen_images import SeenImages
from .suspects import ExcludedImage, TrainingSuspect
from .training_images import SkippedImage

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "pyimgano",
    "pyod",
    "safetensors",
    "scikit-learn",
    "scipy",
    "simplejpeg",
    "torch",
)


# ---- from a detector to files


def can_be_saved(cls: Any) -> bool:
    """Return whether the method of a class of detectors says how it is restored."""
    method = getattr(cls, "method", Method)
    return bool(method.restore is not Method.restore)


def require_saveable(detector: Any) -> str:
    """Return the registered name of the detector.

    Raises
    ------
    UsageError
        It has none, it does not say how it is saved, or it could not be loaded.
    """
    cls = type(detector)
    if not can_be_saved(cls):
        raise UsageError(f"{cls.__name__} cannot be saved: its method has no restore")
    name: str | None = vars(cls).get("registered_name")
    if name is None:
        raise UsageError(f"{cls.__name__} cannot be saved: it is not registered (register_model)")
    if is_fetched(getattr(detector, "backbone", None)):
        raise UsageError(
            f"a detector with backbone {detector.get_params()['backbone']!r} cannot be saved: "
            "loading it would fetch a network from elsewhere"
        )
    return name


def is_fetched(backbone: Any) -> bool:
    """Return whether the name tells timm of a place on the network or on the disk."""
    short = str(backbone).removeprefix("timm:")
    return short != str(backbone) and (":" in short or "/" in short)


def saved_files(
    detector: Any, include_backbone: bool, tiles: TileFacts | None = None
) -> dict[str, bytes]:
    """Return the files of a fitted detector by name, the document last; `tiles` of a tiled one.

    Raises
    ------
    UsageError
        It cannot be saved (`require_saveable`).
    DataError
        Some numbers are not finite.
    """
    name = require_saveable(detector)
    include_backbone |= _weights_of_another(detector)
    files: dict[str, bytes] = {}
    document = _document(detector, name, include_backbone, tiles, files)
    text = document.model_dump_json(indent=2) + "\n"
    files[DOCUMENT] = text.encode()  # last, so that what is cut has none
    return files


def _weights_of_another(detector: Any) -> bool:
    """Return whether the backbone's weights lie with a saved detector, which may be moved or
    replaced.
    """
    weights = getattr(detector.params_, "weights", None)
    if weights is None:
        return False
    path = Path(weights)
    return path.name == BACKBONE and (path.parent / DOCUMENT).is_file()


def _document(
    detector: Any,
    name: str,
    include_backbone: bool,
    tiles: TileFacts | None,
    files: dict[str, bytes],
) -> SavedDocument:
    """Return the document, and in `files` what it tells of."""
    state = detector.learned_.state()
    arrays = {f"{STATE}{key}": value for key, value in state.arrays.items()}
    arrays["decision_scores"] = detector.decision_scores_
    region = detector.roi_
    roi = None
    if region is not None:
        if region.mask is not None:
            arrays["roi"] = region.mask.astype(np.uint8)
        roi = RegionFacts(
            polygons=None
            if region.polygons is None
            else [[list(point) for point in ring] for ring in region.polygons],
            sha256=region.sha256,
            share=float(region.counted(tuple(detector.params_.resize)).mean()),
        )
    backbone = detector.backbone_
    network = None
    if backbone is not None:
        network = BackboneFacts(
            **backbone.describe(),
            state_sha256=backbone.state_sha256,
            file=serialized(BACKBONE, backbone.state(), files) if include_backbone else None,
        )
    pixels, seen = detector.pixel_calibration_, detector.seen_
    parameters = {key: value for key, value in vars(detector.params_).items() if key != "roi"}
    versions = _versions()
    return SavedDocument(
        schema_version=SCHEMA_VERSION,
        kind="pyimgano-detector",
        pyimgano_version=versions.pop("pyimgano", "unknown"),
        versions=versions,
        saved_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        model=name,
        parameters=_plain(parameters),
        threshold=float(detector.threshold_),
        calibration=CalibrationFacts.of(detector.calibration_),
        pixel_calibration=None if pixels is None else PixelCalibrationFacts(**asdict(pixels)),
        n_train=detector.n_train_,
        skipped=[ImageFacts.of(one) for one in detector.skipped_],
        remarked=[ImageFacts.of(one) for one in detector.remarked_],
        suspects=[SuspectFacts.of(one) for one in getattr(detector, "training_suspects_", [])],
        excluded=[SuspectFacts.of(one) for one in getattr(detector, "excluded_", [])],
        roi=roi,
        state=_plain(dict(state.facts)),
        arrays=serialized(ARRAYS, arrays, files),
        backbone=network,
        training_images=None if seen is None else SeenFacts(**asdict(seen)),
        tiles=tiles,
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False, default=str))
    return plain


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# ---- and back


def restore_detector(
    cls: Any,
    folder: Path,
    document: SavedDocument,
    arrays: dict[str, npt.NDArray[Any]],
    *,
    device: str | None = None,
    weights: str | Path | None = None,
    allow_outside: bool = False,
) -> Any:
    """Return the detector of class `cls` that a document and arrays were made of, fitted.

    Parameters
    ----------
    cls
        A public class of `Detector`.
    folder
        Where both were read, for messages and for weights that lie there.
    document, arrays
        As `saved.read_document` and `saved.read_arrays` give them.
    device, weights, allow_outside
        As `pyimgano.load_model` takes them.

    Raises
    ------
    SavedModelError, UsageError
        As `pyimgano.load_model`.
    """
    if not can_be_saved(cls):
        raise SavedModelError(f"{folder}: model {document.model!r} cannot be loaded here")
    detector = _make(folder, document, cls, _region(folder, document, arrays))
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
    try:
        if detector.roi_ is not None:
            detector.roi_.require_some(tuple(params.resize))
        method = cls.method(params)
        expected = None if document.backbone is None else document.backbone.state_sha256
        saved = SavedState(own, document.state, n_train=document.n_train)
        saved.require_backbone(method.backbone, expected)
        detector.learned_ = method.restore(saved)
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
    return detector


def _region(
    folder: Path, document: SavedDocument, arrays: dict[str, npt.NDArray[Any]]
) -> RegionOfInterest | None:
    if document.roi is None:
        return None
    origin = f"{folder}: roi"
    try:
        if has_mask(document):
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


def _make(folder: Path, document: SavedDocument, cls: Any, region: RegionOfInterest | None) -> Any:
    """Return a detector that is not fitted, with the saved keywords, which are checked."""
    known = parameter_defaults(cls.Params)
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
    detector: Any,
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
        if name not in detector.get_params() or document.backbone is None:
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


def _tell_of_another_engine(folder: Path, document: SavedDocument, detector: Any) -> None:
    backbone = detector.backbone_
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
