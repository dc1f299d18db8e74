"""Requests wait here, are decoded side by side, and scored together where several wait.

A request is admitted before its body is read, and there are no more admitted requests than the
queue has places; decoded images share a budget of bytes. So memory is bounded whatever clients do.
A request whose client is gone, or whose time is over, is passed over at the next step.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import PyimganoError
from ..images.read import join_remarks
from ..images.stream import lasting_threads
from ..inference import InferenceResult, infer
from .bodies import RawFormat, decode, decoded_size
from .detectors import LoadedDetector
from .metrics import Metrics
from .pictures import Pictures, WantedPictures, draw_pictures
from .refusals import Refusal
from .settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("pyimgano.service")
# Of a new measurement in the moving mean of the seconds that an image takes.
_WEIGHT = 0.1


@dataclass(eq=False)
class Job:
    """A request from the time that its body is there until it leaves the queue.

    Attributes
    ----------
    loaded
        The detector that decides, whatever is loaded meanwhile.
    body, raw
        The image, and what it is where it is no file.
    regions
        Whether regions are listed.
    pictures
        Which pictures are wanted.
    future
        Of the answer. Cancelled where nobody waits for it any more.
    """

    loaded: LoadedDetector
    body: bytes
    raw: RawFormat | None
    regions: bool
    pictures: WantedPictures
    future: Future[Judged] = field(default_factory=Future)
    pixels: npt.NDArray[np.uint8] | None = None
    remark: str | None = None
    sha256: str = ""
    taken: int = 0


@dataclass(frozen=True)
class Judged:
    """The decision on the image of a request.

    Attributes
    ----------
    result
        With a score and a label; never with an error.
    loaded
        The detector that decided.
    sha256
        Of the request's body.
    pictures
        Those that were wanted.
    """

    result: InferenceResult
    loaded: LoadedDetector
    sha256: str
    pictures: Pictures


class Budget:
    """Bytes that threads take and give back; who asks for too many waits."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()

    def take(self, count: int) -> int:
        """Wait until `count` bytes are free, or all of them if it is more than there are, and
        return how many were taken.
        """
        count = min(count, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= self._total)
            self._used += count
        return count

    def give_back(self, count: int) -> None:
        """Give back what `take` returned."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()


class Workers:
    """The threads that all detectors of a service share: some decode, one draws.

    Used in a `with` statement, at whose end they have ended. Drawing has a thread of its own,
    since those that decode may wait for the memory that a picture to draw still holds.
    """

    def __init__(self, threads: int, decoded_bytes: int) -> None:
        self.budget = Budget(decoded_bytes)
        self.decoding = ThreadPoolExecutor(threads, thread_name_prefix="service-decode")
        self.drawing = ThreadPoolExecutor(1, thread_name_prefix="service-draw")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.decoding.shutdown()
        self.drawing.shutdown()


class Queue:
    """The queue of one detector, and the thread that scores what waits in it.

    Used in a `with` statement, at whose end all that was submitted is answered.
    """

    def __init__(self, name: str, workers: Workers, settings: Settings, metrics: Metrics) -> None:
        self._name = name
        self._workers = workers
        self._settings = settings
        self._batches = metrics.batches.labels(name)
        self._length = metrics.queue.labels(name)
        self._admitted = 0
        self._undecoded = 0
        self._ready: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._score_all, name=f"service-score-{name}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def works(self) -> bool:
        """Return whether its thread runs; without it nothing would be answered."""
        return self._thread.is_alive()

    def admit(self) -> None:
        """Take a place, which `leave`, or the end of a submitted job, gives back.

        Raises
        ------
        Refusal
            429: there is none. 503: the service is ending.
        """
        with self._changed:
            if self._closed:
                raise Refusal(503, "ending", "the service is ending")
            if self._admitted >= self._settings.queue_size:
                wait = max(1, math.ceil(self._admitted * self._seconds))
                raise Refusal(
                    429,
                    "full",
                    f"{self._admitted} requests wait already, as many as may",
                    retry_after=wait,
                )
            self._admitted += 1
            self._length.set(self._admitted)

    def leave(self) -> None:
        """Give the place of a request back that was not submitted."""
        with self._changed:
            self._admitted -= 1
            self._length.set(self._admitted)

    def submit(self, job: Job) -> None:
        """Hand over a job; its place is given back when it is answered or passed over."""
        with self._changed:
            self._undecoded += 1
        self._workers.decoding.submit(self._decode, job)

    # ---- in the threads that decode

    def _decode(self, job: Job) -> None:
        failure: Exception | None = None
        try:
            if not job.future.cancelled():
                job.sha256 = hashlib.sha256(job.body).hexdigest()
                job.taken = self._workers.budget.take(decoded_size(job.body, job.raw))
            if not job.future.cancelled():  # it may have waited for memory
                job.pixels, job.remark = decode(job.body, job.raw, job.loaded.bit_depth)
                job.body = b""
        except Exception as error:
            failure = error
        with self._changed:
            self._undecoded -= 1
            if job.pixels is not None:
                self._ready.append(job)
            self._changed.notify_all()
        if job.pixels is None:
            self._finish(job, failure)

    # ---- in the thread that scores

    def _score_all(self) -> None:
        with lasting_threads():  # or memory would grow with every request
            self._score_until_the_end()

    def _score_until_the_end(self) -> None:
        while (batch := self._take()) is not None:
            waiting = [job for job in batch if not job.future.cancelled()]
            for job in batch:
                if job not in waiting:
                    self._finish(job)
            if waiting:
                self._batches.observe(len(waiting))
                began = time.monotonic()
                self._score(waiting)
                each = (time.monotonic() - began) / len(waiting)
                self._seconds += (_WEIGHT if self._seconds else 1.0) * (each - self._seconds)

    def _take(self) -> list[Job] | None:
        """Wait for a job, and return it with those that wait behind it for the same detector;
        None where nothing will come any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or (self._closed and not self._undecoded))
            batch: list[Job] = []
            while (
                self._ready
                and len(batch) < self._settings.batch_size
                and (not batch or self._ready[0].loaded is batch[0].loaded)
            ):
                batch.append(self._ready.popleft())
            return batch or None

    def _score(self, batch: list[Job]) -> None:
        detector = batch[0].loaded.detector
        maps = detector.has_maps and any(job.pictures for job in batch)
        regions = detector.has_maps and any(job.regions for job in batch)
        try:
            images = [job.pixels for job in batch if job.pixels is not None]  # all of them
            results = infer(detector, images, include_maps=maps, regions=regions)
        except Exception as error:
            if len(batch) > 1:  # one image must not cost the others their decisions
                for job in batch:
                    self._score([job])
                return
            self._finish(batch[0], error)
            return
        for job, result in zip(batch, results, strict=True):
            if result.error is not None:  # a value above the detector's bit depth, say
                line = f"the image cannot be read: {result.error}"
                self._finish(job, Refusal(422, "unreadable", line))
            elif job.pictures and detector.has_maps:
                self._workers.drawing.submit(self._draw, job, result)
            else:
                self._finish(job, _judged(job, result, Pictures()))

    # ---- in the thread that draws

    def _draw(self, job: Job, result: InferenceResult) -> None:
        outcome: Judged | Exception | None = None
        try:
            if not job.future.cancelled():
                assert job.pixels is not None
                drawn = draw_pictures(job.loaded.detector, result, job.pixels, job.pictures)
                outcome = _judged(job, result, drawn)
        except Exception as error:
            outcome = error
        self._finish(job, outcome)

    # ---- at the end of a job

    def _finish(self, job: Job, outcome: Judged | Exception | None = None) -> None:
        """Give back what a job holds, then tell who waits; called once for each job."""
        job.body, job.pixels = b"", None
        self._workers.budget.give_back(job.taken)
        self.leave()
        with suppress(InvalidStateError):  # nobody waits any more
            if isinstance(outcome, Judged):
                job.future.set_result(outcome)
            elif outcome is not None:
                job.future.set_exception(_refusal(outcome))


def _judged(job: Job, result: InferenceResult, pictures: Pictures) -> Judged:
    kept = replace(
        result,
        anomaly_map=None,
        remark=join_remarks(job.remark, result.remark),
        regions=result.regions if job.regions else None,
    )
    return Judged(kept, job.loaded, job.sha256, pictures)


def _refusal(error: Exception) -> Refusal:
    """Return why there is no decision. What nobody expected goes to the log as a whole."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, PyimganoError):
        return Refusal(500, "failed", f"no decision: {error}")
    _log.error("an image could not be judged", exc_info=error)
    return Refusal(500, "failed", "no decision: the service failed at this image")
