"""MVTec AD 2: a public test set, and two private ones for the authors' evaluation server.

Heckler-Kram, Neudeck, Scheler, Koenig, Steger, "The MVTec AD 2 Dataset: Advanced Scenarios for
Unsupervised Anomaly Detection", 2025 (arXiv:2503.21622).

    <category>/train/good, validation/good
    <category>/test_public/{good,bad}, test_public/ground_truth/bad/<stem>_mask.png
    <category>/test_private/*, test_private_mixed/*       without labels

The server takes, for each private image, a map as a 16-bit float TIFF under
`anomaly_images/<category>/<split>/<stem>.tiff`, and the thresholded map, 0 and 255, under
`anomaly_images_thresholded/<category>/<split>/<stem>.png`, as the authors' public utilities
write them.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..errors import DataError
from .folders import defective_samples, good_samples, train_samples
from .layout import Category, Layout, Sample, category_names
from .listing import image_files, is_folder
from .words import words

_PRIVATE = ("test_private", "test_private_mixed")


class MVTecAD2Layout(Layout):
    """AUPRO to 0.05 and SegF1; the split `private` is both private test sets together."""

    name = "mvtec_ad2"
    splits: ClassVar[tuple[str, ...]] = ("test_public", *_PRIVATE, "private")
    has_validation = True
    own_metrics: ClassVar[tuple[str, ...]] = ("aupro", "segf1")
    aupro_limit = 0.05

    reads = (
        "the images directly in train/good, validation/good, test_public/good, test_public/bad and "
        "test_public/ground_truth/bad"
    )
    official: ClassVar[frozenset[str]] = words(
        "can fabric fruit_jelly rice sheet_metal vial wallplugs walnuts"
    )

    def list_categories(self, root: Path) -> list[str]:
        return category_names(
            root, ("train/good", "train", "test_public"), self.official, layout=self.name
        )

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = train_samples(folder / "train", "good")
        validation = tuple(good_samples(folder / "validation"))
        public = folder / "test_public"
        if self.split == "test_public":
            test = good_samples(public)
            bad, strays = defective_samples(public, public / "ground_truth", "bad")
            return Category(
                category,
                train,
                (*test, *bad),
                validation,
                stray_masks=tuple(strays),
                folder=folder,
                left_out=tuple(folder / split for split in _PRIVATE),
            )
        assert self.split is not None
        wanted = _PRIVATE if self.split == "private" else (self.split,)
        unlabelled: list[Sample] = []
        for split in wanted:
            files = image_files(folder / split)
            if not files:
                what = "holds no images" if is_folder(folder / split) else "no such folder"
                raise DataError(
                    f"{folder / split}: {what}; the images of split {split!r} have to be there"
                )
            unlabelled += [Sample(path, None, "unlabelled") for path in files]
        others = (public, *(folder / split for split in _PRIVATE if split not in wanted))
        return Category(
            category, train, tuple(unlabelled), validation, folder=folder, left_out=others
        )

    def server_path(self, root: Path, sample: Sample) -> PurePosixPath | None:
        if sample.label is not None:
            return None
        return PurePosixPath(sample.path.relative_to(root).with_suffix("").as_posix())
