"""SPADE: the most similar good images, and for each position its like among them.

Cohen & Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences",
arXiv:2005.02357, 2020. Symbols follow the paper: f_y the image-level feature of image y,
N_K(f_y) its K nearest training images, F(y, p) the pyramid feature at position p, G the
gallery of all positions of these K images, kappa the number of its nearest ones that count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, UsageError
from ..images import NetworkInput
from .detector import Detector
from .hooks import BackboneDetector
from .method import TrainingScores
from .on_backbone import on_grid
from .parameters import BackboneParams, Count
from .registry import register_model
from .saved_state import SavedState, State
from .spread import Spread, spread_notes
from .training_images import Progress
from .within_image import close_by

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from ..backbones.choice import LayerChoice

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

    n_neighbors: Count = Field(50, description=("K; all images of the gallery where it has fewer."))
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


class Spade(BackboneDetector):
    """The method of `VisionSpade`."""

    Params = SpadeParams

    # ---- features, sections 3.1 and 3.4

    def _make_backbone(self, params: Any) -> Backbone:
        plain = super()._make_backbone(params)  # the levels, checked
        levels = plain.layers
        if params.matching_level > len(levels):
            raise UsageError(
                f"matching_level must lie in 1..{len(levels)}, there being {len(levels)} layers "
                f"({', '.join(levels)}), got {params.matching_level}"
            )
        last = plain.network.layer_names[-1]
        tapped = levels if last in levels else (*levels, last)
        self._levels, self._last = len(levels), tapped.index(last)
        return super()._make_backbone(params.model_copy(update={"layers": tapped}))

    def _layer_choice(self) -> LayerChoice:
        from ..backbones.choice import LastOfStrides

        return LastOfStrides(_STRIDES)

    def _described(self, images: list[NetworkInput]) -> tuple[Tensor, Tensor]:
        """F(y, p) of the cells of B images that count, (B, k, D), and the last layer's cells
        that count, (B, C, c), both float32."""
        from torch.nn.functional import adaptive_avg_pool2d

        layers = self._features(images)
        levels, last = layers[: self._levels], layers[self._last]
        if not hasattr(self, "grid_"):
            self._set_grid(*self._grid_of([tuple(one.shape) for one in layers]))
            self._set_last_cells((int(last.shape[2]), int(last.shape[3])))
        height, width = self.grid_
        levels = [
            adaptive_avg_pool2d(one, self.grid_)
            if one.shape[2] > height or one.shape[3] > width
            else one
            for one in levels
        ]
        deep = last.flatten(2)
        if self._last_cells is not None:
            deep = deep[:, :, self._last_cells]
        return self._counted(on_grid(levels, self.grid_).flatten(1, 2)), deep

    def _grid_of(self, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
        _, _, height, width = shapes[self.params_.matching_level - 1]
        return int(height), int(width)

    def _set_last_cells(self, grid: tuple[int, int]) -> None:
        import torch

        cells = self.counted_cells(grid)
        self._last_cells: Tensor | None = None
        if cells is not None:
            self._last_cells = torch.from_numpy(cells).to(self._backbone.device)

    # ---- the gallery

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        seen = kept = 0
        numbers: list[int] = []
        for images in batches:
            with torch.inference_mode():
                positions, deep = self._described(images)
            if seen == 0:
                room = min(self.params_.max_gallery, max(1, _BYTES // positions[0].nbytes))
                spread = Spread(self._n_images, room)
                rows = min(room, self._n_images)
                self._gallery: Tensor = positions.new_empty((rows, *positions.shape[1:]))
                self._pooled: Tensor = deep.new_empty((rows, deep.shape[1]), dtype=torch.float64)
                self._first_deep = deep[0].clone()
            for position, one in zip(positions, _pool(deep)):
                if spread.takes(seen):
                    self._gallery[kept], self._pooled[kept] = position, one
                    kept += 1
                    numbers.append(seen)
                seen += 1
        self._gallery, self._pooled = self._gallery[:kept], self._pooled[:kept]
        self._n_seen = seen
        self._numbers = np.array(numbers, np.int64)

    # ---- scores, sections 3.2 and 3.3

    def _nearest_images(self, pooled: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Distances to N_K(f_y), ascending, and which images these are, both (K,).

        `pooled` (C,) float64; the gallery's images `own`, (n,) bool, do not count. Of images
        equally far, the one with the lower number comes first.
        """
        import torch

        away = (self._pooled - pooled).square().sum(dim=1).sqrt()
        count = len(away)
        if own is not None:
            away[own] = torch.inf
            count -= int(own.sum())
        found = away.sort(stable=True)
        k = min(self.params_.n_neighbors, count)
        return found.values[:k], found.indices[:k]

    def _correspondences(self, positions: Tensor, images: Tensor) -> Tensor:
        """Distances (k,) of positions (k, D) to the nearest in the gallery of `images` (K,)."""
        import torch

        from .neighbors import ExhaustiveSearch

        nearest = positions.new_full((len(positions),), torch.inf)  # squared
        winner = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        for some in images.split(_IMAGES):  # the most similar first: they rule most others out
            ExhaustiveSearch(self._gallery[some].flatten(0, 1)).update(positions, nearest, winner)
        return nearest.sqrt_()

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            positions, deep = self._described(images)
            found = [self._nearest_images(one) for one in _pool(deep)]
            scores = torch.stack([distances.mean() for distances, _ in found]).cpu().numpy()
            if not maps:
                return scores, None
            cells = [self._correspondences(p, images) for p, (_, images) in zip(positions, found)]
            return scores, self._maps(torch.stack(cells)).cpu().numpy()

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        """Each image of the gallery against the others, without its copies.

        Exactly what it would get if neither it nor they were there.
        """
        import torch

        count = len(self._gallery)
        group = torch.from_numpy(self._copy_groups()[self._numbers]).to(self._pooled.device)
        with torch.inference_mode():
            alike = bool((group == group[0]).all() or (self._pooled == self._pooled[0]).all())
            if unseen and alike:
                return self._scores_within_image()
            found = [
                self._nearest_images(self._pooled[i], group == group[i] if unseen else None)
                for i in range(count)
            ]
            spread = Spread(count, min(count, _MAPS))
            cells = [
                self._correspondences(self._gallery[i], found[i][1])
                for i in range(count)
                if spread.takes(i)
            ]
            return TrainingScores(
                torch.stack([distances.mean() for distances, _ in found]).cpu().numpy(),
                "leave-one-image-out" if unseen else "in-sample",
                unseen,
                notes=spread_notes(count, self._n_seen),
                maps=self._statistics(torch.stack(cells)),
                images=self._numbers,
            )

    def _scores_within_image(self) -> TrainingScores:
        """No image differs from another, so what is left is how an image's parts differ.

        The score is the mean distance of the pooled features of its four quarters, from top to
        bottom, to those of the whole; each position is matched with those at least a quarter
        of the image away.
        """
        import torch

        count = len(self._gallery)
        deep = self._first_deep.double()
        whole = deep.mean(dim=1)
        parts = [(p.mean(dim=1) - whole).square().sum().sqrt() for p in deep.chunk(4, dim=1)]
        where = torch.arange(self.grid_[0] * self.grid_[1], device=self._gallery.device)
        if self._cells is not None:
            where = self._cells
        nearest = []
        for start in range(0, len(where), 1024):
            own = self._gallery[0]
            # squared differences, so that a position is at distance 0 from itself
            away = torch.cdist(
                own[start : start + 1024], own, compute_mode="donot_use_mm_for_euclid_dist"
            )
            near = close_by(where[start : start + 1024], where, self.grid_)
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
            maps=self._statistics(torch.cat(nearest)[None]),
        )

    def _finish(self) -> None:
        del self._first_deep, self._numbers

    # ---- saving

    def _state(self) -> State:
        return State(
            arrays={
                "gallery": self._gallery.cpu().numpy(),
                "pooled": self._pooled.cpu().numpy(),
            },
            facts={"grid": list(self.grid_)},
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        shapes = self._backbone.shapes(self._size())
        grid = self._grid_of(shapes)
        if saved.fact("grid", list[int]) != list(grid):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(grid)}")
        self._set_grid(*grid)
        _, channels, *last = shapes[self._last]
        self._set_last_cells((last[0], last[1]))
        dimension = sum(shape[1] for shape in shapes[: self._levels])
        gallery = saved.array("gallery", "float32", (None, self._n_cells(), dimension))
        pooled = saved.array("pooled", "float64", (len(gallery), channels))
        if len(gallery) > min(self.n_train_, self.params_.max_gallery):
            raise SavedModelError("the array 'gallery' has more images than there were")
        device = self._backbone.device
        self._gallery = torch.from_numpy(gallery).to(device)
        self._pooled = torch.from_numpy(pooled).to(device)

    def describe(self) -> dict[str, Any]:
        images, _, dimension = self._gallery.shape
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "gallery": {
                "size": images,
                "dimension": dimension,
                "bytes": self._gallery.nbytes + self._pooled.nbytes,
            },
        }


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
    """f_y of B images: the means of (B, C, c) over the cells, each (C,) float64.

    Image by image, so that none depends on the batch it is in.
    """
    return [one.double().contiguous().mean(dim=1) for one in deep]
