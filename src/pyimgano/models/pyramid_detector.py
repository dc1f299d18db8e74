"""What the detectors that compare two pyramids of features share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from .trained import TrainedDetector

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from ..backbones.choice import LayerChoice
    from .pyramid import LevelMaps

#: Strides of the levels of both methods' papers: conv2_x, conv3_x and conv4_x of a ResNet.
_STRIDES = (4, 8, 16)


class PyramidDetector(TrainedDetector):
    """Base class: layers of strides 4, 8 and 16, and one map of the distances at each."""

    #: Of the Gaussian that smooths the map; 0 for none.
    sigma: ClassVar[float]
    #: How the levels' maps become one.
    combine: ClassVar[Literal["product", "sum"]]

    def _layer_choice(self) -> LayerChoice:
        from ..backbones.choice import LastOfStrides

        return LastOfStrides(_STRIDES, least=2)  # one level is no pyramid

    def _levels(self) -> list[tuple[int, int, int]]:
        """(C_l, h_l, w_l) of each level."""
        return [(c, h, w) for _, c, h, w in self._backbone.shapes(self._size())]

    def _level_cells(self) -> list[npt.NDArray[np.int64] | None]:
        return [self.counted_cells((h, w)) for _, h, w in self._levels()]

    def _counted_at(self) -> list[Tensor | None]:
        """As `_level_cells`, on the device."""
        import torch

        cells = self._level_cells()
        device = self._backbone.device
        return [None if one is None else torch.from_numpy(one).to(device) for one in cells]

    def _level_maps(self) -> LevelMaps:
        from .pyramid import LevelMaps

        return LevelMaps(
            [(h, w) for _, h, w in self._levels()],
            self._size(),
            sigma=self.sigma,
            combine=self.combine,
            cells=self._level_cells(),
            inside=None if self.roi_ is None else self.roi_.counted(self._size()),
        )
