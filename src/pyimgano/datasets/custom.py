"""Own images: `train/normal`, `test/normal`, `test/anomaly`, `ground_truth/anomaly`.

The test folders and the masks are optional. The root is one category, named as its folder;
or it holds several such folders, one a category.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .layout import Category, Layout, Sample
from .listing import find_mask, image_files, subfolders, train_files


class CustomLayout(Layout):
    """A mask is `ground_truth/anomaly/<stem>_mask.png`."""

    name = "custom"

    def list_categories(self, root: Path) -> list[str]:
        if (root / "train" / "normal").is_dir():
            return [root.resolve().name]
        names = [f.name for f in subfolders(root) if (f / "train" / "normal").is_dir()]
        if not names:
            raise DataError(f"{root}: train/normal is wanted there, or <category>/train/normal")
        return names

    def load(self, root: Path, category: str) -> Category:
        single = (root / "train" / "normal").is_dir()
        if not (single and category == "custom"):
            self.require_category(root, category)
        folder = root if single else root / category
        train = tuple(Sample(p, 0, "good") for p in train_files(folder / "train" / "normal"))
        good = [Sample(p, 0, "good") for p in image_files(folder / "test" / "normal")]
        masks = folder / "ground_truth" / "anomaly"
        bad = [
            Sample(p, 1, "anomaly", find_mask(masks, p.stem))
            for p in image_files(folder / "test" / "anomaly")
        ]
        return Category(category, train, (*good, *bad))
