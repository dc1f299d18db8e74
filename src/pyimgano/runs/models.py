"""Saved detectors of a run: `categories/<category>/model`, or `model` of a joint run."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote_to_bytes

from ..errors import DataError, UsageError, unknown_name
from ..untrusted_files import leads_out
from .directory import as_file_name, safe_name
from .schema import shown

#: In the folder of a category, where `run_benchmark(save_model=True)` saves its detector.
MODEL_FOLDER = "model"
# What a saved detector has in any version.
_DOCUMENT = "detector.json"


def find_model(run_dir: str | Path, category: str | None = None) -> Path:
    """Return the folder of a saved detector in a run directory, for `pyimgano.load_model`.

    Parameters
    ----------
    run_dir
        Of `run_benchmark(save_model=True)`.
    category
        Whose detector; None where the run has one alone.

    Raises
    ------
    UsageError
        A category that is not there (with the near ones), or none where there are several.
    DataError
        No run directory, no detector saved in it, or none of this category.
    """
    run = Path(run_dir)
    categories = run / "categories"
    try:
        if not run.is_dir():
            raise DataError(f"{run}: no such run directory")
        if not categories.is_dir():
            raise DataError(f"{run}: is not a run directory, it has no folder categories")
        folders = {_name(one): one for one in sorted(categories.iterdir()) if one.is_dir()}
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{run}: cannot be read ({reason})") from error
    joint = run / MODEL_FOLDER
    if (joint / _DOCUMENT).is_file():
        if leads_out(joint, run):
            raise DataError(f"{joint}: lies outside the run by way of a link; name it itself")
        if category is not None:
            raise UsageError(
                f"{run}: keeps one detector of all categories; name the product (--product) "
                "instead of the category"
            )
        return joint
    saved = {
        name: folder / MODEL_FOLDER
        for name, folder in folders.items()
        if (folder / MODEL_FOLDER / _DOCUMENT).is_file()
    }
    for folder in saved.values():
        if leads_out(folder, run):
            raise DataError(
                f"{folder}: lies outside the run by way of a link; name the folder itself"
            )
    if not saved:
        raise DataError(f"{run}: no detector is saved in this run; run it with --save-model")
    if category is None:
        if len(saved) > 1:
            names = ", ".join(sorted(saved))
            raise UsageError(f"{run}: category is missing; detectors are saved for {names}")
        return next(iter(saved.values()))
    place = as_file_name(safe_name(shown(category)))
    for folder in saved.values():
        if folder.parent.name == place:
            return folder
    if place in (folder.name for folder in folders.values()):
        raise DataError(f"{run}: no detector is saved for category {category!r}")
    raise UsageError(f"{run}: {unknown_name('category', category, saved)}")


def _name(folder: Path) -> str:
    """Return the category's name, of which the folder's is made by `safe_name`; cut if it is
    long.
    """
    escaped = folder.name.encode("utf-8", "surrogateescape")
    return unquote_to_bytes(escaped).decode("utf-8", "surrogatepass")
