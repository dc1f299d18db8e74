"""What a GPU may round: nothing that is asked for in float32, and no partial sums.

By default cuDNN computes convolutions of float32 numbers in TF32, which keeps three digits, and
cuBLAS may round parts of the sums of bfloat16 products to bfloat16; and a program may have asked
for more of that. Features and bounds of distances here are those of full sums.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Compute in full precision for a while on a GPU; afterwards all is as it was."""
    return _full if device.type == "cuda" else nullcontext()


class _FullPrecision:
    """The options are the whole process's: the first thread sets, the last one brings them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._options = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._choose()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._options.close()

    def _choose(self) -> None:
        from torch.backends import cuda, cudnn

        for module, older in (
            (cuda.matmul, cuda.matmul),
            (getattr(cudnn, "conv", None), cudnn),
        ):
            # torch before 2.9 has the older one alone, which raises where the newer one was used
            if hasattr(module, "fp32_precision"):
                self._options.enter_context(_set(module, "fp32_precision", "ieee"))
            else:
                self._options.enter_context(_set(older, "allow_tf32", False))
        reduced = "allow_bf16_reduced_precision_reduction"
        self._options.enter_context(_set(cuda.matmul, reduced, False))


_full = _FullPrecision()


@contextmanager
def _set(module: Any, option: str, value: object) -> Iterator[None]:
    before = getattr(module, option)
    setattr(module, option, value)
    try:
        yield
    finally:
        setattr(module, option, before)
