"""Own images: in folders, in one flat folder of good images, or listed in a manifest.

The root is one of

- `train/normal`, and optionally `validation/normal`, `test/normal`, `test/anomaly` and
  `ground_truth/anomaly/<stem>_mask.png`: one category, called `custom`. Other words for good and
  for defective will do too (`words.py`);
- a folder of such folders, one a category;
- a manifest (`.csv` or `.jsonl`, see `manifest.py`), or a folder that holds `manifest.csv` or
  `manifest.jsonl` and none of the above;
- a folder with good images directly in it: one category without a test set.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import DataError, UnknownCategoryError, unknown_name
from .folders import defective_samples, good_samples, train_samples
from .inside import require_inside
from .layout import Category, Layout, Sample
from .listing import category_folders, image_files, is_folder, subfolders
from .manifest import SUFFIXES, read_manifest
from .words import meaning_of_word

#: The category of a root without categories.
_ONLY = "custom"


class CustomLayout(Layout):
    """A mask is `ground_truth/anomaly/<stem>_mask.png`, or what the manifest says."""

    name = "custom"
    file_root = True
    has_validation = True

    reads = (
        "the images directly in train/normal, validation/normal, test/normal, test/anomaly and "
        "ground_truth/anomaly"
    )

    def __init__(self, *, split: str | None = None, allow_outside: bool = False) -> None:
        super().__init__(split=split, allow_outside=allow_outside)
        self._read: dict[Path, dict[str, Category]] = {}  # manifests, read once

    def list_categories(self, root: Path) -> list[str]:
        if _is_single(root):
            return [_ONLY]
        names = [folder.name for folder in category_folders(root, ("train", "test"))]
        if names:
            return names
        manifest = self._find_manifest(root)
        if manifest is not None:
            return list(self._manifest(manifest))
        if image_files(root):
            return [_ONLY]
        raise DataError(
            f"{root}: found no dataset; it has to hold train/normal, <category>/train/normal, good "
            "images or manifest.csv"
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
        if _is_single(root):
            return _from_folders(category, root)
        if is_folder(root) and category_folders(root, ("train", "test")):
            return _from_folders(category, root / category)
        manifest = self._find_manifest(root)
        if manifest is None:
            train = tuple(Sample(path, 0, "good") for path in image_files(root))
            return Category(category, train, folder=root)
        found = self._manifest(manifest)[category]
        if not found.train:
            raise DataError(f"{manifest}: lists no training image of category {category!r}")
        return found

    def _find_manifest(self, root: Path) -> Path | None:
        found = _find_manifest(root)
        if found is not None and found != root:  # a file that is named itself may be a link
            require_inside(found, root, self.allow_outside)
        return found

    def _manifest(self, path: Path) -> dict[str, Category]:
        if path not in self._read:
            self._read[path] = read_manifest(path, allow_outside=self.allow_outside)
        return self._read[path]


def _is_single(root: Path) -> bool:
    return any(meaning_of_word(folder.name) == 0 for folder in subfolders(root / "train"))


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


def _from_folders(category: str, folder: Path) -> Category:
    train = train_samples(folder / "train", "normal")
    test = good_samples(folder / "test")
    bad, strays = defective_samples(folder / "test", folder / "ground_truth", "anomaly")
    return Category(
        category,
        train,
        (*test, *bad),
        validation=tuple(good_samples(folder / "validation")),
        stray_masks=tuple(strays),
        folder=folder,
    )
