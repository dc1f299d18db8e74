"""AnomalyDINO: distances to all patches of few good images, turned, on a vision transformer.

Damm, Laszkiewicz, Lederer, Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection
with DINOv2", WACV 2025 (arXiv 2405.14529, 2024). M the patches of the references and their turned
copies, each of length one; d(p) = min over m in M of 1 - <p, m>; the score of an image is the mean
of the largest 1 % of d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, UsageError, during
from ..images import NetworkInput
from .detector import Detector
from .few_images import mean_of_top, turned
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, on_grid, open_backbone, require_exportable
from .parameters import BackboneParams, Count, Flag, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State
from .training_images import TrainingImages
from .within_image import nearest_elsewhere, within_image_note

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from .neighbors import MemoryBank

# The middle of an image, where the object is: what is left without this share on each side.
_BORDER = 0.2
# The object fills at least this share of the middle, and of the outermost ring of cells at most
# that, or it is not told from its background.
_LEAST_IN_MIDDLE, _MOST_AT_BORDER = 0.35, 0.2
# Images whose patches are compared together while calibrating.
_AT_ONCE = 8


@dataclass(frozen=True)
class ObjectMask:
    """How patches of the object are told from those of the background.

    Attributes
    ----------
    direction
        (D,) float32, the first principal component of the references' patches, towards the
        object.
    threshold
        Patches with a larger product with it are of the object.
    """

    direction: Tensor
    threshold: float

    def of(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return which patches (B, hw, D) of a grid (h, w) are of the object, (B, hw) bool.

        Gaps are closed and holes filled, and it is widened by a cell, so that a defect that looks
        like background and one at the rim still count.
        """
        import torch

        inside = (patches @ self.direction > self.threshold).cpu().numpy()
        found = [_whole(one.reshape(grid)).ravel() for one in inside]
        return torch.from_numpy(np.stack(found)).to(patches.device)


def learn_object_mask(patches: Tensor, grid: tuple[int, int]) -> ObjectMask | None:
    """Return how the object is told from its background in images (n, hw, D).

    The first principal component of all patches is cut where Otsu's method cuts it; the object is
    the side that the middle of the images is on.

    Returns
    -------
    ObjectMask or None
        None where the two are not told apart: the object does not fill the middle of every image,
        or reaches around the border of one.
    """
    import torch

    flat = patches.flatten(0, 1).double()
    centred = flat - flat.mean(dim=0)
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    along = (flat @ direction).cpu().numpy()
    cut = _otsu(along)
    inside = (along > cut).reshape(-1, *grid)
    down, across = (int(side * _BORDER) for side in grid)
    middle = inside[:, down : grid[0] - down, across : grid[1] - across]
    if middle.mean() < 0.5:
        inside, direction, cut = ~inside, -direction, -cut
        middle = ~middle
    ring = np.ones(grid, bool)
    ring[1:-1, 1:-1] = False
    apart = (middle.mean(axis=(1, 2)) >= _LEAST_IN_MIDDLE) & (
        inside[:, ring].mean(axis=1) <= _MOST_AT_BORDER
    )
    return ObjectMask(direction.float(), float(cut)) if apart.all() else None


def _otsu(values: npt.NDArray[np.float64]) -> float:
    """Return the number that cuts values in two with the largest variance between the parts."""
    ordered = np.sort(values)
    count = np.arange(1, len(ordered))
    total = np.cumsum(ordered)
    low = total[:-1] / count
    high = (total[-1] - total[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (high - low) ** 2
    best = int(between.argmax()) if len(between) else 0
    return float((ordered[best] + ordered[min(best + 1, len(ordered) - 1)]) / 2)


def _whole(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a mask (h, w) with gaps closed and holes filled, a cell wider."""
    from scipy.ndimage import binary_fill_holes

    square = np.ones((3, 3), np.uint8)
    wide = cv2.dilate(np.pad(mask.astype(np.uint8), 2), square, iterations=2)
    closed = cv2.erode(wide, square)[2:-2, 2:-2]  # one of the two stays
    return np.asarray(binary_fill_holes(closed), np.bool_)


class AnomalyDINOParams(BackboneParams):
    """The keywords of AnomalyDINO."""

    turns: Count = Field(
        8,
        description=(
            "How many times each reference is turned around, by equal angles: 8 is every 45 "
            "degrees, 1 leaves it as it is. More than `turned_images` references, and references "
            "with a region of interest, are not turned."
        ),
    )
    turned_images: Count = Field(
        16, description="How many references there may be for them to be turned."
    )
    object_mask: Flag = Field(
        True,
        description=(
            "Whether distances count on the object alone, where the references tell it from its "
            "background."
        ),
    )
    top_share: Ratio = Field(
        0.01,
        description=(
            "The share of an image's patches, those with the largest distances, whose mean "
            "distance is its score."
        ),
    )
    max_bank_size: Count = Field(
        500_000,
        description=(
            "The largest number of patches that the memory keeps. Above it an evenly spread part "
            "of the references' patches is kept, and the report says so."
        ),
    )
    backbone: str = Field(
        "dinov2_vits14",
        description=(
            "The network that gives the features, a vision transformer: a name of "
            "`pyimgano.backbones.list_backbones()`, or `timm:<name>`. The layer is its last block, "
            "normed, where none is named."
        ),
    )
    resize: Size = Field(
        (448, 448),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class AnomalyDINO(Method):
    """Distances to all patches of few good images and their turned copies."""

    Params = AnomalyDINOParams
    exports = True

    def __init__(self, params: AnomalyDINOParams) -> None:
        from ..backbones.choice import LastBlock

        super().__init__(params)
        # without a cache of features, for turned copies are made of pixels
        self.backbone: Backbone = open_backbone(params, layers=LastBlock(), cached=False)

    def learn(self, images: TrainingImages) -> tuple[LearnedAnomalyDINO, TrainingScores | None]:
        import torch

        from .neighbors import MemoryBank

        params, grid = self.params, self._grid()
        many = len(images) > params.turned_images or self.region.roi is not None
        angles = [0.0] if many else [360.0 / params.turns * i for i in range(params.turns)]
        share = min(1.0, params.max_bank_size / (len(images) * len(angles) * len(grid)))
        memory: list[Tensor] = []
        numbers: list[Tensor] = []  # of the images that the rows of the memory come from
        plain: list[Tensor] = []
        for batch in images.batches():
            for image in batch:
                assert isinstance(image, np.ndarray)
                for angle in angles:
                    patches = unit_patches(self.backbone, [turned(image, angle)])  # (1, hw, D)
                    if angle == 0.0:
                        plain.append(patches[0])
                    kept = _spread_rows(len(grid), share, len(memory))
                    memory.append(grid.counted(patches)[0, kept])
                    numbers.append(torch.full((len(kept),), len(plain) - 1))
        whole = torch.stack(plain)  # (n, hw, D), unturned
        mask = None
        if params.object_mask and self.region.roi is None:
            mask = learn_object_mask(whole, grid.shape)
        groups = torch.from_numpy(images.copy_groups())
        owner = groups[torch.cat(numbers)].to(whole.device)
        bank = MemoryBank(torch.cat(memory), owner)
        learned = LearnedAnomalyDINO(
            self.backbone, grid, bank, mask, params.top_share, share, len(angles)
        )
        return learned, _score_training_images(learned, images, whole, groups.to(whole.device))

    def _grid(self) -> PatchGrid:
        shapes = self.backbone.shapes(self.region.size)  # (1, C_l, h_l, w_l)
        return PatchGrid.of(shapes[0][2:], self.region, self.backbone.device)

    def restore(self, saved: SavedState) -> LearnedAnomalyDINO:
        import torch

        from .neighbors import MemoryBank

        grid, device = self._grid(), self.backbone.device
        dimension = sum(shape[1] for shape in self.backbone.shapes(self.region.size))
        if saved.fact("grid", list[int]) != list(grid.shape):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(grid.shape)}")
        share = saved.fact("share", float)
        if not 0 < share <= 1:
            raise SavedModelError("state.share: must be a share in (0, 1]")
        features = saved.array("features", "float32", (None, dimension))
        image = saved.array("image", "int64", (len(features),))
        if image.min() < 0 or image.max() >= saved.n_train:
            raise SavedModelError("the array 'image' names images that do not exist")
        rows, owner = torch.from_numpy(features).to(device), torch.from_numpy(image).to(device)
        threshold = saved.fact("threshold", float | None)
        mask = None
        if threshold is not None:
            direction = saved.array("direction", "float32", (dimension,))
            mask = ObjectMask(torch.from_numpy(direction).to(device), threshold)
        bank = MemoryBank(rows, owner)
        turns = saved.fact("turns", Count)
        return LearnedAnomalyDINO(
            self.backbone, grid, bank, mask, self.params.top_share, share, turns
        )


def unit_patches(backbone: Backbone, images: Sequence[NetworkInput]) -> Tensor:
    """Return the patches of B images, each of length one, (B, hw, D) float32."""
    from torch.nn.functional import normalize

    return normalize(on_grid(features_of(backbone, list(images))).flatten(1, 2), dim=-1)


@dataclass(eq=False)
class LearnedAnomalyDINO(Learned):
    """The memory of AnomalyDINO.

    Attributes
    ----------
    backbone, grid
        What gives patches, and where they are.
    bank
        (M, D) patches of length one, and the first copy of the image that each comes from.
    object_mask_
        How the object is told from its background; None where it is not.
    top_share
        The share of the largest distances whose mean is the score.
    share, turns
        Of the references' patches the share that is kept, and how many times each was turned.
    """

    backbone: Backbone
    grid: PatchGrid
    bank: MemoryBank
    object_mask_: ObjectMask | None
    top_share: float
    share: float
    turns: int

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of patches."""
        return self.grid.shape

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            distances = self.distances(unit_patches(self.backbone, images))
            scores = mean_of_top(distances, self.top_share)
            found = self.grid.maps(distances).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def distances(self, patches: Tensor, owner: Tensor | None = None) -> Tensor:
        """Return d (B, k) of patches (B, hw, D), without the rows of the images `owner` (B,)."""
        queries = self.grid.counted(patches)  # (B, k, D)
        own = None if owner is None else owner.repeat_interleave(queries.shape[1])
        euclidean, _ = self.bank.search(queries.flatten(0, 1).contiguous(), own)
        return self.cosine(euclidean.view(len(patches), -1), patches)

    def cosine(self, euclidean: Tensor, patches: Tensor) -> Tensor:
        """Return cosine distances (B, k) of Euclidean ones, 0 where the object is not."""
        found = 0.5 * euclidean.square()
        if self.object_mask_ is not None:
            found = found * self.object_mask_.of(patches, self.grid.shape)
        return found

    def state(self) -> State:
        mask = self.object_mask_
        arrays = {
            "features": self.bank.features.cpu().numpy(),
            "image": self.bank.image.cpu().numpy(),
        }
        if mask is not None:
            arrays["direction"] = mask.direction.cpu().numpy()
        facts = {
            "grid": list(self.grid_),
            "turns": self.turns,
            "share": self.share,
            "threshold": None if mask is None else mask.threshold,
        }
        return State(arrays=arrays, facts=facts)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "memory_bank": {
                "size": len(self.bank),
                "dimension": int(self.bank.features.shape[1]),
                "share": self.share,
                "turns": self.turns,
            },
            "object_mask": self.object_mask_ is not None,
        }

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import AnomalyDINOGraph

        require_exportable(self.backbone)
        if self.object_mask_ is not None:
            raise UsageError(
                "this detector tells the object from its background, and filling holes of that "
                "mask is no fixed sequence of operations that an export could have; fit it with "
                "object_mask=False"
            )
        bank = self.bank.features.cpu()
        facts = (self.backbone, self.grid, self.top_share, threshold, original_size)
        return AnomalyDINOGraph(bank, *facts).eval()


def _score_training_images(
    learned: LearnedAnomalyDINO, images: TrainingImages, patches: Tensor, groups: Tensor
) -> TrainingScores | None:
    """Return the scores of images with patches (n, hw, D), unturned, each against the others."""
    import torch

    if images.calibrate == "held-out-images":
        return None
    notes: tuple[str, ...] = ()
    if learned.share < 1.0:
        notes = (f"the memory holds {learned.share:.0%} of the patches, evenly spread",)
    unseen, several = images.calibrate != "in-sample", len(groups.unique()) > 1
    with during("calibration"), torch.inference_mode():
        if unseen and not several:
            method, notes = "within-image", (*notes, within_image_note(len(patches)))
            distances = _within_image(learned, patches)
        else:
            method = "leave-one-image-out" if unseen else "in-sample"
            distances = torch.cat(
                [
                    learned.distances(patches[some], groups[some] if unseen else None)
                    for some in torch.arange(len(patches), device=groups.device).split(_AT_ONCE)
                ]
            )
        return TrainingScores(
            mean_of_top(distances, learned.top_share).double().cpu().numpy(),
            method,
            unseen and several,
            notes=notes,
            maps=learned.grid.statistics(distances, images.counted_pixels()),
        )


def _within_image(learned: LearnedAnomalyDINO, patches: Tensor) -> Tensor:
    """Return d (n, k) of one image, and its copies, to what of it lies elsewhere, unturned."""
    import torch

    grid = learned.grid
    queries = grid.counted(patches)  # (n, k, D)
    cells = torch.arange(grid.shape[0] * grid.shape[1], device=patches.device)
    cells = cells if grid.cells is None else grid.cells
    every = torch.ones(queries.shape[0] * queries.shape[1], dtype=torch.bool, device=cells.device)
    found, _ = nearest_elsewhere(
        queries.flatten(0, 1).contiguous(),
        cells.repeat(len(queries)),
        every,
        queries[0],
        cells,
        grid.shape,
    )
    return learned.cosine(found.view(len(queries), -1), patches)


def _spread_rows(count: int, share: float, number: int) -> npt.NDArray[np.int64]:
    """Return `share` of the rows 0 to count - 1, evenly spread; others for another `number`."""
    if share >= 1.0:
        return np.arange(count)
    kept = max(1, int(share * count))
    first = (number * 0.618034) % 1.0  # golden ratio: positions of many copies lie evenly
    return np.unique(((np.arange(kept) + first) * count / kept).astype(np.int64) % count)


@register_model(
    "vision_anomalydino",
    tags=("memory-bank", "few-shot", "pixel-map", "deep-features"),
    metadata={
        "paper": "Damm et al., AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with "
        "DINOv2, 2024 (WACV 2025)",
        "year": 2024,
        "link": "https://arxiv.org/abs/2405.14529",
        "weights": "yours: the authors' DINOv2 (Apache-2.0; `pyimgano weights fetch`) or DINOv3 "
        "(its own licence; ask its authors), by weights=",
        "authors_report": "MVTec AD, ViT-S at 672 pixels, 1 / 4 / 16 images: image AUROC 96.6 / "
        "97.7 / 98.4 (the paper's, not measured here)",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image is compared with the others, its own "
        "turned copies left out with it",
    },
    presets={
        "industrial-fast": {"resize": (336, 336)},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (672, 672)},
    },
)
class VisionAnomalyDINO(Detector):
    """AnomalyDINO: patches of few good images and their turned copies, cosine distances.

    Attributes
    ----------
    object_mask_
        How the object is told from its background (`ObjectMask`); None where it is not.

    Notes
    -----
    The paper's shorter side is 448 or 672 pixels, in the shape of the images; here it is `resize`,
    448 x 448 by default. Three things differ. The principal component and its threshold are
    learned from the references (by Otsu's method, since the authors' fixed number is one of the
    scale of DINOv2's features) and not anew from each test image. The mask is used where the
    references say so, as in the paper, by a rule of this program (`learn_object_mask`). Turned
    copies are filled by reflection at the border.

    Distances are half the squared Euclidean distance of vectors of length one, which is the cosine
    distance.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_anomalydino", weights="dinov2_vits14_pretrain.pth")
    >>> detector.fit(train_paths[:4]).predict(test_paths)  # doctest: +SKIP
    """

    method = AnomalyDINO
