"""Weights of networks that were trained: drawn at the start, handed over, taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import SavedModelError

if TYPE_CHECKING:
    from ..saved_state import SavedState

_N = TypeVar("_N")
# How often batch norm was updated, of no account.
_COUNT = "num_batches_tracked"


def drawn(build: Callable[[], _N], seed: int) -> _N:
    """Return what `build` makes with torch's generator seeded; the generator is then as before.

    On the CPU, so that the weights are the same for every device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def network_arrays(network: nn.Module, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
    """Return the weights by name, for `State.arrays`."""
    return {
        prefix + name: np.ascontiguousarray(value.detach().cpu().numpy())
        for name, value in network.state_dict().items()
        if not name.endswith(_COUNT)
    }


def require_shapes(build: Callable[[], nn.Module], saved: SavedState, prefix: str = "") -> None:
    """Check that `saved` holds the arrays of what `build` makes, without memory for its weights.

    Before a network is built whose size a file decides: its arrays are there already, so that
    it takes no more than they do.

    Raises
    ------
    SavedModelError
        An array is missing, or of another kind or shape.
    """
    with torch.device("meta"):
        wanted = build().state_dict()
    for name, value in wanted.items():
        if not name.endswith(_COUNT):
            saved.require_shape(prefix + name, _dtype(value), tuple(value.shape))


def restore_network(network: nn.Module, saved: SavedState, prefix: str = "") -> None:
    """Fill `network` with what `network_arrays` gave.

    Raises
    ------
    SavedModelError
        An array is missing, of another kind or shape, or a variance is negative.
    """
    found = {}
    for name, value in network.state_dict().items():
        if name.endswith(_COUNT):
            continue
        array = saved.array(prefix + name, _dtype(value), tuple(value.shape))
        if not np.isfinite(array).all() or (name.endswith("running_var") and (array < 0).any()):
            raise SavedModelError(
                f"the array {prefix + name!r} holds values that are not finite, or negative"
            )
        found[name] = torch.from_numpy(array.copy())
    network.load_state_dict(found, strict=False)


def _dtype(value: Tensor) -> str:
    """Return the type as numpy names it."""
    return str(value.dtype).removeprefix("torch.")
