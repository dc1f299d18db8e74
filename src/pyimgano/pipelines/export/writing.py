"""`export_detector`: write the model, check it, describe it, and only then give it its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from ...errors import DataError, NotFittedError, UsageError
from ...images import ImageSource, as_sources, image_size
from ...models import Detector, list_models
from ...models.registry import model_entry
from ...runs import write_document
from ...untrusted_files import parse_json, read_regular
from .comparison import compare
from .formats import Format, find_format, open_model, write_model
from .metadata import (
    METADATA,
    ExportedFile,
    ExportMetadata,
    describe_export,
    exported_file,
    registered_name,
)

_EXAMPLE = "example.py"
_README = "README.txt"


def export_detector(
    detector: Detector,
    folder: str | Path,
    *,
    format: str = "openvino",
    check_images: Iterable[ImageSource],
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportMetadata:
    """Write a fitted detector as a folder that runs without pyimgano.

    Normalisation, backbone, memory bank and everything after it are inside the model; only
    decoding and resizing are left to the caller, and stand in metadata.json and example.py.

    Parameters
    ----------
    detector
        A fitted detector whose method can be exported.
    folder
        Made, with its parents; it must not exist, unless `overwrite`.
    format
        `openvino`, `onnx` or `torch` (TorchScript).
    check_images
        Paths or (H, W, 3) uint8 RGB arrays, at least one: the written model and the detector
        both score them, and have to agree (`Comparison`). Best good and defective ones.
    overwrite
        Whether an earlier export in `folder` may be replaced. Anything else is not.
    progress
        Called with (stage, done, total).

    Returns
    -------
    ExportMetadata
        What stands in the folder's metadata.json.

    Raises
    ------
    UsageError
        An unknown format or one that needs what is not installed, a method that cannot be
        exported, no images, a folder that exists, or a detector with a region of interest and
        images of several sizes.
    NotFittedError
        The detector is not fitted.
    ImageReadError
        An image to check on cannot be read, or the region of interest leaves nothing of it.
    DataError
        The folder cannot be written, or the model does not do as the detector does. The
        folder is then as it was before.
    """
    form = find_format(format)
    _require_exportable(detector)
    images = as_sources(check_images, name="check_images")
    if len(images) == 0:
        raise UsageError("check_images is empty: an export is checked on at least one image")
    target = require_free(folder, overwrite)
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        try:
            metadata = _build(detector, form, building, images, progress)
            _put_in_place(building, target, overwrite)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error
    return metadata


def _build(
    detector: Detector,
    form: Format,
    folder: Path,
    images: Sequence[ImageSource],
    progress: Callable[[str, int, int], None] | None,
) -> ExportMetadata:
    """Everything into `folder`; metadata.json last, so that nothing else looks whole."""
    if progress is not None:
        progress("writing the model", 0, 1)
    original_size = _original_size(detector, images)
    graph = detector.export_graph(original_size)
    write_model(form, graph, detector.params_.resize, folder)
    program, engine = open_model(form, folder)
    check = compare(detector, program, engine, images, progress=progress)
    del program  # some systems do not rename a folder with open files
    examples = package_files(__package__) / "examples"
    for name, source in ((_EXAMPLE, f"example_{form.name}.py"), (_README, _README)):
        (folder / name).write_bytes((examples / source).read_bytes())
    names = sorted((*form.files, _EXAMPLE, _README))
    written: dict[str, ExportedFile] = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        written[name] = exported_file(folder / name)
    metadata = describe_export(detector, form, written, check, original_size)
    write_document(folder / METADATA, metadata)
    return metadata


def _original_size(detector: Detector, images: Sequence[ImageSource]) -> tuple[int, int] | None:
    """Return (height, width) of all images, if the export is for one size alone; else None."""
    if getattr(detector, "roi_", None) is None:
        return None
    sizes = {
        (one.shape[0], one.shape[1]) if isinstance(one, np.ndarray) else image_size(one)
        for one in images
    }
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise UsageError(
            "an export of a detector with a region of interest is for images of one size; those "
            f"to check on are of {len(sizes)}: {shown}"
        )
    return sizes.pop()


def _require_exportable(detector: Detector) -> None:
    if not detector.exports:
        able = [name for name in list_models() if model_entry(name).detector.exports]
        raise UsageError(
            f"{registered_name(detector)} cannot be exported; what can: {', '.join(able)}"
        )
    if not detector.__sklearn_is_fitted__():
        raise NotFittedError(f"this {type(detector).__name__} is not fitted yet; call fit first")


def require_free(folder: str | Path, overwrite: bool = False) -> Path:
    """Return where an export to `folder` goes: itself, or what it points to if it is a link.

    Raises
    ------
    UsageError
        It exists and, with `overwrite`, is neither empty nor an export and nothing else.
    """
    target = Path(os.path.realpath(folder))
    if not os.path.lexists(target):
        return target
    if not target.is_dir():
        raise UsageError(f"{target}: is a file; give the name of a folder to create")
    if not overwrite:
        raise UsageError(f"{target}: exists; give another folder, or --overwrite to replace it")
    inside = {path.name for path in target.iterdir()}
    if not inside:
        return target
    try:
        known = parse_json(read_regular(target / METADATA))
        ours = known["kind"] == "pyimgano-export"
        foreign = sorted(inside - {METADATA, *known["files"]})
    except (OSError, ValueError, KeyError, TypeError):
        ours, foreign = False, []
    if not ours:
        raise UsageError(f"{target}: is not an export, so it is not replaced; give another folder")
    if foreign:
        raise UsageError(
            f"{target}: also holds {foreign[0]!r}, which is not part of the export; move it away, "
            "or give another folder"
        )
    return target


def _put_in_place(building: Path, target: Path, overwrite: bool) -> None:
    """Give the new folder its name; an earlier export steps aside, and comes back if need be."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    if overwrite and target.is_dir():
        target.rename(aside)
        try:
            building.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        # on some systems renaming replaces an empty folder: one that was made in the meantime
        require_free(target, overwrite)
        building.rename(target)
    except UsageError as error:
        raise DataError(str(error)) from None
