"""Own images: `train/normal`, `test/normal`, `test/anomaly`, `ground_truth/anomaly`.

The test folders and the masks are optional. The root is one category, named as its folder or
`custom`; or it holds several such folders, one a category.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .layout import Category, Layout, Sample
from .listing import Masks, category_folders, image_files, is_folder, train_files


class CustomLayout(Layout):
    """A mask is `ground_truth/anomaly/<stem>_mask.png`."""

    name = "custom"

    def list_categories(self, root: Path) -> list[str]:
        if is_folder(root / "train" / "normal"):
            return [root.resolve().name]
        names = [folder.name for folder in category_folders(root, ("train", "test"))]
        if not names:
            raise DataError(f"{root}: train/normal is wanted there, or <category>/train/normal")
        return names

    def require_category(self, root: Path, category: str) -> None:
        if category != "custom" or not is_folder(root / "train" / "normal"):
            super().require_category(root, category)

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        single = is_folder(root / "train" / "normal")
        folder = root if single else root / category
        train = tuple(Sample(p, 0, "good") for p in train_files(folder / "train" / "normal"))
        good = [Sample(p, 0, "good") for p in image_files(folder / "test" / "normal")]
        masks = Masks(folder / "ground_truth" / "anomaly")
        bad = [
            Sample(p, 1, "anomaly", masks.of(p.stem))
            for p in image_files(folder / "test" / "anomaly")
        ]
        return Category(category, train, (*good, *bad))
