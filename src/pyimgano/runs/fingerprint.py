"""The files that a category is measured on, by content: the fingerprint of a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..threads import thread_count
from ..untrusted_files import open_regular
from .environment_schema import FilesDocument, UsedFile
from .schema import shown


def used_files(category: Any, root: Path, known: FilesDocument | None = None) -> FilesDocument:
    """Return every image and mask of a category, with the hash of its content.

    Parameters
    ----------
    category
        A `pyimgano.datasets.Category`, with as many images as were asked for.
    root
        Of the dataset; files are named by their path from there.
    known
        From before: a file of the same size and time of change is not read again.
    """
    uses: dict[Path, set[str]] = {}
    for part, samples in (("train", category.train), ("validation", category.validation)):
        for sample in samples:
            uses.setdefault(sample.path, set()).add(part)
    for sample in category.test:
        label = "unlabelled" if sample.label is None else sample.label
        uses.setdefault(sample.path, set()).add(f"test {label} {sample.defect}")
        for mask in sample.mask_paths:
            uses.setdefault(mask, set()).add("mask")
    before = {} if known is None else {one.path: one for one in known.files}
    named = [(image_identity(path, root), path) for path in uses]

    def look(one: tuple[str, Path]) -> UsedFile:
        name, path = shown(one[0]), one[1]
        return _look(name, path, ", ".join(sorted(uses[path])), before.get(name))

    with ThreadPoolExecutor(thread_count(), thread_name_prefix="fingerprint") as pool:
        files = sorted(pool.map(look, named), key=lambda one: one.path)
    digest = hashlib.sha256(_saturation(category).encode())
    for one in files:
        digest.update(repr((one.path, one.use, one.size, one.sha256)).encode())
    return FilesDocument(fingerprint=digest.hexdigest(), files=files)


def image_identity(path: Path, root: Path) -> str:
    """Return the path of an image from its dataset's root, with forward slashes.

    It is the same wherever the dataset lies, as long as its images are in it.
    """
    start = root.parent if root.is_file() else root
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


def changes(then: FilesDocument, now: FilesDocument) -> str | None:
    """Return what differs between two looks at a category, in words; None if nothing does."""
    if then.fingerprint == now.fingerprint:
        return None
    old, new = ({one.path: _facts(one) for one in each.files} for each in (then, now))
    found = [
        _count("changed", [name for name in old if name in new and old[name] != new[name]]),
        _count("gone", [name for name in old if name not in new]),
        _count("new", [name for name in new if name not in old]),
    ]
    return "; ".join(one for one in found if one) or "what its masks mean has changed"


def _look(name: str, path: Path, use: str, known: UsedFile | None) -> UsedFile:
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            size, mtime = status.st_size, status.st_mtime_ns
            if known is not None and (known.size, known.mtime_ns) == (size, mtime):
                return known.model_copy(update={"use": shown(use)})
            digest = hashlib.sha256()
            left = size  # and no more, of a file that somebody is still writing
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except (OSError, ValueError):  # that it cannot be read is said where it is wanted
        return UsedFile(path=name, use=use, size=None, mtime_ns=None, sha256=None)
    return UsedFile(path=name, use=use, size=size, mtime_ns=mtime, sha256=digest.hexdigest())


def _facts(one: UsedFile) -> tuple[str, int | None, str | None]:
    return one.use, one.size, one.sha256


def _count(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} {what}"


def _saturation(category: Any) -> str:
    meaning: Mapping[int, object] = category.saturation or {}
    return repr(sorted(meaning.items()))
