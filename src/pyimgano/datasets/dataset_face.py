"""What a notebook shows of a dataset."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import ImageReadError
from ..images import read_image
from ..notebook import pictures, table, thumbnail
from .layout import Sample

if TYPE_CHECKING:
    from .dataset import Dataset

# Good training images that are shown, and defective ones, each of another kind where there are.
_SHOWN = 3


def dataset_html(dataset: Dataset) -> str:
    """Return the counts of a category and a few of its images as HTML."""
    info = dataset.get_info()
    rows = [
        ("category", f"{info.category} of {', '.join(info.categories)}"),
        ("root", info.root),
        ("training images", info.n_train),
        ("images to calibrate on", info.n_validation),
        ("test images", f"{info.n_test_good} good, {info.n_test_defective} defective"),
        ("kinds of defects", ", ".join(f"{k} ({n})" for k, n in info.defects.items()) or None),
        ("masks", info.n_masks),
        *(("note", note) for note in info.notes),
    ]
    by_kind: dict[str, Sample] = {}
    for sample in dataset.samples.test:
        if sample.label:
            by_kind.setdefault(sample.defect, sample)
    chosen = [(sample, "good") for sample in dataset.samples.train[:_SHOWN]]
    chosen += [(sample, kind) for kind, sample in list(by_kind.items())[:_SHOWN]]
    shown = []
    for sample, kind in chosen:
        with suppress(ImageReadError):  # the image's own trouble, which shows when it is scored
            image = read_image(sample.path, bit_depth=dataset.bit_depth)
            shown.append((thumbnail(image), kind))
    return table(f"Dataset {info.name}", rows) + pictures(shown)
