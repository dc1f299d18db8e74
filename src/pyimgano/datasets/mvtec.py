"""MVTec AD: `<category>/train/good`, `<category>/test/<defect>`, `<category>/ground_truth`.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "The MVTec Anomaly Detection Dataset", IJCV
2021. Any category name and any common image suffix will do, so that own data may be laid out
the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .folders import samples_by_kind, train_samples
from .layout import Category, Layout, category_names
from .words import words


class MVTecLayout(Layout):
    """One folder a category; a mask is `ground_truth/<defect>/<stem>_mask.png`."""

    name = "mvtec"
    aliases: ClassVar[tuple[str, ...]] = ("mvtec_ad",)

    reads = "the images directly in train/good, test/<kind> and ground_truth/<kind>"
    official: ClassVar[frozenset[str]] = words(
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
        "transistor wood zipper"
    )

    def list_categories(self, root: Path) -> list[str]:
        return category_names(
            root, ("train/good", "train", "test"), self.official, layout=self.name
        )

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        return load_by_kind(root / category)


def load_by_kind(folder: Path) -> Category:
    """Return the category in a folder that is laid out as MVTec AD's are."""
    train = train_samples(folder / "train", "good")
    test, strays = samples_by_kind(folder / "test", folder / "ground_truth")
    return Category(folder.name, train, tuple(test), stray_masks=tuple(strays), folder=folder)
