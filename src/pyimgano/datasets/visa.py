"""VisA, as its authors ship it and as their script converts it; told apart by looking.

Zou, Jeong, Pemula, Zhang, Dabeer, "SPot-the-Difference Self-Supervised Pre-training for
Anomaly Detection and Segmentation", ECCV 2022.

- raw: `<category>/Data/Images/{Normal,Anomaly}/*.JPG`, `<category>/Data/Masks/Anomaly/*.png`,
  and `split_csv/1cls.csv` with the columns object, split, label, image, mask;
- converted: `<category>/{train/good,test/{good,bad},ground_truth/bad}`.

Values 1 to k of a mask number kinds of defects: all mean defect.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .layout import Category, Layout, Sample
from .listing import category_folders, is_folder
from .mvtec import MVTecLayout

_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": 0, "anomaly": 1}


class VisALayout(Layout):
    """The one-class split, `1cls`: training images are all good."""

    name = "visa"

    def list_categories(self, root: Path) -> list[str]:
        names = [folder.name for folder in category_folders(root, ("Data/Images", "train/good"))]
        if not names:
            raise DataError(
                f"{root}: holds no category (<category>/Data/Images or <category>/train/good "
                "is wanted)"
            )
        return names

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        if not is_folder(root / category / "Data" / "Images"):
            return MVTecLayout().load(root, category)
        train: list[Sample] = []
        test: list[Sample] = []
        table = root / "split_csv" / "1cls.csv"
        for split, sample in _read_split(root, table, category):
            (train if split == "train" else test).append(sample)
        if not train:
            raise DataError(f"{table}: lists no training image of category {category!r}")
        return Category(category, tuple(train), tuple(test))


def _read_split(root: Path, table: Path, category: str) -> Iterator[tuple[str, Sample]]:
    """`train` or `test`, and the sample, for each line of the category."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: lacks the column {missing[0]!r}")
            for row in rows:
                if row["object"] == category:
                    yield _sample(root, f"{table}: line {rows.line_num}", row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{table}: cannot be read ({reason})") from error


def _sample(root: Path, where: str, row: dict[str, str | None]) -> tuple[str, Sample]:
    split, word, image = row["split"], row["label"], row["image"]
    if split not in ("train", "test"):
        raise DataError(f"{where}: split must be train or test, got {split!r}")
    if word not in _LABELS:
        raise DataError(f"{where}: label must be normal or anomaly, got {word!r}")
    if not image:
        raise DataError(f"{where}: names no image")
    label = _LABELS[word]
    mask = row["mask"] or ""
    masks = (_inside(root, where, mask),) if label and mask else ()
    existing = tuple(path for path in masks if path.exists())
    return split, Sample(_inside(root, where, image), label, "bad" if label else "good", existing)


def _inside(root: Path, where: str, name: str) -> Path:
    """A path of the table, which must not lead out of the dataset's folder."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{where}: {name!r} leads out of the dataset's folder")
    return root.joinpath(*relative.parts)
