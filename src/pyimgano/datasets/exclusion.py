"""Training images that a user wants left out, by a list in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError, UsageError
from ..untrusted_files import quoted
from .layout import Category


def read_exclusions(file: str | Path, root: Path) -> list[str]:
    """Lines of a text file in UTF-8, without empty ones and comments (`#`).

    Parameters
    ----------
    file
        The list.
    root
        Relative paths in it start there, or in the folder of a manifest.

    Raises
    ------
    UsageError
        The file cannot be read, is no text, names nothing, or names what is not there.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"exclude: {file}: is not text in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"exclude: {file}: cannot be read ({reason})") from None
    names = []
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if not Path(_key(root, name)).is_file():
            raise UsageError(f"exclude: {file}: line {number}: {quoted(name, 200)} is not a file")
        names.append(name)
    if not names:
        raise UsageError(f"exclude: {file}: names no images")
    return names


def without_excluded(
    category: Category, names: Sequence[str], root: Path
) -> tuple[Category, tuple[str, ...]]:
    """Return the category without the training images named, and the paths of those.

    Names of images of other categories are passed over: one list serves all of a dataset.

    Raises
    ------
    DataError
        No training image would be left.
    """
    unwanted = {_key(root, name) for name in names}
    kept = tuple(one for one in category.train if _key(root, one.path) not in unwanted)
    left_out = tuple(str(one.path) for one in category.train if _key(root, one.path) in unwanted)
    if category.train and not kept:
        raise DataError(
            f"{category.name}: the list of images to exclude names every training image"
        )
    return replace(category, train=kept), left_out


def _key(root: Path, name: str | Path) -> str:
    """Return the real path, so that it does not matter how an image is named."""
    folder = root.absolute() if root.is_dir() else root.absolute().parent  # of a manifest
    return os.path.realpath(folder / name)
