"""PGM and PPM files with binary samples of 16 bits, which Pillow scales on its own and slowly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError

# What may stand between the numbers of a header: white space, and comments to the end of a line.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
# A header that is longer is nobody's; the last character before the samples is one white space.
_HEADER = re.compile(rb"P([56])" + (_GAP + rb"(\d{1,9})") * 3 + rb"(?:#[^\r\n]*)?\s")
_LONGEST_HEADER = 2**14


class WideNetpbm(NamedTuple):
    """A file of 16 bits a sample: where its samples begin, and how many there are."""

    width: int
    height: int
    channels: int
    maxval: int
    offset: int

    @property
    def end(self) -> int:
        """Return how many bytes the file has at least."""
        return self.offset + 2 * self.width * self.height * self.channels


def find_wide_netpbm(start: bytes) -> WideNetpbm | None:
    """Read the header of a binary PGM or PPM of 16 bits; None for anything else."""
    found = _HEADER.match(start[:_LONGEST_HEADER])
    if found is None:
        return None
    width, height, maxval = (int(found[index]) for index in (2, 3, 4))
    if not 255 < maxval < 65_536 or not width or not height:
        return None
    return WideNetpbm(width, height, 1 if found[1] == b"5" else 3, maxval, found.end())


def read_wide_netpbm(path: str | Path, data: bytes, header: WideNetpbm) -> npt.NDArray[np.uint16]:
    """Return the samples, (H, W) or (H, W, 3); raises `ImageReadError` where some are missing."""
    if len(data) < header.end:
        raise ImageReadError(str(path), f"is truncated: it has {len(data)} of {header.end} bytes")
    count = header.width * header.height * header.channels
    samples = np.frombuffer(data, ">u2", count, header.offset).astype(np.uint16)
    shape = (header.height, header.width)
    return samples.reshape(shape if header.channels == 1 else (*shape, 3))
