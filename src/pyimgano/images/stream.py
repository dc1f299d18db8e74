"""Images one after another, decoded and resized by threads, a bounded number ahead.

Order is the order of the input whatever the threads do, and memory is bounded by `ahead`
images however many are asked for.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError
from ..memory import is_out_of_memory
from ..threads import thread_count
from .copies import Signature, signature_of
from .limit import require_pixels
from .read import decode_image, read_bytes, reason_of, resize_image
from .roi import RegionOfInterest
from .samples import SampleRange, narrow_array
from .sources import ImageSource

_Items = TypeVar("_Items", bound=Iterable[Any])

_THREADS = "decode"
_lasting = threading.local()  # its pool, within `lasting_threads`
# Decoded images that may wait for the consumer, at most.
_AHEAD_BYTES = 2**25
_AHEAD_IMAGES = 256


@dataclass(frozen=True)
class AlteredImage:
    """An image file, and what is done to its pixels once it is decoded, before any resizing.

    Attributes
    ----------
    path
        The image file.
    alter
        Takes and gives (H, W, 3) uint8 RGB; called by several threads.
    key
        Stands for `alter` in the keys of a cache of features; None keeps these out of it.
    """

    path: str
    alter: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
    key: str | None = None


@dataclass(frozen=True)
class Recalled:
    """What a cache of features knows of an image.

    Attributes
    ----------
    features
        What a network made of it, as the cache was given it.
    original_size
        (height, width) before resizing.
    remark, samples, signature
        As `LoadedImage` has them.
    """

    features: Any
    original_size: tuple[int, int]
    remark: str | None
    samples: SampleRange | None = None
    signature: Signature | None = None


class Recall(Protocol):
    """A cache of features, by a key that stands for the bytes of a file and a size."""

    def lookup(self, key: str) -> Recalled | None:
        """Look up what is known; several threads call this."""
        ...


@dataclass(frozen=True)
class KeyedImage:
    """An image of a stream with a cache: its pixels, or the features in their place.

    Attributes
    ----------
    key
        Stands for the bytes of its file, the size it was resized to, and the bit depth it was
        read with.
    pixels
        (H, W, 3) uint8 RGB; None if `features` are there.
    features
        Of the cache; None if it has none.
    original_size, remark, samples, signature
        As `LoadedImage`.
    """

    key: str
    pixels: npt.NDArray[np.uint8] | None
    features: Any
    original_size: tuple[int, int]
    remark: str | None
    samples: SampleRange | None = None
    signature: Signature | None = None


#: What a network takes: pixels, or what a stream with a cache yields.
NetworkInput: TypeAlias = "npt.NDArray[np.uint8] | KeyedImage"


@dataclass(frozen=True)
class LoadedImage:
    """One image of a stream: its pixels, or the error that stands in their place.

    Attributes
    ----------
    index
        Position in the input.
    name
        Its path, or `image <index>` for an array.
    pixels
        (H, W, 3) uint8 RGB at the size asked for, or a `KeyedImage` from a stream with a
        cache; None if `error` is set.
    original_size
        (height, width) before resizing; None if `error` is set.
    error
        Why there are no pixels.
    remark
        What was left out of the file or is odd about it, in words; None if nothing is.
    samples
        Over which range it was read, of an image with 16 bits a sample; None for others.
    signature
        Of the pixels, to tell copies and other kinds of images by; None if `error` is set, and
        of an `AlteredImage`.
    """

    index: int
    name: str
    pixels: NetworkInput | None
    original_size: tuple[int, int] | None
    error: ImageReadError | None
    remark: str | None = None
    samples: SampleRange | None = None
    signature: Signature | None = None


class ImageStream(Iterator[LoadedImage]):
    """An iterator over images that threads decode ahead; `stream_images` makes one.

    Use it in a `with` statement, which stops the threads and waits for them when the block is
    left, however that happens::

        with stream_images(paths, (256, 256)) as stream:
            for loaded in stream:
                ...

    A stream that is read to its end has stopped its threads as well. One that is dropped before
    its end never makes anybody wait: whoever drops it, the garbage collector included, only
    leaves a note that no more images are wanted, and each thread ends after the image that it is
    decoding. So it is safe to collect a stream in any thread and at any moment.
    """

    def __init__(
        self,
        sources: Iterable[ImageSource | AlteredImage],
        load: Callable[[int, ImageSource | AlteredImage], LoadedImage],
        threads: int,
        ahead: int,
    ) -> None:
        self._wanted = _Wanted()
        self._sources = enumerate(sources)
        self._load = partial(_load_if_wanted, self._wanted, load)
        self._threads = threads
        self._ahead = ahead
        self._pending: deque[Future[LoadedImage]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_is_ours = True
        self._process = os.getpid()
        self._given_out = False

    def __next__(self) -> LoadedImage:
        if not self._wanted.more:
            raise StopIteration
        if self._process != os.getpid():
            raise DataError(
                "this stream of images was opened before the process was forked, and its threads "
                "did not come along; open a stream in the process that reads it"
            )
        try:
            return self._next()
        except BaseException as error:
            self._stop(wait=isinstance(error, Exception))
            raise

    def _next(self) -> LoadedImage:
        if self._pool is None:
            self._pool = getattr(_lasting, "pool", None)
            self._pool_is_ours = self._pool is None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=_THREADS)
        while not self._given_out and len(self._pending) < self._ahead:
            try:
                index, source = next(self._sources)
            except StopIteration:
                self._given_out = True
            else:
                self._pending.append(_begin(self._pool, partial(self._load, index, source)))
        if not self._pending:
            raise StopIteration
        return _taken(self._pending.popleft())

    def close(self) -> None:
        """Stop decoding and forget what was decoded ahead; waits for no thread."""
        # Not even where that seems safe: a generator that is suspended in `yield from stream`
        # calls this when the garbage collector closes it.
        self._stop(wait=False)

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # GeneratorExit may come from the garbage collector: in any thread, which may hold any
        # lock. Ctrl-C and an exit should not wait for a large image either.
        self._stop(wait=kind is None or issubclass(kind, Exception))

    def __del__(self) -> None:
        # Takes no lock and joins no thread. What the pool itself does when it is dropped is to
        # wake its threads through a queue that is made for that.
        wanted = getattr(self, "_wanted", None)
        if wanted is not None:
            wanted.more = False

    def _stop(self, wait: bool) -> None:
        self._wanted.more = False
        pending = list(self._pending)
        self._pending.clear()
        self._sources = enumerate(())
        pool, self._pool = self._pool, None
        if pool is None or not wait or self._process != os.getpid():
            return
        if self._pool_is_ours:
            pool.shutdown(wait=True, cancel_futures=True)
        else:
            wait_for(one for one in pending if not one.cancel())


@contextmanager
def lasting_threads() -> Iterator[None]:
    """Within, the streams of this thread decode in the same threads, one stream after another.

    For programs that score a few images at a time, and that for months: OpenCV keeps almost a
    kilobyte for each thread that has ever called it, also when that thread has ended.
    """
    with ThreadPoolExecutor(thread_count(), thread_name_prefix=_THREADS) as pool:
        _lasting.pool = pool
        try:
            yield
        finally:
            del _lasting.pool


@contextmanager
def closed_after(items: _Items) -> Iterator[_Items]:
    """Close an iterator when the block is left, if it is one that can be closed.

    For generators that score images: where the loop over one ends with an error, the traceback
    would otherwise keep it, and what it has open, until the garbage is collected.
    """
    try:
        yield items
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


class _Wanted:
    """Whether more images of a stream are wanted; shared by the stream and its threads.

    The threads must not hold the stream itself, or it would never be collected.
    """

    def __init__(self) -> None:
        self.more = True


def stream_images(
    sources: Iterable[ImageSource | AlteredImage],
    size: tuple[int, int] | None,
    *,
    threads: int | None = None,
    ahead: int | None = None,
    recall: Recall | None = None,
    roi: RegionOfInterest | None = None,
    bit_depth: int | None = None,
) -> ImageStream:
    """Iterate over all sources, decoded and resized, in order.

    Parameters
    ----------
    sources
        Paths, arrays as `as_sources` takes them, or `AlteredImage`s; consumed lazily, so it may
        be endless.
    size
        (height, width) to resize to, or None.
    threads
        Decoding threads; by default `pyimgano.threads.thread_count()`.
    ahead
        How many images may be in flight; by default as many as take 32 MiB at `size`, up to
        256, so that decoding goes on while the consumer is busy, and at least four for each
        thread.
    recall
        A cache of features: files that it knows are read, but not decoded.
    roi
        What counts of each image; the rest is filled with a constant after resizing. An image
        of which nothing counts cannot be used. Part of the keys of `recall`.
    bit_depth
        How many bits count in images with 16 bits a sample, as `read_image` has it. Part of the
        keys of `recall`.

    Returns
    -------
    ImageStream
        An iterator of `LoadedImage`, one for each source, and a context manager. An image that
        cannot be read, for whatever reason, is given with its error: what becomes of it is the
        caller's decision. A stream that may be left before its end is best used in a `with`
        statement.

    Raises
    ------
    DataError
        When the next image is asked for: a decoding thread was ended from within, as by
        `sys.exit` in a decoder; or the stream was opened before the process was forked.
    """
    threads = threads or thread_count()
    if ahead is None:
        # features may be larger than pixels
        small = 0 if size is None or recall is not None else _AHEAD_BYTES // (3 * size[0] * size[1])
        ahead = max(4 * threads, min(_AHEAD_IMAGES, small))

    def load(index: int, source: ImageSource | AlteredImage) -> LoadedImage:
        return _load(index, source, size, recall, roi, bit_depth)

    return ImageStream(sources, load, threads, ahead)


def _load_if_wanted(
    wanted: _Wanted,
    load: Callable[[int, ImageSource | AlteredImage], LoadedImage],
    index: int,
    source: ImageSource | AlteredImage,
) -> LoadedImage:
    if not wanted.more:  # nobody looks at what is given here
        return LoadedImage(index, "", None, None, None)
    return load(index, source)


def _begin(pool: ThreadPoolExecutor, load: Callable[[], LoadedImage]) -> Future[LoadedImage]:
    """Have the pool load an image; where the system gives no more threads, this one does it."""
    try:
        return pool.submit(load)
    except RuntimeError:
        done: Future[LoadedImage] = Future()
        done.set_result(load())
        return done


def _taken(future: Future[LoadedImage]) -> LoadedImage:
    try:
        return future.result()
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # which would end this process in silence
        kind = type(error).__name__
        raise DataError(f"a thread that decodes images was ended from within ({kind})") from error


def _load(
    index: int,
    source: ImageSource | AlteredImage,
    size: tuple[int, int] | None,
    recall: Recall | None,
    roi: RegionOfInterest | None,
    bit_depth: int | None,
) -> LoadedImage:
    if isinstance(source, AlteredImage):
        return _load_altered(index, source, size, recall, roi, bit_depth)
    name, key = f"image {index}" if isinstance(source, np.ndarray) else str(source), ""
    try:
        if isinstance(source, np.ndarray):
            shape = (source.shape[0], source.shape[1])
            narrow, samples, remark = narrow_array(name, source, bit_depth)
            resized = _resize(narrow, size, roi, name)
            return LoadedImage(
                index, name, resized, shape, None, remark, samples, signature_of(resized)
            )
        data = read_bytes(source)
        if recall is not None:
            key = _key(data, size, roi, bit_depth)
            known = recall.lookup(key)
            if known is not None:
                # as if it were decoded: what is refused does not depend on what is kept
                require_pixels(source, known.original_size[1], known.original_size[0])
                told = (known.original_size, known.remark, known.samples, known.signature)
                keyed = KeyedImage(key, None, known.features, *told)
                return LoadedImage(index, name, keyed, told[0], None, *told[1:])
        image, remark, samples = decode_image(source, data, bit_depth=bit_depth)
        pixels: NetworkInput = _resize(image, size, roi, name)
    except ImageReadError as error:
        return LoadedImage(index, name, None, None, error)
    original = (image.shape[0], image.shape[1])
    assert isinstance(pixels, np.ndarray)
    signature = signature_of(pixels)
    if recall is not None:
        pixels = KeyedImage(key, pixels, None, original, remark, samples, signature)
    return LoadedImage(index, name, pixels, original, None, remark, samples, signature)


def _resize(
    image: npt.NDArray[np.uint8],
    size: tuple[int, int] | None,
    roi: RegionOfInterest | None,
    name: str,
) -> npt.NDArray[np.uint8]:
    try:
        resized = resize_image(image, size)
        if roi is None:
            return resized
        return roi.fill(resized, (image.shape[0], image.shape[1]), name)
    except ImageReadError:
        raise
    except Exception as error:  # of OpenCV, or memory: it costs this image
        raise ImageReadError(name, reason_of(error)) from error


def _key(
    data: bytes, size: tuple[int, int] | None, roi: RegionOfInterest | None, bit_depth: int | None
) -> str:
    """Return what stands in a cache for an image's bytes and how they are read."""
    key = f"{hashlib.blake2b(data, digest_size=20).hexdigest()}-{size}".replace(" ", "")
    if roi is not None:
        key += f"-{roi.sha256[:32]}"
    if bit_depth is not None:
        key += f"-{bit_depth}bit"
    return key


def _load_altered(
    index: int,
    source: AlteredImage,
    size: tuple[int, int] | None,
    recall: Recall | None,
    roi: RegionOfInterest | None,
    bit_depth: int | None,
) -> LoadedImage:
    """Load an altered image; from a cache only if its source names the alteration there."""
    key = ""
    try:
        data = read_bytes(source.path)
        if recall is not None and source.key is not None:
            key = f"{_key(data, size, roi, bit_depth)}-{source.key}"
            known = recall.lookup(key)
            if known is not None:
                require_pixels(source.path, known.original_size[1], known.original_size[0])
                told = (known.original_size, known.remark, known.samples)
                keyed = KeyedImage(key, None, known.features, *told, known.signature)
                return LoadedImage(index, source.path, keyed, told[0], None, *told[1:])
        image, remark, samples = decode_image(source.path, data, bit_depth=bit_depth)
        pixels: NetworkInput = _resize(source.alter(image), size, roi, source.path)
    except ImageReadError as error:
        return LoadedImage(index, source.path, None, None, error)
    except Exception as error:
        if not is_out_of_memory(error):  # wrong in what alters it, not in the image
            raise
        refused = ImageReadError(source.path, reason_of(error))
        return LoadedImage(index, source.path, None, None, refused)
    original = (image.shape[0], image.shape[1])
    if key:
        assert isinstance(pixels, np.ndarray)
        signature = signature_of(pixels)
        pixels = KeyedImage(key, pixels, None, original, remark, samples, signature)
    return LoadedImage(index, source.path, pixels, original, None, remark, samples)
