"""Listing image files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from ..errors import DataError
from ..images import IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name; none if it does not exist.

    What counts is the suffix, in any case; hidden files are left out.
    """
    if not is_folder(folder):
        return []
    return sorted(
        path
        for path in _entries(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not _surely_a_folder(path)
    )


def _surely_a_folder(path: Path) -> bool:
    """What cannot be found out is taken for a file, which is then named as unreadable."""
    try:
        return is_folder(path)
    except DataError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name; hidden ones are left out."""
    if not is_folder(folder):
        return []
    return sorted(p for p in _entries(folder) if not p.name.startswith(".") and is_folder(p))


def is_folder(path: Path) -> bool:
    """Whether there is a folder; raises `DataError` where that cannot be found out."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return False  # a link to itself
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def category_folders(root: Path, parts: tuple[str, ...]) -> list[Path]:
    """Subfolders that hold at least one of `parts`: what looks like a category.

    A category in which something is missing is listed too, so that loading it says what is
    missing; one that cannot be looked into as well.
    """
    found = []
    for folder in subfolders(root):
        try:
            looks = any(is_folder(folder / part) for part in parts)
        except DataError:
            looks = True
        if looks:
            found.append(folder)
    return found


def train_files(folder: Path) -> list[Path]:
    """The training images of a category; none is a `DataError`."""
    files = image_files(folder)
    if not files:
        what = "holds no images" if is_folder(folder) else "no such folder"
        raise DataError(f"{folder}: {what}; good training images are wanted there ({_suffixes()})")
    return files


class Masks:
    """The mask files of one folder, looked up by the stem of their image."""

    def __init__(self, folder: Path) -> None:
        self._by_stem: dict[str, Path] = {}
        for path in reversed(image_files(folder)):  # of several, the first by name
            self._by_stem[path.stem] = path
        self._unclaimed = dict(self._by_stem)

    def of(self, stem: str) -> tuple[Path, ...]:
        """`<stem>_mask.*`, else `<stem>.*`; empty if there is none."""
        for name in (f"{stem}_mask", stem):
            if name in self._by_stem:
                self._unclaimed.pop(name, None)
                return (self._by_stem[name],)
        return ()

    def strays(self) -> list[Path]:
        """Masks that no image asked for."""
        return sorted(self._unclaimed.values())


class MaskFolders:
    """A folder of mask files for each image, looked up by the stem of the image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unclaimed = {path.name: path for path in subfolders(folder)}

    def of(self, stem: str) -> tuple[Path, ...]:
        """All masks of the image; empty if there is none."""
        self._unclaimed.pop(stem, None)
        return tuple(image_files(self._folder / stem))

    def strays(self) -> list[Path]:
        """Masks that no image asked for."""
        loose = image_files(self._folder)  # beside the folders that masks are wanted in
        return sorted(
            [*loose, *(path for folder in self._unclaimed.values() for path in image_files(folder))]
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
