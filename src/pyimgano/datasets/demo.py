"""The demo: a small dataset in MVTec layout that is drawn on the spot, from a seed.

Two categories, `fabric` (a texture) and `washer` (an object), each with good training and
test images and four kinds of defects with masks. It is made once, in the user's cache
folder unless a root is given, and needs no network.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from ..errors import DataError
from .demo_images import PARTS, DemoPart, draw_defective, draw_good
from .listing import is_folder
from .mvtec import MVTecLayout

#: Part of the folder's name: other pictures under the same name would mix with cached ones.
DEMO_VERSION = 1

_TRAIN, _TEST_GOOD, _TEST_EACH_DEFECT = 60, 20, 6
_SEED = 20220601
_COMPLETE = ".complete"  # written last, so that a half-made folder is never taken for whole


class DemoLayout(MVTecLayout):
    """The drawn dataset; `--root` says where to put it."""

    name = "demo"
    aliases: ClassVar[tuple[str, ...]] = ()

    def default_root(self) -> Path:
        from platformdirs import user_cache_path

        return user_cache_path("pyimgano") / f"demo-v{DEMO_VERSION}"

    def prepare(self, root: Path) -> None:
        """Draw the images unless they are there.

        Raises
        ------
        DataError
            The folder cannot be written, or holds other things.
        """
        if (root / _COMPLETE).is_file():
            return
        if root.resolve() == Path.cwd():
            raise DataError(f"{root}: is the folder you are in; give one that is made anew")
        if is_folder(root) and any(root.iterdir()):
            if (root / _COMPLETE).is_file():
                return  # another process has just put it there
            raise DataError(
                f"{root}: is not empty and holds no demo dataset; give another root, or none"
            )
        try:
            _make(root)
        except OSError as error:
            raise DataError(
                f"{root}: the demo dataset cannot be written there ({error.strerror}); "
                "give a writable folder with --root"
            ) from error


def _make(root: Path) -> None:
    """Draw beside `root` and rename, so that a second process sees all or nothing."""
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for number, part in enumerate(PARTS):
            _make_category(building / part.name, part, number)
        (building / _COMPLETE).touch()
        building.chmod(0o755)
        try:
            building.rename(root)  # also over an empty folder
        except OSError:
            if not (root / _COMPLETE).is_file():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _make_category(folder: Path, part: DemoPart, number: int) -> None:
    def rng(group: int, index: int) -> np.random.Generator:
        return np.random.default_rng([_SEED, number, group, index])

    for index in range(_TRAIN):
        _write(folder / "train" / "good" / f"{index:03d}.png", draw_good(part, rng(0, index)))
    for index in range(_TEST_GOOD):
        _write(folder / "test" / "good" / f"{index:03d}.png", draw_good(part, rng(1, index)))
    for group, kind in enumerate(sorted(part.defects), start=2):
        for index in range(_TEST_EACH_DEFECT):
            image, mask = draw_defective(part, kind, rng(group, index))
            _write(folder / "test" / kind / f"{index:03d}.png", image)
            _write(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask)


def _write(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    # imwrite returns False without a reason on a full disk; writing the bytes raises
    encoded, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not encoded:
        raise DataError(f"{path}: cannot be encoded as PNG")
    path.write_bytes(data.tobytes())
