"""From samples of more than eight bits to 0 to 255: over which range, and who said so.

A camera of 10 or 12 bits usually stores them in files of 16. Read over the whole 16 bits such an
image has 4 or 17 levels of grey left. So the range is, first, what the user says (`bit_depth`);
else what the file declares (PNG's sBIT, TIFF's SMaxSampleValue and MaxSampleValue, PGM's maxval);
else all bits of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError, UsageError

#: Least and largest bits of a sample that a user may state.
MIN_BIT_DEPTH, MAX_BIT_DEPTH = 9, 16
_WHOLE_RANGE = 2**16 - 1
# Images that all stay below this share of the range probably have fewer bits than 16.
_DIM = 8

Wide = npt.NDArray[np.uint16]


class SampleRange(NamedTuple):
    """How an image with 16 bits a sample was read.

    Attributes
    ----------
    peak
        The largest value in it.
    top
        The value that became 255.
    stated
        Whether the file or the user stated `top`; otherwise it is what 16 bits hold.
    """

    peak: int
    top: float
    stated: bool


def check_bit_depth(bits: int | None) -> int | None:
    """Return `bits`, or raise `UsageError` unless it is None or a whole number from 9 to 16."""
    if bits is None:
        return None
    whole = isinstance(bits, (int, np.integer)) and not isinstance(bits, bool)
    if not whole or not MIN_BIT_DEPTH <= bits <= MAX_BIT_DEPTH:
        raise UsageError(
            f"bit_depth must be a whole number from {MIN_BIT_DEPTH} to {MAX_BIT_DEPTH}, "
            f"or None for what each file declares; got {bits!r}"
        )
    return int(bits)


def top_of(bits: int) -> int:
    """Return the largest value that `bits` bits hold."""
    return int(2**bits - 1)


def scale_wide(
    name: str | Path,
    wide: Wide,
    *,
    bit_depth: int | None,
    declared: float | None = None,
    low: float = 0.0,
    container: int = _WHOLE_RANGE,
    cut: bool = False,
    upper_byte: bool = False,
) -> tuple[npt.NDArray[np.uint8], SampleRange, str | None]:
    """Bring samples of up to 16 bits to 0 to 255.

    Parameters
    ----------
    name
        The file, or what stands for it in messages.
    wide
        (H, W) grey or (H, W, 3) RGB uint16.
    bit_depth
        What the user states, 9 to 16; None takes what the file declares.
    declared, low
        The largest and the smallest value of the range that the file declares; `declared` is
        None where it declares none.
    container
        The largest value that a sample of the file can hold.
    cut
        Whether larger values than the declared one become 255 instead of an error.
    upper_byte
        Whether colours over all 16 bits become their upper byte, as PNG readers do, and not
        ``value // 257``.

    Returns
    -------
    tuple
        uint8 of the same shape: grey ``255 (value - low) / (top - low)``, rounded; colour the same,
        rounded down. Then how it was read, and a remark in words where the user and the file
        contradict each other (None where they do not).

    Raises
    ------
    ImageReadError
        A value is larger than `bit_depth` or the file says, so what was said is not true.
    """
    peak = int(wide.max()) if wide.size else 0
    remark = None
    if bit_depth is None:
        top = float(container if declared is None else declared)
        stated = declared is not None
        if peak > top and not cut:
            remedy = "" if top == container else "; state the bits that count with bit_depth"
            raise ImageReadError(
                str(name), f"declares {top:g} as its largest value and holds {peak}{remedy}"
            )
    else:
        top, stated = float(min(container, top_of(bit_depth))), True
        if peak > top:
            raise ImageReadError(
                str(name),
                f"holds the value {peak}, and bit_depth={bit_depth} means at most {top:g}",
            )
        if declared is not None and declared != top:
            remark = f"declares {declared:g} as its largest value, and was read with {top:g}"
        low = 0.0
    if upper_byte and wide.ndim == 3 and top == _WHOLE_RANGE and low == 0:
        narrow = (wide >> 8).astype(np.uint8)
    else:
        narrow = _table(low, top, wide.ndim == 2)[wide]
    return narrow, SampleRange(peak, top, stated), remark


@lru_cache(maxsize=16)
def _table(low: float, top: float, rounded: bool) -> npt.NDArray[np.uint8]:
    """Return (65536,) what each value becomes."""
    values = np.clip(np.arange(_WHOLE_RANGE + 1, dtype=np.float64), low, top)
    scaled = 255.0 * (values - low) / (top - low)
    # rounded down, but not for what is whole and an error of the division makes a little less
    table = (np.rint(scaled) if rounded else np.floor(scaled + 1e-9)).astype(np.uint8)
    table.setflags(write=False)
    return table


def narrow_array(
    name: str, array: npt.NDArray[np.generic], bit_depth: int | None
) -> tuple[npt.NDArray[np.uint8], SampleRange | None, str | None]:
    """Bring an array of a caller's to (H, W, 3) uint8 RGB.

    Parameters
    ----------
    name
        What stands for it in messages.
    array
        (H, W, 3) uint8, which is given back as it is; or uint16 of shape (H, W) or (H, W, 3).
    bit_depth
        Bits of a sample that count in uint16; None for 16.

    Returns
    -------
    tuple
        The image, and range and remark as `scale_wide` gives them.

    Raises
    ------
    ImageReadError
        A value is larger than `bit_depth` allows.
    """
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False), None, None
    narrow, found, remark = scale_wide(
        name, array.astype(np.uint16, copy=False), bit_depth=bit_depth
    )
    return in_three_channels(narrow), found, remark


def in_three_channels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) of (H, W), which is repeated, or of (H, W, 3), which stays as it is."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def dim_note(ranges: Sequence[SampleRange | None]) -> str | None:
    """Describe training images, one entry each, that leave most of 16 bits empty.

    Returns
    -------
    str or None
        One sentence where every image has 16 bits a sample, nobody stated of how many the camera
        makes use, and no value reaches an eighth of the range; otherwise None. Black images
        alone say nothing.
    """
    found = [one for one in ranges if one is not None]
    if not found or len(found) < len(ranges) or any(one.stated for one in found):
        return None
    peak = max(one.peak for one in found)
    if peak == 0 or peak * _DIM > _WHOLE_RANGE:
        return None
    bits = max(MIN_BIT_DEPTH, peak.bit_length())
    levels = int(np.rint(peak / 257)) + 1
    return (
        f"no training image has a value above {peak} of the {_WHOLE_RANGE} that its 16 bits hold, "
        f"which leaves {levels} of 256 levels of grey; if the camera has {bits} bits, say so with "
        f"bit_depth={bits} (--bit-depth {bits})"
    )
