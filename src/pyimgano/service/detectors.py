"""Detectors by name: read, warmed up, and replaced while others still score with them."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SavedModelError, UsageError, unknown_name
from ..inference import infer
from ..inference.detectors import bits_of, open_detector
from ..inference.scoring import OneProduct
from ..models import Detector, ManyProducts
from ..models.saved import DOCUMENT, SavedDocument, read_document
from ..runs import find_model
from ..untrusted_files import read_regular, reason_of_failure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: A detector that is being replaced on disk while it is read is read again, so often at most.
_ATTEMPTS = 3
#: Side in pixels of the image that a detector by tiles is warmed up with.
_SIDE = 256


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in memory that has scored an image, and which one it is.

    Attributes
    ----------
    detector
        Fitted; never changed after it was loaded.
    document
        What its folder says of it.
    fingerprint
        SHA-256 of `detector.json`, in which the hashes of all other files stand: two detectors
        with one fingerprint decide alike.
    bit_depth
        Bits that count in images of 16 bits a sample; None for what each file declares.
    """

    detector: OneProduct
    document: SavedDocument
    fingerprint: str
    bit_depth: int | None

    @property
    def version(self) -> str:
        """Return the first twelve digits of the fingerprint, for people."""
        return self.fingerprint[:12]


@dataclass(frozen=True)
class DetectorSource:
    """Where a detector is read from, and how.

    Attributes
    ----------
    name
        What clients call it.
    folder
        A saved detector, or a run that kept one.
    device, allow_outside
        As `load_model`; None for the device of the fit.
    """

    name: str
    folder: Path
    device: str | None = None
    allow_outside: bool = False

    def saved(self) -> Path:
        """Return the folder of the saved detector.

        Raises
        ------
        DataError, UsageError
            There is none.
        """
        if (self.folder / DOCUMENT).is_file() or not (self.folder / "categories").is_dir():
            return self.folder
        return Path(find_model(self.folder))

    def check(self) -> None:
        """Read the document alone, so that a wrong folder is found out before anything is loaded.

        Raises
        ------
        DataError, UsageError
            There is no detector, or none that can be read.
        """
        read_document(self.saved())

    def load(self, batch_size: int = 1) -> LoadedDetector:
        """Read the detector and score images of noise with it, so that the first image of a
        client is as quick as the later ones.

        Raises
        ------
        DataError, UsageError
            It cannot be read, or cannot score.
        """
        folder = self.saved()
        for _ in range(_ATTEMPTS):
            before = _fingerprint(folder)
            document = read_document(folder)
            detector = open_detector(
                model_dir=folder, device=self.device, allow_outside=self.allow_outside
            )
            if _fingerprint(folder) == before:
                break
        else:
            raise SavedModelError(f"{folder}: changes while it is read")
        assert not isinstance(detector, ManyProducts)  # whose document was refused above
        _warm_up(detector, folder, batch_size)
        return LoadedDetector(detector, document, before, bits_of(detector))


class NamedDetector:
    """The detector that decides under a name now; it may be replaced at any moment.

    A request keeps the `LoadedDetector` that was current when it was accepted.
    """

    def __init__(self, source: DetectorSource, batch_size: int) -> None:
        self.source = source
        self._batch_size = batch_size
        self._current: LoadedDetector | None = None
        self._one_at_a_time = threading.Lock()

    @property
    def current(self) -> LoadedDetector | None:
        """Return the detector; None until it was loaded for the first time."""
        return self._current

    def load(self) -> tuple[LoadedDetector | None, LoadedDetector]:
        """Read the folder and put what lies there in the place of the present detector.

        The present one goes on deciding until the other one is warmed up, and stays if that fails.

        Returns
        -------
        tuple
            The earlier one, None at first, and the one that decides from now on.

        Raises
        ------
        DataError, UsageError
            As `DetectorSource.load`.
        """
        with self._one_at_a_time:
            fresh = self.source.load(self._batch_size)
            earlier, self._current = self._current, fresh
            return earlier, fresh


def parse_models(
    given: list[str], *, device: str | None, allow_outside: bool
) -> list[DetectorSource]:
    """Return the detectors that `NAME=DIR` texts name.

    Raises
    ------
    UsageError
        One has another form, a name has odd characters, or stands twice.
    """
    found: dict[str, DetectorSource] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise UsageError(f"--model: give NAME=DIR, such as lid=models/lid, got {text!r}")
        if not _NAME.fullmatch(name):
            raise UsageError(
                "--model: a name has at most 64 of A-Z, a-z, 0-9, '.', '_' and '-', and begins "
                f"with a letter or digit; got {name!r}"
            )
        if name in found:
            raise UsageError(f"--model: the name {name!r} stands twice")
        found[name] = DetectorSource(name, Path(folder), device, allow_outside)
    if not found:
        raise UsageError("--model is missing: give NAME=DIR, such as lid=models/lid")
    return list(found.values())


def unknown_model(name: str, known: list[str]) -> str:
    """Return a line for a name that is none."""
    return unknown_name("detector", name[:64], known)


def _fingerprint(folder: Path) -> str:
    try:
        return hashlib.sha256(read_regular(folder / DOCUMENT)).hexdigest()
    except (OSError, ValueError) as error:
        raise SavedModelError(
            f"{folder}: no saved detector ({DOCUMENT}: {reason_of_failure(error)})"
        ) from error


def _warm_up(detector: OneProduct, folder: Path, batch_size: int) -> None:
    """Score noise as a request would; what is prepared at first use is prepared then."""
    size = (_SIDE, _SIDE)
    if isinstance(detector, Detector):
        size = detector.region_cells.size
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for count in {1, batch_size}:
        for result in infer(detector, [noise] * count, regions=detector.has_maps):
            if result.error is not None:
                raise SavedModelError(f"{folder}: cannot score an image ({result.error})")
