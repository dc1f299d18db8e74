"""Dataset layouts by name: the built-in ones, and those of other packages.

Another package adds its own through the entry-point group `pyimgano.datasets`: an entry
point is a subclass of `Layout`.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingFolderError, UnknownNameError, UsageError, unknown_name
from .btad import BTADLayout
from .custom import CustomLayout
from .demo import DemoLayout
from .layout import Layout
from .listing import is_folder
from .mvtec import MVTecLayout
from .mvtec_ad2 import MVTecAD2Layout
from .mvtec_loco import MVTecLOCOLayout
from .visa import VisALayout

_BUILT_IN: tuple[type[Layout], ...] = (
    MVTecLayout,
    MVTecLOCOLayout,
    MVTecAD2Layout,
    VisALayout,
    BTADLayout,
    CustomLayout,
    DemoLayout,
)


def list_datasets() -> list[str]:
    """Return names that `--dataset` takes, without aliases."""
    return sorted({layout.name for layout in _layouts().values()})


def get_layout(name: str, *, split: str | None = None, allow_outside: bool = False) -> Layout:
    """Return the layout called `name`.

    Parameters
    ----------
    name
        One of `list_datasets()`, or an alias.
    split, allow_outside
        As `Layout`.

    Raises
    ------
    UsageError
        An unknown name, with the near ones, or options that do not apply to the layout.
    """
    if not isinstance(name, str):
        raise UsageError(f"dataset must be a name, got {name!r}")
    layouts = _built_in()
    if name not in layouts:  # a plug-in that is broken does no harm to the others
        layouts = _layouts()
    if name not in layouts:
        raise UnknownNameError(unknown_name("dataset", name, layouts))
    options: dict[str, Any] = {} if split is None else {"split": split}
    if allow_outside is not False:
        options["allow_outside"] = allow_outside
    try:
        return layouts[name](**options)
    except TypeError as error:
        if not options:
            raise
        # a plug-in whose `__init__` takes none
        raise UsageError(f"dataset {name!r} does not take {' and '.join(options)}") from error


def open_root(layout: Layout, root: str | Path | None) -> Path:
    """Return the dataset's folder, made ready; for some layouts a file that lists it.

    Raises
    ------
    UsageError
        No root where the layout needs one.
    DataError
        The folder is not there.
    """
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise UsageError(f"root must be a path, got {root!r}")
    folder = Path(root) if root is not None else layout.default_root()
    if folder is None:
        raise UsageError(f"dataset {layout.name!r} needs a root (--root), the folder it lies in")
    layout.prepare(folder)
    if not is_folder(folder) and not (layout.file_root and folder.is_file()):
        root_of = f"(the root of dataset {layout.name!r})"
        if folder.exists():
            raise DataError(f"{folder}: is not a folder {root_of}")
        raise MissingFolderError(f"{folder}: no such folder {root_of}")
    return layout.locate(folder)


def _built_in() -> dict[str, type[Layout]]:
    return {name: layout for layout in _BUILT_IN for name in (layout.name, *layout.aliases)}


def _layouts() -> dict[str, type[Layout]]:
    layouts = _built_in()
    for point in entry_points(group="pyimgano.datasets"):
        try:
            layout = point.load()
            if not (isinstance(layout, type) and issubclass(layout, Layout)):
                raise TypeError(f"{layout!r} is not a subclass of Layout")
            names = (layout.name, *layout.aliases)
        except Exception as error:
            warnings.warn(
                f"the dataset plug-in {point.name!r} ({point.value}) cannot be loaded: {error}",
                stacklevel=3,
            )
            continue
        for name in names:
            layouts.setdefault(name, layout)
    return layouts
