"""Listing image files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from ..errors import DataError
from ..images import IMAGE_SUFFIXES, is_passed_over

#: What a run leaves in its directory, which may lie among the images: its overlays are no images.
RUN_FILES = frozenset({"config.json", "report.json"})


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted by name; none if it does not exist.

    What counts is the suffix, in any case; hidden files and those of the system are left out.
    """
    if not is_folder(folder):
        return []
    return sorted(
        path
        for path in _entries(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not is_passed_over(path.name)
        and not _surely_a_folder(path)
    )


def _surely_a_folder(path: Path) -> bool:
    """Return what cannot be found out is taken for a file, which is then named as unreadable."""
    try:
        return is_folder(path)
    except DataError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted by name.

    Hidden ones are left out, and those that network storage and operating systems make.
    """
    if not is_folder(folder):
        return []
    return sorted(p for p in _entries(folder) if not is_passed_over(p.name) and is_folder(p))


def is_run(folder: Path) -> bool:
    """Return whether a run of ours left this folder: what lies in it is not part of a dataset."""
    return all((folder / name).is_file() for name in RUN_FILES)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; raises `DataError` where that cannot be found out."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            return False  # a link to itself
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def category_folders(
    root: Path, parts: tuple[str, ...], official: frozenset[str] = frozenset()
) -> list[Path]:
    """Subfolders that hold at least one of `parts`: what looks like a category.

    A category in which something is missing is listed too, so that loading it says what is
    missing; one that cannot be looked into as well, and a folder with one of the `official`
    names, whatever it holds.
    """
    found = []
    for folder in subfolders(root):
        try:
            looks = folder.name in official or any(is_folder(folder / part) for part in parts)
        except DataError:
            looks = True
        if looks:
            found.append(folder)
    return found


class Masks:
    """The mask files of one folder, looked up by the stem of their image."""

    def __init__(self, folder: Path) -> None:
        self._files = image_files(folder)
        self._by_stem: dict[str, Path] = {}
        for path in reversed(self._files):  # of several, the first by name
            self._by_stem[path.stem] = path
        self._used: set[Path] = set()

    def of(self, stem: str) -> tuple[Path, ...]:
        """Return `<stem>_mask.*`, else `<stem>.*`; empty if there is none."""
        for name in (f"{stem}_mask", stem):
            if name in self._by_stem:
                self._used.add(self._by_stem[name])
                return (self._by_stem[name],)
        return ()

    def strays(self) -> list[Path]:
        """Masks that no image asked for."""
        return [path for path in self._files if path not in self._used]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def image_suffixes() -> str:
    """Return the suffixes of images as they are written in messages."""
    return " ".join(sorted(IMAGE_SUFFIXES))
