"""AnomalyDINO: distances to all patches of few good images, turned, on a vision transformer.

Damm, Laszkiewicz, Lederer, Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection
with DINOv2", WACV 2025 (arXiv 2405.14529, 2024). M the patches of the references and their turned
copies, each of length one; d(p) = min over m in M of 1 - <p, m>; the score of an image is the mean
of the largest 1 % of d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import SavedModelError
from ..images import NetworkInput, Recall
from .detector import Progress, TrainingScores
from .few_images import mean_of_top, turned
from .on_backbone import BackboneDetector
from .parameters import Count, Flag, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State
from .within_image import nearest_elsewhere, within_image_note

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import LayerChoice
    from .bank import MemoryBank

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


@register_model(
    "vision_anomalydino",
    tags=("memory-bank", "few-shot", "pixel-map", "deep-features"),
    metadata={
        "paper": "Damm et al., AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with "
        "DINOv2, 2024 (WACV 2025)",
        "year": 2024,
        "link": "https://arxiv.org/abs/2405.14529",
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
class VisionAnomalyDINO(BackboneDetector):
    """AnomalyDINO: patches of few good images and their turned copies, cosine distances.

    Parameters
    ----------
    turns
        How many times each reference is turned around, by equal angles: 8 is every 45 degrees, 1
        leaves it as it is. More than `turned_images` references, and references with a region of
        interest, are not turned.
    turned_images
        How many references there may be for them to be turned.
    object_mask
        Whether distances count on the object alone, where the references tell it from its
        background.
    top_share
        Of the distances of an image, the share of the largest whose mean is its score.
    max_bank_size
        Bound of the memory. Above it an evenly spread part of the references' patches is kept,
        and `describe` and the calibration say so.
    shared
        The keywords of `BackboneDetector`; the layer is the last block, normed.

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

    object_mask_: ObjectMask | None

    def __init__(
        self,
        *,
        turns: Count = 8,
        turned_images: Count = 16,
        object_mask: Flag = True,
        top_share: Ratio = 0.01,
        max_bank_size: Count = 500_000,
        backbone: str = "dinov2_vits14",
        resize: Size = (448, 448),
        **shared: Any,
    ) -> None:
        super().__init__(backbone=backbone, resize=resize, **shared)
        self.turns = turns
        self.turned_images = turned_images
        self.object_mask = object_mask
        self.top_share = top_share
        self.max_bank_size = max_bank_size

    def _layer_choice(self) -> LayerChoice:
        from ..backbones.choice import LastBlock

        return LastBlock()

    def _recall(self) -> Recall | None:
        return None  # turned copies are made of pixels

    # ---- patches of length one

    def _patches(self, images: Sequence[NetworkInput]) -> Tensor:
        """(B, hw, D) float32 of B images, each of length one."""
        from torch.nn.functional import normalize

        from .on_backbone import on_grid

        grid = on_grid(self._features(list(images)))  # (B, h, w, D)
        if not hasattr(self, "grid_"):
            self._set_grid(int(grid.shape[1]), int(grid.shape[2]))
        return normalize(grid.flatten(1, 2), dim=-1)

    # ---- the memory

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        params = self.params_
        many = self._n_images > params.turned_images or self.roi_ is not None
        angles = [0.0] if many else [360.0 / params.turns * i for i in range(params.turns)]
        share = None
        memory: list[Tensor] = []
        numbers: list[Tensor] = []
        plain: list[Tensor] = []
        with torch.inference_mode():
            for images in batches:
                for image in images:
                    assert isinstance(image, np.ndarray)
                    number = len(plain)
                    for angle in angles:
                        patches = self._patches([turned(image, angle)])
                        if angle == 0.0:
                            plain.append(patches[0])
                        some = self._counted(patches)[0]  # (k, D)
                        if share is None:
                            rows = self._n_images * len(angles) * len(some)
                            share = min(1.0, params.max_bank_size / rows)
                        # evenly spread, and beginning elsewhere in each copy
                        kept = _spread_rows(len(some), share, len(memory))
                        memory.append(some[kept])
                        numbers.append(torch.full((len(kept),), number))
            self._plain = torch.stack(plain)  # (n, hw, D), unturned
            self._angles, self._share = angles, share or 1.0
            self.object_mask_ = None
            if params.object_mask and self.roi_ is None:
                self.object_mask_ = learn_object_mask(self._plain, self.grid_)
        groups = torch.from_numpy(self._copy_groups())
        self._owner = groups
        self._remember(torch.cat(memory), groups[torch.cat(numbers)])

    def _remember(self, features: Tensor, image: Tensor) -> None:
        from .bank import MemoryBank

        self._bank: MemoryBank = MemoryBank(features, image.to(features.device), prune=False)

    # ---- scores

    def _weighed(self, distances: Tensor, patches: Tensor) -> Tensor:
        """Cosine distances (B, k) of Euclidean ones, 0 where the object is not."""
        found = 0.5 * distances.square()
        if self.object_mask_ is not None:
            found = found * self.object_mask_.of(patches, self.grid_)
        return found

    def _distances(self, patches: Tensor, owner: Tensor | None) -> Tensor:
        """d of patches (B, hw, D), (B, k); without the rows of the images `owner` (B,)."""
        queries = self._counted(patches)
        own = None if owner is None else owner.repeat_interleave(queries.shape[1])
        distances, _ = self._bank.search(queries.flatten(0, 1).contiguous(), own)
        return self._weighed(distances.view(len(patches), -1), patches)

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            distances = self._distances(self._patches(images), None)
            scores = mean_of_top(distances, self.params_.top_share)
            found = self._maps(distances).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def _training_scores(self, unseen: bool) -> TrainingScores:
        import torch

        notes: tuple[str, ...] = ()
        if self._share < 1.0:
            notes = (f"the memory holds {self._share:.0%} of the patches, evenly spread",)
        several = len(self._owner.unique()) > 1
        with torch.inference_mode():
            if unseen and not several:
                distances = self._within_image()
                method, notes = "within-image", (*notes, within_image_note(len(self._plain)))
            else:
                method = "leave-one-image-out" if unseen else "in-sample"
                owner = self._owner.to(self._plain.device)
                distances = torch.cat(
                    [
                        self._distances(some, owner[at] if unseen else None)
                        for at in torch.arange(len(self._plain)).split(_AT_ONCE)
                        for some in [self._plain[at]]
                    ]
                )
            scores = mean_of_top(distances, self.params_.top_share)
            return TrainingScores(
                scores.double().cpu().numpy(),
                method,
                unseen and several,
                notes=notes,
                maps=self._statistics(distances),
            )

    def _within_image(self) -> Tensor:
        """d (n, k) of the one image, and its copies, to what of it lies elsewhere."""
        import torch

        cells = torch.arange(self.grid_[0] * self.grid_[1], device=self._plain.device)
        cells = cells if self._cells is None else self._cells
        queries = self._counted(self._plain)
        first = queries[0]  # unturned: of a turned copy it is not known where a patch was
        found, _ = nearest_elsewhere(
            queries.flatten(0, 1).contiguous(),
            cells.repeat(len(queries)),
            torch.ones(queries.shape[0] * queries.shape[1], dtype=torch.bool, device=cells.device),
            first,
            cells,
            self.grid_,
        )
        return self._weighed(found.view(len(queries), -1), self._plain)

    def _finish(self) -> None:
        del self._plain, self._owner

    # ---- saving

    def _state(self) -> State:
        arrays = {
            "features": self._bank.features.cpu().numpy(),
            "image": self._bank.image.cpu().numpy(),
        }
        mask = self.object_mask_
        if mask is not None:
            arrays["direction"] = mask.direction.cpu().numpy()
        facts = {
            "grid": list(self.grid_),
            "turns": len(self._angles),
            "share": self._share,
            "threshold": None if mask is None else mask.threshold,
        }
        return State(arrays=arrays, facts=facts)

    def _restore(self, saved: SavedState) -> None:
        import torch

        self._restore_backbone(saved)
        device = self._backbone.device
        shapes = self._backbone.shapes(self._size())
        grid, dimension = list(shapes[0][2:]), sum(shape[1] for shape in shapes)
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        self._set_grid(grid[0], grid[1])
        self._angles = [0.0] * saved.fact("turns", Count)
        self._share = saved.fact("share", float)
        if not 0 < self._share <= 1:
            raise SavedModelError("state.share: a share in (0, 1] is wanted")
        features = saved.array("features", "float32", (None, dimension))
        image = saved.array("image", "int64", (len(features),))
        if image.min() < 0 or image.max() >= self.n_train_:
            raise SavedModelError("the array 'image' names images that do not exist")
        self._remember(torch.from_numpy(features).to(device), torch.from_numpy(image))
        threshold = saved.fact("threshold", float | None)
        self.object_mask_ = None
        if threshold is not None:
            direction = saved.array("direction", "float32", (dimension,))
            self.object_mask_ = ObjectMask(torch.from_numpy(direction).to(device), threshold)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "memory_bank": {
                "size": len(self._bank),
                "dimension": int(self._bank.features.shape[1]),
                "share": self._share,
                "turns": len(self._angles),
            },
            "object_mask": self.object_mask_ is not None,
        }


def _spread_rows(count: int, share: float, number: int) -> npt.NDArray[np.int64]:
    """Return `share` of the rows 0 to count - 1, evenly spread; others for another `number`."""
    if share >= 1.0:
        return np.arange(count)
    kept = max(1, int(share * count))
    first = (number * 0.618034) % 1.0  # golden ratio: positions of many copies lie evenly
    return np.unique(((np.arange(kept) + first) * count / kept).astype(np.int64) % count)
