"""The page of new images: what `pyimgano infer` has scored, the worst first."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..runs import InferenceRecord, write_text
from . import words
from .pictures import MapFacts, scale_of_colours, take_picture
from .rendering import render
from .report_page import Tile

if TYPE_CHECKING:
    from typing_extensions import Self

#: Images with pictures in the page; the others are counted.
MOST_IMAGES = 150
# Bytes of one picture of an image, of which there are two.
_PICTURE_BYTES = 60_000
# Unreadable images that are named.
_MOST_UNREADABLE = 200
# The page is written again at most every so many seconds, and at most a tenth of the time.
_INTERVAL = 2.0
_REST = 9.0


class NewImagesPage:
    """Gathers scored images and writes the page of them, again and again while more are coming.

    It is used in a `with` statement, at whose end the page is written as it stays. It holds no
    more than the pictures of the `MOST_IMAGES` images with the highest scores, the latest of
    equals last, and numbers.

    Parameters
    ----------
    path
        The file.
    detector
        What the page calls the detector.
    normal, pixel_threshold
        Mean of the pixels of normal images, and a threshold of pixels for every image; None where
        there is none.
    bit_depth
        Of images with 16 bits a sample, as `read_image`.
    watching
        Whether the page says that more images are coming, and reloads itself, until then.
    facts
        Further names and values that stand at the top.
    clock
        Seconds, from anywhere, never backwards.
    """

    def __init__(
        self,
        path: Path,
        *,
        detector: str,
        normal: float | None = None,
        pixel_threshold: float | None = None,
        bit_depth: int | None = None,
        watching: bool = False,
        facts: Sequence[tuple[str, str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._detector = detector
        self._normal = normal
        self._pixel_threshold = pixel_threshold
        self._bit_depth = bit_depth
        self._watching = watching
        self._facts = facts
        self._clock = clock
        self._began = datetime.now().astimezone()
        self._kept: list[tuple[float, int, Tile]] = []
        self._unreadable: list[tuple[str, str]] = []
        self._total = self._defective = self._errors = 0
        self._threshold: float | None = None
        self._next = clock()

    def add(
        self,
        record: InferenceRecord,
        anomaly_map: npt.NDArray[np.float32] | None,
        context: float | None = None,
    ) -> None:
        """Take in a scored image; the page is written if it is time.

        Parameters
        ----------
        record
            Of the image.
        anomaly_map
            (H, W) as the detector gave it; None without.
        context
            Share of the score that the map does not show; None where it shows all of it.

        Raises
        ------
        DataError
            The page cannot be written.
        """
        self._total += 1
        self._defective += record.pred == 1
        if record.error is not None or record.score is None:
            self._errors += 1
            if len(self._unreadable) < _MOST_UNREADABLE:
                self._unreadable.append((record.input, record.error or "it has no score"))
        else:
            self._threshold = record.threshold
            rank = (record.score, -self._total)
            full = len(self._kept) >= MOST_IMAGES
            if not full or rank > self._kept[0][:2]:
                entry = (*rank, self._tile(record, anomaly_map, context))
                (heapq.heapreplace if full else heapq.heappush)(self._kept, entry)
        if self._watching and self._clock() >= self._next:
            self._write(finished=False)

    def __enter__(self) -> Self:
        if self._watching:  # so that it can be opened before the first image comes
            self._write(finished=False)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._write(finished=True)
            return
        with suppress(DataError):  # what went wrong before is the error to tell
            self._write(finished=True)

    def _tile(
        self,
        record: InferenceRecord,
        anomaly_map: npt.NDArray[np.float32] | None,
        context: float | None,
    ) -> Tile:
        assert record.score is not None
        facts = None
        if record.threshold is not None:
            facts = MapFacts(record.score, record.threshold, self._normal, self._pixel_threshold)
        picture = take_picture(
            record.input,
            anomaly_map,
            facts,
            most_bytes=_PICTURE_BYTES,
            bit_depth=self._bit_depth,
        )
        ratio = record.score_ratio
        called = {0: "good", 1: "defective", None: None}[record.pred]
        kind = ""
        if picture.has_map:
            kind = words.plural(picture.regions, "region") if picture.regions else "no region"
        parts = PurePath(record.input.replace("\\", "/")).parts
        return Tile(
            picture,
            record.input,
            "/".join(parts[-2:]),
            kind,
            words.multiple(ratio) if ratio is not None else f"{record.score:.4g}",
            called,
            record.score,
            ". ".join(one for one in (words.context_note(context), record.remark) if one),
            ratio is not None,
        )

    def _write(self, *, finished: bool) -> None:
        began = self._clock()
        write_text(self._path, self._render(finished=finished))
        took = self._clock() - began
        self._next = self._clock() + max(_INTERVAL, _REST * took)

    def _render(self, *, finished: bool) -> str:
        now = datetime.now().astimezone()
        going_on = self._watching and not finished
        ordered = sorted(self._kept, key=lambda one: (-one[0], -one[1]))
        facts: list[tuple[str, Any]] = [("Detector", self._detector)]
        if self._threshold is not None:
            facts.append(("Threshold", f"{self._threshold:.6g}"))
        facts.append(("Began", f"{self._began:%Y-%m-%d %H:%M:%S}"))
        facts.append(("As of", f"{now:%Y-%m-%d %H:%M:%S}" + (", more may come" * going_on)))
        facts += self._facts
        return render(
            "new_images.html",
            title=f"{self._defective} of {self._total} defective",
            headline=self._headline(),
            facts=facts,
            tiles=[tile for _, _, tile in ordered],
            total=self._total,
            scored=self._total - self._errors,
            unreadable=self._unreadable,
            unreadable_count=self._errors,
            reload=_INTERVAL * 2 if going_on else None,
            scale=scale_of_colours(),
        )

    def _headline(self) -> str:
        if self._total == 0:
            return "No image has come yet."
        said = f"{words.plural(self._total, 'image')}: {self._defective:,} called defective"
        if self._errors:
            said += f", {self._errors:,} could not be read"
        return said + "."
