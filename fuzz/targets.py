"""What each reader of untrusted files has to give: a result, or its documented error.

The fuzzing programs beside feed these functions, and `tests/faults/test_corpus.py` replays with
them what is kept in `tests/faults/corpus`. Whatever they raise is a bug.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pyimgano import load_model
from pyimgano.datasets import Category, load_category
from pyimgano.datasets.manifest import read_manifest
from pyimgano.datasets.mvtec_loco import MVTecLOCOLayout
from pyimgano.datasets.visa import VisALayout
from pyimgano.errors import DataError, ImageReadError, SavedModelError, UsageError
from pyimgano.images import read_header, read_image, read_mask, read_roi
from pyimgano.images.png import PNG_SIGNATURE
from pyimgano.models import Detector, create_model
from pyimgano.runs.directory import safe_name

# Characters of a message, the path included.
_LONGEST = 2000


def _said(error: Exception) -> None:
    message = str(error)
    assert "\n" not in message and len(message) < _LONGEST, message[: 2 * _LONGEST]


class ImageReader:
    """Any bytes are an image within the limit of pixels, or an `ImageReadError`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "image"

    def check(self, data: bytes) -> None:
        """Read it; a PNG also with checksums that hold, without which it comes no further."""
        self._read(data)
        if data.startswith(PNG_SIGNATURE):
            self._read(mended(data))

    def _read(self, data: bytes) -> None:
        path = self._path
        path.write_bytes(data)
        size = None
        try:
            image = read_image(path)
        except ImageReadError as error:
            _said(error)
        else:
            size = image.shape[:2]
            assert image.shape[2:] == (3,) and image.dtype == np.uint8
            assert 0 < size[0] * size[1] <= 2 * (Image.MAX_IMAGE_PIXELS or 0)
            # also where a decoder leaves rows as they were in its memory
            assert np.array_equal(image, read_image(path))
            self._as_pillow_has_it(image)
        try:
            mask = read_mask(path)
        except ImageReadError as error:
            _said(error)
        else:
            assert mask.ndim == 2 and mask.dtype == np.uint8
            assert 0 < mask.size <= 2 * (Image.MAX_IMAGE_PIXELS or 0)
        try:
            header = read_header(path)
        except ImageReadError as error:
            _said(error)
        else:
            assert size is None or header.size == size

    def _as_pillow_has_it(self, image: Any) -> None:
        if not self._path.read_bytes().startswith(PNG_SIGNATURE):
            return
        with Image.open(self._path) as other:
            if other.mode in ("L", "RGB"):
                other.load()
                if other.getexif().get(0x0112, 1) == 1:
                    assert np.array_equal(image, np.asarray(other.convert("RGB")))


def mended(data: bytes) -> bytes:
    """A PNG with its checksums made to hold, and an end."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = min(struct.unpack_from(">I", data, position)[0], len(data) - position - 12)
        content = data[position + 4 : position + 8 + length]
        parts.append(struct.pack(">I", length) + content + struct.pack(">I", zlib.crc32(content)))
        position += 12 + length
    return b"".join([*parts, b"\0\0\0\0IEND", struct.pack(">I", zlib.crc32(b"IEND"))])


class ManifestReader:
    """Any bytes are a list of files in the folder, or a `DataError`.

    The first byte chooses what is read: a manifest as CSV or JSONL, the table of VisA, the
    configuration of LOCO, or polygons of a region of interest.
    """

    FILES = ("list.csv", "list.jsonl", "split_csv/1cls.csv", "part/defects_config.json", "roi.json")

    def __init__(self, folder: Path) -> None:
        self._root = folder
        for inside in ("split_csv", "part/train/good", "part/Data/Images/Normal", "part/test/good"):
            (folder / inside).mkdir(parents=True, exist_ok=True)
        (folder / "part/train/good/0.png").touch()
        (folder / "outside").symlink_to("/")

    def check(self, data: bytes) -> None:
        name = self.FILES[data[0] % len(self.FILES)] if data else self.FILES[0]
        path = self._root / name
        path.write_bytes(data[1:])
        try:
            if name == "roi.json":
                assert read_roi(path).counted((9, 7)).shape == (9, 7)
            elif name.startswith("list"):
                self._look(read_manifest(path).values())
            elif name.startswith("split_csv"):
                self._look([load_category(VisALayout(), self._root, "part")])
            else:
                load_category(MVTecLOCOLayout(), self._root, "part")
        except DataError as error:
            _said(error)
        finally:
            path.unlink()

    def _look(self, categories: Iterable[Category]) -> None:
        home = os.path.realpath(self._root)
        for category in categories:
            name = safe_name(category.name)
            assert name not in ("", ".", "..") and "/" not in name and len(name.encode()) <= 240
            for sample in (*category.train, *category.validation, *category.test):
                for path in (sample.path, *sample.mask_paths):
                    assert os.path.commonpath([os.path.realpath(path), home]) == home


class SavedDetectorReader:
    """Any files are a saved detector, or a `SavedModelError`.

    The first byte chooses what the others are: the document; the arrays; the arrays, with a
    document that vouches for their length and hash, as a forger would write it; or, after two
    bytes that choose a value of the document, what stands in its place.
    """

    _DOCUMENT, _ARRAYS = "detector.json", "arrays.safetensors"

    def __init__(self, folder: Path) -> None:
        saved = tiny_detector().save(folder / "model")
        self._folder = saved
        self._document = (saved / self._DOCUMENT).read_bytes()
        self._arrays = (saved / self._ARRAYS).read_bytes()

    def check(self, data: bytes) -> None:
        files = {self._DOCUMENT: self._document, self._ARRAYS: self._arrays}
        choice, rest = (data[0] % 4 if data else 0), data[1:]
        files[self._DOCUMENT if choice in (0, 3) else self._ARRAYS] = rest
        if choice == 2:
            vouched = json.loads(self._document)
            facts = {"bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}
            files[self._DOCUMENT] = json.dumps({**vouched, "arrays": facts}).encode()
        elif choice == 3:
            files[self._DOCUMENT] = self._changed(rest)
        for name, content in files.items():
            (self._folder / name).write_bytes(content)
        try:
            load_model(self._folder)
        except SavedModelError as error:
            _said(error)
        except UsageError as error:  # of the machine, not of the folder
            assert "device" in str(error)

    def _changed(self, data: bytes) -> bytes:
        document = json.loads(self._document)
        places = list(_places(document))
        container, key = places[int.from_bytes(data[:2], "big") % len(places)]
        container[key] = "@@@"
        return json.dumps(document).encode().replace(b'"@@@"', data[2:] or b"null")


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def tiny_detector() -> Detector:
    """Fitted, of few bytes when it is saved."""
    images = list(np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8))
    detector: Detector = create_model(
        "vision_patchcore",
        backbone="resnet18",
        layers=["layer1"],
        pretrained=False,
        engine="torch",
        resize=(32, 32),
        coreset_sampling_ratio=0.02,
    )
    return detector.fit(images)


def saved_files(folder: Path) -> tuple[bytes, bytes]:
    """Document and arrays of the tiny detector; the folder is left as it was."""
    saved = tiny_detector().save(folder / "seed")
    try:
        return (saved / "detector.json").read_bytes(), (saved / "arrays.safetensors").read_bytes()
    finally:
        shutil.rmtree(saved)
