"""Other natural images, on which EfficientAD's student learns to say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..images import IMAGE_SUFFIXES, is_passed_over, stream_images
from .efficientad_networks import working_size
from .efficientad_teacher import crops

if TYPE_CHECKING:
    from .training import Minibatch

# Images kept at most, evenly spread over those of the folder.
_KEPT = 512
# With which chance an image is made grey, as in the public program.
_GREY = 0.3


def penalty_files(folder: str | Path) -> list[Path]:
    """List the image files in a folder and those below; raises `UsageError` where there are
    none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"penalty_images: {folder} is not a folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(map(is_passed_over, path.relative_to(folder).parts))
    )
    if not found:
        raise UsageError(f"penalty_images: {folder} holds no images")
    return found[:: -(-len(found) // _KEPT)]


class PenaltyImages:
    """Kept at twice the size (H, W) of images, of which the middle is used.

    Raises
    ------
    UsageError
        There are none.
    DataError
        One cannot be read.
    """

    def __init__(self, folder: str | Path, size: tuple[int, int]) -> None:
        height, width = working_size(size)
        kept = []
        with stream_images(penalty_files(folder), (2 * height, 2 * width)) as stream:
            for loaded in stream:
                if loaded.pixels is None:
                    raise DataError(f"penalty_images: {loaded.error}")
                assert isinstance(loaded.pixels, np.ndarray)  # a stream without a cache
                top, left = height // 2, width // 2
                middle = loaded.pixels[top : top + height, left : left + width]
                kept.append(torch.from_numpy(middle.copy()))
        self._pixels = torch.stack(kept)

    def draw(self, count: int, side: int, batch: Minibatch) -> Tensor:
        """Crops (count, side, side, 3) float32 of 0 to 255 on the device of the batch."""
        chosen = torch.randint(0, len(self._pixels), (count,), generator=batch.generator)
        found = torch.stack([c for c, _ in crops(self._pixels[chosen], side, batch.generator)])
        found = found.float()
        grey = (found * found.new_tensor([0.299, 0.587, 0.114])).sum(dim=-1, keepdim=True)
        lost = torch.rand(count, generator=batch.generator) < _GREY
        found = torch.where(lost[:, None, None, None], grey.expand_as(found), found)
        return found.to(batch.pixels.device)
