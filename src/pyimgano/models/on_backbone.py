"""Detectors on the features of a frozen backbone: their keywords, and which cells count."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..calibration import DEFAULT_TAIL, CalibrationTail, MapStatistics
from ..images import NetworkInput, Recall
from .anomaly_map import SIGMA, smooth_maps
from .detector import Detector
from .parameters import (
    BitDepth,
    CalibrationSource,
    Contamination,
    Flag,
    Quantile,
    Roi,
    Seed,
    Size,
)
from .saved_state import SavedState

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone, LayerChoice


class BackboneDetector(Detector):
    """Base class of detectors that learn from features of a backbone, which is never trained.

    A method's `__init__` names its own keywords and hands the others on:
    `def __init__(self, *, own: Count = 3, **shared: Any)`, `super().__init__(**shared)`; a
    keyword that it names again has another default.

    Parameters
    ----------
    backbone
        A name of `pyimgano.backbones.list_backbones()`, or `timm:<name>`.
    layers
        The layers whose features are taken; by default the method's choice, or else the
        backbone's own, strides 8 and 16. Those of a vision transformer are blocks, such as
        `block9.normed` or `0.75.normed` (docs/transformers.md).
    pretrained
        False for random weights, drawn from `random_seed`.
    weights
        A weights file for the backbone, or a folder that holds one; beats `pretrained`.
    resize
        (height, width) that images are resized to and maps are given at. A vision transformer
        takes multiples of its patches: other sides are rounded, and a warning says so.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    engine
        What runs the backbone: `auto`, `openvino` or `torch`.
    precision
        What it is computed in: `float32`, or `bfloat16`, about twice as quick on processors and
        GPUs that have units for it. Features then differ by about 0.5 % with the ResNet family and
        by 2.5 % with EfficientNet-Lite, and scores are not comparable with those of the other.
    random_seed
        Of all that is drawn, random weights included.
    contamination
        Expected share of training images above the threshold, in (0, 0.5].
    calibration
        `out-of-sample`, or `in-sample` for the naive way, which promises nothing.
    calibration_quantile
        In (0, 1); beats `contamination`. Without either 0.995.
    calibration_tail
        How the threshold is estimated at this quantile: `exponential` models the tail of the
        scores where that is believable, `conformal` takes the rank of a score.
    cache_dir
        A folder to keep the backbone's features of image files in, for the next time.
    roi
        Region of interest: a mask image (any size, every value but 0 counts), a .json file of
        polygons, or polygons of [x, y] in fractions of width and height; None for the frame.
    bit_depth
        How many bits the camera has, 9 to 16, where images have 16 bits a sample: 2^bit_depth - 1
        becomes white. None takes what each file declares, and else all 16. It is saved with the
        detector, and images to score are read in the same way.

    Attributes
    ----------
    grid_
        (h, w), the grid of cells that an image is scored on, of a method that has one.
    """

    #: Whether the backbone gives joined, locally averaged patch features, one (N, h, w, D)
    #: tensor (`pyimgano.backbones.create_backbone`), instead of (N, C_l, H_l, W_l) a layer.
    patches: ClassVar[bool] = False

    grid_: tuple[int, int]

    def __init__(
        self,
        *,
        backbone: str = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        pretrained: Flag = True,
        weights: str | None = None,
        resize: Size = (256, 256),
        device: str = "auto",
        engine: str = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
        random_seed: Seed = 0,
        contamination: Contamination | None = None,
        calibration: CalibrationSource = "out-of-sample",
        calibration_quantile: Quantile | None = None,
        calibration_tail: CalibrationTail = DEFAULT_TAIL,
        cache_dir: str | None = None,
        roi: Roi | None = None,
        bit_depth: BitDepth | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.pretrained = pretrained
        self.weights = weights
        self.resize = resize
        self.device = device
        self.engine = engine
        self.precision = precision
        self.random_seed = random_seed
        self.contamination = contamination
        self.calibration = calibration
        self.calibration_quantile = calibration_quantile
        self.calibration_tail = calibration_tail
        self.cache_dir = cache_dir
        self.roi = roi
        self.bit_depth = bit_depth

    # ---- the backbone

    def prepare(self) -> Backbone:
        return self._make_backbone(self.validate_params())

    def _make_backbone(self, params: Any) -> Backbone:
        from ..backbones import create_backbone

        return create_backbone(
            params.backbone,
            layers=self._layer_choice() if params.layers is None else params.layers,
            pretrained=params.pretrained,
            weights=params.weights,
            device=params.device,
            engine=params.engine,
            precision=params.precision,
            seed=params.random_seed,
            cache_dir=params.cache_dir,
            patches=self.patches and ("coarse" if self._coarse_patches(params) else "fine"),
            context_above=self._context_above(params),
        )

    def _coarse_patches(self, params: Any) -> bool:
        """Whether joined patches have half as many cells both ways as the finest layer."""
        return False

    def _context_above(self, params: Any) -> int | None:
        """The stride above which layers are joined apart; None for none."""
        return None

    def _layer_choice(self) -> LayerChoice | None:
        """What chooses the layers where none are named; None for the backbone's own choice."""
        return None

    def _start(self, params: Any, n_images: int) -> None:
        self._n_images = n_images
        self._backbone = self._make_backbone(params)
        size = self._backbone.nearest_size(tuple(params.resize))
        if size != tuple(params.resize):
            multiple = self._backbone.network.multiple
            note = (
                f"{params.backbone} takes multiples of {multiple} pixels: images are resized to "
                f"{size[0]} x {size[1]} instead of {params.resize[0]} x {params.resize[1]}"
            )
            self.reading_notes_ = (*self.reading_notes_, note)
            warnings.warn(note, stacklevel=3)
            params.resize = size

    def _recall(self) -> Recall | None:
        return self._backbone.cache

    def _frozen_backbone(self) -> Backbone:
        return self._backbone

    def _restore_backbone(self, saved: SavedState) -> None:
        """The first thing that `_restore` does."""
        self._backbone = saved.backbone(self._make_backbone(self.params_))

    def _features(self, images: list[NetworkInput]) -> list[Tensor]:
        """Of B images, for each layer (B, C_l, H_l, W_l) float32; of patches one (B, h, w, D)."""
        import torch

        with torch.inference_mode():
            return self._backbone.features(images)

    def describe(self) -> dict[str, Any]:
        return {"backbone": self._backbone.describe()}

    # ---- the grid of cells

    def _set_grid(self, height: int, width: int) -> None:
        """Note the grid that images are scored on, and which of its cells count."""
        import torch

        self.grid_ = (height, width)
        cells = self.counted_cells(self.grid_)
        self._cells: Tensor | None = None
        if cells is not None:
            self._cells = torch.from_numpy(cells).to(self._backbone.device)

    def _n_cells(self) -> int:
        """How many cells of an image count."""
        return self.grid_[0] * self.grid_[1] if self._cells is None else len(self._cells)

    def _counted(self, cells: Tensor) -> Tensor:
        """Those of (B, hw, ...) that count, (B, k, ...); all of them without a region."""
        return cells if self._cells is None else cells[:, self._cells]

    def _sigma(self) -> float:
        """Of the Gaussian that smooths maps, in pixels."""
        return SIGMA

    def _maps(self, scores: Tensor) -> Tensor:
        """Maps (B, H, W) of the scores (B, k) of the cells that count, 0 or more."""
        size, sigma = self._size(), self._sigma()
        if self._cells is None:
            return smooth_maps(scores.view(-1, *self.grid_), size, sigma)
        grids = scores.new_zeros((len(scores), self.grid_[0] * self.grid_[1]))
        counted = scores.new_zeros(grids.shape[1])
        grids[:, self._cells] = scores
        counted[self._cells] = 1.0
        return smooth_maps(
            grids.view(-1, *self.grid_), size, sigma, counted=counted.view(self.grid_)
        )

    def _statistics(self, scores: Tensor) -> MapStatistics:
        """Of the maps of training images whose cells have the scores (N, k)."""
        found = MapStatistics()
        counted = self._counted_in_training()
        for some in scores.split(64):
            maps = self._maps(some).cpu().numpy()
            found.add(maps if counted is None else maps[:, counted])
        return found


def on_grid(layers: Sequence[Tensor], grid: tuple[int, int] | None = None) -> Tensor:
    """Features of several layers side by side on one grid.

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
