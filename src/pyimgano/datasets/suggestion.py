"""Which layout a folder looks like, for messages about one that was read as another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .listing import is_folder, subfolders
from .words import meaning_of_word

#: What only this layout has in the folder of a category, the least common first.
_SIGNS = {
    "mvtec_ad2": ("MVTec AD 2", ("test_public",)),
    "mvtec_loco": ("MVTec LOCO", ("test/logical_anomalies", "test/structural_anomalies")),
    "visa": ("VisA", ("Data/Images",)),
    "btad": ("BTAD", ("train/ok", "test/ko")),
    "mvtec": ("MVTec AD", ("train/good", "test/good")),
}
# These need one of their signs, the others all of them.
_ONE_IS_ENOUGH = ("mvtec_ad2", "mvtec_loco", "visa")


def fitting_layout(root: Path, *, apart: tuple[str, ...] = ()) -> str | None:
    """Return `looks like MVTec AD: --dataset mvtec --root FOLDER`, or None.

    Parameters
    ----------
    root
        The folder that was given: one that holds categories, a category, or a part of one.
    apart
        Layouts that are not proposed; the one that was tried under this very root never helps.
    """
    try:
        for place, above in _places(root):
            for name, (title, signs) in _SIGNS.items():
                present = [is_folder(place / sign) for sign in signs]
                fits = any(present) if name in _ONE_IS_ENOUGH else all(present)
                if fits and (name not in apart or above != root):
                    return f"looks like {title}: --dataset {name} --root {above}"
        if "custom" not in apart and any(meaning_of_word(f.name) == 0 for f in subfolders(root)):
            return f"looks like photos in folders of your own: --dataset custom --root {root}"
    except DataError:  # what cannot be listed is not proposed
        return None
    return None


def _places(root: Path) -> Iterator[tuple[Path, Path]]:
    """Folders that may be a category, and the root that this would make."""
    for folder in subfolders(root):
        yield folder, root
    absolute = root.absolute()
    yield absolute, absolute.parent
    yield absolute.parent, absolute.parent.parent
    for folder in subfolders(root):
        for one in subfolders(folder):
            yield one, folder
