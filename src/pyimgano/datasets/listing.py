"""Listing image files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..images import IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name; none if it does not exist.

    What counts is the suffix, in any case; hidden files are left out.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in _entries(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name; hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(p for p in _entries(folder) if p.is_dir() and not p.name.startswith("."))


def train_files(folder: Path) -> list[Path]:
    """The training images of a category; none is a `DataError`."""
    files = image_files(folder)
    if not files:
        what = "holds no images" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: {what}; good training images are wanted there ({_suffixes()})")
    return files


def find_mask(folder: Path, stem: str) -> tuple[Path, ...]:
    """The mask of the image `stem`: `<stem>_mask.*`, else `<stem>.*`; empty if none."""
    for name in (f"{stem}_mask", stem):
        for suffix in (".png", *sorted(IMAGE_SUFFIXES - {".png"})):
            for candidate in (folder / f"{name}{suffix}", folder / f"{name}{suffix.upper()}"):
                if candidate.is_file():
                    return (candidate,)
    return ()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
