"""BTAD: `<category>/train/ok`, `<category>/test/{ok,ko}`, `<category>/ground_truth/ko`.

Mishra, Verk, Fornasier, Piciarelli, Foresti, "VT-ADL: A Vision Transformer Network for Image
Anomaly Detection and Localization", ISIE 2021. The categories are called 01, 02 and 03; images
and masks are .bmp or .png, not always the same, so a mask is found by its image's stem.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .layout import Category, Layout, Sample
from .listing import Masks, category_folders, image_files, train_files


class BTADLayout(Layout):
    """A mask is `ground_truth/ko/<stem>` with any image suffix."""

    name = "btad"

    def list_categories(self, root: Path) -> list[str]:
        names = [folder.name for folder in category_folders(root, ("train/ok", "test/ok"))]
        if not names:
            raise DataError(f"{root}: holds no category (<category>/train/ok is wanted)")
        return names

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = tuple(Sample(p, 0, "good") for p in train_files(folder / "train" / "ok"))
        good = [Sample(p, 0, "good") for p in image_files(folder / "test" / "ok")]
        masks = Masks(folder / "ground_truth" / "ko")
        bad = [Sample(p, 1, "ko", masks.of(p.stem)) for p in image_files(folder / "test" / "ko")]
        return Category(category, train, (*good, *bad))
