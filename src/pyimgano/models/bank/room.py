"""What a memory bank takes, and the words where that is not there."""

from __future__ import annotations

import torch

from ...errors import NotEnoughMemoryError
from ...memory import available_bytes, in_words

# Of what is free, what a bank may take: the rest goes to a batch's features and products.
_SHARE = 0.75
# A row beyond its features: number of its image, index, bounds, and what rounding adds.
_ROW_BYTES = 256


def row_bytes(dimension: int) -> int:
    """Bytes for a row of a bank: its features, centred for a moment, and in half precision."""
    return (4 + 4 + 2) * dimension + _ROW_BYTES


def bank_does_not_fit(rows: int, dimension: int, device: torch.device) -> NotEnoughMemoryError:
    """The error of a bank of `rows` features of `dimension` numbers that memory ran out for.

    It says how large a bank fits in what is free now, by estimate, and what to lower.
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
    """The error where the patches to select from do not fit, before there is a bank.

    The block that they are gathered in decides what is selected, so it is not made smaller
    unasked.
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


def fits_surely_not(needed: int, device: torch.device) -> bool:
    """Whether more is needed than there is: Linux gives it, and kills the process later."""
    free = available_bytes(str(device))
    return free is not None and needed > free
