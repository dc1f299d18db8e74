"""Converted networks kept in the user's cache, so that only a first run converts.

A program is kept as OpenVINO's two files, the graph and its numbers, and a third with the
hashes of both, written last: what is incomplete or was changed is converted anew. The name
is a hash of all that the program depends on: weights, layers, size of the images, version of
OpenVINO, and the code of this package that defines networks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ..untrusted_files import parse_json, read_regular
from .without_telemetry import import_openvino

#: Programs kept; the ones longest unused go first.
_KEPT = 16
#: No network of ours takes more bytes.
_LARGEST = 2**32
_SUFFIXES = (".xml", ".bin", ".json")


class ProgramStore:
    """A folder of converted networks.

    Parameters
    ----------
    folder
        Made if need be. Where it cannot be read or written, nothing is kept.
    identity
        Of the network and its weights: equal only for equal ones.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity

    def load(self, core: Any, size: tuple[int, int]) -> Any | None:
        """Load the program for images of (height, width); None if there is none, or no whole
        one.
        """
        stem = self._stem(size)
        try:
            wanted = parse_json(read_regular(stem.with_suffix(".json"), _LARGEST))
            for suffix in _SUFFIXES[:2]:
                if wanted[suffix] != _digest(stem.with_suffix(suffix)):
                    return None
            for suffix in _SUFFIXES:
                with contextlib.suppress(OSError):  # a cache that others fill may be read only
                    os.utime(stem.with_suffix(suffix))
            return core.read_model(stem.with_suffix(".xml"), stem.with_suffix(".bin"))
        except Exception:  # whatever it is, converting anew mends it
            return None

    def save(self, model: Any, size: tuple[int, int]) -> None:
        """Keep a program."""
        openvino = import_openvino()

        stem = self._stem(size)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as building:
                new = Path(building) / stem.name
                openvino.save_model(model, new.with_suffix(".xml"), compress_to_fp16=False)
                hashes = {suffix: _digest(new.with_suffix(suffix)) for suffix in _SUFFIXES[:2]}
                new.with_suffix(".json").write_text(json.dumps(hashes))
                for suffix in (".bin", ".xml", ".json"):
                    new.with_suffix(suffix).replace(stem.with_suffix(suffix))
            self._forget_the_oldest()
        except (OSError, RuntimeError):  # a full disk, a read-only home: the next run converts
            return

    def _stem(self, size: tuple[int, int]) -> Path:
        openvino = import_openvino()

        text = json.dumps([self._identity, size, openvino.__version__, code_hash("backbones")])
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _forget_the_oldest(self) -> None:
        known = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in known[:-_KEPT]:
            for suffix in _SUFFIXES:
                with contextlib.suppress(OSError):
                    path.with_suffix(suffix).unlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(read_regular(path, _LARGEST)).hexdigest()


@cache
def code_hash(*rooms: str) -> str:
    """Return a hash of the code in folders of this package, so that a change to it is seen."""
    digest = hashlib.sha256()
    for room in rooms:
        for path in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
