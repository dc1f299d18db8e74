"""PatchCore: a coreset of normal patch features, and the distance to it.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022. Symbols follow the paper: P(x) the patch features of image x, M the
memory bank, m_test* and m* the farthest test patch and its nearest memory feature, b the
number of neighbours in the re-weighting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration import MapStatistics
from ..errors import SavedModelError
from ..images import NetworkInput, Recall
from .anomaly_map import smooth_maps
from .detector import Detector, Progress, TrainingScores
from .parameters import (
    CalibrationSource,
    Contamination,
    Count,
    Flag,
    Quantile,
    Ratio,
    Roi,
    Seed,
    Size,
)
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .bank import MemoryBank


# Training images whose features are kept for calibration, at most; and their bytes.
_CALIBRATION_IMAGES = 512
_CALIBRATION_BYTES = 2**30


def _calibration_images(image_bytes: int) -> int:
    return max(1, min(_CALIBRATION_IMAGES, _CALIBRATION_BYTES // image_bytes))


class _Spread:
    """`part` of `whole` numbers, evenly spread; all of them if there are no more."""

    def __init__(self, whole: int, part: int) -> None:
        self._whole, self._part = whole, part

    def takes(self, number: int) -> bool:
        if self._part >= self._whole:
            return True
        # the first of each stretch, so that there is one however many come
        return number * self._part % self._whole < self._part


@register_model(
    "vision_patchcore",
    tags=("memory-bank", "pixel-map", "deep-features"),
    metadata={
        "paper": "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        "year": 2022,
        "link": "https://arxiv.org/abs/2106.08265",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image's own patches masked in the bank",
    },
    presets={
        "industrial-fast": {"resize": (224, 224), "coreset_sampling_ratio": 0.02},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (320, 320)},
    },
)
class VisionPatchCore(Detector):
    """PatchCore on any backbone: nearest-neighbour distances to a coreset of good patches.

    Parameters
    ----------
    backbone
        A name of `pyimgano.backbones.list_backbones()`, or `timm:<name>`.
    layers
        The two layers (or one, or more) whose features are joined; by default the
        backbone's own choice, strides 8 and 16.
    coreset_sampling_ratio
        Share of the training patches that the memory bank keeps, in (0, 1].
    max_bank_size
        Bound of the memory bank, whatever the ratio. It binds above 320 training images at 256
        pixels, and keeps memory and the time to score an image in bounds.
    feature_projection_dim
        Width of the random projection in which the coreset is selected; None selects in
        the features themselves. Scores always use the features.
    n_neighbors
        b of the re-weighting; 1 turns it off.
    pretrained
        False for random weights, drawn from `random_seed`.
    weights
        A weights file for the backbone; beats `pretrained`.
    resize
        (height, width) that images are resized to and maps are given at.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    engine
        What runs the backbone: `auto`, `openvino` or `torch`.
    random_seed
        Of the random projection, the first patch of the coreset, and random weights.
    contamination
        Expected share of training images above the threshold, in (0, 0.5].
    calibration
        `out-of-sample`, or `in-sample` for the naive way, which promises nothing.
    calibration_quantile
        In (0, 1); beats `contamination`. Without either 0.995.
    cache_dir
        A folder to keep the backbone's features of image files in, for the next time.
    roi
        Region of interest: a mask image (any size, every value but 0 counts), a .json file of
        polygons, or polygons of [x, y] in fractions of width and height; None for the frame.

    Attributes
    ----------
    coreset_indices_
        (M,) int64: which training patches the bank holds, in the order of their selection.
        Patch i of image n at grid row r and column c has the index (n h + r) w + c, where n
        counts the images that could be read.
    grid_
        (h, w), the patch grid of an image.

    Notes
    -----
    Four things differ from the paper, each named here: images are resized whole, without
    the paper's centre crop, because defects at the border count; at the border a patch's
    neighbourhood is averaged over the cells that exist; features are joined at their full
    width instead of being pooled to 1024 channels; and the bank is bounded by `max_bank_size`.
    Above half a million training patches the coreset is selected block by block and merged
    (`pyimgano.models.bank.streamed_coreset`), and above 512 training images, or 1 GiB of
    their features, the threshold is calibrated on an evenly spread part of them.

    With a region of interest the bank holds, and the score comes from, the patches whose cell of
    the grid has a pixel that counts.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_patchcore")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        backbone: str = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        coreset_sampling_ratio: Ratio = 0.1,
        max_bank_size: Count = 32_768,
        feature_projection_dim: Count | None = 128,
        n_neighbors: Count = 9,
        pretrained: Flag = True,
        weights: str | None = None,
        resize: Size = (256, 256),
        device: str = "auto",
        engine: str = "auto",
        random_seed: Seed = 0,
        contamination: Contamination | None = None,
        calibration: CalibrationSource = "out-of-sample",
        calibration_quantile: Quantile | None = None,
        cache_dir: str | None = None,
        roi: Roi | None = None,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.coreset_sampling_ratio = coreset_sampling_ratio
        self.max_bank_size = max_bank_size
        self.feature_projection_dim = feature_projection_dim
        self.n_neighbors = n_neighbors
        self.pretrained = pretrained
        self.weights = weights
        self.resize = resize
        self.device = device
        self.engine = engine
        self.random_seed = random_seed
        self.contamination = contamination
        self.calibration = calibration
        self.calibration_quantile = calibration_quantile
        self.cache_dir = cache_dir
        self.roi = roi

    # ---- patch features, section 3.1

    def _patches(self, images: list[NetworkInput]) -> Tensor:
        """P(x) of B images: (B, h, w, D) float32."""
        import torch

        with torch.inference_mode():
            (patches,) = self._backbone.features(images)  # equation 2 is part of its graph
            return patches

    def _counted_patches(self, patches: Tensor) -> Tensor:
        """Those of (B, hw, D) that count, (B, k, D); all of them without a region."""
        return patches if self._cells is None else patches[:, self._cells]

    def _maps(self, scores: Tensor) -> Tensor:
        """Maps (B, H, W) of the scores (B, k) of the patches that count."""
        size = self._size()
        if self._cells is None:
            return smooth_maps(scores.view(-1, *self.grid_), size)
        grids = scores.new_zeros((len(scores), self.grid_[0] * self.grid_[1]))
        counted = scores.new_zeros(grids.shape[1])
        grids[:, self._cells] = scores
        counted[self._cells] = 1.0
        return smooth_maps(grids.view(-1, *self.grid_), size, counted=counted.view(self.grid_))

    def _set_grid(self, height: int, width: int, device: Any) -> None:
        """Note the patch grid, and which of its cells count."""
        import torch

        self.grid_ = (height, width)
        cells = self.counted_cells(self.grid_)
        self._cells: Tensor | None = None
        if cells is not None:
            self._cells = torch.from_numpy(cells).to(device)

    # ---- the memory bank, section 3.2

    def prepare(self) -> Backbone:
        return self._make_backbone(self.validate_params())

    def _make_backbone(self, params: Any) -> Backbone:
        from ..backbones import create_backbone

        return create_backbone(
            params.backbone,
            layers=params.layers,
            pretrained=params.pretrained,
            weights=params.weights,
            device=params.device,
            engine=params.engine,
            seed=params.random_seed,
            cache_dir=params.cache_dir,
            patches=True,
        )

    def _recall(self) -> Recall | None:
        return self._backbone.cache

    def _start(self, params: Any, n_images: int) -> None:
        self._params = params
        self._n_images = n_images
        self._backbone = self._make_backbone(params)

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        from .bank import MemoryBank, StreamedCoreset

        coreset: StreamedCoreset | None = None
        kept: list[Tensor] = []  # features of the images to calibrate on, (hw, D) each
        numbers: list[int] = []  # and which images these are
        seen = 0
        for images in batches:
            grid = self._patches(images)  # (B, h, w, D)
            if coreset is None:
                self._set_grid(int(grid.shape[1]), int(grid.shape[2]), grid.device)
            patches = self._counted_patches(grid.flatten(1, 2))  # (B, k, D)
            cells = patches.shape[1]
            if coreset is None:
                coreset = StreamedCoreset(
                    expected=self._n_images * cells,
                    ratio=self._params.coreset_sampling_ratio,
                    max_rows=self._params.max_bank_size,
                    projection_dim=self._params.feature_projection_dim,
                    seed=self._params.random_seed,
                    progress=None if progress is None else lambda a, b: progress("coreset", a, b),
                )
                spread = _Spread(self._n_images, _calibration_images(patches[0].nbytes))
            coreset.add(patches.flatten(0, 1))
            for one in patches:
                if spread.takes(seen):
                    numbers.append(seen)
                    if not coreset.single:
                        kept.append(one.clone())
                seen += 1
        assert coreset is not None
        features, picked = coreset.finish()
        self._selections = coreset.selections
        self._n_seen = seen
        origin = picked // cells
        self._bank: MemoryBank = MemoryBank(features, origin)
        self.coreset_indices_ = picked
        if self._cells is not None:
            whole = self.grid_[0] * self.grid_[1]
            self.coreset_indices_ = origin * whole + self._cells[picked % cells]
        image = torch.tensor(numbers, device=features.device)
        if coreset.whole is None:
            self._train_features = torch.cat(kept)
        elif len(numbers) == seen:
            self._train_features = coreset.whole
        else:
            self._train_features = coreset.whole.view(seen, cells, -1)[image].flatten(0, 1)
        self._train_image = image.repeat_interleave(cells)  # (n hw,)

    # ---- scores, section 3.3

    def _image_scores(
        self, patches: Tensor, distances: Tensor, rows: Tensor, image: Tensor | None
    ) -> Tensor:
        """Equations 6 and 7: s = w s* for B images, (B,) float32.

        `patches` (B, hw, D); `distances` and `rows` (B, hw) to the nearest memory feature;
        `image` (B,) numbers the training image whose own memory features are masked.
        """
        import torch

        s_star, where = distances.max(dim=1)  # s*, and which patch is m_test*
        b = self._params.n_neighbors
        if b == 1:
            return s_star
        m_star = rows.gather(1, where[:, None]).squeeze(1)  # (B,) rows of the bank
        neighbours, valid = self._bank.neighbourhood(m_star, b, image)  # (B, b)
        m_test = patches[torch.arange(len(patches), device=patches.device), where]  # (B, D)
        away = (m_test[:, None, :] - self._bank.features[neighbours]).square().sum(-1).sqrt()
        away = away.masked_fill(~valid, -torch.inf)
        # exp(s*) / sum of exp over N_b(m*), shifted so that nothing overflows
        share = torch.exp(s_star - torch.logsumexp(away, dim=1))
        # with one neighbour alone, m* itself, the weight would be 0 whatever the distance
        weight = torch.where(valid.sum(dim=1) > 1, 1.0 - share, torch.ones_like(share))
        return weight.clamp(min=0.0) * s_star

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            patches = self._counted_patches(self._patches(images).flatten(1, 2))  # (B, k, D)
            distances, rows = self._bank.search(patches.flatten(0, 1))
            distances, rows = distances.view(len(images), -1), rows.view(len(images), -1)
            scores = self._image_scores(patches, distances, rows, None).double().cpu().numpy()
            if not maps:
                return scores, None
            return scores, self._maps(distances).cpu().numpy()

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Each training image against the bank without its own patches.

        The coreset was selected with the image present and is not selected again without
        it. What is unusual about an image was therefore selected, is masked, and makes its
        score larger than a new image's would be: the threshold errs towards fewer false
        alarms, at the price of fewer defects found. Copies of an image among the training
        images make this worse, since the bank keeps the patches of one copy alone.
        """
        import torch

        with torch.inference_mode():
            if not unseen:
                return self._scores_against_bank(None, "in-sample")
            if len(self._bank.image.unique()) > 1:
                return self._scores_against_bank(self._train_image, "leave-one-image-out")
            return self._scores_without_others()

    def _finish(self) -> None:
        del self._train_features, self._train_image  # a bank's size many times over

    def _scores_against_bank(self, image: Tensor | None, method: str) -> TrainingScores:
        cells = self._n_cells()
        distances, rows = self._bank.search(self._train_features, image)
        grids = distances.view(-1, cells)
        scores = self._image_scores(
            self._train_features.view(len(grids), cells, -1),
            grids,
            rows.view(-1, cells),
            None if image is None else image[::cells],
        )
        notes = []
        if len(grids) < self._n_seen:
            notes.append(
                f"calibrated on {len(grids)} of the {self._n_seen} training images, evenly spread"
            )
        return TrainingScores(
            scores.double().cpu().numpy(),
            method,
            image is not None,
            notes=tuple(notes),
            maps=self._statistics(grids),
        )

    def _statistics(self, grids: Tensor) -> MapStatistics:
        """Of the maps of patch distances (N, k)."""
        found = MapStatistics()
        counted = self._counted_in_training()
        for some in grids.split(64):
            maps = self._maps(some).cpu().numpy()
            found.add(maps if counted is None else maps[:, counted])
        return found

    def _n_cells(self) -> int:
        """How many patches of an image count."""
        return self.grid_[0] * self.grid_[1] if self._cells is None else len(self._cells)

    def _scores_without_others(self) -> TrainingScores:
        """All of the bank comes from one image, so no other is left to compare it with.

        The image that the bank comes from is compared with the memory features at least a
        quarter of the image away: what little is known of how patches that are not
        themselves differ.
        """
        import torch

        height, width = self.grid_
        cells = self._n_cells()
        n = len(self._train_image) // cells
        memory = self.coreset_indices_ % (height * width)
        where = torch.arange(height * width, device=memory.device)
        if self._cells is not None:
            where = self._cells
        source = int(self._bank.image[0])
        nearest, rows = [], []
        for start in range(0, n * cells, 1024):
            queries = self._train_features[start : start + 1024]
            number = torch.arange(start, start + len(queries), device=queries.device)
            place = where[number % cells][:, None]
            # squared differences, so that a patch is at distance 0 from itself
            away = torch.cdist(
                queries, self._bank.features, compute_mode="donot_use_mm_for_euclid_dist"
            )  # (q, M)
            down = (place // width - memory // width).abs()
            across = (place % width - memory % width).abs()
            near = (down * 4 < height) & (across * 4 < width)
            own = self._train_image[start : start + 1024, None] == source
            near &= own & ~near.all(dim=1, keepdim=True)
            found = away.masked_fill_(near, torch.inf).min(dim=1)
            nearest.append(found.values)
            rows.append(found.indices)
        grids = torch.cat(nearest).view(n, cells)
        scores = self._image_scores(
            self._train_features.view(n, cells, -1), grids, torch.cat(rows).view(n, cells), None
        )
        note = (
            f"{n} training image{'s' * (n != 1)} with patches in the bank from one alone: the "
            "threshold compares patches within an image, and no false-alarm rate is promised"
        )
        return TrainingScores(
            scores.double().cpu().numpy(),
            "within-image",
            unseen=False,
            notes=(note,),
            maps=self._statistics(grids),
        )

    # ---- saving

    def _frozen_backbone(self) -> Backbone:
        return self._backbone

    def _state(self) -> State:
        return State(
            arrays={
                "features": self._bank.features.cpu().numpy(),
                "coreset_indices": self.coreset_indices_.cpu().numpy(),
            },
            facts={"grid": list(self.grid_), "selections": self._selections},
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        from .bank import MemoryBank

        self._params = self.params_
        self._backbone = saved.backbone(self._make_backbone(self.params_))
        device = self._backbone.device
        ((_, *grid, dimension),) = self._backbone.shapes(self._size())
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        features = saved.array("features", "float32", (None, dimension))
        indices = saved.array("coreset_indices", "int64", (len(features),))
        cells = grid[0] * grid[1]
        if indices.min() < 0 or indices.max() >= self.n_train_ * cells:
            raise SavedModelError("the array 'coreset_indices' names patches that do not exist")
        if len(features) > self.params_.max_bank_size:
            raise SavedModelError("the array 'features' has more rows than max_bank_size")
        self._selections = saved.fact("selections", Count)
        self._set_grid(grid[0], grid[1], device)
        self.coreset_indices_ = torch.from_numpy(indices).to(device)
        self._bank = MemoryBank(
            torch.from_numpy(features).to(device), self.coreset_indices_ // cells
        )

    def describe(self) -> dict[str, Any]:
        return {
            "backbone": self._backbone.describe(),
            "grid": list(self.grid_),
            "memory_bank": {
                "size": len(self._bank),
                "dimension": int(self._bank.features.shape[1]),
                "selections": self._selections,
            },
        }

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        from .graphs import PatchCoreGraph, region_of

        self._check_fitted()
        return PatchCoreGraph.of(
            self._backbone,
            self._bank,
            n_neighbors=self.params_.n_neighbors,
            grid=self.grid_,
            size=self.params_.resize,
            threshold=self.threshold_,
            region=region_of(self, self.grid_, original_size),
        )
