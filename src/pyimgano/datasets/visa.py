"""VisA, as its authors ship it and as their script converts it; told apart by looking.

Zou, Jeong, Pemula, Zhang, Dabeer, "SPot-the-Difference Self-Supervised Pre-training for
Anomaly Detection and Segmentation", ECCV 2022.

- raw: `<category>/Data/Images/{Normal,Anomaly}/*.JPG`, `<category>/Data/Masks/Anomaly/*.png`,
  and `split_csv/<split>.csv` with the columns object, split, label, image, mask;
- converted: `<category>/{train/good,test/{good,bad},ground_truth/bad}`. The root may also be the
  parent of the folder `visa_pytorch` that their script makes, or hold its splits (`1cls`).

Values 1 to k of a mask number kinds of defects: all mean defect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ..errors import DataError
from ..untrusted_files import quoted
from .layout import Category, Layout, Sample, category_names
from .listing import category_folders, image_files, is_folder, subfolders
from .mvtec import load_by_kind
from .stay_inside import require_inside
from .tables import Line, listed_path, read_csv
from .words import words

_PARTS = ("Data/Images", "train/good", "train")
_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": 0, "anomaly": 1}


class VisALayout(Layout):
    """The split `1cls` trains on good images alone, as all detectors here do.

    The two-class splits also have defective training images, meant for methods that learn
    from both. They are left out, and the notes of the category say how many.
    """

    name = "visa"
    splits: ClassVar[tuple[str, ...]] = ("1cls", "2cls_highshot", "2cls_fewshot")
    own_metrics: ClassVar[tuple[str, ...]] = (
        "auroc",
        "average_precision",
        "pixel_auroc",
        "pixel_average_precision",
    )

    reads = (
        "the images that split_csv lists, and in the converted form those directly in train/good, "
        "test/<kind> and ground_truth/<kind>"
    )
    official: ClassVar[frozenset[str]] = words(
        "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"
    )

    def locate(self, root: Path) -> Path:
        """Return `root`, or below it the folder of categories that the authors' script makes.

        Raises
        ------
        DataError
            It lies outside of `root` by way of a link, without `allow_outside`.
        """
        if category_folders(root, _PARTS, self.official):
            return root
        made = [folder for folder in subfolders(root) if folder.name.lower() == "visa_pytorch"]
        for folder in (root / "1cls", *made, *(one / "1cls" for one in made)):
            if is_folder(folder) and category_folders(folder, _PARTS, self.official):
                require_inside(folder, root, self.allow_outside)
                return folder
        return root

    def list_categories(self, root: Path) -> list[str]:
        return category_names(root, _PARTS, self.official, layout=self.name)

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        if not is_folder(root / category / "Data" / "Images"):
            if self.split != "1cls":
                raise DataError(
                    f"{root / category}: is in the converted form, which has no split "
                    f"{self.split!r}; it is in split_csv of the form that the authors ship"
                )
            return load_by_kind(root / category)
        train: list[Sample] = []
        test: list[Sample] = []
        table = root / "split_csv" / f"{self.split}.csv"
        require_inside(table, root, self.allow_outside)
        for split, sample in self._read_split(root, table, category):
            (train if split == "train" else test).append(sample)
        good = [sample for sample in train if not sample.label]
        if not good:
            raise DataError(f"{table}: lists no good training image of category {category!r}")
        defective = [sample for sample in train if sample.label]
        notes = (f"{len(defective)} defective training images of the split are not used",)
        listed = {mask for sample in (*train, *test) for mask in sample.mask_paths}
        masks = image_files(root / category / "Data" / "Masks" / "Anomaly")
        return Category(
            category,
            tuple(good),
            tuple(test),
            stray_masks=tuple(mask for mask in masks if mask not in listed),
            notes=notes if defective else (),
            folder=root / category,
            left_out=tuple(path for s in defective for path in (s.path, *s.mask_paths)),
        )

    def _read_split(self, root: Path, table: Path, category: str) -> Iterator[tuple[str, Sample]]:
        """Read `train` or `test`, and the sample, of each line of the category."""
        for line in read_csv(table, _COLUMNS):
            if line.fields["object"] == category:
                yield self._sample(root, line)

    def _sample(self, root: Path, line: Line) -> tuple[str, Sample]:
        fields = line.fields
        if fields["split"] not in ("train", "test"):
            raise DataError(
                f"{line.where}: split must be train or test, got {quoted(fields['split'])}"
            )
        if fields["label"] not in _LABELS:
            raise DataError(
                f"{line.where}: label must be normal or anomaly, got {quoted(fields['label'])}"
            )
        if not fields["image"]:
            raise DataError(f"{line.where}: names no image")

        def path_of(name: str) -> Path:
            return listed_path(root, line.where, name, allow_outside=self.allow_outside)

        label = _LABELS[fields["label"]]
        masks = (path_of(fields["mask"]),) if label and fields["mask"] else ()
        image = path_of(fields["image"])
        return fields["split"], Sample(image, label, "bad" if label else "good", masks)
