"""What a dataset is here: categories of samples, by path; no pixel is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import DataError, unknown_name


@dataclass(frozen=True)
class Sample:
    """One image of a dataset.

    Attributes
    ----------
    path
        The image file.
    label
        0 good, 1 defective.
    defect
        Kind of defect; `good` for good images.
    mask_paths
        Its ground-truth masks, united where there are several; empty for good images, and
        for defective ones whose mask is missing.
    """

    path: Path
    label: int
    defect: str
    mask_paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Category:
    """One kind of part: good images to learn from, and images to test on."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()


class Layout(ABC):
    """How one family of datasets lies on disk."""

    #: The name users give, and others for the same.
    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()

    def default_root(self) -> Path | None:
        """Where the dataset is if no root is given; None if one must be given."""
        return None

    def prepare(self, root: Path) -> None:  # noqa: B027 -- most layouts have nothing to do
        """Called once before anything is listed; the demo makes its images here."""

    @abstractmethod
    def list_categories(self, root: Path) -> list[str]:
        """Names of the categories found under `root`, sorted; never from a built-in list."""

    @abstractmethod
    def load(self, root: Path, category: str) -> Category:
        """The samples of one category; raises `DataError` where it has no train images."""

    def require_category(self, root: Path, category: str) -> None:
        """Raise `DataError`, with the near names, if `root` has no such category."""
        names = self.list_categories(root)
        if category not in names:
            raise DataError(f"{root}: {unknown_name('category', category, names)}")
