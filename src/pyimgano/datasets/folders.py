"""Samples from folders: a folder of good images, a folder of defective ones with masks."""

from __future__ import annotations

from pathlib import Path

from .layout import Sample
from .listing import MaskFolders, Masks, image_files, subfolders, train_files


def good_samples(folder: Path) -> list[Sample]:
    """The images of a folder that holds good ones; none if it does not exist."""
    return [Sample(path, 0, "good") for path in image_files(folder)]


def train_samples(folder: Path) -> tuple[Sample, ...]:
    """The same where there must be some: none is a `DataError`."""
    return tuple(Sample(path, 0, "good") for path in train_files(folder))


def defective_samples(folder: Path, defect: str, masks: Masks | MaskFolders) -> list[Sample]:
    """The images of a folder that holds one kind of defect, each with its masks."""
    return [Sample(path, 1, defect, masks.of(path.stem)) for path in image_files(folder)]


def samples_by_kind(
    test: Path, ground_truth: Path, find: type[Masks] | type[MaskFolders] = Masks
) -> tuple[list[Sample], list[Path]]:
    """`test/<good or defect>/*` with `ground_truth/<defect>`: samples, and stray masks."""
    samples: list[Sample] = []
    strays = image_files(ground_truth)
    kinds = subfolders(test)
    for kind in kinds:
        if kind.name == "good":
            samples += good_samples(kind)
            continue
        masks = find(ground_truth / kind.name)
        samples += defective_samples(kind, kind.name, masks)
        strays += masks.strays()
    known = {kind.name for kind in kinds} - {"good"}  # a good image has no mask
    for folder in subfolders(ground_truth):
        if folder.name not in known:
            strays += find(folder).strays()
    return samples, strays
