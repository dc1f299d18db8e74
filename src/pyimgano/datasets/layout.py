"""The nouns of a dataset: a sample, a category, and a layout, which finds both on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ..errors import DataError, UnknownCategoryError, UsageError, unknown_name
from .listing import category_folders, is_folder
from .suggestion import fitting_layout


@dataclass(frozen=True)
class Sample:
    """One image file and what is known of it; the file has not been opened.

    Attributes
    ----------
    path
        The image file.
    label
        0 good, 1 defective, None not known.
    defect
        Kind of defect; `good` for good images, `unlabelled` where the label is not known.
    mask_paths
        Its ground-truth masks, united where there are several; empty for good images, and
        for defective ones whose mask is missing.
    """

    path: Path
    label: int | None
    defect: str
    mask_paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Saturation:
    """From which overlap on a region counts as found (`compute_spro`).

    Attributes
    ----------
    threshold
        A number of pixels of the mask file; a share of the region's area if `relative`.
    relative
        Which of the two.
    """

    threshold: float
    relative: bool


@dataclass(frozen=True)
class Unused:
    """Files of a category that are not used.

    Attributes
    ----------
    folder
        Where they lie, directly or in its subfolders.
    number
        How many there are.
    images
        Whether they are images by their suffix; otherwise their suffix is one that is not read.
    reason
        One sentence with the number and why, without the folder.
    """

    folder: Path
    number: int
    images: bool
    reason: str

    @property
    def message(self) -> str:
        """Return the sentence, with the folder that it is about."""
        return f"{self.folder}: {self.reason}"


@dataclass(frozen=True)
class Category:
    """One kind of part: good images to learn from, and images to test on.

    Attributes
    ----------
    name, train, test
        Train holds good images only.
    validation
        Further good images, which detectors do not learn from: the threshold may be
        calibrated on them.
    saturation
        By value of a mask's pixels, where the dataset says so; None elsewhere. Then every
        value of every mask file of an image is a region of its own.
    stray_masks
        Masks that belong to no image.
    notes
        What a user should know, one sentence each.
    folder
        The folder that all of its files lie in, which is searched for files that are not used;
        None where there is no such folder, as with a manifest.
    left_out
        Folders in it that are not read on purpose: those of the splits that were not chosen.
    unused
        What lies in the folder and is not used. `load_category` fills it in, and adds the messages
        to the notes.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    saturation: Mapping[int, Saturation] | None = None
    stray_masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    left_out: tuple[Path, ...] = ()
    unused: tuple[Unused, ...] = ()


class Layout(ABC):
    """How one family of datasets lies on disk.

    Parameters
    ----------
    split
        One of `splits`; by default the first of them.
    allow_outside
        Whether links, and a table's paths, may lead out of the dataset's folder.

    Raises
    ------
    UsageError
        A split that the dataset does not have.
    """

    #: The name users give, and others for the same.
    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    #: Where in a category's folder images and masks are read, as it is told to users.
    reads: ClassVar[str] = "other folders"
    #: The names of its categories as published: such a folder is a category whatever it holds.
    official: ClassVar[frozenset[str]] = frozenset()
    #: Ways of dividing the dataset that its authors defined, the usual one first.
    splits: ClassVar[tuple[str, ...]] = ()
    #: Whether the root may be a file that lists the images.
    file_root: ClassVar[bool] = False
    #: Whether there are good images set aside for calibration.
    has_validation: ClassVar[bool] = False
    #: Whether there may be no masks at all; where there are some, each defective image needs one.
    masks_optional: ClassVar[bool] = False
    #: The metrics that the dataset's authors report, by their names in our reports.
    own_metrics: ClassVar[tuple[str, ...]] = ("auroc", "pixel_auroc", "aupro")
    #: The limit to which they integrate AUPRO and sPRO.
    aupro_limit: ClassVar[float] = 0.3
    #: Whether they report each kind of defect apart, and the mean over the kinds.
    kinds_apart: ClassVar[bool] = False

    #: Set from the arguments of the same names; here for subclasses that take none.
    split: str | None = None
    allow_outside: bool = False

    def __init__(self, *, split: str | None = None, allow_outside: bool = False) -> None:
        if not isinstance(allow_outside, bool):
            raise UsageError(f"allow_outside must be True or False, got {allow_outside!r}")
        if split is not None and split not in self.splits:
            if not self.splits:
                raise UsageError(f"split: dataset {self.name!r} has no splits, got {split!r}")
            raise UsageError(unknown_name("split", str(split), self.splits))
        self.split = split or (self.splits[0] if self.splits else None)
        self.allow_outside = allow_outside

    def default_root(self) -> Path | None:
        """Return where the dataset is if no root is given; None if one must be given."""
        return None

    def prepare(self, root: Path) -> None:  # noqa: B027 -- most layouts have nothing to do
        """Return called once before anything is listed; the demo makes its images here."""

    def locate(self, root: Path) -> Path:
        """Return the folder in which the categories lie, where that may be another than `root`."""
        return root

    @abstractmethod
    def list_categories(self, root: Path) -> list[str]:
        """Return names of the categories found under `root`, sorted; never from a built-in list."""

    @abstractmethod
    def load(self, root: Path, category: str) -> Category:
        """Return the samples of one category; raises `DataError` where it has no train images."""

    def server_path(self, root: Path, sample: Sample) -> PurePosixPath | None:
        """Return where the dataset's evaluation server wants the sample's map, without suffix.

        None where there is no such server, or the sample is not for it.
        """
        return None

    def require_category(self, root: Path, category: str) -> None:
        """Raise `UnknownCategoryError`, with the near names, if `root` has no such category."""
        names = self.list_categories(root)
        if category not in names:
            raise UnknownCategoryError(f"{root}: {unknown_name('category', str(category), names)}")


def category_names(
    root: Path,
    parts: tuple[str, ...],
    official: frozenset[str] = frozenset(),
    *,
    layout: str = "",
) -> list[str]:
    """Return names of the subfolders of `root` that look like categories.

    Those that hold one of `parts`, and those with an official name. `layout` is the name of the
    layout that asks, which is not proposed for the same root.

    Raises
    ------
    DataError
        There is none, or the root is itself a category. `parts[0]` is what is wanted, and the
        message says which layout the folder looks like, if it does.
    """
    if is_folder(root / parts[0]):
        raise DataError(
            f"{root}: is itself a category; the root is its parent folder, --root "
            f"{root.absolute().parent}"
        )
    names = [folder.name for folder in category_folders(root, parts, official)]
    if not names:
        wanted = " or ".join(f"<category>/{part}" for part in parts)
        fits = fitting_layout(root, apart=(layout,))
        proposal = f"; this {fits}" if fits else ""
        raise DataError(f"{root}: holds no category, which would be {wanted}{proposal}")
    return names
