"""Datasets by the names that scripts know: `load_dataset`, and a class for each layout.

Each class is `Dataset` with the name of its layout filled in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ..datasets import Dataset, DatasetInfo, load_dataset

__all__ = [
    "BTADDataset",
    "CustomDataset",
    "DatasetInfo",
    "MVTecAD2Dataset",
    "MVTecDataset",
    "MVTecLOCODataset",
    "VisADataset",
    "load_dataset",
]


class _LayoutDataset(Dataset):
    """One category of a dataset whose layout the class names.

    Parameters
    ----------
    root
        The folder that the categories lie in.
    category
        The name of one.
    resize
        (height, width) of pixels and masks; None leaves images at their own size, which must then
        be one.
    load_masks
        False leaves the masks None.
    options
        The others of `load_dataset`.

    Raises
    ------
    UsageError, DataError
        As `load_dataset`.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        resize: tuple[int, int] | None = None,
        load_masks: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            self.layout, root, category, resize=resize, load_masks=load_masks, **options
        )


class MVTecDataset(_LayoutDataset):
    """MVTec AD, or own images laid out as it is."""

    layout = "mvtec"


class MVTecLOCODataset(_LayoutDataset):
    """MVTec LOCO AD.

    `include_validation_in_train` adds the validation images to the training images; then none is
    left to calibrate on.
    """

    layout = "mvtec_loco"

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        resize: tuple[int, int] | None = None,
        load_masks: bool = True,
        include_validation_in_train: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root, category, resize, load_masks, **options)
        if include_validation_in_train:
            train = (*self.samples.train, *self.samples.validation)
            self.samples = replace(self.samples, train=train, validation=())


class MVTecAD2Dataset(_LayoutDataset):
    """MVTec AD 2; `split` is test_public, test_private, test_private_mixed or private."""

    layout = "mvtec_ad2"

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        resize: tuple[int, int] | None = None,
        load_masks: bool = True,
        split: str = "test_public",
        **options: Any,
    ) -> None:
        super().__init__(root, category, resize, load_masks, split=split, **options)


class VisADataset(_LayoutDataset):
    """VisA, as it is shipped or converted."""

    layout = "visa"


class BTADDataset(_LayoutDataset):
    """BTAD."""

    layout = "btad"


class CustomDataset(_LayoutDataset):
    """Own images: `train/normal`, `test/normal`, `test/anomaly`, or a manifest."""

    layout = "custom"

    def __init__(
        self,
        root: str | Path,
        resize: tuple[int, int] | None = None,
        load_masks: bool = True,
        *,
        category: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, category, resize, load_masks, **options)
