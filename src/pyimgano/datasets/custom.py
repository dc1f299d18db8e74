"""Own images: in folders as people keep them, or listed in a manifest.

The root is one of

- a folder with `train`, and optionally `validation`, `test` and `ground_truth`: one category,
  called `custom`;
- a folder of such folders, or of folders with `good` and `bad`, one a category;
- a manifest (`.csv` or `.jsonl`, see `manifest.py`), or a folder that holds `manifest.csv` or
  `manifest.jsonl` and no `train`;
- a folder with `good` and perhaps `bad`, or other words for them (`words.py`);
- a folder with good images in it or in its subfolders: one category without a test set.

`own_folders.py` reads the folders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DataError, UnknownCategoryError, unknown_name
from .layout import Category, Layout
from .listing import subfolders
from .manifest import SUFFIXES, read_manifest
from .own_folders import (
    has_good_folder,
    has_training_folder,
    images_below,
    looks_like_own,
    own_category,
)
from .stay_inside import require_inside
from .suggestion import fitting_layout

#: The category of a root without categories.
_ONLY = "custom"


class CustomLayout(Layout):
    """A mask is `ground_truth/anomaly/<stem>_mask.png`, or what the manifest says."""

    name = "custom"
    file_root = True
    has_validation = True
    masks_optional = True

    reads = (
        "folders whose names mean good or bad, such as train/good, test/good, test/bad, good and "
        "bad, with the folders in them; bad parts in train are not learned from"
    )

    def __init__(self, *, split: str | None = None, allow_outside: bool = False) -> None:
        super().__init__(split=split, allow_outside=allow_outside)
        self._read: dict[Path, dict[str, Category]] = {}  # manifests, read once

    def list_categories(self, root: Path) -> list[str]:
        names = self._folders_of_categories(root)
        if names:
            return names
        manifest = None if _has_train(root) else self._find_manifest(root)
        if manifest is not None:
            return list(self._manifest(manifest))
        if has_good_folder(root) or images_below(root, root, self.allow_outside):
            return [_ONLY]
        fits = fitting_layout(root, apart=("custom",))
        proposal = f"; this {fits}" if fits else ""
        raise DataError(
            f"{root}: found no dataset; it has to hold train/normal, good and bad, "
            f"<category>/train/normal, good images or manifest.csv{proposal}"
        )

    def require_category(self, root: Path, category: str) -> None:
        names = self.list_categories(root)
        if category in names or (category == _ONLY and len(names) == 1):
            return
        # one without categories may also be called as its folder
        if names != [_ONLY] or category != root.resolve().name:
            raise UnknownCategoryError(f"{root}: {unknown_name('category', category, names)}")

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        names = self.list_categories(root)
        if category not in names:  # another name for the only one
            return replace(self.load(root, names[0]), name=category)
        if self._folders_of_categories(root):
            return own_category(category, root / category, allow_outside=self.allow_outside)
        manifest = None if _has_train(root) else self._find_manifest(root)
        if manifest is None:
            return own_category(category, root, allow_outside=self.allow_outside)
        found = self._manifest(manifest)[category]
        if not found.train:
            raise DataError(f"{manifest}: lists no training image of category {category!r}")
        return found

    def _folders_of_categories(self, root: Path) -> list[str]:
        """Return the names of the folders in `root` that are a category each; none where it is
        one.
        """
        if root.is_file() or _has_train(root):
            return []
        folders = [one for one in subfolders(root) if looks_like_own(one)]
        if any(map(_has_train, folders)):
            return [one.name for one in folders]
        if self._find_manifest(root) is not None or has_good_folder(root):
            return []
        return [one.name for one in folders]

    def _find_manifest(self, root: Path) -> Path | None:
        found = _find_manifest(root)
        if found is not None and found != root:  # a file that is named itself may be a link
            require_inside(found, root, self.allow_outside)
        return found

    def _manifest(self, path: Path) -> dict[str, Category]:
        if path not in self._read:
            self._read[path] = read_manifest(path, allow_outside=self.allow_outside)
        return self._read[path]


def _has_train(root: Path) -> bool:
    return not root.is_file() and has_training_folder(root)


def _find_manifest(root: Path) -> Path | None:
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DataError(f"{root}: is neither a folder nor a manifest (.csv or .jsonl)")
        return root
    named = [root / f"manifest{suffix}" for suffix in SUFFIXES]
    found = [path for path in named if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{root}: holds both {found[0].name} and {found[1].name}; give one as root")
    return found[0] if found else None
