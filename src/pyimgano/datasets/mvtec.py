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
from .listing import Masks, category_folders, image_files, is_folder, subfolders, train_files


class MVTecLayout(Layout):
    """One folder a category; a mask is `ground_truth/<defect>/<stem>_mask.png`."""

    name = "mvtec"
    aliases: ClassVar[tuple[str, ...]] = ("mvtec_ad",)

    def list_categories(self, root: Path) -> list[str]:
        if is_folder(root / "train" / "good"):
            raise DataError(f"{root}: is itself a category; the root is its parent folder")
        names = [folder.name for folder in category_folders(root, ("train", "test"))]
        if not names:
            raise DataError(f"{root}: holds no category (<category>/train/good is wanted)")
        return names

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = tuple(Sample(p, 0, "good") for p in train_files(folder / "train" / "good"))
        test: list[Sample] = []
        for kind in subfolders(folder / "test"):
            good = kind.name == "good"
            masks = Masks(folder / "ground_truth" / kind.name)
            test += [
                Sample(p, int(not good), kind.name, () if good else masks.of(p.stem))
                for p in image_files(kind)
            ]
        return Category(category, train, tuple(test))
