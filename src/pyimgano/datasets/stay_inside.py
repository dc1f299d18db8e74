"""Loading a category, held to the dataset's own folder: what leads out is not read unasked.

An untrusted archive can hold links to anywhere. Following them would put files of this machine,
which were never given to us, into reports, overlays and saved detectors.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import DataError
from ..untrusted_files import leads_out
from .layout import Category, Layout
from .unused import unused_files


def load_category(layout: Layout, root: Path, name: str) -> Category:
    """Load a category, and look at where its files lie; none of them is opened.

    What lies in the category's folder and is not used is in `unused` and in the notes.

    Raises
    ------
    DataError
        As `load`; also for an image or mask that lies outside the dataset's folder by way of a
        link, unless the layout's `allow_outside` is set.
    """
    category = layout.load(root, name)
    if not layout.allow_outside:
        _require_all_inside(category, layout, root)
    unused = unused_files(layout, category)
    messages = tuple(one.message for one in unused)
    return replace(category, unused=unused, notes=(*category.notes, *messages))


def _require_all_inside(category: Category, layout: Layout, root: Path) -> None:
    home = os.path.realpath(root.parent if layout.file_root and root.is_file() else root)
    folders: dict[str, bool] = {}  # whether they lie outside
    for sample in (*category.train, *category.validation, *category.test):
        for path in (sample.path, *sample.mask_paths):
            _require_inside(path, home, folders)
    for path in category.stray_masks:
        _require_inside(path, home, folders)


def require_inside(path: Path, root: Path, allow_outside: bool) -> None:
    """Raise `DataError` if a file of the dataset lies outside its folder `root`."""
    if not allow_outside and leads_out(path, root):
        raise _outside(path)


def _require_inside(path: Path, home: str, folders: dict[str, bool]) -> None:
    folder = os.path.dirname(path)  # noqa: PTH120 -- thousands of them
    if folder not in folders:
        folders[folder] = leads_out(folder, home)
    # a link that is broken leads nowhere yet; it is looked at all the same
    if leads_out(path, home) if os.path.islink(path) else folders[folder]:  # noqa: PTH114
        raise _outside(path)


def _outside(path: Path) -> DataError:
    return DataError(
        f"{path}: lies outside the dataset's folder by way of a link; --allow-outside "
        "(allow_outside=True) reads it all the same"
    )
