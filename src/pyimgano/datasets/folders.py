"""Samples from folders: a folder of good images, a folder of defective ones with masks."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, MissingFolderError
from .layout import Sample
from .listing import Masks, image_files, image_suffixes, is_folder, subfolders
from .words import meaning_of_folder, meaning_of_word


def good_samples(parent: Path, *, deeper: bool = False) -> list[Sample]:
    """Return the images of the folders in `parent` whose name means good, in any case.

    None if there is no such folder. With `deeper` also those one folder further down.
    """
    return [
        Sample(path, 0, "good")
        for folder in _folders_that_mean(0, parent)
        for path in _images_of(folder, deeper)
    ]


def train_samples(parent: Path, usual: str, *, deeper: bool = False) -> tuple[Sample, ...]:
    """Return the same where there must be some.

    Raises
    ------
    DataError
        There are none; `usual` is the name of the folder that the layout's authors use.
    """
    found = good_samples(parent, deeper=deeper)
    if not found:
        folder = next(iter(_folders_that_mean(0, parent)), parent / usual)
        if not is_folder(folder):
            raise MissingFolderError(
                f"{folder}: no such folder; the good training images have to be there "
                f"({image_suffixes()})"
            )
        what = "holds no images"
        below = sum(len(image_files(one)) for one in subfolders(folder))
        if below:
            what = f"holds no images itself, only {below} in folders in it, which are not read"
        raise DataError(
            f"{folder}: {what}; the good training images have to be there ({image_suffixes()})"
        )
    return tuple(found)


def defective_samples(
    parent: Path, ground_truth: Path, usual: str
) -> tuple[list[Sample], list[Path]]:
    """Return the samples of the folders in `parent` whose name means defective, and stray masks.

    For layouts that have one folder of defective images, called `usual`. The masks lie in
    `ground_truth` in a folder of the same name, or in the usual one.
    """
    samples: list[Sample] = []
    masks = {usual: Masks(ground_truth / usual)}
    for folder in _folders_that_mean(1, parent):
        if folder.name not in masks and is_folder(ground_truth / folder.name):
            masks[folder.name] = Masks(ground_truth / folder.name)
        samples += _with_masks(folder, usual, masks.get(folder.name, masks[usual]))
    return samples, [stray for one in masks.values() for stray in one.strays()]


def samples_by_kind(test: Path, ground_truth: Path) -> tuple[list[Sample], list[Path]]:
    """Return `test/<good or defect>/*` with `ground_truth/<defect>`: samples, and stray masks.

    Raises
    ------
    DataError
        As `good_kinds`.
    """
    samples: list[Sample] = []
    strays = image_files(ground_truth)
    good = good_kinds(test)
    kinds = subfolders(test)
    for kind in kinds:
        if kind in good:
            samples += [Sample(path, 0, "good") for path in image_files(kind)]
            continue
        masks = Masks(ground_truth / kind.name)
        samples += _with_masks(kind, kind.name, masks)
        strays += masks.strays()
    known = {kind.name for kind in kinds} - {kind.name for kind in good}  # good has no masks
    for folder in subfolders(ground_truth):
        if folder.name not in known:
            strays += image_files(folder)
    return samples, strays


def good_kinds(test: Path) -> set[Path]:
    """Return the folders of good images among those in `test`; the others are kinds of defects.

    Raises
    ------
    DataError
        A name that may be that of good images or of a kind of defect.
    """
    meanings = {folder: meaning_of_folder(folder.name) for folder in subfolders(test)}
    good = {folder for folder, meaning in meanings.items() if meaning == 0}
    for folder, meaning in meanings.items():
        # beside a folder of good images, one called `0` or `negative` is a kind of defect
        if meaning == "resembles good" or (meaning == "unclear" and not good):
            raise DataError(
                f"{folder}: may hold good images or a kind of defect; call the folder good, or "
                "give it the name of the defect"
            )
    return good


def _folders_that_mean(meaning: int, parent: Path) -> list[Path]:
    return [folder for folder in subfolders(parent) if meaning_of_word(folder.name) == meaning]


def _images_of(folder: Path, deeper: bool) -> list[Path]:
    found = image_files(folder)
    if deeper:
        for one in subfolders(folder):
            found += image_files(one)
    return found


def _with_masks(folder: Path, defect: str, masks: Masks) -> list[Sample]:
    return [Sample(path, 1, defect, masks.of(path.stem)) for path in image_files(folder)]
