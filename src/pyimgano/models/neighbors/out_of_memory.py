"""The errors that say that memory does not suffice, and what would fit."""

from __future__ import annotations

import torch

from ...errors import NotEnoughMemoryError
from ...memory import available_bytes, in_words

# A bank may take this share of what is free: the rest goes to a batch's features and products.
_SHARE = 0.75
# What a row takes beside its features: the number of its image, its index, bounds and padding.
_ROW_BYTES = 256


def row_bytes(dimension: int) -> int:
    """Return the bytes that a row of a bank takes.

    These are its features, a centred copy of them for a moment, and one in half precision.
    """
    return (4 + 4 + 2) * dimension + _ROW_BYTES


def bank_does_not_fit(rows: int, dimension: int, device: torch.device) -> NotEnoughMemoryError:
    """Return the error of a bank of `rows` features of `dimension` numbers that did not fit.

    It estimates how large a bank fits in the memory that is free now, and says what to lower.
    """
    each = row_bytes(dimension)
    said = (
        f"not enough memory on {device} for a memory bank of {rows} features of {dimension} "
        f"numbers, which takes {in_words(rows * each)}"
    )
    free = available_bytes(str(device))
    if free is not None:
        # it did not fit, whatever the estimate says: the advice is never to keep the size
        fits = max(1, min(int(_SHARE * free / each), rows // 2))
        said += f": {in_words(free)} are free, in which about {fits} fit"
    return NotEnoughMemoryError(f"{said}; lower max_bank_size, coreset_sampling_ratio or resize")


def patches_do_not_fit(rows: int, dimension: int, device: torch.device) -> NotEnoughMemoryError:
    """Return the error of patches to select from that do not fit, before there is a bank.

    The block that they are gathered in decides what is selected, so that it is never made smaller
    without being asked for.
    """
    needed = 4 * rows * dimension
    said = (
        f"not enough memory on {device} to select a memory bank from {rows} patches of "
        f"{dimension} numbers, which take {in_words(needed)} and as much again while selecting"
    )
    free = available_bytes(str(device))
    if free is not None:
        fits = max(1, min(int(_SHARE * free / (8 * dimension)), rows // 2))
        said += f": {in_words(free)} are free, in which about {fits} fit"
    return NotEnoughMemoryError(
        f"{said}; lower resize, feature_projection_dim or coreset_sampling_ratio, "
        "or fit on fewer images"
    )


def surely_does_not_fit(needed: int, device: torch.device) -> bool:
    """Return whether more bytes are needed than are free.

    Linux would give them, and kill the process when it uses them.
    """
    free = available_bytes(str(device))
    return free is not None and needed > free
