"""PatchCore: a coreset of normal patch features, and the distance to it.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022. Symbols follow the paper: P(x) the patch features of image x, M the
memory bank, m_test* and m* the farthest test patch and its nearest memory feature, b the
number of neighbours in the re-weighting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..images import ImageSource, NetworkInput
from .anomaly_map import SIGMA
from .coreset_detector import CoresetDetector
from .detector import Progress
from .parameters import Count, Size
from .registry import register_model
from .saved_state import SavedState, State
from .working_size import LEAST, working_size

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import LayerChoice
    from .bank import MemoryBank, PooledCoreset, StreamedCoreset, Whitening
    from .bank.whitening import Group

#: Patches that the whitened recipe selects its bank from, at most.
POOL = 100_000
POOL_BYTES = 2**29
# Layers of larger strides see mostly what lies around a patch.
_NEAR = 16
_FAR_WEIGHT = 0.4


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
        "industrial-fast": {"resize": (256, 256), "max_bank_size": 4096},
        "industrial-balanced": {},
        "industrial-accurate": {"patch_grid": "fine", "max_bank_size": 20_000},
    },
)
class VisionPatchCore(CoresetDetector):
    """PatchCore on any backbone: nearest-neighbour distances to a coreset of good patches.

    Parameters
    ----------
    recipe
        `whitened`, made for small backbones (`docs/embedded-backbone.md`), or `paper`. None is
        `whitened` for those that come with the program, EfficientNet-Lite, and else `paper`.
    n_neighbors
        b of the paper's re-weighting; 1 turns it off. The whitened recipe has none.
    resize
        (height, width) that images are resized to and maps are given at. None is 256 x 256 for
        the paper's recipe; for the whitened one a square of 256 to 512 pixels a side, by how many
        the training images have, which `params_.resize` holds after `fit`.
    patch_grid
        `fine`: patches on the grid of the finest layer, stride 8, as in the paper; `coarse`: on
        one of stride 16, a quarter as many. None is the recipe's: `coarse` if it whitens.
    max_bank_size
        Bound of the memory bank, whatever the ratio. None is the recipe's: 32,768 for the
        paper's, 10,000 for the whitened one.
    shared
        The keywords of `CoresetDetector` and `BackboneDetector`.

    Attributes
    ----------
    params_
        The keywords of the fit, with what the recipe and the images put for None.

    Notes
    -----
    Recipe `paper`. Four things differ from the paper, each named here: images are resized whole,
    without the paper's centre crop, because defects at the border count; at the border a patch's
    neighbourhood is averaged over the cells that exist; features are joined at their full
    width instead of being pooled to 1024 channels; and the bank is bounded by `max_bank_size`.
    Above half a million training patches the coreset is selected block by block and merged
    (`pyimgano.models.bank.streamed_coreset`), and above 512 training images, or 1 GiB of
    their features, the threshold is calibrated on an evenly spread part of them.

    Recipe `whitened`. Patch features are whitened before distances are taken
    (`pyimgano.models.bank.Whitening`), so that an image is compared in what good ones hardly vary
    in too; a deeper layer is joined, at two fifths of its weight, for what lies around a patch; the
    working size follows the images; the grid is that of stride 16; the coreset is selected from
    `POOL` patches spread over all; and an image's score is the peak of its map, whose smoothing is
    4 pixels in 256, at any size. With a region of interest that is the peak among pixels that count
    in images of the size `resize`, and the map's own may be a little lower at the border.

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
        recipe: Literal["whitened", "paper"] | None = None,
        n_neighbors: Count = 9,
        resize: Size | None = None,
        patch_grid: Literal["fine", "coarse"] | None = None,
        max_bank_size: Count | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.recipe = recipe
        self.n_neighbors = n_neighbors
        self.resize = resize
        self.patch_grid = patch_grid
        self.max_bank_size = max_bank_size

    # ---- the recipes

    def validate_params(self) -> Any:
        params = super().validate_params()
        if params.recipe is None:
            small = params.backbone.startswith("efficientnet_lite")
            params.recipe = "whitened" if small else "paper"
        whitens = params.recipe == "whitened"
        if params.patch_grid is None:
            params.patch_grid = "coarse" if whitens else "fine"
        if params.max_bank_size is None:
            params.max_bank_size = 10_000 if whitens else 32_768
        if params.resize is None and not whitens:
            params.resize = (LEAST, LEAST)
        return params

    def _settle(self, params: Any, sources: Sequence[ImageSource]) -> None:
        if params.resize is None:
            params.resize = working_size(sources)

    def _layer_choice(self) -> LayerChoice | None:
        from ..backbones.choice import WithContext

        return WithContext() if self.validate_params().recipe == "whitened" else None

    def _coarse_patches(self, params: Any) -> bool:
        return bool(params.patch_grid == "coarse")

    @property
    def _whitens(self) -> bool:
        return bool(self.params_.recipe == "whitened")

    # ---- the whitened recipe: what is learned

    def _new_coreset(self, **facts: Any) -> StreamedCoreset:
        from .bank import PooledCoreset

        if not self._whitens:
            return super()._new_coreset(**facts)
        groups = self._groups()
        width = sum(len(columns) for columns, _ in groups)
        self._pool: PooledCoreset = PooledCoreset(
            pool_size=min(POOL, POOL_BYTES // (4 * width)),
            cells=self._n_cells(),
            groups=groups,
            **facts,
        )
        return self._pool

    def _groups(self) -> list[Group]:
        """Columns of patch features that are whitened together: the near layers', the far ones'.

        What a layer of stride 32 sees around a patch is worth something and drowns small defects
        if it counts in full, so that it counts two fifths.
        """
        kinds = self._backbone.network.layer_kinds()
        widths, strides = zip(*(kinds[layer] for layer in self._backbone.layers), strict=True)
        far = np.repeat(np.asarray(strides) > _NEAR, widths)
        groups = [(np.flatnonzero(~far), 1.0), (np.flatnonzero(far), _FAR_WEIGHT)]
        return [(columns, weight) for columns, weight in groups if len(columns)]

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        self._whitening: Whitening | None = None
        super()._learn(batches, progress)
        if self._whitens:
            self._whitening = self._pool.whitening  # and `_train_features` stay as they came

    def _patches(self, images: list[NetworkInput]) -> Tensor:
        patches = super()._patches(images)
        return patches if self._whitening is None else self._whitening(patches)

    # ---- the whitened recipe: scores of the training images

    def _training_parts(self, unseen: bool) -> Iterator[tuple[Tensor, Tensor, MemoryBank]]:
        """As in `CoresetDetector`; whitened by what the patches of other parts say.

        A covariance knows what it is learned from: of twenty images, a new one lies farther away
        than each of them does, even from a bank without its own patches.
        """
        import torch

        from .bank import MemoryBank
        from .bank.pooled_coreset import FOLDS

        if self._whitening is None:
            yield from super()._training_parts(unseen)
            return
        places = torch.arange(len(self._train_image), device=self._train_image.device)
        cells = self._n_cells()
        fold = self._pool.fold_of(self._train_image * cells + places % cells)
        for k in range(FOLDS):
            chosen = torch.nonzero(fold == k).squeeze(1)
            if len(chosen) == 0:
                continue
            features, whitening, bank = self._train_features[chosen], self._whitening, self._bank
            if unseen:
                whitening = self._pool.whitening_without(k)
                memory = self._pool.plain.clone()
                whitening.blocks(memory)
                bank = MemoryBank(memory, bank.image)
            whitening.blocks(features)
            yield chosen, features, bank

    def _finish(self) -> None:
        super()._finish()
        self.__dict__.pop("_pool", None)

    # ---- maps and scores

    def _sigma(self) -> float:
        """Of the smoothing, in pixels."""
        if not self._whitens:
            return SIGMA
        height, width = self._size()
        return SIGMA / LEAST * float(np.sqrt(height * width))

    def _maps(self, scores: Tensor, sigma: float | None = None) -> Tensor:
        if not self._whitens:
            return super()._maps(scores, SIGMA)
        # summed in double precision, so that a map does not depend on its company
        return super()._maps(scores.double(), self._sigma()).float()

    def _scores_and_maps(
        self, patches: Tensor, distances: Tensor, rows: Tensor, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not self._whitens:
            return super()._scores_and_maps(patches, distances, rows, maps)
        found = self._maps(distances)
        return self._peaks(found), found if maps else None

    def _peaks(self, maps: Tensor) -> Tensor:
        """(B,) the largest value of maps (B, H, W), where pixels count."""
        import torch

        flat = maps.flatten(1)
        if self.roi_ is not None:
            counted = np.flatnonzero(self.roi_.counted(self._size()))
            flat = flat[:, torch.from_numpy(counted).to(flat.device)]
        return flat.max(dim=1).values

    def _image_scores(
        self, patches: Tensor, distances: Tensor, rows: Tensor, image: Tensor | None
    ) -> Tensor:
        """Equations 6 and 7: s = w s*; of the whitened recipe the peak of the map."""
        import torch

        if self._whitens:
            return torch.cat([self._peaks(self._maps(some)) for some in distances.split(64)])
        s_star, where = distances.max(dim=1)  # s*, and which patch is m_test*
        b = self.params_.n_neighbors
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

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        from .graphs import PatchCoreGraph, region_of

        self._check_fitted()
        return PatchCoreGraph.of(
            self._backbone,
            self._bank,
            coarse=self._coarse_patches(self.params_),
            whitening=self._whitening,
            n_neighbors=self.params_.n_neighbors,
            grid=self.grid_,
            size=self._size(),
            sigma=self._sigma(),
            threshold=self.threshold_,
            region=region_of(self, self.grid_, original_size),
        )

    # ---- saving

    def _state(self) -> State:
        state = super()._state()
        if self._whitening is None:
            return state
        own = {
            "centre": self._whitening.centre.cpu().numpy(),
            "whitening": self._whitening.matrix.cpu().numpy(),
        }
        return State(arrays={**state.arrays, **own}, facts=state.facts)

    def _restore(self, saved: SavedState) -> None:
        import torch

        from .bank import Whitening

        super()._restore(saved)
        self._whitening = None
        if not self._whitens:
            return
        width = self._bank.features.shape[1]
        centre = saved.array("centre", "float32", (width,))
        matrix = saved.array("whitening", "float32", (width, width))
        device = self._backbone.device
        self._whitening = Whitening(
            torch.from_numpy(centre).to(device), torch.from_numpy(matrix).to(device)
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "recipe": self.params_.recipe}
