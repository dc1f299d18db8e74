"""How image files were made: format, size, compression, camera, grey or colour.

A detector that has learned from pictures of one camera finds those of another strange, whether
the parts in them are good or not. So two sets of files are compared before anybody trusts a score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageReadError
from ..threads import thread_count
from .copies import signature_of
from .header import read_header
from .limit import open_header
from .read import read_image

# So many files of a set are looked at, evenly spread, and so many decoded for their colour.
_LOOKED_AT, _DECODED = 200, 8
# Sizes that differ by more than this factor in their sides, or in their shape, are other sizes.
_SIZE, _SHAPE = 1.5, 1.25
# JPEG qualities that differ by more are said.
_QUALITY = 10
# Mean difference of the channels, in grey levels, of a grey picture and of one in colour.
_GREY, _COLOUR = 1.0, 4.0
# The luminance table of JPEG's Annex K, in zigzag order, which quality 50 takes as it is.
_ANNEX_K = (
    *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40),
    *(26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57, 51),
    *(56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87),
    *(95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99),
)
_MAKE, _MODEL = 0x010F, 0x0110


@dataclass(frozen=True)
class ImageOrigin:
    """How one image file was made.

    Attributes
    ----------
    file_format
        As Pillow names it, such as `PNG`.
    size
        (height, width) in pixels.
    grey
        Whether it is grey; None if that is not known without decoding it.
    quality
        Of a JPEG, about, from 1 to 100; None of others.
    camera
        Maker and model by the file's EXIF data; None without any.
    """

    file_format: str
    size: tuple[int, int]
    grey: bool | None = None
    quality: int | None = None
    camera: str | None = None


def origin_of(path: str | Path, *, decode: bool = False) -> ImageOrigin:
    """Return how an image file was made, by its header; with `decode` also by its pixels.

    Raises
    ------
    ImageReadError
        It cannot be read.
    """
    header = read_header(path)
    grey: bool | None = header.mode[:1] in ("1", "L", "I") or None
    if grey is None and decode:
        colour = signature_of(read_image(path)).colour
        grey = True if colour <= _GREY else False if colour >= _COLOUR else None
    quality, camera = _of_metadata(path)
    return ImageOrigin(header.file_format, header.size, grey, quality, camera)


def origins_of(paths: Sequence[str | Path]) -> list[ImageOrigin]:
    """Return the origins of at most 200 of the files, evenly spread; unreadable ones are left out.

    Of these, eight are decoded to tell grey from colour.
    """
    count = min(len(paths), _LOOKED_AT)
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    every = max(1, -(-count // _DECODED))

    def look(item: tuple[int, str | Path]) -> ImageOrigin | None:
        number, path = item
        try:
            return origin_of(path, decode=number % every == 0)
        except ImageReadError:  # which is said when it is read to be used
            return None

    with ThreadPoolExecutor(thread_count(), thread_name_prefix="origin") as pool:
        return [found for found in pool.map(look, enumerate(chosen)) if found is not None]


def differences(
    training: Sequence[ImageOrigin], new: Sequence[ImageOrigin], *, called: str = "new"
) -> list[str]:
    """Return how `new` images were made otherwise than all those to learn from, in sentences.

    `called` is what the new images are called in them. Empty where nothing differs, and where
    one of both is empty.
    """
    if not training or not new:
        return []

    def formats(one: ImageOrigin) -> str:
        return one.file_format

    found = [
        _unknown(training, new, called, formats, lambda known: known),
        _unknown(training, new, called, _colours, lambda known: known),
        _unknown(training, new, called, lambda one: one.camera, lambda known: f"from {known}"),
        _sizes(training, new, called),
        _qualities(training, new, called),
    ]
    return [one for one in found if one is not None]


def _of_metadata(path: str | Path) -> tuple[int | None, str | None]:
    """Return the quality of a JPEG and the camera; None where the file does not say."""
    try:
        with Path(path).open("rb") as file, open_header(path, file) as image:
            tables: Any = getattr(image, "quantization", None)
            quality = _quality(tables[0]) if tables and 0 in tables else None
            if image.format == "PNG":  # Pillow would decode it to look for metadata behind it
                return quality, None
            exif = image.getexif()
            names = [str(exif.get(tag, "")).strip("\0 ") for tag in (_MAKE, _MODEL)]
    except Exception:  # metadata of a picture that is otherwise whole
        return None, None
    camera = " ".join(name for name in names if name)
    return quality, "".join(c for c in camera if c.isprintable())[:60] or None


def _quality(table: Sequence[int]) -> int:
    """Return the quality by which libjpeg makes this luminance table, about: in the field's
    formula.
    """
    # Pillow has given the table in both orders; of both, the sum is the same
    scale = 100.0 * float(sum(table)) / sum(_ANNEX_K)
    quality = (200.0 - scale) / 2 if scale <= 100 else 5000.0 / scale
    return int(np.clip(round(quality), 1, 100))


def _colours(one: ImageOrigin) -> str | None:
    return None if one.grey is None else "grey" if one.grey else "in colour"


def _unknown(
    training: Sequence[ImageOrigin],
    new: Sequence[ImageOrigin],
    called: str,
    trait: Callable[[ImageOrigin], str | None],
    named: Callable[[str], str],
) -> str | None:
    """Return a sentence on new images with a trait that no training image has."""
    known = {trait(one) for one in training} - {None}
    counted = Counter(value for one in new if (value := trait(one)) is not None)
    strange = {value: n for value, n in counted.items() if value not in known}
    if not known or not strange:
        return None
    usual = " or ".join(sorted(named(str(value)) for value in known))
    others = " or ".join(sorted(map(named, strange)))
    return _sentence(sum(strange.values()), counted.total(), called, others, usual)


def _sizes(training: Sequence[ImageOrigin], new: Sequence[ImageOrigin], called: str) -> str | None:
    areas = [height * width for height, width in (one.size for one in training)]
    shapes = [width / height for height, width in (one.size for one in training)]
    least, most = min(areas) / _SIZE**2, max(areas) * _SIZE**2
    narrowest, widest = min(shapes) / _SHAPE, max(shapes) * _SHAPE

    def strange(size: tuple[int, int]) -> bool:
        height, width = size
        return not (least <= height * width <= most and narrowest <= width / height <= widest)

    others = [one.size for one in new if strange(one.size)]
    if not others:
        return None
    sizes = Counter(one.size for one in training)
    (usual, _), *_ = sizes.most_common(1)
    (other, _), *_ = Counter(others).most_common(1)
    about = "" if len(sizes) == 1 else "such as "
    return _sentence(len(others), len(new), called, _pixels(other), f"{about}{_pixels(usual)}")


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _qualities(
    training: Sequence[ImageOrigin], new: Sequence[ImageOrigin], called: str
) -> str | None:
    known = [one.quality for one in training if one.quality is not None]
    asked = [one.quality for one in new if one.quality is not None]
    if not known or not asked:
        return None
    others = [q for q in asked if not min(known) - _QUALITY <= q <= max(known) + _QUALITY]
    if not others:
        return None
    usual = f"of quality {min(known)}" + (f" to {max(known)}" if len(set(known)) > 1 else "")
    return _sentence(len(others), len(asked), called, f"JPEG of quality {others[0]}", usual)


def _sentence(number: int, total: int, called: str, other: str, usual: str) -> str:
    some = "all" if number == total else f"{number} of {total}"
    verb = "is" if number == 1 and number != total else "are"
    return f"{some} {called} images {verb} {other}, and the training images are {usual}"


def strangers(
    training: Iterable[str | Path], new: Iterable[str | Path], *, called: str = "new"
) -> list[str]:
    """Return what `differences` says of the files of two sets, which are looked at here."""
    return differences(origins_of(list(training)), origins_of(list(new)), called=called)
