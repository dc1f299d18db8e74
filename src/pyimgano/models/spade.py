"""SPADE: the most similar good images, and for each position its like among them.

Cohen & Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences",
arXiv:2005.02357, 2020. Symbols follow the paper: f_y the image-level feature of image y,
N_K(f_y) its K nearest training images, F(y, p) the pyramid feature at position p, G the
gallery of all positions of these K images, kappa the number of its nearest ones that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, UsageError, during
from ..images import NetworkInput
from .detector import Detector
from .evenly_spread import EvenlySpread, spread_notes
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, on_grid, open_backbone
from .parameters import BackboneParams, Count
from .registry import register_model
from .saved_state import SavedState, State
from .within_image import close_by

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .training_images import TrainingImages

# The strides of the pyramid's levels: the ends of a ResNet's first three stages.
_STRIDES = (4, 8, 16)
# Bytes of the gallery, at most.
_BYTES = 2**31
# Gallery images whose maps calibrate the pixel threshold; a map costs far more than a score.
_MAPS = 64
# Gallery images compared with together.
_IMAGES = 4


class SpadeParams(BackboneParams):
    """The keywords of Spade."""

    n_neighbors: Count = Field(
        50, description="K, how many of the most similar images count; all where there are fewer."
    )
    matching_level: Count = Field(
        2,
        description=(
            "The level of the pyramid, 1 for the finest, on whose grid positions are "
            "matched. Finer levels are averaged over its cells and coarser ones "
            "interpolated. By default the second, stride 8; 1 is the paper's, costs 16 "
            "times as much, and a gallery image takes 4 times as much memory."
        ),
    )
    max_gallery: Count = Field(
        2048,
        description=(
            "Training images that are kept, at most, and never more than 2 GiB of their "
            "features; evenly spread if there are more. Both the score and the map compare "
            "with these alone."
        ),
    )


class Spade(Method):
    """The most similar good images, and the likes of each position among them."""

    Params = SpadeParams

    def __init__(self, params: SpadeParams) -> None:
        from ..backbones.choice import LastOfStrides

        super().__init__(params)
        plain = open_backbone(params, layers=LastOfStrides(_STRIDES))  # the levels, checked
        levels = plain.layers
        if params.matching_level > len(levels):
            raise UsageError(
                f"matching_level must lie in 1..{len(levels)}, there being {len(levels)} layers "
                f"({', '.join(levels)}), got {params.matching_level}"
            )
        last = plain.network.layer_names[-1]
        tapped = levels if last in levels else (*levels, last)
        self.backbone: Backbone = open_backbone(params.model_copy(update={"layers": tapped}))
        self._levels, self._last = len(levels), tapped.index(last)

    def learn(self, images: TrainingImages) -> tuple[LearnedSpade, TrainingScores | None]:
        import torch

        features = self._features()
        seen = kept = 0
        numbers: list[int] = []
        for batch in images.batches():
            with torch.inference_mode():
                positions, deep = features.of(self.backbone, batch)  # (B, P, D) and (B, C, c)
            if seen == 0:
                most = min(self.params.max_gallery, max(1, _BYTES // positions[0].nbytes))
                spread = EvenlySpread(len(images), most)
                rows = min(most, len(images))
                gallery = positions.new_empty((rows, *positions.shape[1:]))
                pooled = deep.new_empty((rows, deep.shape[1]), dtype=torch.float64)
                first_deep = deep[0].clone()
            for position, one in zip(positions, _pool(deep)):
                if spread.takes(seen):
                    gallery[kept], pooled[kept] = position, one
                    kept += 1
                    numbers.append(seen)
                seen += 1
        learned = LearnedSpade(
            self.backbone, features, gallery[:kept], pooled[:kept], self.params.n_neighbors
        )
        training = _score_training_images(learned, images, np.array(numbers, np.int64), first_deep)
        return learned, training

    def _features(self) -> PyramidFeatures:
        shapes = self.backbone.shapes(self.region.size)  # (N, C_l, H_l, W_l)
        grids = [
            PatchGrid.of(shapes[number][2:], self.region, self.backbone.device)
            for number in (self.params.matching_level - 1, self._last)
        ]
        return PyramidFeatures(self._levels, self._last, *grids)

    def restore(self, saved: SavedState) -> LearnedSpade:
        import torch

        features = self._features()
        if saved.fact("grid", list[int]) != list(features.grid.shape):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(features.grid.shape)}")
        shapes = self.backbone.shapes(self.region.size)
        dimension = sum(shape[1] for shape in shapes[: self._levels])
        gallery = saved.array("gallery", "float32", (None, len(features.grid), dimension))
        pooled = saved.array("pooled", "float64", (len(gallery), shapes[self._last][1]))
        if len(gallery) > min(saved.n_train, self.params.max_gallery):
            raise SavedModelError("the array 'gallery' has more images than there were")
        device = self.backbone.device
        return LearnedSpade(
            self.backbone,
            features,
            torch.from_numpy(gallery).to(device),
            torch.from_numpy(pooled).to(device),
            self.params.n_neighbors,
        )


@dataclass(frozen=True)
class PyramidFeatures:
    """How features are made of the layers of a backbone, sections 3.1 and 3.4.

    Attributes
    ----------
    levels
        How many of the layers, from the first, are the levels of the pyramid.
    last
        Which layer the image-level features are pooled from.
    grid
        The positions: the cells of the matching level.
    last_grid
        The cells of the last layer.
    """

    levels: int
    last: int
    grid: PatchGrid
    last_grid: PatchGrid

    def of(self, backbone: Backbone, images: list[NetworkInput]) -> tuple[Tensor, Tensor]:
        """Return what counts of B images, float32.

        Returns
        -------
        positions
            (B, P, D), F(y, p).
        deep
            (B, C, c), the cells of the last layer.
        """
        from torch.nn.functional import adaptive_avg_pool2d

        layers = features_of(backbone, images)  # (B, C_l, H_l, W_l) each
        height, width = self.grid.shape
        levels = [
            adaptive_avg_pool2d(one, self.grid.shape)
            if one.shape[2] > height or one.shape[3] > width
            else one
            for one in layers[: self.levels]
        ]
        deep = layers[self.last].flatten(2)
        if self.last_grid.cells is not None:
            deep = deep[:, :, self.last_grid.cells]
        return self.grid.counted(on_grid(levels, self.grid.shape).flatten(1, 2)), deep


@dataclass(eq=False)
class LearnedSpade(Learned):
    """A gallery of n good images.

    Attributes
    ----------
    backbone, features
        Give the features.
    gallery
        (n, P, D) float32: F(y, p) of each image.
    pooled
        (n, C) float64: f_y of each image.
    n_neighbors
        K.
    """

    backbone: Backbone
    features: PyramidFeatures
    gallery: Tensor
    pooled: Tensor
    n_neighbors: int

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of the positions."""
        return self.features.grid.shape

    def nearest_images(self, pooled: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the distances to N_K(f_y), ascending, and which images these are, both (K,).

        `pooled` (C,) float64 is f_y; the gallery's images `own`, (n,) bool, do not count. Of
        images equally far, the one with the lower number comes first.
        """
        import torch

        away = (self.pooled - pooled).square().sum(dim=1).sqrt()  # (n,)
        count = len(away)
        if own is not None:
            away[own] = torch.inf
            count -= int(own.sum())
        found = away.sort(stable=True)
        k = min(self.n_neighbors, count)
        return found.values[:k], found.indices[:k]

    def correspondences(self, positions: Tensor, images: Tensor) -> Tensor:
        """Return the distances (P,) of positions (P, D) to the nearest of `images` (K,)."""
        import torch

        from .neighbors import ExhaustiveSearch

        nearest = positions.new_full((len(positions),), torch.inf)  # squared
        winner = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        for some in images.split(_IMAGES):  # the most similar first: they rule most others out
            ExhaustiveSearch(self.gallery[some].flatten(0, 1)).update(positions, nearest, winner)
        return nearest.sqrt_()

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            positions, deep = self.features.of(self.backbone, images)  # (B, P, D), (B, C, c)
            found = [self.nearest_images(one) for one in _pool(deep)]
            scores = torch.stack([distances.mean() for distances, _ in found]).cpu().numpy()
            if not maps:
                return scores, None
            cells = [self.correspondences(p, near) for p, (_, near) in zip(positions, found)]
            return scores, self.features.grid.maps(torch.stack(cells)).cpu().numpy()

    def state(self) -> State:
        return State(
            arrays={"gallery": self.gallery.cpu().numpy(), "pooled": self.pooled.cpu().numpy()},
            facts={"grid": list(self.grid_)},
        )

    def describe(self) -> dict[str, Any]:
        size, _, dimension = self.gallery.shape
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "gallery": {
                "size": size,
                "dimension": dimension,
                "bytes": self.gallery.nbytes + self.pooled.nbytes,
            },
        }


def _score_training_images(
    learned: LearnedSpade,
    images: TrainingImages,
    numbers: npt.NDArray[np.int64],
    first_deep: Tensor,
) -> TrainingScores | None:
    """Return scores of the images of the gallery, each against the others without its copies.

    They are exactly what an image would get if neither it nor its copies were there. `numbers`
    (n,) says which of the training images they are; `first_deep` (C, c) is the last layer of
    the first.
    """
    import torch

    if images.calibrate == "held-out-images":
        return None
    unseen = images.calibrate != "in-sample"
    gallery, pooled, grid = learned.gallery, learned.pooled, learned.features.grid
    count = len(gallery)
    with during("calibration"), torch.inference_mode():
        group = torch.from_numpy(images.copy_groups()[numbers]).to(pooled.device)  # (n,)
        alike = bool((group == group[0]).all() or (pooled == pooled[0]).all())
        if unseen and alike:
            return _within_image(learned, images, first_deep)
        found = [
            learned.nearest_images(pooled[i], group == group[i] if unseen else None)
            for i in range(count)
        ]
        spread = EvenlySpread(count, min(count, _MAPS))
        cells = [
            learned.correspondences(gallery[i], found[i][1])
            for i in range(count)
            if spread.takes(i)
        ]
        return TrainingScores(
            torch.stack([distances.mean() for distances, _ in found]).cpu().numpy(),
            "leave-one-image-out" if unseen else "in-sample",
            unseen,
            notes=spread_notes(count, images.used),
            maps=grid.statistics(torch.stack(cells), images.counted_pixels()),
            images=numbers,
        )


def _within_image(
    learned: LearnedSpade, images: TrainingImages, first_deep: Tensor
) -> TrainingScores:
    """Return how the parts of an image differ, because no image differs from another.

    The score is the mean distance of the pooled features of its four quarters, from top to
    bottom, to those of the whole; each position is matched with those at least a quarter
    of the image away.
    """
    import torch

    grid, own = learned.features.grid, learned.gallery[0]  # (P, D)
    count, deep = len(learned.gallery), first_deep.double()  # (C, c)
    whole = deep.mean(dim=1)
    parts = [(p.mean(dim=1) - whole).square().sum().sqrt() for p in deep.chunk(4, dim=1)]
    where = torch.arange(grid.shape[0] * grid.shape[1], device=own.device)
    if grid.cells is not None:
        where = grid.cells
    nearest = []
    for start in range(0, len(where), 1024):
        # squared differences, so that a position is at distance 0 from itself
        away = torch.cdist(
            own[start : start + 1024], own, compute_mode="donot_use_mm_for_euclid_dist"
        )
        near = close_by(where[start : start + 1024], where, grid.shape)
        near &= ~near.all(dim=1, keepdim=True)
        nearest.append(away.masked_fill_(near, torch.inf).amin(dim=1))
    note = (
        f"{count} training image{'s' * (count != 1)} with the same features: the threshold "
        "compares parts of an image, and no false-alarm rate is promised"
    )
    return TrainingScores(
        np.full(count, float(torch.stack(parts).mean())),
        "within-image",
        unseen=False,
        notes=(note,),
        maps=grid.statistics(torch.cat(nearest)[None], images.counted_pixels()),
    )


@register_model(
    "vision_spade",
    tags=("memory-bank", "nearest-neighbours", "pixel-map", "deep-features"),
    metadata={
        "paper": (
            "Cohen & Hoshen, Sub-Image Anomaly Detection with Deep Pyramid Correspondences, "
            "arXiv 2020"
        ),
        "year": 2020,
        "link": "https://arxiv.org/abs/2005.02357",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image is no neighbour of itself",
    },
    presets={
        "industrial-fast": {"resize": (224, 224), "n_neighbors": 10},
        "industrial-balanced": {},
        "industrial-accurate": {"matching_level": 1},
    },
)
class VisionSpade(Detector):
    """SPADE on any backbone: distances to the K most similar good images, and to their parts.

    The score of an image, which the decision is made by, is the paper's: the mean distance of
    its globally pooled features to those of the K nearest training images. It does not come
    from the map, and misses small defects that the map shows.

    Notes
    -----
    The memory is 4 h w D bytes an image, with D features at each of the h w positions: 721 kB
    by default at 256 x 256 pixels (D = 176, 32 x 32), so that the 2,048 images of a full gallery
    take 1.5 GB; 7.3 MB with `wide_resnet50_2`, 292 images in 2 GiB.

    Six things differ from the paper: positions are matched at stride 8 unless `matching_level`
    is 1; images are resized whole, without a centre crop; distances are Euclidean ones, of
    images and of positions, instead of their squares; the embedded backbones end before the
    last convolution of the classifier, so their image-level features are those of the last
    block; the gallery is bounded; and kappa is 1, the paper's choice, without a keyword.

    With a region of interest the features are pooled over, and the gallery holds, the cells
    that have a pixel that counts. The threshold for pixels is calibrated on the maps of 64
    images of the gallery, evenly spread.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_spade")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = Spade


def _pool(deep: Tensor) -> list[Tensor]:
    """Return f_y of B images, the means of (B, C, c) over the cells, each (C,) float64.

    Image by image, so that none depends on the batch it is in.
    """
    return [one.double().contiguous().mean(dim=1) for one in deep]
