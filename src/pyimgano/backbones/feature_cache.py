"""Features of images kept on disk, so that a second run decodes and extracts nothing.

An entry is named by a hash of the image file's bytes, the size it was resized to and the bit depth
it was read with, in a folder named by a hash of all else that its features depend on: backbone,
layers, weights, engine and its version, and the code of this package that decodes images and
defines networks.
So a changed byte in an image, or another version of anything, is another entry.

Entries are written beside and renamed, so two processes may share a folder, and carry a hash
of their numbers, so that what a disk damaged is extracted anew. When the folder outgrows its
bound, the entries longest unused go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from ..images import KeyedImage, Recalled, SampleRange, Signature
from ..threads import ForkSafeLock
from ..untrusted_files import parse_json, read_regular

#: Bytes that a cache folder may hold unless another bound is given.
MAX_BYTES = 20 * 2**30
# The folder is looked over before the first entry is written, and then whenever this share of
# its bound has been added.
_TRIM_SHARE = 0.02
# In a folder of its own, so that nothing else is ever counted or deleted.
_HOME = "pyimgano-features"
_SUFFIX = ".safetensors"
# What killed processes left is removed after so many seconds.
_STALE = 3600


class FeatureCache:
    """Features of one backbone, by image.

    Parameters
    ----------
    folder
        Where the cache's own folder is made, which other backbones may share.
    identity
        Of the backbone: equal only where features are equal.
    max_bytes
        Bound of that folder, which each process may go beyond by a fiftieth.
    """

    def __init__(self, folder: Path, identity: str, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder.absolute() / _HOME
        self._space = self._folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes
        self._added: int | None = None  # bytes since the folder was looked over
        self._works = True
        self._lock = ForkSafeLock()

    def lookup(self, key: str) -> Recalled | None:
        """Look up what is known of an image; None if nothing is, or it was damaged."""
        path = self._path(key)
        try:
            entry = load(read_regular(path, self._max_bytes))
            facts = parse_json(entry.pop("facts").tobytes())
            signature = Signature(entry.pop("signature"), facts["colour"])
            layers = [entry[f"layer{i}"] for i in range(len(entry))]
            samples = facts.get("samples")
            found = Recalled(
                layers,
                tuple(facts["size"]),
                facts["remark"],
                None if samples is None else SampleRange(*samples),
                signature,
            )
            if facts["hash"] != _digest(layers, found):
                return None
        except Exception:  # whatever it is, extracting anew mends it
            return None
        with contextlib.suppress(OSError):  # a cache that others fill may be read only
            os.utime(path)
        return found

    def store(self, image: KeyedImage, layers: Sequence[Tensor]) -> None:
        """Keep the features of an image, (C_l, h_l, w_l) for each layer.

        A disk that is full or cannot be written ends the caching with a warning, not the run.
        """
        if not self._works:
            return
        arrays = [np.ascontiguousarray(layer.cpu().numpy()) for layer in layers]
        assert image.signature is not None
        facts = {
            "hash": _digest(arrays, image),
            "size": image.original_size,
            "remark": image.remark,
            "samples": image.samples,
            "colour": image.signature.colour,
        }
        entry = {f"layer{i}": array for i, array in enumerate(arrays)}
        entry["signature"] = image.signature.points
        entry["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        path = self._path(image.key)
        try:
            data = save(entry)
            with self._lock:
                if self._added is None or self._added > _TRIM_SHARE * self._max_bytes:
                    self._trim()
                    self._added = 0
                self._added += len(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(beside).replace(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    Path(beside).unlink()
        except OSError as error:
            self._works = False
            reason = error.strerror or type(error).__name__
            warnings.warn(
                f"{self._folder}: nothing more is cached ({reason}); results do not depend on it",
                stacklevel=2,
            )

    def _path(self, key: str) -> Path:
        return self._space / key[:2] / f"{key}{_SUFFIX}"

    def _trim(self) -> None:
        """Bring the folder to nine tenths of its bound, if it is above it."""
        entries = []
        for left in self._folder.glob("*/*/*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()
        for path in self._folder.glob(f"*/*/*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process was quicker
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total <= self._max_bytes:
            return
        for _, size, path in sorted(entries):
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
            if total <= 0.9 * self._max_bytes:
                return


def recalled_features(image: KeyedImage) -> list[Tensor]:
    """Return the features that a stream found in a cache, or that were computed before."""
    assert image.features is not None
    return [torch.as_tensor(array) for array in image.features]


def _digest(arrays: Sequence[np.ndarray], image: KeyedImage | Recalled) -> str:
    assert image.signature is not None
    samples = None if image.samples is None else tuple(image.samples)
    told = repr((image.original_size, image.remark, samples, image.signature.colour))
    digest = hashlib.blake2b(told.encode(), digest_size=16)
    for array in (*arrays, image.signature.points):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
