"""Detectors that were fitted before, kept for the very files and settings that they were fitted on.

They lie in the user's cache folder, a folder each under a name that stands for the content of the
images, the settings and the version of this package. So a detector is never taken for other
images, and one whose images have changed is simply not found. The oldest are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ..errors import DataError, PyimganoError, UsageError
from ..models.loading import load_model
from ..models.many_products import ManyProducts
from ..runs import write_text
from ..threads import thread_count
from ..untrusted_files import open_regular, parse_json, read_regular
from .scoring import OneProduct

#: So many detectors are kept; a usual one takes 10 to 100 MB.
MOST_KEPT = 8
_MODEL, _FACTS = "model", "facts.json"


@dataclass(frozen=True)
class Kept:
    """A detector, and the training images that were left out as it was fitted.

    Attributes
    ----------
    detector
        Fitted.
    skipped
        Path and reason of each image that could not be read.
    """

    detector: OneProduct
    skipped: tuple[tuple[str, str], ...]


class KeptDetectors:
    """The detectors in a folder.

    Parameters
    ----------
    folder
        By default `detectors` in the user's cache folder for this package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = user_cache_path("pyimgano") / "detectors" if folder is None else folder

    def find(self, key: str) -> Kept | None:
        """Return the detector that is kept under `key`, or None; a damaged one is not found."""
        place = self.folder / key
        try:
            facts = parse_json(read_regular(place / _FACTS).decode())
            skipped = tuple((str(path), str(reason)) for path, reason in facts["skipped"])
            detector = load_model(place / _MODEL)
        except (PyimganoError, OSError, ValueError, KeyError, TypeError):
            return None
        if isinstance(detector, ManyProducts):  # nothing that was kept here
            return None
        with contextlib.suppress(OSError):
            os.utime(place)  # the one that was not used for longest is removed first
        return Kept(detector, skipped)

    def keep(self, key: str, kept: Kept) -> bool:
        """Keep a detector under `key`; False where that cannot be done, which harms nobody."""
        place = self.folder / key
        try:
            shutil.rmtree(place, ignore_errors=True)  # a damaged one, which is not written over
            place.mkdir(parents=True, exist_ok=True)
            kept.detector.save(place / _MODEL)
            write_text(place / _FACTS, json.dumps({"skipped": kept.skipped}))
            os.utime(place)
        except (DataError, UsageError, OSError):  # a model that cannot be saved, or a full disk
            shutil.rmtree(place, ignore_errors=True)
            return False
        self._remove_the_oldest()
        return True

    def _remove_the_oldest(self) -> None:
        with contextlib.suppress(OSError):
            places = [one for one in self.folder.iterdir() if one.is_dir()]
            places.sort(key=lambda one: one.stat().st_mtime, reverse=True)
            for one in places[MOST_KEPT:]:
                shutil.rmtree(one, ignore_errors=True)


def key_of_fit(contents: Iterable[str | None], settings: Mapping[str, Any]) -> str:
    """Return the name of a fit on files with these `contents`, in their order, with `settings`.

    The settings have to tell all else that the fit depends on, the version of this package too.
    """
    document = {"settings": settings, "images": list(contents)}
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def contents_of(paths: Sequence[str | Path]) -> list[str | None]:
    """Return a hash of the content of each file; None of one that cannot be read."""
    with ThreadPoolExecutor(thread_count(), thread_name_prefix="hash") as pool:
        return list(pool.map(_content_of, paths))


def _content_of(path: str | Path) -> str | None:
    digest = hashlib.blake2b(digest_size=20)
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def same_files(known: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return those of `others` that have the content of a known file, each with that file.

    Only files of equal length are read.
    """
    by_length: dict[int, list[str]] = {}
    for path in known:
        by_length.setdefault(_length_of(path), []).append(path)
    candidates = [path for path in others if _length_of(path) in by_length]
    lengths = {_length_of(path) for path in candidates} - {-1}
    alike = [path for length in lengths for path in by_length[length]]
    first: dict[str, str] = {}
    for path, content in zip(alike, contents_of(alike), strict=True):
        if content is not None:
            first.setdefault(content, path)
    found = zip(candidates, contents_of(candidates), strict=True)
    return [(path, first[content]) for path, content in found if content in first]


def _length_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return -1
