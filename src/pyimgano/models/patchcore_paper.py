"""PatchCore as in its paper: a coreset of normal patch features, and the distance to it.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022. Symbols follow the paper: P(x) the patch features of image x, M the
memory bank, m_test* and m* the farthest test patch and its nearest memory feature, b the
number of neighbours in the re-weighting.

The shapes are those of B images with k patches that count on a grid of h w cells, D features
wide, a memory bank of M rows, and n training images that the threshold is calibrated on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, during
from ..images import NetworkInput
from ..threads import single_torch_thread
from .evenly_spread import WHOLE_MAPS, EvenlySpread, evenly, spread_notes
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, open_backbone, require_exportable
from .parameters import BackboneParams, Count, Ratio
from .patch_summary import OWN, PatchSummary
from .region_cells import RegionCells
from .saved_state import SavedState, State
from .within_image import nearest_elsewhere, within_image_note

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from .neighbors import MemoryBank, StreamedCoreset
    from .training_images import TrainingImages

# Images whose patches are compared with the bank together, and the bytes of these: what is larger
# is asked of the system, and given back to it, each time.
_AT_ONCE = 64
_BYTES_AT_ONCE = 2**24
# Multiplications up to which one thread is as quick as several.
_FEW = 2**29


class CoresetParams(BackboneParams):
    """The keywords of methods that compare patches with a coreset of the training patches."""

    coreset_sampling_ratio: Ratio = Field(
        0.1,
        description="The share of the training patches that the memory bank keeps, in (0, 1].",
    )
    max_bank_size: Count = Field(
        32_768,
        description=(
            "The largest number of patches that the memory bank keeps, whatever the ratio. It "
            "binds above 320 training images at 256 pixels, and keeps memory and the time to score "
            "an image in bounds."
        ),
    )
    feature_projection_dim: Count | None = Field(
        128,
        description=(
            "The width of the random projection in which the coreset is selected. None selects "
            "in the features themselves. Scores always use the features."
        ),
    )


class PaperRecipe(Method):
    """The recipe of the paper; `params` are those of `patchcore.PatchCore`."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        # equation 2, the local average of section 3.1, is part of the backbone's graph
        self.backbone: Backbone = open_backbone(params, patches=params.patch_grid)

    def learn(self, images: TrainingImages) -> tuple[LearnedPaper, TrainingScores | None]:
        found = select_coreset(images, self.backbone, self.params)
        learned = LearnedPaper(
            self.backbone,
            found.grid,
            found.bank,
            found.grid.whole(found.picked),
            found.coreset.selections,
            n_neighbors=self.params.n_neighbors,
            summary=PatchSummary(self.params.image_score, self.params.top_share),
        )
        return learned, score_training_images(learned, found, images)

    def restore(self, saved: SavedState) -> LearnedPaper:
        grid = restored_grid(saved, self.backbone, self.region)
        return LearnedPaper(
            self.backbone,
            grid,
            *restored_bank(saved, self.backbone, grid, self.params.max_bank_size),
            n_neighbors=self.params.n_neighbors,
            summary=PatchSummary(self.params.image_score, self.params.top_share),
        )


# ---- the memory bank, section 3.2


@dataclass(eq=False)
class SelectedCoreset:
    """A coreset of the training patches, and the patches of the images to calibrate on.

    Attributes
    ----------
    grid
        The grid of the patches.
    coreset
        What selected it.
    bank
        The memory bank M. Copies of an image count as one image.
    picked
        (M,) int64: which patches it holds, by n k + i for the i-th patch that counts of the
        image n.
    patches
        (n, k, D) of the images to calibrate on.
    numbers
        (n,) int64: which images these are, counted from 0 among those that were read.
    owners
        (n,) int64: for each of these the first image that it is a copy of.
    """

    grid: PatchGrid
    coreset: StreamedCoreset
    bank: MemoryBank
    picked: Tensor
    patches: Tensor
    numbers: npt.NDArray[np.int64]
    owners: Tensor


def select_coreset(
    images: TrainingImages,
    backbone: Backbone,
    params: CoresetParams,
    new_coreset: Callable[..., StreamedCoreset] | None = None,
) -> SelectedCoreset:
    """Return a greedy coreset of the patches of all images (algorithm 1).

    `new_coreset` makes what gathers the patches and selects, with the keywords of
    `StreamedCoreset` and `cells`, the patches of an image; by default a `StreamedCoreset`.
    """
    import torch

    from .neighbors import MemoryBank, StreamedCoreset

    coreset: StreamedCoreset | None = None
    kept: list[Tensor] = []  # (k, D) of each image to calibrate on
    numbers: list[int] = []  # and which images these are
    seen = 0
    progress = images.progress
    for batch in images.batches():
        (features,) = features_of(backbone, batch)  # (B, h, w, D), P(x)
        if coreset is None:
            grid = PatchGrid.of(features.shape[1:3], images.region, backbone.device)
            k = len(grid)
            facts: dict[str, Any] = {
                "expected": len(images) * k,
                "ratio": params.coreset_sampling_ratio,
                "max_rows": params.max_bank_size,
                "projection_dim": params.feature_projection_dim,
                "seed": params.random_seed,
                "progress": None if progress is None else lambda a, b: progress("coreset", a, b),
            }
            coreset = (
                StreamedCoreset(**facts) if new_coreset is None else new_coreset(cells=k, **facts)
            )
        patches = grid.counted(features.flatten(1, 2))  # (B, k, D)
        if seen == 0:
            spread = EvenlySpread.of_images(len(images), patches[0].nbytes)
        coreset.add(patches.flatten(0, 1))
        for one in patches:
            if spread.takes(seen):
                numbers.append(seen)
                if not coreset.single:
                    kept.append(one.clone())
            seen += 1
    assert coreset is not None
    features, picked = coreset.finish()  # (M, D), (M,)
    groups = torch.from_numpy(images.copy_groups()).to(features.device)  # (seen,)
    bank = MemoryBank(features, groups[picked // k])  # copies of an image are masked with it
    image = torch.tensor(numbers, device=features.device)  # (n,)
    if coreset.whole is None:
        own = torch.cat(kept).view(len(numbers), k, -1)
    else:
        own = coreset.whole.view(seen, k, -1)  # (seen, k, D)
        own = own if len(numbers) == seen else own[image]
    return SelectedCoreset(
        grid, coreset, bank, picked, own, np.array(numbers, np.int64), groups[image]
    )


# ---- scores, section 3.3


@dataclass(eq=False)
class LearnedCoreset(Learned):
    """A memory bank of good patches.

    Attributes
    ----------
    backbone
        Gives the patch features P(x).
    grid
        The grid of the patches.
    bank
        The memory bank M.
    coreset_indices_
        (M,) int64: which training patches the bank holds, in the order of their selection.
        Patch i of image n at grid row r and column c has the index (n h + r) w + c, where n
        counts the images that could be read.
    selections
        How often a coreset was selected, block by block where there are many patches.
    n_neighbors
        b of the re-weighting; 1 for none.
    weights
        (M,) float32: what distances to a row are multiplied by; None for 1.
    summary
        What of an image's distances is its score.
    """

    backbone: Backbone
    grid: PatchGrid
    bank: MemoryBank
    coreset_indices_: Tensor
    selections: int
    n_neighbors: int = 1
    weights: Tensor | None = None
    summary: PatchSummary = OWN

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of the patches."""
        return self.grid.shape

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            (features,) = features_of(self.backbone, images)  # (B, h, w, D), P(x)
            patches = self.grid.counted(features.flatten(1, 2))  # (B, k, D)
            with single_torch_thread(few(patches, self.bank)):
                distances, rows = self.nearest(patches)  # (B, k) each
                scores = self.image_scores(patches, distances, rows)  # (B,)
                found = self.grid.maps(distances) if maps else None  # (B, H, W)
            return scores.double().cpu().numpy(), None if found is None else found.cpu().numpy()

    def nearest(self, patches: Tensor, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the distances (B, k) of patches (B, k, D) to their nearest rows, and the rows.

        `owner` (B,) numbers the training image of each whose own rows are masked.
        """
        k = patches.shape[1]
        mask = None if owner is None else owner.repeat_interleave(k)  # (B k,)
        distances, rows = self.bank.search(patches.flatten(0, 1), mask)  # (B k,)
        return self.weigh(distances, rows).view(-1, k), rows.view(-1, k)

    def weigh(self, distances: Tensor, rows: Tensor) -> Tensor:
        """Return distances to rows of the bank as they count; both are of one shape."""
        return distances if self.weights is None else distances * self.weights[rows]

    def image_scores(
        self, patches: Tensor, distances: Tensor, rows: Tensor, owner: Tensor | None = None
    ) -> Tensor:
        """Return the scores (B,) of images, s = w s* (equations 6 and 7), or as `summary` says.

        `patches` (B, k, D); `distances` and `rows` (B, k) to the nearest memory features; `owner`
        (B,) as for `nearest`.
        """
        import torch

        if self.summary.kind != "own":
            return self.summary.plain(distances)
        s_star, where = distances.max(dim=1)  # (B,) s*, and which patch is m_test*
        b = self.n_neighbors
        if b == 1:
            return s_star
        m_star = rows.gather(1, where[:, None]).squeeze(1)  # (B,) rows of the bank
        neighbours, valid = self.bank.neighbourhood(m_star, b, owner)  # (B, b)
        m_test = patches[torch.arange(len(patches), device=patches.device), where]  # (B, D)
        away = (m_test[:, None, :] - self.bank.features[neighbours]).square().sum(-1).sqrt()
        away = away.masked_fill(~valid, -torch.inf)  # (B, b)
        # exp(s*) / sum of exp over N_b(m*), shifted so that nothing overflows
        share = torch.exp(s_star - torch.logsumexp(away, dim=1))
        # with one neighbour alone, m* itself, the weight would be 0 whatever the distance
        weight = torch.where(valid.sum(dim=1) > 1, 1.0 - share, torch.ones_like(share))
        return weight.clamp(min=0.0) * s_star

    def state(self) -> State:
        return State(
            arrays={
                "features": self.bank.features.cpu().numpy(),
                "coreset_indices": self.coreset_indices_.cpu().numpy(),
            },
            facts={"grid": list(self.grid.shape), "selections": self.selections},
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid.shape),
            "memory_bank": described_bank(self.bank, self.selections),
        }


class LearnedPaper(LearnedCoreset):
    """A memory bank of good patches, by the recipe of the paper."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "recipe": "paper"}

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import PatchCoreGraph, region_of

        require_exportable(self.backbone)
        return PatchCoreGraph.of(
            self.backbone,
            self.bank,
            n_neighbors=self.n_neighbors,
            summary=self.summary,
            grid=self.grid.shape,
            size=self.grid.region.size,
            sigma=self.grid.sigma,
            threshold=threshold,
            region=region_of(self.grid.region, self.grid.shape, original_size),
        )


def few(patches: Tensor, bank: MemoryBank) -> bool:
    """Return whether it takes a processor little to compare patches (B, k, D) with a bank."""
    return patches.device.type == "cpu" and patches.numel() * len(bank) <= _FEW


def described_bank(bank: MemoryBank, selections: int) -> dict[str, int]:
    """Return what a report says of a memory bank."""
    size, dimension = (int(n) for n in bank.features.shape)
    return {"size": size, "dimension": dimension, "selections": selections}


# ---- scores of the training images


def score_training_images(
    learned: LearnedCoreset,
    found: SelectedCoreset,
    images: TrainingImages,
    trusted: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]] | None = None,
) -> TrainingScores | None:
    """Return the scores of training images, each against the bank without its own patches.

    The coreset was selected with the image present and is not selected again without
    it. What is unusual about an image was therefore selected, is masked, and makes its
    score larger than a new image's would be: the threshold errs towards fewer false
    alarms, at the price of fewer defects found. The patches of all copies of an image are
    masked with its own.

    `trusted` takes the scores (n,), and says which of the images to calibrate on; None for all.
    """
    import torch

    if images.calibrate == "held-out-images":
        return None
    with during("calibration"), torch.inference_mode():
        if images.calibrate == "in-sample":
            return _against_bank(learned, found, images, None, "in-sample", trusted)
        if len(learned.bank.image.unique()) > 1:
            method = "leave-one-image-out"
            return _against_bank(learned, found, images, found.owners, method, trusted)
        return _within_image(learned, found, images)


def _against_bank(
    learned: LearnedCoreset,
    found: SelectedCoreset,
    images: TrainingImages,
    owners: Tensor | None,
    method: str,
    trusted: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]] | None,
) -> TrainingScores:
    import torch

    patches = found.patches  # (n, k, D)
    at_once = min(_AT_ONCE, max(1, _BYTES_AT_ONCE // patches[0].nbytes))
    scores, maps = [], []
    for some, own in zip(
        patches.split(at_once),
        itertools.repeat(None) if owners is None else owners.split(at_once),
    ):
        distances, rows = learned.nearest(some, own)  # (b, k)
        maps.append(distances)
        scores.append(learned.image_scores(some, distances, rows, own))  # (b,)
    whole = np.arange(len(patches))  # the images whose maps the threshold for pixels comes from
    if owners is not None and learned.weights is None:
        whole = evenly(whole, WHOLE_MAPS)
    grids, counted = torch.cat(maps), images.counted_pixels()  # (n, k)
    exact = torch.cat(scores).double().cpu().numpy()
    kept = np.ones(len(exact), np.bool_) if trusted is None else trusted(exact)
    return TrainingScores(
        exact[kept],
        method,
        owners is not None,
        notes=spread_notes(len(patches), images.used),
        maps=learned.grid.statistics(
            grids[torch.from_numpy(whole[kept[whole]]).to(grids.device)], counted
        ),
        images=found.numbers[kept],
    )


def _within_image(
    learned: LearnedCoreset, found: SelectedCoreset, images: TrainingImages
) -> TrainingScores:
    """Score where all of the bank comes from one image, and no other is left to compare it with."""
    import torch

    grid, patches = learned.grid, found.patches  # (n, k, D)
    n, k = patches.shape[:2]
    height, width = grid.shape
    memory = learned.coreset_indices_ % (height * width)
    where = torch.arange(height * width, device=memory.device)
    if grid.cells is not None:
        where = grid.cells
    nearest, rows = nearest_elsewhere(
        patches.flatten(0, 1),
        where.repeat(n),
        (found.owners == learned.bank.image[0]).repeat_interleave(k),
        learned.bank.features,
        memory,
        grid.shape,
    )
    winner = rows.view(n, k)
    distances = learned.weigh(nearest.view(n, k), winner)
    scores = learned.image_scores(patches, distances, winner)
    return TrainingScores(
        scores.double().cpu().numpy(),
        "within-image",
        unseen=False,
        notes=(within_image_note(n),),
        maps=grid.statistics(distances, images.counted_pixels()),
    )


# ---- reading back what was saved


def restored_grid(
    saved: SavedState, backbone: Backbone, region: RegionCells, **settings: Any
) -> PatchGrid:
    """Return the grid that the backbone has here, if it is the one that was saved."""
    (_, *shape, _), *_ = backbone.shapes(region.size)
    if saved.fact("grid", list[int]) != shape:
        raise SavedModelError(f"state.grid: the backbone's grid is {shape}")
    return PatchGrid.of(shape, region, backbone.device, **settings)


def restored_bank(
    saved: SavedState,
    backbone: Backbone,
    grid: PatchGrid,
    max_rows: int,
) -> tuple[MemoryBank, Tensor, int]:
    """Return the bank, `coreset_indices_` and the number of selections that were saved."""
    import torch

    from .neighbors import MemoryBank

    (_, _, _, dimension), *_ = backbone.shapes(grid.region.size)
    features = saved.array("features", "float32", (None, dimension))
    indices = saved.array("coreset_indices", "int64", (len(features),))
    cells = grid.shape[0] * grid.shape[1]
    if indices.min() < 0 or indices.max() >= saved.n_train * cells:
        raise SavedModelError("the array 'coreset_indices' names patches that do not exist")
    if len(features) > max_rows:
        raise SavedModelError("the array 'features' has more rows than max_bank_size")
    selections: int = saved.fact("selections", Count)
    picked = torch.from_numpy(indices).to(backbone.device)
    rows = torch.from_numpy(features).to(backbone.device)
    return MemoryBank(rows, picked // cells), picked, selections
