"""MVTec AD: `<category>/train/good`, `<category>/test/<defect>`, `<category>/ground_truth`.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "The MVTec Anomaly Detection Dataset", IJCV
2021. Any category name and any common image suffix will do, so that own data may be laid out
the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..errors import DataError
from .layout import Category, Layout, Sample
from .listing import find_mask, image_files, subfolders, train_files


class MVTecLayout(Layout):
    """One folder a category; a mask is `ground_truth/<defect>/<stem>_mask.png`."""

    name = "mvtec"
    aliases: ClassVar[tuple[str, ...]] = ("mvtec_ad",)

    def list_categories(self, root: Path) -> list[str]:
        names = [f.name for f in subfolders(root) if (f / "train" / "good").is_dir()]
        if not names:
            if (root / "train" / "good").is_dir():
                raise DataError(f"{root}: is itself a category; the root is its parent folder")
            raise DataError(f"{root}: holds no category (<category>/train/good is wanted)")
        return names

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = tuple(Sample(p, 0, "good") for p in train_files(folder / "train" / "good"))
        test: list[Sample] = []
        for kind in subfolders(folder / "test"):
            good = kind.name == "good"
            masks = folder / "ground_truth" / kind.name
            test += [
                Sample(p, int(not good), kind.name, () if good else find_mask(masks, p.stem))
                for p in image_files(kind)
            ]
        return Category(category, train, tuple(test))
