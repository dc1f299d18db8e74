"""Folders as people keep their photos: what lies in which of them is told by the folders' names.

    good/ bad/                      OK/ NOK/, iO/ niO/, ... with folders in them or without
    train/good test/good test/bad   train/ and test/ in any case, train/ also without a folder in it
    *.png, cam1/*.png, ...          good parts alone, in one folder or several

Where nothing says which images are for the test, the last fifth of the good ones is set aside.
Nothing is guessed: a folder whose name says nothing is left out where others' names say something.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError, MissingFolderError
from .layout import Category, Sample
from .listing import Masks, image_files, image_suffixes, is_folder, is_run, subfolders
from .stay_inside import require_inside
from .suggestion import fitting_layout
from .words import meaning_in_name, meaning_of_word, role_of_folder

# One of so many good images is set aside for the test, where no folder says which.
_SET_ASIDE = 5
# So many folders are named in a message.
_NAMED = 3
#: The kind of defect of images in a folder that only says that they are bad, and a folder of masks.
_BAD = "anomaly"
# Where images lie in these, in folders with a plain word for good or bad, nothing needs to be said.
_DOCUMENTED = ("train", "validation", "test")


def looks_like_own(folder: Path) -> bool:
    """Return whether a folder holds `train` or `test`, or a folder of good parts by its name."""
    return bool(_with_role(folder, "train", "test")) or has_good_folder(folder)


def has_good_folder(folder: Path) -> bool:
    """Return whether a folder holds one that is called good, in any of the words for it."""
    return bool(_sorted_by_meaning(folder)[0])


def has_training_folder(folder: Path) -> bool:
    """Return whether a folder holds `train`, which is not itself a category of that name."""
    return any(not _with_role(one, "train", "test") for one in _with_role(folder, "train"))


def images_below(folder: Path, root: Path, allow_outside: bool) -> list[Path]:
    """Return all images in a folder and those below it, sorted; links to folders are followed.

    Raises
    ------
    DataError
        A folder cannot be listed, or lies outside of `root` by way of a link, without
        `allow_outside`.
    """
    found: list[Path] = []
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        one = waiting.pop()
        real = os.path.realpath(one)
        if real in entered or is_run(one):
            continue
        entered.add(real)
        require_inside(one, root, allow_outside)
        found += image_files(one)
        waiting += subfolders(one)
    return sorted(found)


def own_category(name: str, root: Path, *, allow_outside: bool = False) -> Category:
    """Return the images of a folder of one's own, sorted by the names of the folders in it.

    Parameters
    ----------
    name
        What the category is called.
    root
        The folder.
    allow_outside
        Whether links may lead out of it.

    Returns
    -------
    Category
        Its notes say what was taken for what.

    Raises
    ------
    DataError
        There are no good images to learn from, or bad ones lie among them.
    """
    return _Reader(name, root, allow_outside).read()


def require_good_parts(folder: Path, images: Iterable[str | Path], *, option: str = "") -> None:
    """Raise `DataError` where names say that a folder to learn from holds more than good parts.

    A detector that has learned from defects calls them good.

    Parameters
    ----------
    folder
        The folder of training images.
    images
        The images in it, at any depth; only their names are looked at.
    option
        What the folder is given with, for the remedy: `--train-dir`.
    """
    bad: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    verdicts: dict[int, list[str]] = {0: [], 1: []}
    for path in images:
        inside = Path(os.path.relpath(path, folder)).parts
        where = "/".join(inside[:-1])
        if any(meaning_in_name(part) == 1 for part in inside[:-1]):
            bad[where] += 1
        elif any(role_of_folder(part) in ("test", "masks") for part in inside[:-1]):
            tests[where] += 1
        else:
            meaning = meaning_in_name(Path(inside[-1]).stem)
            if meaning is not None:
                verdicts[meaning].append(inside[-1])
    named = Path(os.path.abspath(folder)).name  # noqa: PTH100 -- a link's own name counts
    if meaning_of_word(named) == 1:
        raise DataError(
            f"{folder}: is a folder of bad parts by its name, and a detector learns from good ones"
        )
    if bad or tests:
        found = f"bad parts ({_counted(bad)})" if bad else f"test images ({_counted(tests)})"
        remedy = _remedy(folder, option)
        raise DataError(
            f"{folder}: holds {found} besides the good ones; what a detector has learned it calls "
            f"good, so give a folder that holds good parts alone{remedy}"
        )
    if verdicts[0] and verdicts[1]:
        raise DataError(
            f"{folder}: {len(verdicts[1])} images are bad by their names, such as "
            f"{verdicts[1][0]}, beside good ones such as {verdicts[0][0]}; a detector learns from "
            "good parts alone, so move the bad ones out"
        )


class _Reader:
    """Reads one folder of somebody's own."""

    def __init__(self, name: str, root: Path, allow_outside: bool) -> None:
        self._name, self._root, self._allow_outside = name, root, allow_outside
        # of each use, the folders that it was taken from
        self._taken: dict[str, Counter[str]] = defaultdict(Counter)
        self._strays: list[Path] = []
        self._unclear: list[Path] = []
        self._notes: list[str] = []

    def read(self) -> Category:
        root = self._root
        train: list[Path] = []
        validation: list[Path] = []
        good: list[Path] = []
        bad: list[Sample] = []
        trains = _with_role(root, "train")
        good_folders, bad_folders, _ = _sorted_by_meaning(root)
        for folder in trains:
            train += self._learned(folder)
        for folder in _with_role(root, "validation"):
            for one in _sorted_by_meaning(folder)[0]:
                validation += self._good(one, "good validation images")
        tests = _with_role(root, "test")
        masks = _MaskFolders(_with_role(root, "masks"))
        for folder in tests:
            some_good, some_bad, unclear = _sorted_by_meaning(folder)
            self._unclear += unclear
            for one in some_good:
                good += self._good(one, "good test images")
            for one in some_bad:
                bad += self._bad(one, masks)
        if trains:
            for one in good_folders:
                good += self._good(one, "good test images")
        elif good_folders and (tests or not bad_folders):
            for one in good_folders:
                train += self._good(one, "good training images")
        elif good_folders:
            aside: set[Path] = set()
            for one in good_folders:
                images = self._images(one)
                require_good_parts(one, images)
                aside |= _set_aside(images)
                train += [path for path in images if path not in aside]
                good += [path for path in images if path in aside]
            self._count("good training images", train)
            self._count("good test images", good)
            if good:
                self._notes.append(
                    f"{root}: no folder says which good images are for the test, so the last "
                    f"fifth of each folder by name is set aside: {len(good)} of "
                    f"{len(train) + len(good)}"
                )
        elif not tests:
            train = self._flat()
        for one in bad_folders:
            bad += self._bad(one, masks)
        if not train:
            raise self._nothing_to_learn(trains, good_folders)
        return Category(
            self._name,
            tuple(Sample(path, 0, "good") for path in train),
            (*(Sample(path, 0, "good") for path in good), *bad),
            validation=tuple(Sample(path, 0, "good") for path in validation),
            stray_masks=tuple(masks.strays()),
            notes=tuple(self._told()),
            folder=root,
        )

    def _learned(self, folder: Path) -> list[Path]:
        """Return the training images of `train`: of the good folders in it, or else of itself."""
        good_folders, bad_folders, unclear = _sorted_by_meaning(folder)
        if good_folders:
            self._unclear += unclear
            return [
                path for one in good_folders for path in self._good(one, "good training images")
            ]
        if not image_files(folder) and (bad_folders or not unclear):
            return []
        return self._good(folder, "good training images")

    def _flat(self) -> list[Path]:
        """Return the training images of a folder whose folders' names say nothing."""
        images = self._images(self._root)
        require_good_parts(self._root, images)
        if any(path.parent != self._root for path in images):
            self._count("good training images", images)
        return images

    def _good(self, folder: Path, use: str) -> list[Path]:
        images = self._images(folder)
        require_good_parts(folder, images)
        self._count(use, images)
        return images

    def _bad(self, folder: Path, masks: _MaskFolders) -> list[Sample]:
        images = self._images(folder)
        self._count("bad test images", images)
        samples = []
        for path in images:
            inside = path.parent.relative_to(folder)
            first = inside.parts[0] if inside.parts else folder.name
            kind = _BAD if meaning_of_word(first) == 1 else first
            samples.append(Sample(path, 1, kind, masks.of(path, folder.name, inside)))
        return samples

    def _images(self, folder: Path) -> list[Path]:
        return images_below(folder, self._root, self._allow_outside)

    def _count(self, use: str, images: Iterable[Path]) -> None:
        for path in images:
            self._taken[use][path.parent.relative_to(self._root).as_posix()] += 1

    def _told(self) -> list[str]:
        """Return what was taken for what, unless all of it lies where the layout is documented."""
        notes = list(self._notes)
        if not all(_is_documented(where) for folders in self._taken.values() for where in folders):
            uses = [_taken(use, folders) for use, folders in self._taken.items() if folders]
            notes.insert(0, f"{self._root}: took {', '.join(uses)}")
        if any(image_files(folder) for folder in self._unclear):
            names = ", ".join(folder.name for folder in self._unclear[:_NAMED])
            fits = fitting_layout(self._root, apart=("custom",))
            notes.append(
                f"{self._root}: the names of some folders say neither good nor bad ({names})"
                f"{f'; this {fits}' if fits else '; rename them, or list the images in a manifest'}"
            )
        return notes

    def _nothing_to_learn(self, trains: Sequence[Path], good: Sequence[Path]) -> DataError:
        wanted = f"the good training images have to be there ({image_suffixes()})"
        inner = [one for folder in trains for one in _sorted_by_meaning(folder)[0]]
        for folder in (*inner, *good):
            return DataError(f"{folder}: holds no images; {wanted}")
        train = trains[0] if trains else self._root / "train"
        return MissingFolderError(f"{train / 'normal'}: no such folder; {wanted}")


class _MaskFolders:
    """The masks of bad images, in folders that mirror theirs, or all in one."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._read: dict[Path, Masks] = {}

    def of(self, image: Path, name: str, inside: Path) -> tuple[Path, ...]:
        """Return the mask of an image that lies `inside` the folder of bad images called `name`."""
        for folder in self._folders:
            for place in (folder / name, folder / _BAD, folder):
                where = place / inside
                if where not in self._read:
                    self._read[where] = Masks(where)
                found = self._read[where].of(image.stem)
                if found:
                    return found
        return ()

    def strays(self) -> list[Path]:
        """Masks that no image asked for, in all places where one was looked for."""
        for folder in self._folders:
            self._read.setdefault(folder / _BAD, Masks(folder / _BAD))
        return sorted(stray for masks in self._read.values() for stray in masks.strays())


def _is_documented(where: str) -> bool:
    first, *others = where.split("/")
    return first in _DOCUMENTED and len(others) == 1 and meaning_of_word(others[0]) is not None


def _with_role(folder: Path, *roles: str) -> list[Path]:
    return [one for one in subfolders(folder) if role_of_folder(one.name) in roles]


def _sorted_by_meaning(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the folders of good parts in a folder, those of bad ones, and those that say neither.

    A longer name such as `ok_front` means good only beside one that means bad: `io_board` alone
    is a product.
    """
    good: list[Path] = []
    bad: list[Path] = []
    perhaps: list[Path] = []
    unclear: list[Path] = []
    for one in subfolders(folder):
        exact, likely = meaning_of_word(one.name), meaning_in_name(one.name)
        if role_of_folder(one.name) is not None or is_run(one):
            continue
        if exact == 0:
            good.append(one)
        elif likely == 1:
            bad.append(one)
        elif likely == 0:
            perhaps.append(one)
        else:
            unclear.append(one)
    if good or bad:
        return [*good, *perhaps], bad, unclear
    return good, bad, [*perhaps, *unclear]


def _set_aside(images: Sequence[Path]) -> set[Path]:
    """Return the last fifth of the images of each folder.

    The last and not a spread: neighbouring files are often pictures of one part.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        by_folder[path.parent].append(path)
    aside = {path for some in by_folder.values() for path in some[len(some) - len(some) // 5 :]}
    return aside or set(images[-1:] if len(images) >= _SET_ASIDE else ())


def _counted(folders: Counter[str]) -> str:
    """Return words such as `bad: 20 images, bad/cam2: 1 image`, of the first few folders."""
    return _some([f"{where}: {_images(number)}" for where, number in sorted(folders.items())])


def _taken(use: str, folders: Counter[str]) -> str:
    """Return `30 images as good test images (good 20, good/cam2 10)`, of the first few folders."""
    places = [
        f"{'the folder itself' if where == '.' else where} {number}"
        for where, number in sorted(folders.items())
    ]
    return f"{_images(folders.total())} as {use} ({_some(places)})"


def _some(texts: list[str]) -> str:
    rest = len(texts) - _NAMED
    return ", ".join(texts if rest <= 0 else [*texts[:_NAMED], f"and {rest} more folders"])


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _remedy(folder: Path, option: str) -> str:
    """Return where good parts alone lie in a folder, as an option to type."""
    places = [*_with_role(folder, "train"), folder]
    for place in places:
        for one in _sorted_by_meaning(place)[0]:
            return f": {option} {one}".replace("  ", " ")
    for place in places[:-1]:
        if is_folder(place):
            return f": {option} {place}".replace("  ", " ")
    return ""
