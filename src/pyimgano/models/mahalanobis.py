"""A Gaussian of pooled features at every level of a network; image scores alone.

Rippel, Mertens, Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features
for Anomaly Detection", ICPR 2020, published 2021 (arXiv 2005.14140). Symbols follow the paper: x
the pooled features of a level, mu and Sigma their mean and shrunk covariance, M(x) the
Mahalanobis distance; the score is the sum of M over the levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import SavedModelError, during
from ..images import NetworkInput
from ..threads import limited_threads
from .detector import Detector
from .evenly_spread import EvenlySpread, spread_notes
from .gaussian import ONE_IMAGE, cells_beside, ledoit_wolf, left_out_squared, whitening
from .method import Learned, Method, TrainingScores
from .on_backbone import features_of, open_backbone
from .parameters import BackboneParams
from .region_cells import RegionCells
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .training_images import TrainingImages

# The least ridge of a level, as a share of the mean square of its features: images that are the
# same, or one or two alone, would otherwise make others infinitely far away.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Level:
    """The Gaussian of one level: p channels of the network.

    Attributes
    ----------
    mean
        (p,) float64.
    factor
        (p, p) float64, lower triangular: the inverse of the Cholesky factor of the covariance.
    shrinkage
        Of Ledoit and Wolf, in [0, 1].
    """

    mean: Tensor
    factor: Tensor
    shrinkage: float

    def distance(self, x: Tensor) -> Tensor:
        """Return M(x) of one vector (p,), a number."""
        # multiplied and summed row by row, alike for any number of threads
        return (self.factor * (x - self.mean)).sum(dim=1).square().sum().sqrt()


class Mahalanobis(Method):
    """A Gaussian of the pooled features of each level."""

    Params = BackboneParams
    has_maps = False

    def __init__(self, params: BackboneParams) -> None:
        from ..backbones import LastOfStages

        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, layers=LastOfStages())

    def learn(self, images: TrainingImages) -> tuple[LearnedMahalanobis, TrainingScores | None]:
        import torch

        pooled: list[list[Tensor]] = []  # of each image, for each level (p,)
        for batch in images.batches():
            layers = features_of(self.backbone, batch)  # (B, C_l, H_l, W_l) each
            for number in range(len(batch)):
                maps = [layer[number] for layer in layers]
                if not pooled:
                    moved = pooled_features(maps, self.region, moved=True)
                pooled.append([x.float() for x in pooled_features(maps, self.region)])
        features = [torch.stack(level) for level in zip(*pooled)]  # (n, p) each
        levels = []
        with torch.inference_mode(), limited_threads(1):  # their number changes nothing
            for number, level in enumerate(features):
                levels.append(_fit(level))
                if images.progress is not None:
                    images.progress("levels", number + 1, len(features))
        learned = LearnedMahalanobis(self.backbone, self.region, levels)
        return learned, _score_training_images(learned, images, features, moved)

    def restore(self, saved: SavedState) -> LearnedMahalanobis:
        import torch

        widths = [shape[1] for shape in self.backbone.shapes(self.region.size)]
        shrinkages = saved.fact("shrinkages", list[float])
        if len(shrinkages) != len(widths) or not all(0 <= s <= 1 for s in shrinkages):
            raise SavedModelError(f"state.shrinkages: must be {len(widths)} numbers in [0, 1]")
        levels = []
        for number, (p, shrinkage) in enumerate(zip(widths, shrinkages, strict=True)):
            rows, columns = np.tril_indices(p)
            mean = saved.array(f"means.{number}", "float64", (p,))
            packed = saved.array(f"factors.{number}", "float64", (len(rows),))
            if not (packed[rows == columns] > 0).all():
                raise SavedModelError(
                    f"the array 'factors.{number}' has a diagonal that is not positive"
                )
            factor = np.zeros((p, p))
            factor[rows, columns] = packed
            levels.append(Level(torch.from_numpy(mean), torch.from_numpy(factor), shrinkage))
        return LearnedMahalanobis(self.backbone, self.region, levels)


@dataclass(eq=False)
class LearnedMahalanobis(Learned):
    """The Gaussians of all levels."""

    backbone: Backbone
    region: RegionCells
    levels: list[Level]

    @property
    def shrinkages_(self) -> npt.NDArray[np.float64]:
        """Return the shrinkage of each level, in [0, 1]."""
        return np.array([level.shrinkage for level in self.levels])

    def of(self, vectors: list[Tensor]) -> float:
        """Return the score of an image, the sum of M(x) over the levels."""
        total = sum(level.distance(x) for level, x in zip(self.levels, vectors, strict=True))
        return float(np.float32(float(total)))

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        layers = features_of(self.backbone, images)  # (B, C_l, H_l, W_l) each
        scores = []
        with torch.inference_mode():
            for number in range(len(images)):
                vectors = pooled_features([layer[number] for layer in layers], self.region)
                # single precision, as the features that were learned from
                scores.append(self.of([x.float() for x in vectors]))
        return np.asarray(scores, np.float64), None

    def state(self) -> State:
        arrays = {}
        for number, level in enumerate(self.levels):
            rows, columns = np.tril_indices(len(level.mean))
            arrays[f"means.{number}"] = level.mean.numpy()
            # the lower triangle, row by row
            arrays[f"factors.{number}"] = level.factor.numpy()[rows, columns]
        return State(arrays=arrays, facts={"shrinkages": self.shrinkages_.tolist()})

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "levels": [
                {"layer": layer, "dimension": len(level.mean), "shrinkage": level.shrinkage}
                for layer, level in zip(self.backbone.layers, self.levels, strict=True)
            ],
        }


def pooled_features(maps: list[Tensor], region: RegionCells, moved: bool = False) -> list[Tensor]:
    """Return for each level the mean (p,) float64 over the cells that count of maps (p, h, w).

    With `moved` the cells are those beside them (`cells_beside`).
    """
    import torch

    found = []
    for one in maps:
        grid = (int(one.shape[1]), int(one.shape[2]))
        counted = region.cells(grid)
        cells = None if counted is None else torch.from_numpy(counted)
        flat = one.cpu().flatten(1).double()  # (p, h w)
        flat = flat if cells is None else flat[:, cells]
        found.append((flat[:, cells_beside(grid, cells)] if moved else flat).mean(dim=1))
    return found


def _score_training_images(
    learned: LearnedMahalanobis,
    images: TrainingImages,
    features: list[Tensor],
    moved: list[Tensor],
) -> TrainingScores | None:
    """Return scores of training images with these features, (n, p) of each level.

    Each is scored without itself and its copies. If all images are copies of one, that image is
    scored with the features `moved` by a cell.
    """
    import torch

    if images.calibrate == "held-out-images":
        return None
    n = len(features[0])
    spread = EvenlySpread.of_images(n, sum(x[0].nbytes for x in features))
    kept = [number for number in range(n) if spread.takes(number)]
    notes = spread_notes(len(kept), n)
    with during("calibration"), torch.inference_mode(), limited_threads(1):
        if images.calibrate == "in-sample":
            scores = [learned.of([x[number] for x in features]) for number in kept]
            return TrainingScores(np.asarray(scores), "in-sample", False, notes=notes)
        group = images.copy_groups()  # (n,)
        if (group == group[0]).all():
            score = np.array([learned.of(moved)])
            return TrainingScores(score, "within-image", False, notes=(*notes, ONE_IMAGE))
        image = torch.tensor(kept)
        total = torch.stack([_left_out(level, image) for level in features]).sum(dim=0)  # (m,)
        first, counts = np.unique(group, return_counts=True)
        for one in first[counts > 1]:
            # refitted without all copies; the formula above is that of a single image
            stay = torch.from_numpy(group != one)
            levels = [_fit(level[stay]) for level in features]
            for place in np.flatnonzero(group[kept] == one):
                total[place] = sum(
                    level.distance(x[kept[place]])
                    for level, x in zip(levels, features, strict=True)
                )
        return TrainingScores(
            total.float().double().numpy(),
            "leave-one-image-out",
            True,
            notes=notes,
            images=np.array(kept, np.int64),
        )


@register_model(
    "vision_mahalanobis",
    tags=("gaussian", "image-level", "deep-features"),
    metadata={
        "paper": "Rippel et al., Modeling the Distribution of Normal Data in Pre-Trained Deep "
        "Features for Anomaly Detection, ICPR 2020, published 2021",
        "year": 2021,
        "link": "https://arxiv.org/abs/2005.14140",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out, in closed form: mean, covariance and "
        "shrinkage of every level downdated",
    },
    presets={
        "industrial-fast": {"resize": (224, 224)},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (384, 384)},
    },
)
class VisionMahalanobis(Detector):
    """Gaussians of globally pooled features, one a level; no maps.

    Attributes
    ----------
    shrinkages_
        (levels,) float64 in [0, 1], of Ledoit and Wolf.

    Notes
    -----
    The paper's best network is EfficientNet-B4, of which it takes nine levels: the stem, seven
    stages, and the convolution before the classifier. Networks here have neither a layer for
    the stem nor that last convolution, so EfficientNet-Lite gives the seven stages. Images are
    resized whole to 256 pixels, the paper's to those that its network was trained with.

    The covariance is that of `sklearn.covariance.LedoitWolf`, but for one thing: what shrinking
    adds to every variance is at least 1e-6 of the mean square of a level's features, so that one
    training image, or equal ones, give finite distances.

    Leaving an image out is exact, its own Ledoit-Wolf shrinkage included: the sums that the
    shrinkage is made of change by products of that image with the others; mean and covariance
    by one vector and one outer product, in the basis of the eigenvectors of the covariance of
    all, where every ridge is diagonal. Nothing is fitted anew.

    The pooled features of all training images are kept while fitting: 4 bytes times the channels
    of all levels (784 of EfficientNet-Lite0, 3,840 of a Wide ResNet50) an image. Above 512
    images the threshold is calibrated on an evenly spread part of them.

    Scores depend neither on the batch nor on the number of threads: they are computed in double
    precision, image by image, and rounded to single. With a region of interest, features are
    pooled over the cells of each level that have a pixel that counts.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_mahalanobis")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = Mahalanobis


def _floor(mean_square: Tensor) -> Tensor:
    """Return the least ridge of features of this mean square; above 0 also where they all are 0."""
    return (_FLOOR * mean_square).clamp(min=1e-12)


def _fit(features: Tensor) -> Level:
    """Return the Gaussian of features (n, p) float32."""
    import torch

    x = features.double()
    n, p = x.shape
    # around the first, so that equal ones have no variance at all
    mean = x[0] + (x - x[0]).mean(dim=0)
    away = x - mean
    covariance = away.T @ away / n
    shrunk = ledoit_wolf(
        p,
        n,
        covariance.trace(),
        covariance.square().sum(),
        away.square().sum(dim=1).square().sum(),
        _floor(x.square().mean()),
    )
    covariance *= 1.0 - shrunk.shrinkage
    covariance += shrunk.ridge * torch.eye(p, dtype=x.dtype)
    return Level(mean, whitening(covariance[None])[0], float(shrunk.shrinkage))


def _left_out(features: Tensor, image: Tensor) -> Tensor:
    """Return M(x) (m,) float64 of the images `image` (m,), each under the Gaussian of all others.

    With d_j = x_j - mu of n images, E the mean of d d^T and G the products d_j . d_k, leaving i out
    moves the mean by d_i / (n - 1); then

        trace E'      = (n trace E - c G_ii) / (n - 1),   c = n / (n - 1)
        |E'|^2        = (n^2 |E|^2 - 2 c sum_k G_ik^2 + c^2 G_ii^2) / (n - 1)^2
        |d'_j|^2      = G_jj + 2 G_ij / (n - 1) + G_ii / (n - 1)^2

    are all that the shrinkage needs, and the rest is `left_out_squared` in the eigenvectors of E.
    """
    import torch

    x = features.double()
    n, p = x.shape
    away = x - (x[0] + (x - x[0]).mean(dim=0))
    lengths = away.square().sum(dim=1)  # G_jj
    own = lengths[image]
    gram = away[image] @ away.T  # (m, n)
    c, others = n / (n - 1), n - 1
    if n <= p:
        values, vectors = torch.linalg.eigh(away @ away.T)
        values = values.clamp(min=0.0)
        squares = vectors[image].square() * values  # of d_i along the eigenvectors of E, (m, n)
    else:
        values, vectors = torch.linalg.eigh(away.T @ away)
        values = values.clamp(min=0.0)
        squares = (away[image] @ vectors).square()  # (m, p)
    # values are n times the eigenvalues of E
    trace = (values.sum() - c * own) / others
    frobenius = values.square().sum() - 2.0 * c * gram.square().sum(dim=1) + (c * own).square()
    frobenius = frobenius / others**2
    moved = lengths + 2.0 * gram / others + own[:, None] / others**2  # |d'_j|^2, (m, n)
    moved[torch.arange(len(image)), image] = 0.0
    squares_of = x.square().sum(dim=1)
    floor = _floor((squares_of.sum() - squares_of[image]) / (others * p))
    shrunk = ledoit_wolf(p, others, trace, frobenius, moved.square().sum(dim=1), floor)
    weight = (1.0 - shrunk.shrinkage) / others  # of the scatter in the covariance
    diagonal = weight[:, None] * values + shrunk.ridge[:, None]
    q = (squares / diagonal).sum(dim=1)
    found: Tensor = left_out_squared(q, n, weight).sqrt()
    return found
