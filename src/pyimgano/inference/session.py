"""Images to records, one after another: from lists, from a stream, from a watched folder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..images import closed_after
from ..models.many_products import Naming
from ..runs import InferenceRecord, WatchedFile
from .inputs import place_of
from .outputs import Recorder, Wanted
from .scoring import InferenceResult, Scorer, iter_infer, pixel_threshold_of, require_maps
from .watch import Watcher

#: Given a record, and the map of its image if there is one.
Look = Callable[[InferenceRecord, "npt.NDArray[np.float32] | None"], None]

# A watched folder is left alone for so many times as long as looking at it took.
_REST = 9.0


class Session:
    """Scores images with one detector and hands out a record for each.

    Parameters
    ----------
    detector
        Fitted, or loaded.
    wanted
        What is left of each image besides its record.
    emit
        Given each record, when its files are on disk.
    pixel_threshold
        Of regions, masks and outlines, instead of those that explain the decision.
    batch_size
        As `iter_infer`.
    look
        Given each record after `emit`, with the image's map (H, W) float32, or None where the
        method has none; with it maps are made of all images.
    warn
        Told once, of the first image that is of another kind than the training images.
    product
        As `iter_infer`: the product of all images, or a function of an image's path.

    Attributes
    ----------
    first
        Index of the first record; may be set before there are any.
    total, defective, unknown, unreadable
        Records so far: of all images, and of those that are defective, of an unknown product, or
        cannot be read.

    Raises
    ------
    UsageError
        Maps are wanted of a method that has none, or there is no threshold for pixels.
    """

    def __init__(
        self,
        detector: Scorer,
        wanted: Wanted,
        emit: Callable[[InferenceRecord], None],
        *,
        pixel_threshold: float | None = None,
        batch_size: int | None = None,
        look: Look | None = None,
        warn: Callable[[str], None] | None = None,
        product: Naming = None,
    ) -> None:
        if wanted.needs_maps:
            require_maps(detector)
        limit = pixel_threshold_of(detector, pixel_threshold) if wanted.needs_regions else None
        self._detector = detector
        self._maps = wanted.needs_maps or (look is not None and detector.has_maps)
        self._look = look
        self._recorder = Recorder(detector, wanted, limit)
        self._emit = emit
        self._batch_size = batch_size
        self.first = 0
        self.total = self.defective = self.unknown = self.unreadable = 0
        self._product = product
        self._warn: Callable[[str], None] | None = warn

    def score(self, paths: Sequence[str], root: str | None) -> None:
        """Score the images of a list, decoded ahead of the scoring."""
        with closed_after(self._results(paths, self._batch_size)) as results:
            for path, result in zip(paths, results, strict=True):
                self._finish(path, result, place_of(path, root))

    def score_stream(self, paths: Iterable[str], root: str | None) -> None:
        """Score images as their paths come; one at a time unless a batch size was given."""
        taken: deque[str] = deque()

        def noted() -> Iterator[str]:
            for path in paths:
                taken.append(path)
                yield path

        with closed_after(self._results(noted(), self._batch_size or 1)) as results:
            for result in results:
                path = taken.popleft()
                self._finish(path, result, place_of(path, root))

    def watch(
        self,
        watcher: Watcher,
        *,
        interval: float,
        stop_when_idle: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Score images as they arrive, until nothing has for `stop_when_idle` seconds.

        Looking takes at most a tenth of the time, however many old files there are.
        """
        while True:
            started = clock()
            arrivals = watcher.look()
            pause = max(interval, _REST * (clock() - started))
            paths = [one.path for one in arrivals]
            with closed_after(self._results(paths, self._batch_size)) as results:
                for arrival, result in zip(arrivals, results, strict=True):
                    if not watcher.unchanged(arrival):
                        continue  # while it was read: it is another file now
                    unread = result.error is not None and result.product_known_by is None
                    if unread and not watcher.unreadable(arrival):
                        continue
                    file = WatchedFile(
                        path=arrival.relative, size=arrival.size, mtime_ns=arrival.mtime_ns
                    )
                    # by names alone, so that it stays the same whatever the folder is called
                    place = place_of(f"/{arrival.relative}", "/")
                    self._finish(arrival.path, result, place, file)
                    watcher.done(arrival)
            resting = watcher.away or not watcher.waiting
            if stop_when_idle is not None and resting and not arrivals:
                if clock() - watcher.active >= stop_when_idle:
                    return
                pause = min(pause, max(0.01, stop_when_idle))
            sleep(pause)

    def _results(self, paths: Iterable[str], batch_size: int | None) -> Iterator[InferenceResult]:
        return iter_infer(
            self._detector,
            paths,
            include_maps=self._maps,
            batch_size=batch_size,
            product=self._product,
        )

    def _finish(
        self,
        path: str,
        result: InferenceResult,
        place: Sequence[str],
        file: WatchedFile | None = None,
    ) -> None:
        record = self._recorder.record(result, self.first + self.total, path, place, file)
        self.total += 1
        self.defective += record.pred == 1
        unknown = record.product_known_by == "unknown"
        self.unknown += unknown
        self.unreadable += record.error is not None and not unknown
        if result.unlike_training is not None and self._warn is not None:
            self._warn(
                f"{path}: {result.unlike_training}; its score says so whatever it shows. "
                "The remarks of further such images say this too"
            )
            self._warn = None
        self._emit(record)
        if self._look is not None:
            self._look(record, result.anomaly_map)
