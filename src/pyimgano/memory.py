"""Memory that runs out: how that is told from other errors, smaller blocks, what is left.

On a CPU torch raises a `RuntimeError` whose text alone says so, numpy and Python raise
`MemoryError`, OpenCV an error with a code, and GPUs kinds of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import NotEnoughMemoryError

_T = TypeVar("_T")

_PHRASES = (
    "out of memory",  # CUDA
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "bad_alloc",  # C++, as OpenVINO passes it on
    "bad allocation",
)
_CV2_NO_MEMORY = -4
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held so far; None if not known."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory that ran out is what an error says."""
    if isinstance(error, MemoryError):
        return True
    if getattr(error, "code", None) == _CV2_NO_MEMORY and type(error).__module__ == "cv2":
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in _PHRASES)


@contextmanager
def memory_in_words(doing: str, advice: str) -> Iterator[None]:
    """Memory that runs out while `doing` something is a `NotEnoughMemoryError` with `advice`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(
            f"not enough memory {doing} ({one_line(error)}); {advice}"
        ) from error


def one_line(error: BaseException) -> str:
    """Describe an error that nobody put in words: its kind, and the beginning of its text."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:200]}{'...' * (len(text) > 200)}" if text else kind


def in_blocks(work: Callable[[int, int], _T], total: int, block: int, least: int) -> list[_T]:
    """Do `work(start, stop)` for all of 0 to `total`, at most `block` at a time, in order.

    Where memory runs out, that part is done again with half the block, and so on, down to
    `least`; when that does not fit either, the error is raised.
    """
    done: list[_T] = []
    start = 0
    while start < total:
        stop = min(start + block, total)
        try:
            done.append(work(start, stop))
        except Exception as error:
            if not is_out_of_memory(error) or stop - start <= least:
                raise
            block = max(least, (stop - start) // 2)
        else:
            start = stop
            continue
        release_memory()  # here, where what the failed try held is gone with its error
    return done


def release_memory() -> None:
    """Give back to the GPU what torch keeps for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def available_bytes(device: str = "cpu") -> int | None:
    """Memory that could still be had, in bytes; None where that cannot be found out.

    Of the machine, or of its container (cgroup v2) where that has less; of a GPU for `cuda`.
    """
    if device.startswith("cuda"):
        torch = sys.modules["torch"]
        return int(torch.cuda.mem_get_info(device)[0])
    known = [one for one in (_of_machine(), _of_container()) if one is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    facts = _table(_MEMINFO)
    if "MemAvailable" not in facts:
        return None
    return 1024 * (facts["MemAvailable"] + facts.get("SwapFree", 0))


def _of_container() -> int | None:
    try:
        limit = int((_CONTROL_GROUP / "memory.max").read_text())
        used = int((_CONTROL_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
    facts = _table(_CONTROL_GROUP / "memory.stat")
    # pages of files, which give way
    return max(0, limit - used + facts.get("inactive_file", 0) + facts.get("active_file", 0))


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them."""
    facts = {}
    try:
        for line in path.read_text().splitlines():
            name, number = line.split()[:2]
            facts[name.rstrip(":")] = int(number)
    except (OSError, ValueError):
        pass
    return facts


def in_words(count: float) -> str:
    """Bytes as a person reads them: `1.9 GiB`, `340 MiB`."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{max(1, round(count / 2**20))} MiB"
