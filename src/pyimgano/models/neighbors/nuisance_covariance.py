"""The covariance of how patches move when their images are disturbed in ways that are no defect."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .memory_bank import MemoryBank
from .whitening import Moments, Whitening

#: The covariance of the movements is multiplied by the first of these that is enough, or by the
#: last, before it is added to that of the patches themselves. With the first only everyday
#: disturbances count, with the others all.
STRENGTHS = (8.0, 64.0, 256.0, 1024.0, 4096.0)
# Fewer images than this cannot say how much images differ among themselves.
_LEAST_IMAGES = 5
# To choose among the strengths, this many copies under each disturbance are looked at, this many
# cells of each, and this many patches to compare these with.
_COPIES, _CELLS, _COMPARED = 4, 256, 1024
# Disturbing an image may raise its score by so many standard deviations of the scores of
# undisturbed ones, or by so much on a logarithmic scale.
_DEVIATIONS, _RISE = 1.0, 0.05


class NuisanceCovariance:
    """Gather disturbed copies of training images, and say what a whitening has to discount.

    Parameters
    ----------
    folds
        How many parts the training patches are divided into.
    """

    def __init__(self, folds: int) -> None:
        self._folds = folds
        self._moments: dict[bool, list[Moments]] = {}  # of everyday disturbances, and of others
        self._clean: list[Tensor] = []
        self._disturbed: list[Tensor] = []
        self._images: list[int] = []
        self._kinds: list[str] = []

    def __bool__(self) -> bool:
        """Return whether there are any copies."""
        return bool(self._moments)

    def add(
        self,
        clean: Tensor,
        disturbed: Tensor,
        fold: Tensor,
        images: Sequence[int],
        kinds: Sequence[str],
        everyday: Sequence[bool],
    ) -> None:
        """Add patches (B, k, D) of images and of disturbed copies of them.

        `fold` (B, k) says which part each patch is in. `images`, `kinds` and `everyday`, of length
        B, are the images' numbers, what was done to the copies, and whether that is one of the
        disturbances that count at any strength.
        """
        origin = np.zeros(clean.shape[2])  # a movement that all share is no less a nuisance
        # one copy after another, so that the sums do not depend on the size of batches
        for group, moved, part in zip(everyday, disturbed - clean, fold.to(clean.device)):
            found = [Moments.of(moved[part == k], origin) for k in range(self._folds)]
            before = self._moments.get(group)
            self._moments[group] = [a + b for a, b in zip(before, found)] if before else found
        some = min(_CELLS, clean.shape[1])
        cells = torch.arange(some, device=clean.device) * clean.shape[1] // some
        mine = [i for i, one in enumerate(everyday) if one]
        if not mine:
            return
        self._clean.append(clean[mine][:, cells])
        self._disturbed.append(disturbed[mine][:, cells])
        self._images += [images[i] for i in mine]
        self._kinds += [kinds[i] for i in mine]

    def covariance(self, folds: Sequence[int], strength: float) -> npt.NDArray[np.float64]:
        """Return `strength` times the mean outer product (D, D) of the movements in `folds`.

        It is 0 where there are none.
        """
        groups = [True] if strength <= STRENGTHS[0] else [True, False]
        known = [self._moments[group] for group in groups if group in self._moments]
        moved = reduce(add, (moments[k] for moments in known for k in folds))
        return np.asarray(strength * moved.products / max(1, moved.count))

    def enough(self, whitening: Whitening, pool: Tensor, images: Tensor) -> bool:
        """Return whether everyday disturbances hardly show in scores under this whitening.

        The largest distance of each copy to patches of other images is compared with that of the
        image itself. For no everyday disturbance may it rise by more than these distances differ
        between undisturbed images. Where good images differ much, little has to be discounted;
        where all parts look the same, even JPEG stands out. Fewer than five images cannot tell,
        so that the answer for them is true.

        `pool` (P, D) are training patches, and `images` (P,) the numbers of their images.
        """
        looked_at = self._some_of_each()
        own = np.array(self._images)[looked_at]
        distinct, first = np.unique(own, return_index=True)
        if len(distinct) < _LEAST_IMAGES:
            return True
        chosen = torch.arange(min(_COMPARED, len(pool)), device=pool.device)  # (c,)
        chosen = chosen * len(pool) // len(chosen)
        features, images = pool[chosen], images.to(pool.device)[chosen]
        if len(images.unique()) < 2:
            return True
        whitening.whiten_(features)
        memory = MemoryBank(features, images)
        clean, disturbed = (
            self._largest(torch.cat(some)[looked_at], own, whitening, memory)
            for some in (self._clean, self._disturbed)
        )
        if not (clean > 0).all():
            return True
        rise = np.log(np.maximum(disturbed, clean * 1e-6) / clean)
        kinds = np.unique(self._kinds, return_inverse=True)[1].ravel()[looked_at]
        worst = max(rise[kinds == kind].mean() for kind in range(kinds.max() + 1))
        return bool(worst <= max(_RISE, _DEVIATIONS * float(np.log(clean[first]).std())))

    def _some_of_each(self) -> npt.NDArray[np.intp]:
        """Return which copies are looked at, some under each disturbance from first to last."""
        kinds = np.array(self._kinds)
        found = []
        for kind in np.unique(kinds):
            mine = np.flatnonzero(kinds == kind)
            some = min(_COPIES, len(mine))
            found.append(mine[np.arange(some) * len(mine) // some])
        return np.sort(np.concatenate(found))

    def _largest(
        self,
        patches: Tensor,
        images: npt.NDArray[np.int64],
        whitening: Whitening,
        memory: MemoryBank,
    ) -> npt.NDArray[np.float64]:
        """Return the largest distance (c,) of each copy's patches (c, k, D) to other images.

        `images` (c,) are the numbers of the copies' own images.
        """
        image = torch.from_numpy(images).to(patches.device).repeat_interleave(patches.shape[1])
        distances, _ = memory.search(whitening(patches).flatten(0, 1), image)
        return distances.view(len(patches), -1).amax(dim=1).double().cpu().numpy()
