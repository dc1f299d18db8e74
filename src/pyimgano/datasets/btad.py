"""BTAD: `<category>/train/ok`, `<category>/test/{ok,ko}`, `<category>/ground_truth/ko`.

Mishra, Verk, Fornasier, Piciarelli, Foresti, "VT-ADL: A Vision Transformer Network for Image
Anomaly Detection and Localization", ISIE 2021. The categories are called 01, 02 and 03; images
and masks are .bmp or .png, not always the same, so a mask is found by its image's stem.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .folders import defective_samples, good_samples, train_samples
from .layout import Category, Layout, category_names


class BTADLayout(Layout):
    """A mask is `ground_truth/ko/<stem>` with any image suffix."""

    name = "btad"
    own_metrics: ClassVar[tuple[str, ...]] = ("auroc", "pixel_auroc")

    reads = "the images directly in train/ok, test/ok, test/ko and ground_truth/ko"
    official: ClassVar[frozenset[str]] = frozenset({"01", "02", "03"})

    def list_categories(self, root: Path) -> list[str]:
        return category_names(root, ("train/ok", "train", "test"), self.official, layout=self.name)

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = train_samples(folder / "train", "ok")
        test = good_samples(folder / "test")
        bad, strays = defective_samples(folder / "test", folder / "ground_truth", "ko")
        return Category(category, train, (*test, *bad), stray_masks=tuple(strays), folder=folder)
