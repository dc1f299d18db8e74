"""Images one after another, decoded and resized by threads, a bounded number ahead.

Order is the order of the input whatever the threads do, and memory is bounded by `ahead`
images however many are asked for.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageReadError, UsageError
from ..memory import is_out_of_memory
from ..threads import thread_count
from .limit import require_pixels
from .read import read_bytes, read_image_and_remark, reason_of, resize_image
from .roi import RegionOfInterest

_THREADS = "decode"
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


#: What a detector takes for an image: a path, or an (H, W, 3) uint8 RGB array.
ImageSource: TypeAlias = "str | Path | npt.NDArray[np.uint8]"


@dataclass(frozen=True)
class Recalled:
    """What a cache of features knows of an image.

    Attributes
    ----------
    features
        What a network made of it, as the cache was given it.
    original_size
        (height, width) before resizing.
    remark
        As `LoadedImage.remark`.
    """

    features: Any
    original_size: tuple[int, int]
    remark: str | None


class Recall(Protocol):
    """A cache of features, by a key that stands for the bytes of a file and a size."""

    def lookup(self, key: str) -> Recalled | None:
        """What is known; called by several threads."""
        ...


@dataclass(frozen=True)
class KeyedImage:
    """An image of a stream with a cache: its pixels, or the features in their place.

    Attributes
    ----------
    key
        Stands for the bytes of its file and the size it was resized to.
    pixels
        (H, W, 3) uint8 RGB; None if `features` are there.
    features
        Of the cache; None if it has none.
    original_size, remark
        As `LoadedImage`.
    """

    key: str
    pixels: npt.NDArray[np.uint8] | None
    features: Any
    original_size: tuple[int, int]
    remark: str | None


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
        What was left out of the file, in words; None if nothing was.
    """

    index: int
    name: str
    pixels: NetworkInput | None
    original_size: tuple[int, int] | None
    error: ImageReadError | None
    remark: str | None = None


def as_sources(X: Any, *, name: str = "X") -> Sequence[ImageSource]:
    """Check that `X` is a sequence of paths or of (H, W, 3) uint8 arrays.

    An (N, H, W, 3) array is such a sequence. Only the kinds are checked, no file is opened.

    Raises
    ------
    UsageError
        A single path or image instead of a sequence, or an element of another kind; the
        message names the element.
    """
    if isinstance(X, (str, bytes, Path)):
        raise UsageError(f"{name} must be a sequence of paths or images, got one path: {X!r}")
    if isinstance(X, np.ndarray) and X.ndim != 4 and X.dtype.kind != "U" and X.dtype != object:
        raise UsageError(
            f"{name} must be a sequence of paths or of (H, W, 3) uint8 images, "
            f"got one array of shape {X.shape}"
        )
    if not isinstance(X, (Sequence, np.ndarray)):
        if not isinstance(X, Iterable):
            raise UsageError(
                f"{name} must be a sequence of paths or images, got {type(X).__name__}"
            )
        X = list(X)
    for index, item in enumerate(X):
        if isinstance(item, (str, Path)):
            continue
        if not isinstance(item, np.ndarray):
            raise UsageError(
                f"{name}[{index}] must be a path or an (H, W, 3) uint8 array, "
                f"got {type(item).__name__}"
            )
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise UsageError(
                f"{name}[{index}] must be an (H, W, 3) uint8 RGB array, "
                f"got shape {item.shape} of {item.dtype}"
            )
    return X  # type: ignore[no-any-return]


def stream_images(
    sources: Iterable[ImageSource | AlteredImage],
    size: tuple[int, int] | None,
    *,
    threads: int | None = None,
    ahead: int | None = None,
    recall: Recall | None = None,
    roi: RegionOfInterest | None = None,
) -> Generator[LoadedImage, None, None]:
    """Yield every source, decoded and resized, in order.

    Parameters
    ----------
    sources
        Paths, (H, W, 3) uint8 arrays or `AlteredImage`s; consumed lazily, so it may be endless.
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

    Yields
    ------
    LoadedImage
        One for each source. An image that cannot be read, for whatever reason, is yielded with
        its error: what becomes of it is the caller's decision.

    Raises
    ------
    DataError
        A decoding thread was ended from within, as by `sys.exit` in a decoder.
    """
    threads = threads or thread_count()
    if ahead is None:
        # features may be larger than pixels
        small = 0 if size is None or recall is not None else _AHEAD_BYTES // (3 * size[0] * size[1])
        ahead = max(4 * threads, min(_AHEAD_IMAGES, small))
    pending: deque[Future[LoadedImage]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=_THREADS)
    try:
        for index, source in enumerate(sources):
            pending.append(_begin(pool, partial(_load, index, source, size, recall, roi)))
            if len(pending) >= ahead:
                yield _taken(pending.popleft())
        while pending:
            yield _taken(pending.popleft())
    finally:
        # a generator that is left is closed by whichever thread collects it
        own = threading.current_thread().name.startswith(_THREADS)
        pool.shutdown(wait=not own, cancel_futures=True)


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
) -> LoadedImage:
    if isinstance(source, AlteredImage):
        return _load_altered(index, source, size, recall, roi)
    name, key = f"image {index}" if isinstance(source, np.ndarray) else str(source), ""
    try:
        if isinstance(source, np.ndarray):
            shape = (source.shape[0], source.shape[1])
            resized = _resize(source, size, roi, name)
            return LoadedImage(index, name, resized, shape, None)
        data = read_bytes(source)
        if recall is not None:
            key = _key(data, size, roi)
            known = recall.lookup(key)
            if known is not None:
                # as if it were decoded: what is refused does not depend on what is kept
                require_pixels(source, known.original_size[1], known.original_size[0])
                keyed = KeyedImage(key, None, known.features, known.original_size, known.remark)
                return LoadedImage(index, name, keyed, known.original_size, None, known.remark)
        image, remark = read_image_and_remark(source, data)
        pixels: NetworkInput = _resize(image, size, roi, name)
    except ImageReadError as error:
        return LoadedImage(index, name, None, None, error)
    original = (image.shape[0], image.shape[1])
    if recall is not None:
        assert isinstance(pixels, np.ndarray)
        pixels = KeyedImage(key, pixels, None, original, remark)
    return LoadedImage(index, name, pixels, original, None, remark)


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


def _key(data: bytes, size: tuple[int, int] | None, roi: RegionOfInterest | None) -> str:
    """The key of an image file with these bytes in a cache of features."""
    key = f"{hashlib.blake2b(data, digest_size=20).hexdigest()}-{size}".replace(" ", "")
    return key if roi is None else f"{key}-{roi.sha256[:32]}"


def _load_altered(
    index: int,
    source: AlteredImage,
    size: tuple[int, int] | None,
    recall: Recall | None,
    roi: RegionOfInterest | None,
) -> LoadedImage:
    """From a cache only if the source says what stands for the alteration there."""
    key = ""
    try:
        data = read_bytes(source.path)
        if recall is not None and source.key is not None:
            key = f"{_key(data, size, roi)}-{source.key}"
            known = recall.lookup(key)
            if known is not None:
                require_pixels(source.path, known.original_size[1], known.original_size[0])
                keyed = KeyedImage(key, None, known.features, known.original_size, known.remark)
                return LoadedImage(
                    index, source.path, keyed, known.original_size, None, known.remark
                )
        image, remark = read_image_and_remark(source.path, data)
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
        pixels = KeyedImage(key, pixels, None, original, remark)
    return LoadedImage(index, source.path, pixels, original, None, remark)
