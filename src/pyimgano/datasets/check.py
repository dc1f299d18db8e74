"""Looking a dataset over before anything is fitted on it: what is there, and what is wrong.

Of images only the headers are read, and whether the file is as long as its structure says;
masks are decoded, since nothing else tells an empty one. Files of equal length are compared
by samples of their bytes, and those with equal samples by a hash of all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import DataError, ImageReadError
from ..images import (
    CopyGroups,
    ImageHeader,
    SampleRange,
    Signature,
    check_bit_depth,
    decode_image,
    dim_note,
    pages_remark,
    read_header,
    read_mask,
    signature_of,
    strangers,
)
from ..threads import thread_count
from .catalog import get_layout, open_root
from .layout import Category, Layout, Sample
from .masks import NO_MASK, size_mismatch
from .stay_inside import load_category
from .unused import outside_of_categories

#: What can be found: errors, but for those in `_REMARKS`, which are only worth knowing.
Kind = Literal[
    "category_unusable",
    "image_missing",
    "image_unreadable",
    "duplicate_image",
    "mask_missing",
    "mask_unreadable",
    "mask_size",
    "mask_empty",
    "mask_value",
    "mask_shared",
    "mask_without_image",
    "images_not_used",
    "files_not_used",
    "images_in_no_category",
    "repeated_image",
    "similar_image",
    "shared_image",
    "several_pages",
    "odd_image",
    "note",
]
_REMARKS = frozenset(
    {
        "files_not_used",
        "images_in_no_category",
        "repeated_image",
        "similar_image",
        "shared_image",
        "several_pages",
        "odd_image",
        "note",
    }
)
_SPLITS = ("train", "validation", "test")

#: Told how many files of a category have been looked at, and how many there are.
Progress = Callable[[str, int, int], None]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Model):
    """Something about one file; `error` unless it is only worth knowing."""

    kind: Kind
    path: str
    message: str
    error: bool


class CategoryCheck(_Model):
    """What one category holds.

    Attributes
    ----------
    train, validation, good, defective, unlabelled
        Numbers of images; the last three are the test set's.
    masks
        Mask files that defective images have, or should have by a table.
    sizes
        "<width>x<height>" to the number of images of that size.
    modes
        Kind of pixels, as Pillow names it, to the number of images of that kind.
    findings
        Errors first.
    """

    name: str
    train: int
    validation: int
    good: int
    defective: int
    unlabelled: int
    masks: int
    sizes: dict[str, int]
    modes: dict[str, int]
    findings: list[Finding]


class DatasetCheck(_Model):
    """What a dataset holds, category by category.

    `findings` are about the dataset as a whole, and are there only where all categories are
    looked over.
    """

    dataset: str
    root: str
    split: str | None
    categories: list[CategoryCheck]
    findings: list[Finding] = []

    @property
    def errors(self) -> int:
        """Return how many findings are errors."""
        apart = sum(found.error for found in self.findings)
        return apart + sum(found.error for one in self.categories for found in one.findings)


def check_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    category: str = "all",
    split: str | None = None,
    allow_outside: bool = False,
    deep: bool = False,
    bit_depth: int | None = None,
    progress: Progress | None = None,
) -> DatasetCheck:
    """Look over a dataset without fitting anything.

    Parameters
    ----------
    name, root, split, allow_outside
        As `load_dataset`.
    category
        A name, or `all`.
    deep
        Decode every image, which finds damage inside a file too, training images that make
        use of few of their 16 bits, and images that are copies without being the same file:
        re-encoded, resized, or of a still scene, and test images of another format, size,
        camera or colour than the training images.
    bit_depth
        What the images would be read with: how many bits count in images with 16 bits a sample.
    progress
        Called with (category, files done, files there are).

    Raises
    ------
    UsageError
        An unknown dataset or split, or a bit depth out of range.
    DataError
        A missing root, an unknown category, or a table that cannot be read. What is wrong
        with one category of several is a finding.
    """
    reading = _Reading(deep, check_bit_depth(bit_depth))
    layout = get_layout(name, split=split, allow_outside=allow_outside)
    folder = open_root(layout, root)
    names = layout.list_categories(folder)
    if category != "all":
        layout.require_category(folder, category)
        names = [category]
    with ThreadPoolExecutor(thread_count(), thread_name_prefix="check") as pool:
        checked = [_check(layout, folder, one, reading, pool, progress) for one in names]
    outside = outside_of_categories(layout, folder, names) if category == "all" else None
    return DatasetCheck(
        dataset=layout.name,
        root=str(folder),
        split=layout.split,
        categories=checked,
        findings=[]
        if outside is None
        else [_finding("images_in_no_category", folder, outside.removeprefix(f"{folder}: "))],
    )


class _Reading(NamedTuple):
    """How images are looked at: whether they are decoded, and with which bit depth."""

    deep: bool
    bit_depth: int | None


class _Looked(NamedTuple):
    """An image that can be read; `remark` is about anything but its pages."""

    header: ImageHeader
    remark: str | None
    samples: SampleRange | None
    signature: Signature | None


def _check(
    layout: Layout,
    root: Path,
    name: str,
    reading: _Reading,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> CategoryCheck:
    try:
        category = load_category(layout, root, name)
    except DataError as error:
        finding = _finding("category_unusable", root / name, str(error))
        return _summary(Category(name, ()), [], [finding])
    work = _Work(pool, progress, name, category)
    findings = [
        _finding("images_not_used" if one.images else "files_not_used", one.folder, one.reason)
        for one in category.unused
    ]
    said = {one.message for one in category.unused}
    home = root / name if category.folder is None else category.folder
    findings += [
        _finding("note", home, n.removeprefix(f"{home}: ")) for n in category.notes if n not in said
    ]
    readable: list[tuple[str, Sample, ImageHeader]] = []
    signatures: list[tuple[str, Path, Signature]] = []
    listed = [(split, sample) for split in _SPLITS for sample in getattr(category, split)]
    looked = work.map(lambda one: _look(one[1].path, reading), listed)
    samples: list[SampleRange | None] = []
    for (split, sample), found in zip(listed, looked, strict=True):
        if isinstance(found, Finding):
            findings.append(found)
            continue
        readable.append((split, sample, found.header))
        if split == "train":
            samples.append(found.samples)
        remark = pages_remark(found.header.pages)
        if remark is not None:
            findings.append(_finding("several_pages", sample.path, remark))
        if found.signature is not None:
            signatures.append((split, sample.path, found.signature))
        if found.remark is not None:
            findings.append(_finding("odd_image", sample.path, found.remark))
    dim = dim_note(samples)
    if dim is not None:
        findings.append(_finding("note", root / name, dim))
    if reading.deep:
        made = [[sample.path for sample in some] for some in (category.train, category.test)]
        for difference in strangers(*made, called="test"):
            findings.append(_finding("note", home, difference))
    same = _duplicates(work, [(split, sample.path) for split, sample, _ in readable])
    findings += same
    findings += _near_copies(signatures, {one.path for one in same})
    sizes = {sample.path: header.size for _, sample, header in readable}
    defective = [sample for sample in category.test if sample.label]
    if layout.masks_optional and not any(s.mask_paths for s in defective):
        if defective:
            without = "there are no masks, so the detector's maps are not measured"
            findings.append(_finding("note", home, without))
        defective = []
    known = None if category.saturation is None else frozenset(category.saturation)
    for some in work.map(lambda s: _look_at_masks(s, sizes.get(s.path), known), defective):
        findings += some
    owner: dict[Path, Path] = {}
    for sample in defective:
        for mask in sample.mask_paths:
            first = owner.setdefault(mask, sample.path)
            if first != sample.path:
                message = f"is the mask of {first.name} and of {sample.path.name}"
                findings.append(_finding("mask_shared", mask, message))
    findings += [
        _finding("mask_without_image", path, "belongs to no image") for path in category.stray_masks
    ]
    return _summary(category, [header for _, _, header in readable], findings)


class _Work:
    """Looks at the files of a category with several threads, and tells how far it is."""

    def __init__(
        self, pool: ThreadPoolExecutor, progress: Progress | None, name: str, category: Category
    ) -> None:
        self._pool, self._progress, self._name = pool, progress, name
        images = sum(len(getattr(category, split)) for split in _SPLITS)
        self._done, self._total = 0, images + sum(bool(s.label) for s in category.test)

    def map(self, look: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        """Return `look` at each item, in order."""
        for found in self._pool.map(look, items):
            self._done += 1
            if self._progress is not None:
                self._progress(self._name, self._done, self._total)
            yield found

    def quietly(self, look: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        """Return the same, for files that were counted already."""
        return list(self._pool.map(look, items))


def _finding(kind: Kind, path: str | Path, message: str) -> Finding:
    return Finding(kind=kind, path=str(path), message=message, error=kind not in _REMARKS)


def _look(path: Path, reading: _Reading) -> _Looked | Finding:
    try:
        header = read_header(path, bit_depth=reading.bit_depth)
        if not reading.deep:
            return _Looked(header, header.remark, None, None)
        decoded = decode_image(path, bit_depth=reading.bit_depth)
        remark = decoded.remark
        pages = pages_remark(header.pages)
        if remark is not None and pages is not None:  # which are a finding of their own
            remark = remark.removesuffix(pages).removesuffix("; ") or None
        return _Looked(header, remark, decoded.samples, signature_of(decoded.pixels))
    except ImageReadError as error:
        return _finding(
            "image_missing" if error.missing else "image_unreadable", path, error.reason
        )


def _look_at_masks(
    sample: Sample, size: tuple[int, int] | None, known: frozenset[int] | None
) -> list[Finding]:
    if not sample.mask_paths:
        return [_finding("mask_missing", sample.path, NO_MASK)]
    findings = []
    for path in sample.mask_paths:
        try:
            mask = read_mask(path)
        except ImageReadError as error:
            kind: Kind = "mask_missing" if error.missing else "mask_unreadable"
            findings.append(_finding(kind, path, error.reason))
            continue
        shape = (mask.shape[0], mask.shape[1])
        if size is not None and shape != size:
            findings.append(_finding("mask_size", path, size_mismatch(shape, size)))
        if not mask.any():
            findings.append(_finding("mask_empty", path, "no pixel of the mask means defect"))
        elif known is not None:
            strange = sorted(set(np.unique(mask).tolist()) - known - {0})
            if strange:
                message = f"no defect has the pixel value {strange[0]}"
                findings.append(_finding("mask_value", path, message))
    return findings


def _duplicates(work: _Work, files: list[tuple[str, Path]]) -> list[Finding]:
    """Files of equal content: an error across train, validation and test."""
    groups: Iterable[list[tuple[str, Path]]] = [files]
    for look in (_length, _sampled, _hashed):
        finer: dict[tuple[int, Any], list[tuple[str, Path]]] = defaultdict(list)
        for number, group in enumerate(groups):
            looked = work.quietly(lambda one, look=look: look(one[1]), group)  # type: ignore[misc]
            for one, key in zip(group, looked, strict=True):
                if key is not None:
                    finer[number, key].append(one)
        groups = [group for group in finer.values() if len(group) > 1]
    findings = []
    for group in groups:
        first_split, first = group[0]
        for split, path in group[1:]:
            kind: Kind = "repeated_image" if split == first_split else "duplicate_image"
            message = f"({split}) is the same, byte by byte, as {first} ({first_split})"
            findings.append(_finding(kind, path, message))
    return findings


def _near_copies(images: list[tuple[str, Path, Signature]], known: set[str]) -> list[Finding]:
    """Return images that are copies without being the same file; those of `known` paths were told
    of.
    """
    copies = CopyGroups.of([signature for *_, signature in images])
    findings = []
    if copies.alike:
        path = images[0][1].parent
        some = "all" if copies.alike == len(images) else f"{copies.alike} of {len(images)}"
        message = f"{some} images are copies of one, or differ by noise alone"
        findings.append(_finding("note", path, message))
    for members in copies.members():
        first_split, first, _ = images[members[0]]
        for number in members[1:]:
            split, path, _ = images[number]
            if str(path) in known:
                continue
            kind: Kind = "similar_image" if split == first_split else "shared_image"
            message = (
                f"({split}) looks like a copy of {first} ({first_split}): re-encoded, resized, or "
                "of the same scene"
            )
            findings.append(_finding(kind, path, message))
    return findings


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # gone since its header was read
        return None


def _sampled(path: Path) -> bytes | None:
    """Return a hash of sixteen pieces, spread evenly: headers and borders are often all alike."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            for piece in range(16):
                file.seek(piece * max(0, length - 1024) // 15)
                digest.update(file.read(1024))
    except OSError:
        return None
    return digest.digest()


def _hashed(path: Path) -> bytes | None:
    digest = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def _summary(
    category: Category, headers: list[ImageHeader], findings: list[Finding]
) -> CategoryCheck:
    sizes = Counter(f"{header.size[1]}x{header.size[0]}" for header in headers)
    modes = Counter(header.mode for header in headers)
    return CategoryCheck(
        name=category.name,
        train=len(category.train),
        validation=len(category.validation),
        good=sum(sample.label == 0 for sample in category.test),
        defective=sum(sample.label == 1 for sample in category.test),
        unlabelled=sum(sample.label is None for sample in category.test),
        masks=sum(len(sample.mask_paths) for sample in category.test),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        findings=sorted(findings, key=lambda found: not found.error),
    )
