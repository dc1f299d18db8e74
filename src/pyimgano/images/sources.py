"""What callers give for images, as paths and arrays that a stream reads.

What is clear is taken: paths, a folder, arrays, PIL images, torch tensors, and any iterable of
these. What may mean two things is refused with a line that says how to say it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..errors import DataError, UsageError
from .passed_over import is_passed_over
from .read import IMAGE_SUFFIXES

#: What a detector takes for an image: a path, an (H, W, 3) uint8 RGB array, or a uint16 array of
#: shape (H, W), grey, or (H, W, 3), RGB. `as_sources` makes these of much else.
ImageSource: TypeAlias = "str | Path | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]"

# Of the last axis of an image, or of the first where channels come first.
_CHANNELS = (1, 3, 4)


def as_sources(X: Any, *, name: str = "X", learning: bool = False) -> Sequence[ImageSource]:
    """Return images as a sequence of paths and arrays; no file is opened.

    ==========================================  ==============================================
    a path                                      that image, whatever its suffix
    a folder                                    its images, also in folders in it, sorted
    a PIL image                                 as a file of it is read, turned by its EXIF data
    (H, W), (H, W, 1) uint8 or uint16           one grey image
    (H, W, 3) uint8 or uint16                   one image, red first
    (H, W, 4) uint8                             the same, and its alpha channel is dropped
    (N, H, W), (N, H, W, C), (N, C, H, W)       N of these; of (3, H, W) it is not clear what
                                                they are, so that is refused
    a torch tensor of uint8                     the same, where (C, H, W) is one image
    a list, a generator, any iterable           each of its elements, one image each, which may
                                                have its channels first
    ==========================================  ==============================================

    Colours of arrays are red, green, blue. OpenCV's `imread` gives blue, green, red, which nothing
    in an array shows: turn such images round (`image[..., ::-1]`), or scores will be wrong.

    Parameters
    ----------
    X
        One of the above.
    name
        What messages call it.
    learning
        Whether a detector is to learn from it. Then a folder, which may hold bad parts as well, and
        a single image are refused.

    Raises
    ------
    UsageError
        Something else, such as floating-point arrays, whose range is not known; the message names
        the element, what it is, and what to do.
    DataError
        A folder that holds no images, or cannot be listed.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        return _of_path(X, name, learning)
    if isinstance(X, Image.Image) or _is_tensor(X) or isinstance(X, np.ndarray):
        several = _several(X, name)
        if several is None:
            if learning:
                raise UsageError(f"{name} must be a sequence of paths or images, got one image")
            return [_image(X, name)]
        X = several
    elif not isinstance(X, Iterable):
        raise UsageError(f"{name} must be a sequence of paths or images, got {type(X).__name__}")
    elif not isinstance(X, Sequence):
        X = list(X)
    found = [_image(one, f"{name}[{index}]") for index, one in enumerate(X)]
    # what needs no change is handed on as it is: it may be lazy, or a list that is known again
    return X if all(a is b for a, b in zip(found, X)) else found


def comes_one_by_one(X: Any) -> bool:
    """Return whether images are an iterable that may be slow or endless, such as a generator."""
    whole = (str, bytes, os.PathLike, Sequence, np.ndarray, Image.Image)
    return isinstance(X, Iterable) and not isinstance(X, whole) and not _is_tensor(X)


def images_below(folder: str | Path) -> list[str]:
    """Return the images in a folder and those below it, sorted; links to folders are followed.

    Raises
    ------
    DataError
        A folder cannot be listed.
    """
    found: list[str] = []
    entered: set[str] = set()
    waiting = [str(folder)]
    while waiting:
        one = waiting.pop()
        real = os.path.realpath(one)
        if real in entered:
            continue
        entered.add(real)
        try:
            with os.scandir(one) as entries:
                for entry in entries:
                    if is_passed_over(entry.name):
                        continue
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                        found.append(entry.path)
        except OSError as error:
            raise DataError(f"{one}: cannot be listed ({error.strerror})") from error
    return sorted(found, key=lambda path: Path(path).parts)


def _of_path(path: Any, name: str, learning: bool) -> Sequence[ImageSource]:
    if isinstance(path, bytes):
        raise UsageError(f"{name} must be a sequence of paths or images, got one path: {path!r}")
    given = path if isinstance(path, str) else Path(path)
    if learning:
        raise UsageError(
            f"{name} must be a sequence of paths or images, got one path: {path!r}; "
            "load_dataset('custom', FOLDER).get_train_paths() lists the good images of a folder, "
            "and refuses one that holds bad parts too"
        )
    if not os.path.isdir(given):  # noqa: PTH112 -- a name with a null byte is not a folder, no error
        return [given]
    found = images_below(given)
    if not found:
        raise DataError(f"{path}: holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return list(found)


def _is_tensor(one: Any) -> bool:
    """Return whether this is a torch tensor, found out without importing torch."""
    return type(one).__module__.split(".")[0] == "torch" and hasattr(one, "detach")


def _several(X: Any, name: str) -> Any:
    """Return the images of an array that holds several, or None where it is one image."""
    if isinstance(X, Image.Image):
        return None
    tensor = _is_tensor(X)
    array = _array_of(X) if tensor else X
    if array.ndim == 1 or (array.ndim != 0 and array.dtype.kind in "UO"):
        return array  # of paths, or of images of several sizes
    if array.ndim == 4:
        return array
    if array.ndim == 2:
        return None
    if array.ndim != 3:
        raise UsageError(
            f"{name} must be a sequence of paths or of (H, W, 3) uint8 images, got one array of "
            f"shape {array.shape}"
        )
    if array.shape[2] in _CHANNELS:
        return None
    if array.shape[0] in _CHANNELS:
        if tensor or array.shape[0] == 1:
            return None
        raise UsageError(
            f"{name} of shape {array.shape} may be {array.shape[0]} grey images or one image with "
            "its channels first; give a list of images"
        )
    return array


def _image(one: Any, name: str) -> ImageSource:
    """Return one image as a stream takes it; what is that already is given back itself."""
    if isinstance(one, (str, Path)):
        return one
    if isinstance(one, os.PathLike):
        return Path(one)
    if isinstance(one, Image.Image):
        return _of_pillow(one, name)
    if _is_tensor(one):
        array = _array_of(one)
    elif isinstance(one, np.ndarray):
        array = one
    else:
        raise UsageError(
            f"{name} must be a path or an (H, W, 3) uint8 array, got {type(one).__name__}"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"{name} {_other_numbers(array)}")
    narrow = array.dtype == np.uint8
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)  # channels came first
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[2] == 4 and narrow:
        array = array[:, :, :3]  # as the alpha channel of a file is
    if array.ndim == 2 and narrow:
        array = np.repeat(array[:, :, None], 3, axis=2)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not fits or 0 in array.shape:
        raise UsageError(
            f"{name} must be an (H, W, 3) uint8 RGB array, or a grey one of shape (H, W); got "
            f"shape {array.shape} of {array.dtype}"
        )
    image: ImageSource = array if array is one else np.ascontiguousarray(array)
    return image


def _array_of(tensor: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except TypeError:  # numbers that numpy does not have
        return np.asarray(tensor.detach().cpu().float().numpy())


def _other_numbers(array: npt.NDArray[Any]) -> str:
    """Why an array of other numbers is not taken, and what to do."""
    said = f"must be an (H, W, 3) uint8 RGB array; got shape {array.shape} of {array.dtype}"
    if array.dtype.kind not in "fiub" or not array.size:
        return said
    low, high = array.min(), array.max()
    said += f" with values from {low:g} to {high:g}"
    if array.dtype.kind == "b":
        return f"{said}; a mask becomes an image by 255 * image.astype('uint8')"
    if low < 0 or high > 255:
        return f"{said}; bring them to 0 to 255, always by the same rule, and to uint8"
    if array.dtype.kind != "f":
        return f"{said}; image.astype('uint8') keeps them"
    if high <= 1:
        return (
            f"{said}, of which the range is not known: if it is 0 to 1, (255 * image).round()"
            ".astype('uint8') makes an image of it"
        )
    return (
        f"{said}, of which the range is not known: if it is 0 to 255, image.round()"
        ".astype('uint8') makes an image of it"
    )


def _of_pillow(image: Image.Image, name: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    if image.mode in ("I", "F"):
        raise UsageError(
            f"{name} is a PIL image of mode {image.mode!r}, of which the range is not known; "
            "convert it to 'L', 'RGB' or 'I;16'"
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return np.asarray(upright).astype(np.uint16)
        return np.asarray(upright.convert("RGB"), dtype=np.uint8)
    except Exception as error:  # of a file that is decoded only now
        raise UsageError(f"{name} is a PIL image that cannot be decoded ({error})") from error
