"""How many threads the program uses: one number for all that has threads of its own.

Decoding, metrics, OpenVINO, torch and OpenCV each bring their own threads. All take their
number from here, and it is never more than the cores that the process may use.

Threads do not survive a fork, and the OpenMP library that torch brings waits for ever for those
that it had before. So torch keeps to one thread in a process that was forked from one in which
this package and torch had been imported, and our own locks are free there. docs/servers.md says
what that means for servers.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from .errors import UsageError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_CONTROL_GROUP = Path("/sys/fs/cgroup/cpu.max")

# Rounds that a waiting thread looks for work: about 0.2 ms. Fewer cost time between the many
# small steps of a coreset's selection.
_SPINS = 5000

_chosen: int | None = None
#: What libraries had before a number was chosen.
_before: dict[str, int] = {}


def available_cores() -> int:
    """Return how many cores this process may use, which is not always how many there are.

    The affinity of the process counts, and the share of processor time that its container is
    given (cgroup v2), rounded up.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = _CONTROL_GROUP.read_text().split()[:2]
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        pass
    return max(1, cores)


def thread_count() -> int:
    """Threads to use: those of `set_num_threads`, else of OMP_NUM_THREADS, else all cores."""
    return thread_count_by_default() if _chosen is None else min(_chosen, available_cores())


def thread_count_by_default() -> int:
    """Return the number in OMP_NUM_THREADS, else that of all cores."""
    cores = available_cores()
    # a list, "4,2", gives the number of each level of nesting
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(first), cores) if first.isdecimal() and int(first) > 0 else cores


def set_num_threads(count: int | None) -> None:
    """Use at most `count` threads from now on; None goes back to the default.

    The networks of detectors that are fitted already keep the number they were made with. In a
    forked process torch keeps to one thread whatever is set here (docs/servers.md).

    Parameters
    ----------
    count
        At least 1; more than the cores there are has no effect.

    Raises
    ------
    UsageError
        `count` is no whole number of at least 1.
    """
    global _chosen
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(f"num_threads must be a whole number of at least 1, got {count!r}")
    for name, told in _told().items():
        if _chosen is None and count is not None:
            _before[name] = told.get()
        elif count is None and _chosen is not None:
            told.set(_before.pop(name, thread_count_by_default()))
    _chosen = count
    apply_thread_count()


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads for a while, as `set_num_threads`; None changes nothing."""
    global _chosen
    if count is None:
        yield
        return
    before, default = _chosen, thread_count()
    numbers = {name: told.get() for name, told in _told().items()}
    set_num_threads(count)
    try:
        yield
    finally:
        _chosen = before
        for name, told in _told().items():
            told.set(numbers.get(name, default))


def calm_openmp() -> None:
    """Let threads of GNU OpenMP, which torch's are, wait for work asleep after a moment.

    By default they keep their cores busy for 10 ms and more after each small piece of work,
    cores that decoding and OpenVINO need; and where another program takes a core, all wait for
    one that does not run. Measured on two cores: 20 % more images a second from a folder, and
    with two other busy programs half the time for all that torch does.

    Only before torch is imported; what the user's environment says is left as it is.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def apply_thread_count() -> None:
    """Tell torch and OpenCV, as far as they are imported; called once torch is.

    Without `set_num_threads` they are only ever told to use fewer: a program that has set
    numbers of its own keeps them.
    """
    count = thread_count()
    for told in _told().values():
        if _chosen is not None or told.get() > count:
            told.set(count)


class ForkSafeLock:
    """A lock for `with`, which is free in a forked process whoever held it before the fork.

    The thread that held it does not exist there, so it would never be given back. Only a lock
    that the forking thread itself holds stays held.

    Parameters
    ----------
    reentrant
        Whether the thread that holds it may take it again.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        self._make = threading.RLock if reentrant else threading.Lock
        self._lock = self._make()
        self._holder: int | None = None
        self._depth = 0
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()

    def reset_after_fork(self) -> None:
        """Make the lock free, unless this thread holds it."""
        if self._holder != threading.get_ident():
            self._lock, self._holder, self._depth = self._make(), None, 0


_locks: WeakSet[ForkSafeLock] = WeakSet()
_one_after_another = ForkSafeLock(reentrant=True)
_forked_with_torch = False


def forked_with_torch() -> bool:
    """Return whether this process was forked from one in which torch had been imported."""
    return _forked_with_torch


def set_torch_threads(count: int) -> None:
    """Give torch, which must be imported, `count` threads; one in a forked process (see above)."""
    sys.modules["torch"].set_num_threads(1 if _forked_with_torch else count)


def _after_fork_in_child() -> None:
    global _forked_with_torch
    for lock in list(_locks):
        lock.reset_after_fork()
    torch = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):  # another thread may have been importing it
        _forked_with_torch = True
        set_torch_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def single_threaded(libraries: ThreadpoolController, user_api: str | None = None) -> Iterator[None]:
    """Give one thread to the `libraries`: to their `blas`, their `openmp`, or by default both.

    By one thread of the program after another. Of two that overlap, the second would take the one
    thread that it finds for what there was, and bring that back for good.
    """
    with _one_after_another, libraries.limit(limits=1, user_api=user_api):
        yield


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Give one thread to what numpy leaves to its BLAS.

    Sums are then the same whatever the number of threads; and those of numpy's BLAS keep their
    cores busy for long after each call, cores that torch's need next.
    """
    with single_threaded(_blas(), "blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    import numpy  # noqa: F401 -- so that its BLAS is among the libraries
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneTorchThread:
    """See `single_torch_thread`."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._inside = 0
        self._before = 1

    @contextmanager
    def __call__(self, wanted: bool = True) -> Iterator[None]:
        torch = sys.modules.get("torch")
        if torch is None or not wanted:
            yield
            return
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_num_threads()
            self._inside += 1
            before = self._before
        torch.set_num_threads(1)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
            # of this thread, and of those that use torch for the first time from now on
            set_torch_threads(before)


#: A context in which torch has one thread, if that is `wanted` (True by default): for steps so
#: small that waking others takes longer than they save, as they sleep soon (`calm_openmp`).
single_torch_thread = _OneTorchThread()


class _Told(NamedTuple):
    """How a library is asked for its number of threads, and told another."""

    get: Callable[[], int]
    set: Callable[[int], None]


def _told() -> dict[str, _Told]:
    """Return those of the libraries that are imported."""
    found = {}
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = _Told(torch.get_num_threads, set_torch_threads)
    if "cv2" in sys.modules:
        cv2 = sys.modules["cv2"]
        found["cv2"] = _Told(cv2.getNumThreads, cv2.setNumThreads)
    return found
