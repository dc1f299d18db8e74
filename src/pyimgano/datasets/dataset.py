"""`load_dataset`: one category of a dataset, paths first, pixels when asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from ..errors import DataError, ImageReadError, invalid_value
from ..images import check_bit_depth, image_size, read_image, resize_image
from .catalog import get_layout, open_root
from .layout import Sample
from .masks import NO_MASK, load_mask
from .sampling import limit_category
from .stay_inside import load_category

Side = Annotated[int, Field(ge=1, le=16384)]
Limit = Annotated[int, Field(ge=1)]


class DatasetInfo(dict[str, Any]):
    """What `get_info` says of a dataset: a dict of plain JSON values, read as attributes too.

    `info["n_train"]` and `info.n_train` are the same; the keys are those of `Dataset.get_info`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None


class Dataset:
    """One category of a dataset.

    Parameters are those of `load_dataset`.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None,
        category: str | None = None,
        *,
        resize: tuple[int, int] | None = (256, 256),
        load_masks: bool = True,
        limit_train: int | None = None,
        limit_test: int | None = None,
        seed: int = 0,
        split: str | None = None,
        allow_outside: bool = False,
        bit_depth: int | None = None,
    ) -> None:
        options = _Options.check(
            resize=resize, limit_train=limit_train, limit_test=limit_test, seed=seed
        )
        self._layout = get_layout(name, split=split, allow_outside=allow_outside)
        self.name = self._layout.name
        self.root = open_root(self._layout, root)
        self.resize = options.resize
        self.bit_depth = check_bit_depth(bit_depth)
        self.load_masks = load_masks
        self.category = self.list_categories()[0] if category is None else category
        loaded = load_category(self._layout, self.root, self.category)
        self.samples = limit_category(loaded, options.limit_train, options.limit_test, options.seed)
        for one in self.samples.unused:
            if one.images:
                warnings.warn(one.message, stacklevel=3)

    def __repr__(self) -> str:
        info = self.get_info()
        return (
            f"<Dataset {info.name!r}, category {info.category!r}: {info.n_train} training images, "
            f"{info.n_test} test images ({info.n_test_good} good, {info.n_test_defective} "
            "defective)>"
        )

    def _repr_html_(self) -> str:
        from .dataset_face import dataset_html

        return dataset_html(self)

    def list_categories(self) -> list[str]:
        """Return names of all categories under the root."""
        return self._layout.list_categories(self.root)

    def get_train_paths(self) -> list[str]:
        """Paths of the good training images."""
        return [str(sample.path) for sample in self.samples.train]

    def get_validation_paths(self) -> list[str]:
        """Paths of the good images set aside for calibration; empty where there are none."""
        return [str(sample.path) for sample in self.samples.validation]

    def get_test_paths(
        self,
    ) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.uint8] | None]:
        """Paths, labels (N,) of 0 and 1, and masks (N, H, W) uint8 of 0 and 1 at `resize`.

        A label that is not known is -1. The masks are None if a defective image has none that
        will do, which a warning names: zeros in its place would be wrong. They are also None
        where a label is not known, and, without `resize`, where images differ in size.
        """
        test = self.samples.test
        paths = [str(sample.path) for sample in test]
        known = [-1 if sample.label is None else sample.label for sample in test]
        labels = np.asarray(known, dtype=np.int64)
        with_masks = self.load_masks and -1 not in known
        return paths, labels, self._masks() if with_masks else None

    def get_train_data(self) -> npt.NDArray[np.uint8]:
        """Return all training images at `resize`: (N, H, W, 3) uint8 RGB.

        Raises
        ------
        DataError
            An image cannot be read, or, without `resize`, images differ in size.
        """
        return self._pixels(self.get_train_paths())

    def get_test_data(
        self,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint8] | None]:
        """Return all test images (N, H, W, 3) uint8 RGB, with labels and masks as above."""
        paths, labels, masks = self.get_test_paths()
        return self._pixels(paths), labels, masks

    def get_info(self) -> DatasetInfo:
        """Return name, root, category, counts and notes; plain JSON values."""
        test = self.samples.test
        kinds = sorted({sample.defect for sample in test if sample.label})
        info = {
            "name": self.name,
            "root": str(self.root),
            "category": self.category,
            "categories": self.list_categories(),
            "resize": None if self.resize is None else list(self.resize),
            "n_train": len(self.samples.train),
            "split": self._layout.split,
            "own_metrics": list(self._layout.own_metrics),
            "n_validation": len(self.samples.validation),
            "n_test": len(test),
            "n_test_good": sum(sample.label == 0 for sample in test),
            "n_test_defective": sum(sample.label == 1 for sample in test),
            "n_test_unlabelled": sum(sample.label is None for sample in test),
            "n_masks": sum(bool(sample.mask_paths) for sample in test),
            "defects": {kind: sum(sample.defect == kind for sample in test) for kind in kinds},
            "notes": list(self.samples.notes),
        }
        return DatasetInfo(info)

    def _pixels(self, paths: list[str]) -> npt.NDArray[np.uint8]:
        if self.resize is None:
            images = [read_image(path, bit_depth=self.bit_depth) for path in paths]
            for path, image in zip(paths, images, strict=True):
                if image.shape != images[0].shape:
                    raise DataError(_unequal(paths[0], images[0].shape, path, image.shape))
        else:
            images = [
                resize_image(read_image(path, bit_depth=self.bit_depth), self.resize)
                for path in paths
            ]
        return np.stack(images) if images else np.zeros((0, *(self.resize or (0, 0)), 3), np.uint8)

    def _size_of_masks(self) -> tuple[int, int]:
        """Return (height, width) of `resize`, or else of the test images, which must be one
        size.
        """
        if self.resize is not None:
            return self.resize
        first: tuple[str, tuple[int, int]] | None = None
        for path in (str(sample.path) for sample in self.samples.test):
            try:
                size = image_size(path)
            except ImageReadError:  # the image's own trouble, which shows when it is scored
                continue
            if first is not None and size != first[1]:
                raise DataError(_unequal(*first, path, size))
            first = first or (path, size)
        return (0, 0) if first is None else first[1]

    def _masks(self) -> npt.NDArray[np.uint8] | None:
        test = self.samples.test
        try:
            masks = np.zeros((len(test), *self._size_of_masks()), np.uint8)
        except DataError as error:
            warnings.warn(f"{self.category}: no masks are given: {error}", stacklevel=3)
            return None
        problems = []
        for index, sample in enumerate(test):
            if not sample.label:
                continue
            try:
                masks[index] = self._mask_of(sample, masks.shape[1:])
            except DataError as error:
                problems.append(str(error))
        if problems:
            warnings.warn(
                f"{self.category}: {len(problems)} of the defective images have no usable mask, "
                f"so no masks are given; the first: {problems[0]}",
                stacklevel=3,
            )
            return None
        return masks

    def _mask_of(self, sample: Sample, resize: tuple[int, int]) -> npt.NDArray[np.uint8]:
        if not sample.mask_paths:
            raise DataError(f"{sample.path}: {NO_MASK}")
        try:
            size = image_size(sample.path)
        except ImageReadError:  # the image's own trouble, which shows when it is scored
            size = None
        return load_mask(sample.mask_paths, size, resize)


def _unequal(first: str, size: tuple[int, ...], path: str, other: tuple[int, ...]) -> str:
    return (
        f"{path}: is {other[1]} x {other[0]} pixels and {first} {size[1]} x {size[0]}; resize "
        "give (height, width) where images differ in size"
    )


class _Options(BaseModel):
    """The checked options of `load_dataset`."""

    resize: tuple[Side, Side] | None
    limit_train: Limit | None
    limit_test: Limit | None
    seed: Annotated[int, Field(ge=0)]

    @classmethod
    def check(cls, **values: Any) -> _Options:
        try:
            return cls(**values)
        except ValidationError as error:
            raise invalid_value(error, values) from None


def load_dataset(
    name: str, root: str | Path | None = None, category: str | None = None, **kwargs: Any
) -> Dataset:
    """Open one category of a dataset.

    Parameters
    ----------
    name
        One of `list_datasets()`, or an alias.
    root
        The folder that the dataset lies in, or a manifest of own images; the demo needs none.
    category
        By default the first.
    kwargs
        `split`, one that the dataset's authors defined; `allow_outside`, whether links
        and a table's paths may lead out of the dataset's folder;
        `resize` (height, width) of masks and pixels, by default (256, 256), None for the images'
        own size; `load_masks`; `bit_depth` of images with 16 bits a sample, as
        `pyimgano.images.read_image` has it;
        `limit_train`, `limit_test` and `seed` for a smaller, evenly spread sample.

    Raises
    ------
    UsageError
        An unknown dataset or split.
    DataError
        A missing root, an unknown category, or one without training images.
    """
    return Dataset(name, root, category, **kwargs)
