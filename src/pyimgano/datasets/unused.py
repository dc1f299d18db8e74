"""Finding the files of a category that nothing uses, so that none is dropped without a word.

Images that lie one folder too deep, or beside the folders that are read, look to their owner as if
they were part of the dataset. A file whose suffix is not that of an image is reported only near
images that are read: elsewhere there are licences and tables.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..images import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES, is_passed_over
from ..untrusted_files import leads_out
from .layout import Category, Layout, Unused
from .listing import RUN_FILES, subfolders

# So many names are given of the folders or suffixes that a sentence is about, each so long.
_NAMED, _LONGEST = 3, 60


def unused_files(layout: Layout, category: Category) -> tuple[Unused, ...]:
    """Return what lies below `category.folder` and is neither an image nor a mask of the category.

    Hidden files and those of the system are passed over, as everywhere. Folders that cannot be
    listed are reported too. Nothing is opened.
    """
    if category.folder is None:
        return ()
    home = str(category.folder)
    samples = [*category.train, *category.validation, *category.test]
    images = {str(sample.path) for sample in samples}
    known = {*images, *(str(mask) for sample in samples for mask in sample.mask_paths)}
    known.update(map(str, category.stray_masks))
    read = {os.path.dirname(path) for path in known}  # noqa: PTH120 -- thousands of them
    near = {os.path.dirname(path) for path in images}  # noqa: PTH120
    near |= {os.path.dirname(path) for path in near if path != home}  # noqa: PTH120
    deep = tuple(folder + os.sep for folder in near if folder != home)
    if home not in read:
        near.discard(home)
    # the folders that are read, and those on the way to them
    passed = {home}
    for one in read:
        where = one
        while where.startswith(home + os.sep):
            passed.add(where)
            where = os.path.dirname(where)  # noqa: PTH120
    found: dict[tuple[str, bool], _Group] = defaultdict(_Group)
    left_out = {str(path) for path in category.left_out}
    for folder, files, failure in _walk(home, left_out, layout.allow_outside, read):
        where = folder
        while where not in passed:
            where = os.path.dirname(where)  # noqa: PTH120
        inside = folder[len(where) + 1 :]
        group = found[where, bool(inside)]
        if failure is not None:
            group.failures.append(f"{folder} cannot be listed ({failure})")
        close = folder in near or folder.startswith(deep)
        for name in files:
            path = os.path.join(folder, name)  # noqa: PTH118
            if path in known or path in left_out:
                continue
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if suffix in IMAGE_SUFFIXES:
                group.images += 1
            elif suffix in UNREAD_IMAGE_SUFFIXES:
                group.unread[suffix] += 1
            elif close:
                group.suffixes[suffix or "none"] += 1
            else:
                continue
            if inside:
                group.folders[inside] = None
    return tuple(
        Unused(Path(where), number, is_image, reason)
        for (where, inside), group in sorted(found.items())
        for number, is_image, reason in group.sentences(_why(layout, where, inside, read))
    )


def outside_of_categories(layout: Layout, root: Path, names: Iterable[str]) -> str | None:
    """Return a sentence on the images below `root` that lie in no category; None without any.

    A folder that was meant as a category may lack what tells one (`Train` is not `train`), and
    would be missing from a run over all categories without a word. Folders are looked into three
    levels deep, which is where the images of a category lie.
    """
    categories = set(names)
    if not categories <= {folder.name for folder in subfolders(root)}:
        return None  # a manifest, or a dataset without categories
    home = str(root)
    group = _Group()
    skipped = {str(root / name) for name in categories}
    for folder, files, _ in _walk(home, skipped, layout.allow_outside, levels=3):
        number = sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in files)  # noqa: PTH122
        group.images += number
        if number:
            first = "." if folder == home else Path(folder).relative_to(home).parts[0]
            group.folders[first] = None
    for _, _, sentence in group.sentences("outside of all categories"):
        return f"{root}: {sentence}"
    return None


def _why(layout: Layout, where: str, inside: bool, read: set[str]) -> str:
    if where not in read:
        return f"dataset {layout.name} reads {layout.reads}"
    if inside:
        return "images are read from this folder itself and not from folders in it"
    return "absent from the table of the split"


def _counted(number: int, noun: str, place: str) -> str:
    return f"1 {noun}{place} is" if number == 1 else f"{number} {noun}s{place} are"


def _some(names: Iterable[str]) -> str:
    known = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names]
    return ", ".join([*known[:_NAMED], "..."] if len(known) > _NAMED else known)


@dataclass
class _Group:
    """Unused files directly in a folder, or in the folders inside of it."""

    images: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    folders: dict[str, None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def sentences(self, why: str) -> Iterator[tuple[int, bool, str]]:
        """Return number, whether they are images, and the sentence, of each kind."""
        place = ""
        if self.folders:
            names, several = _some(self.folders), len(self.folders) > 1
            place = f" in {len(self.folders)} folders ({names})" if several else f" in {names}"
        if self.images:
            yield self.images, True, f"{_counted(self.images, 'image', place)} not used: {why}"
        number = sum(self.unread.values())
        if number:
            kinds = _some(f"{suffix} {count}" for suffix, count in self.unread.most_common())
            why = f"the format is not read ({kinds}); convert to PNG, TIFF or JPEG"
            yield number, True, f"{_counted(number, 'image', place)} not used: {why}"
        number = sum(self.suffixes.values())
        if number:
            kinds = _some(f"{suffix} {count}" for suffix, count in self.suffixes.most_common())
            why = f"the suffix is not that of an image ({kinds})"
            yield number, False, f"{_counted(number, 'file', place)} not used: {why}"
        for failure in self.failures:
            yield 0, True, failure


def _walk(
    home: str,
    left_out: set[str],
    allow_outside: bool,
    read: Iterable[str] = (),
    levels: int | None = None,
) -> Iterator[tuple[str, list[str], str | None]]:
    """Yield each folder with the names of the files in it, and why it cannot be listed, if so.

    A folder that links lead to is entered once, by the name under which it is in `read`, if it is.
    """
    entered: set[str] = set()
    known_as = {os.path.realpath(folder): folder for folder in read}
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in entered or folder in left_out or known_as.get(real, folder) != folder:
            continue
        entered.add(real)
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_passed_over(entry.name):
                        continue
                    if not _is_folder(entry):
                        files.append(entry.name)
                    elif allow_outside or not entry.is_symlink() or not leads_out(entry.path, home):
                        folders.append(entry.path)
        except OSError as error:
            yield folder, [], str(error.strerror)
            continue
        if not set(files) >= RUN_FILES:
            if levels is None or folder[len(home) :].count(os.sep) < levels:
                waiting += folders
            yield folder, files, None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
