"""Streams that are left unfinished, in whatever thread they are collected, never make one wait."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyimgano.errors import DataError, ImageReadError
from pyimgano.images import closed_after, stream, stream_images
from pyimgano.inference import iter_infer
from pyimgano.models.tiled import TiledDetector
from pyimgano.threads import thread_count
from tests.conftest import picture
from tests.pixel_detector import Darkness, plain

#: Seconds that nothing here takes; what does waits for ever.
LONG = 120

# The garbage collector is made to run while a thread is being started, in that thread, inside
# the locks of `threading`.
PROGRAM = """
import faulthandler, gc, random, sys, threading
import numpy as np
from pyimgano.images import stream_images
from pyimgano.inference import iter_infer

faulthandler.dump_traceback_later({long}, exit=True)
images = [np.zeros((64, 64, 3), np.uint8)] * 40

def plain():
    return stream_images(images, (32, 32), threads=2)

def with_block():
    with stream_images(images, (32, 32), threads=2) as stream:
        yield from stream

def scoring():
    return detector.score_images(images)

def inference():
    return iter_infer(detector, images)

if "{kind}" in ("scoring", "inference"):
    sys.path.insert(0, {folder!r})
    from tests.pixel_detector import Darkness
    detector = Darkness(resize=(32, 32)).fit(images)

random.seed(0)
for i in range({rounds}):
    gc.disable()
    g = {kind}()
    next(g)
    cycle = [g]
    cycle.append(cycle)
    del g, cycle
    gc.set_threshold(100000, 10, 10)
    t = threading.Thread(target=lambda: None)
    gc.set_threshold(gc.get_count()[0] + random.randint(1, 40), 10, 10)
    gc.enable()
    t.start()
    t.join()
    gc.disable()
    gc.collect()
print("done")
"""


@pytest.mark.parametrize("kind", ["plain", "with_block", "scoring", "inference"])
def test_collected_while_a_thread_is_being_started(kind: str) -> None:
    folder = str(Path(__file__).parents[2])
    program = PROGRAM.format(kind=kind, rounds=60, long=LONG, folder=folder)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * LONG)
    assert done.stdout == "done\n", done.stderr


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Decoding of all images but the first waits until the event is set."""
    free = threading.Event()
    free.entered = threading.Event()  # type: ignore[attr-defined]
    load = stream._load

    def waits(index: int, *arguments):  # type: ignore[no-untyped-def]
        if index:
            free.entered.set()  # type: ignore[attr-defined]
            assert free.wait(LONG)
        return load(index, *arguments)

    monkeypatch.setattr(stream, "_load", waits)
    yield free
    free.set()
    decoding_ends()


def decoding() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("decode")]


def decoding_ends() -> None:
    end = time.monotonic() + LONG
    while decoding():
        assert time.monotonic() < end, "threads that decode are still there"
        time.sleep(0.01)


IMAGES = [plain(i) for i in range(40)]


def a_stream() -> Iterator[object]:
    return stream_images(IMAGES, (16, 16), threads=2)


def with_block() -> Iterator[object]:
    with stream_images(IMAGES, (16, 16), threads=2) as found:
        yield from found


def scoring() -> Iterator[object]:
    detector = Darkness(resize=(16, 16)).fit(IMAGES[:1])
    detector.batch_size = 1
    return detector.score_images(IMAGES)


def inference() -> Iterator[object]:
    return iter_infer(Darkness(resize=(16, 16)).fit(IMAGES[:1]), IMAGES, batch_size=1)


@pytest.mark.parametrize("left", ["dropped", "collected", "closed"])
@pytest.mark.parametrize("make", [a_stream, with_block, scoring, inference])
def test_who_leaves_a_stream_waits_for_no_image(
    make: Callable[[], Iterator[object]], left: str, stuck: threading.Event
) -> None:
    """Done by a thread of its own, which would otherwise wait for the images for ever."""

    def leave() -> None:
        items = make()
        next(items)
        assert stuck.entered.wait(LONG)  # type: ignore[attr-defined]
        if left == "closed":
            items.close()  # type: ignore[attr-defined]
        elif left == "collected":
            cycle: list[object] = [items]
            cycle.append(cycle)
            del cycle
        del items
        gc.collect()

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join(LONG / 2)
    assert not thread.is_alive() and decoding()
    stuck.set()
    decoding_ends()


def test_what_was_to_be_decoded_ahead_is_not_once_a_stream_was_dropped(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    load = stream._load

    def noted(index: int, *arguments):  # type: ignore[no-untyped-def]
        begun.append(index)
        return load(index, *arguments)

    monkeypatch.setattr(stream, "_load", noted)
    items = stream_images(IMAGES, (16, 16), threads=2, ahead=30)
    next(items)
    del items
    stuck.set()
    decoding_ends()
    assert len(begun) <= 4


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_leaving_the_block_ends_the_stream(error: type[BaseException] | None) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), stream_images(IMAGES, None) as items:
        next(items)
        if error is not None:
            raise error
    if error is not KeyboardInterrupt:  # for which nobody waits
        assert not decoding()
    decoding_ends()
    assert list(items) == []


def test_a_stream_that_is_read_to_its_end_has_ended_its_threads() -> None:
    items = stream_images(IMAGES, None, threads=2)
    assert [one.index for one in items] == list(range(40))
    assert not decoding()


def test_an_error_of_the_source_ends_the_stream() -> None:
    def camera() -> Iterator[np.ndarray]:
        yield IMAGES[0]
        raise OSError("unplugged")

    items = stream_images(camera(), None, threads=2, ahead=1)
    assert next(items).index == 0
    with pytest.raises(OSError, match="unplugged"):
        next(items)
    assert list(items) == [] and not decoding()


def test_an_unreadable_training_image_leaves_no_thread_behind() -> None:
    with pytest.raises(ImageReadError):
        Darkness().fit([*IMAGES, "/no/where.png", *IMAGES])
    assert not decoding()


@pytest.mark.parametrize("tiled", [False, True])
def test_an_error_of_who_is_told_of_progress_leaves_no_thread_behind(tiled: bool) -> None:
    detector = Darkness(resize=(16, 16))
    model = TiledDetector(detector, tile_size=16) if tiled else detector

    def told(stage: str, done: int, total: int) -> None:
        if stage == "calibration images":
            raise ValueError("told")

    try:
        model.fit(IMAGES[:4], calibration_images=IMAGES[4:], progress=told)
    except ValueError as error:  # whose traceback keeps the frames
        assert str(error) == "told"
        decoding_ends()
    else:
        pytest.fail("no error")


def test_closed_after_closes_what_can_be_closed() -> None:
    ended = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            ended.append(True)

    with pytest.raises(ValueError, match="2"), closed_after(numbers()) as found:
        for number in found:
            if number == 2:
                raise ValueError(number)
    assert ended
    with closed_after([1, 2]) as found:
        assert found == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_stream_says_that_it_did_not_survive_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_images([picture(0)] * 3, None) as items:
        next(items)
        with monkeypatch.context() as patched:
            patched.setattr(stream.os, "getpid", lambda: -1)
            with pytest.raises(DataError, match="opened before the process was forked"):
                next(items)
        assert next(items).index == 1


def test_lasting_threads_serve_one_stream_after_another() -> None:
    """OpenCV keeps something of each thread that has called it: a service must not use new ones."""
    used: set[threading.Thread] = set()
    with stream.lasting_threads():
        for _ in range(20):
            sources = [plain(number) for number in range(3)]
            with stream.stream_images(sources, (8, 8)) as images:
                found = [one.pixels[0, 0, 0] for one in images]
            assert found == [0, 1, 2]
            used |= {one for one in threading.enumerate() if one.name.startswith("decode")}
        with stream.stream_images([plain(1)] * 50, (8, 8)) as images:
            next(images)  # one that is left early
        with stream.stream_images([plain(7)], (8, 8)) as images:
            assert next(images).pixels[0, 0, 0] == 7
        assert len(used) <= thread_count()
    assert not any(one.is_alive() for one in used)
