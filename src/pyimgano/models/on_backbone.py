"""What methods on the features of a frozen backbone share: opening it, and its grids of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..calibration import MapStatistics
from ..errors import UsageError
from ..images import NetworkInput
from .anomaly_map import SIGMA, smooth_maps
from .parameters import BackboneParams
from .region_cells import RegionCells

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..backbones import Backbone, LayerChoice


def open_backbone(
    params: BackboneParams,
    *,
    layers: LayerChoice | None = None,
    patches: Literal["fine", "coarse"] | None = None,
    context_above: int | None = None,
    cached: bool = True,
) -> Backbone:
    """Return the backbone that the keywords ask for.

    Parameters
    ----------
    params
        The checked keywords.
    layers
        Chooses the layers where the keywords name none; None for the backbone's own choice.
    patches
        Whether it gives joined, locally averaged patch features, (N, h, w, D), on the grid of the
        finest layer (`fine`) or on one with half as many cells both ways (`coarse`). None for
        one (N, C_l, H_l, W_l) of each layer.
    context_above
        The stride above which layers are joined apart, to patches of their own; None for none.
    cached
        Whether features are kept in `cache_dir`; not by methods that want pixels.

    Raises
    ------
    UsageError, WeightsError
        An unknown backbone, layer or device, or weights that are not there.
    """
    from ..backbones import create_backbone

    return create_backbone(
        params.backbone,
        layers=layers if params.layers is None else params.layers,
        pretrained=params.pretrained,
        weights=params.weights,
        device=params.device,
        engine=params.engine,
        precision=params.precision,
        seed=params.random_seed,
        cache_dir=params.cache_dir if cached else None,
        patches=patches or False,
        context_above=context_above,
    )


def features_of(backbone: Backbone, images: list[NetworkInput]) -> list[Tensor]:
    """Return the features of B images: for each layer (B, C_l, H_l, W_l) float32.

    Of a backbone that gives patches it is one (B, h, w, D), and another of its context.
    """
    import torch

    with torch.inference_mode():
        return backbone.features(images)


def require_exportable(backbone: Backbone) -> None:
    """Raise `UsageError` where exports would compute in another precision than the detector."""
    if backbone.precision != "float32":
        raise UsageError(
            f"this detector computes in {backbone.precision} and exports compute in "
            "float32; fit it with precision='float32'"
        )


@dataclass(frozen=True)
class PatchGrid:
    """A grid of cells over the frame that images are scored on, and the maps of their scores.

    Attributes
    ----------
    shape
        (h, w).
    region
        The size of the maps, and what of the frame counts.
    cells
        (k,) int64 ascending: the cells r w + c that count, on the device of the features; None if
        all do.
    sigma
        Deviation of the Gaussian that smooths maps, in pixels.
    double
        Whether maps are summed in double precision, so that one does not depend on the others of
        its batch.
    """

    shape: tuple[int, int]
    region: RegionCells
    cells: Tensor | None
    sigma: float = SIGMA
    double: bool = False

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        region: RegionCells,
        device: torch.device,
        **settings: Any,
    ) -> PatchGrid:
        """Return the grid of this (h, w), with the cells that count on a device."""
        import torch

        height, width = shape
        cells = region.cells((height, width))
        on_device = None if cells is None else torch.from_numpy(cells).to(device)
        return cls((height, width), region, on_device, **settings)

    def __len__(self) -> int:
        """Return how many cells count, k."""
        return self.shape[0] * self.shape[1] if self.cells is None else len(self.cells)

    def counted(self, cells: Tensor) -> Tensor:
        """Return those of (B, hw, ...) that count, (B, k, ...)."""
        return cells if self.cells is None else cells[:, self.cells]

    def whole(self, numbers: Tensor) -> Tensor:
        """Return numbers n k + i of cells that count as numbers n hw + r w + c of all, (M,)."""
        if self.cells is None:
            return numbers
        k, whole = len(self.cells), self.shape[0] * self.shape[1]
        return numbers // k * whole + self.cells[numbers % k]

    def maps(self, scores: Tensor) -> Tensor:
        """Return the maps (B, H, W) of the scores (B, k) of the cells that count, 0 or more."""
        if not self.double:
            return self._maps(scores)
        return self._maps(scores.double()).float()

    def _maps(self, scores: Tensor) -> Tensor:
        size = self.region.size
        if self.cells is None:
            return smooth_maps(scores.view(-1, *self.shape), size, self.sigma)
        grids = scores.new_zeros((len(scores), self.shape[0] * self.shape[1]))
        counted = scores.new_zeros(grids.shape[1])
        grids[:, self.cells] = scores
        counted[self.cells] = 1.0
        return smooth_maps(
            grids.view(-1, *self.shape), size, self.sigma, counted=counted.view(self.shape)
        )

    def statistics(self, scores: Tensor, counted: npt.NDArray[np.bool_] | None) -> MapStatistics:
        """Return the statistics of the maps of images whose cells have the scores (n, k).

        `counted` (H, W) says which pixels of the maps count; None if all do.
        """
        found = MapStatistics()
        for some in scores.split(64):
            maps = self.maps(some).cpu().numpy()
            found.add(maps if counted is None else maps[:, counted])
        return found


def peaks(maps: Tensor, region: RegionCells) -> Tensor:
    """Return the largest value of maps (B, H, W) where pixels count, (B,)."""
    import torch

    flat = maps.flatten(1)  # (B, H W)
    pixels = region.pixels()
    if pixels is not None:
        flat = flat[:, torch.from_numpy(np.flatnonzero(pixels)).to(flat.device)]
    return flat.max(dim=1).values


def on_grid(layers: Sequence[Tensor], grid: tuple[int, int] | None = None) -> Tensor:
    """Join features of several layers side by side on one grid.

    Parameters
    ----------
    layers
        For each layer (B, C_l, H_l, W_l).
    grid
        (h, w); by default that of the first layer. Others are interpolated bilinearly, with
        half-pixel centres.

    Returns
    -------
    torch.Tensor
        (B, h, w, D) contiguous, D the sum of all C_l.
    """
    import torch
    from torch.nn.functional import interpolate

    size = tuple(layers[0].shape[-2:]) if grid is None else grid
    same = [
        one
        if tuple(one.shape[-2:]) == size
        else interpolate(one, size, mode="bilinear", align_corners=False)
        for one in layers
    ]
    return torch.cat(same, dim=1).permute(0, 2, 3, 1).contiguous()
