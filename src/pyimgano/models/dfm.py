"""DFM: a linear subspace of deep features, and how badly it reconstructs others.

Ahuja, Ndiour, Kalyanpur, Tickoo, "Probabilistic Modeling of Deep Features for Out-of-Distribution
and Adversarial Detection", 2019 (arXiv 1909.11786); the feature reconstruction error (FRE)
as in Ndiour, Ahuja, Tickoo, "Out-of-Distribution Detection With Subspace Techniques And
Probabilistic Modeling Of Features", 2020 (arXiv 2012.04250). u the features of a layer, T the
principal components that carry 97 % of their variance: FRE(u) = |u - T^+ T u|^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, during
from ..images import NetworkInput
from ..threads import limited_threads
from .detector import Detector
from .evenly_spread import EvenlySpread, KeptVectors, spread_notes
from .gaussian import ONE_IMAGE, by_eights, cells_beside
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, on_grid, open_backbone
from .parameters import BackboneParams, Count, Ratio
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .training_images import TrainingImages

# Images that the subspace is learned from, at most; and the bytes of their features.
_IMAGES = 1024
_BYTES = 2**30
# Images up to which each is left out on its own, and the number of folds above.
_ONE_BY_ONE = 256
_FOLDS = 10
# A share of the variance below which a component is rounding.
_ROUNDING = 1e-12


class DFMParams(BackboneParams):
    """The keywords of DFM."""

    explained_variance: Ratio = Field(
        0.97,
        description=(
            "Share of the variance that the components which are kept carry at least, in "
            "(0, 1]. Intel's program for inspection takes 0.97."
        ),
    )
    pooling_kernel_size: Count = Field(
        1,
        description=(
            "Features are averaged over squares of so many cells; at the edge over the "
            "cells that exist."
        ),
    )


class DFM(Method):
    """A linear subspace of the features of whole images."""

    Params = DFMParams

    def __init__(self, params: DFMParams) -> None:
        from ..backbones import LastOfStrides

        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, layers=LastOfStrides((16,)))

    def learn(self, images: TrainingImages) -> tuple[LearnedDFM, TrainingScores | None]:
        import torch

        kernel = self.params.pooling_kernel_size
        kept: KeptVectors | None = None
        for batch in images.batches():
            pooled = pooled_features(self.backbone, batch, kernel)  # (B, h, w, C)
            if kept is None:
                grid = PatchGrid.of(pooled.shape[1:3], self.region, self.backbone.device)
            vectors = grid.counted(pooled.flatten(1, 2))  # (B, P, C)
            if kept is None:
                most = max(1, min(_IMAGES, _BYTES // vectors[0].nbytes))
                kept = KeptVectors(EvenlySpread(len(images), most), vectors[0])
            kept.add(vectors)
        assert kept is not None
        train = kept.all()  # (n, P, C)
        with torch.inference_mode(), limited_threads(1):  # their number changes nothing
            # around the first, so that equal images have a difference of 0 from their mean
            first = train[0].double()
            mean = (first + _mean_from(train, first)).float()  # (P, C)
            gram = _products(train, mean)  # (n, n)
            sigma, u = _principal(gram, self.params.explained_variance)  # (k,) and (n, k)
            # T, as (P, k, C): sum_n u_nk (u_n - mean) / sigma_k
            weights = (u / sigma).T  # (k, n)
            components = train.new_empty((train.shape[1], len(sigma), train.shape[2]))
            for cell in range(train.shape[1]):
                components[cell] = (weights @ (train[:, cell].double() - mean[cell])).float()
        if images.progress is not None:
            images.progress("components", len(sigma), len(sigma))
        learned = LearnedDFM(self.backbone, grid, kernel, mean, components, len(train))
        share = self.params.explained_variance
        return learned, _score_training_images(learned, images, kept, gram, share)

    def restore(self, saved: SavedState) -> LearnedDFM:
        import torch

        device = self.backbone.device
        shapes = self.backbone.shapes(self.region.size)  # (N, C_l, H_l, W_l)
        k = self.params.pooling_kernel_size
        finest = max((shape[2], shape[3]) for shape in shapes)
        cells = [-(-side // min(k, side)) for side in finest]
        if saved.fact("grid", list[int]) != cells:
            raise SavedModelError(f"state.grid: the backbone's grid is {cells}")
        grid = PatchGrid.of(cells, self.region, device)
        channels = sum(shape[1] for shape in shapes)
        mean = saved.array("mean", "float32", (len(grid), channels))
        n_learned = saved.fact("n_learned", Count)
        n_components = saved.fact("n_components", int)
        if not 0 <= n_components < n_learned <= saved.n_train:
            raise SavedModelError("state.n_components: it must be below the number of images")
        components = np.zeros((len(grid), 0, channels), np.float32)
        if n_components:
            wanted = (len(grid), n_components, channels)
            components = saved.array("components", "float32", wanted)
        return LearnedDFM(
            self.backbone,
            grid,
            k,
            torch.from_numpy(mean).to(device),
            torch.from_numpy(components).to(device),
            n_learned,
        )


@dataclass(eq=False)
class LearnedDFM(Learned):
    """A subspace of the features u of P cells with C channels each, side by side.

    Attributes
    ----------
    backbone
        Gives the features.
    grid
        Their cells.
    kernel
        Features are averaged over squares of so many cells.
    mean
        (P, C) float32.
    components
        (P, k, C) float32, T: the principal components that are kept.
    n_learned
        How many images they were learned from.
    """

    backbone: Backbone
    grid: PatchGrid
    kernel: int
    mean: Tensor
    components: Tensor
    n_learned: int

    @property
    def n_components_(self) -> int:
        """Return how many principal components are kept, k."""
        return int(self.components.shape[1])

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w)."""
        return self.grid.shape

    def errors(self, vectors: Tensor) -> Tensor:
        """Return the FRE of each cell, (B, P) float32, of features (B, P, C)."""
        import torch

        found = []
        for away in by_eights(vectors - self.mean):  # (P, C, 8)
            rest = away
            if self.n_components_:
                coordinates = torch.bmm(self.components, away).sum(dim=0)  # (k, 8)
                rebuilt = torch.bmm(
                    self.components.mT, coordinates.expand(len(away), -1, -1).contiguous()
                )  # (P, C, 8)
                rest = away - rebuilt
            found.append(rest.square().sum(dim=1).T)
        return torch.cat(found)[: len(vectors)]

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            pooled = pooled_features(self.backbone, images, self.kernel)  # (B, h, w, C)
            errors = self.errors(self.grid.counted(pooled.flatten(1, 2)))  # (B, P)
            scores = _of_images(errors)
            if not maps:
                return scores, None
            # one at a time: a product of another shape rounds otherwise
            found = torch.cat([self.grid.maps(one) for one in errors.split(1)])
            return scores, found.cpu().numpy()

    def state(self) -> State:
        arrays = {"mean": self.mean.cpu().numpy()}
        if self.n_components_:
            arrays["components"] = self.components.cpu().numpy()
        return State(
            arrays=arrays,
            facts={
                "grid": list(self.grid_),
                "n_components": self.n_components_,
                "n_learned": self.n_learned,
            },
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "subspace": {
                "dimension": int(self.mean.numel()),
                "components": self.n_components_,
                "images": self.n_learned,
            },
        }


def pooled_features(backbone: Backbone, images: list[NetworkInput], kernel: int) -> Tensor:
    """Return u of B images, (B, h, w, C) float32, averaged over squares of `kernel` cells."""
    import torch
    from torch.nn.functional import avg_pool2d

    layers = features_of(backbone, images)  # (B, C_l, H_l, W_l) each
    joined = on_grid(layers, max((int(m.shape[2]), int(m.shape[3])) for m in layers))
    if kernel == 1:
        return joined
    maps = joined.permute(0, 3, 1, 2)  # (B, C, H, W)
    square = (min(kernel, int(maps.shape[2])), min(kernel, int(maps.shape[3])))
    # one at a time, so that every image is pooled alike
    pooled = [
        avg_pool2d(one[None], square, ceil_mode=True, count_include_pad=False)[0] for one in maps
    ]
    return torch.stack(pooled).permute(0, 2, 3, 1).contiguous()


def _score_training_images(
    learned: LearnedDFM,
    images: TrainingImages,
    kept: KeptVectors,
    gram: Tensor,
    explained_variance: float,
) -> TrainingScores | None:
    """Return scores of the training images that were learned from, each without its copies.

    `gram` (n, n) are the products of their differences from the mean.
    """
    import torch

    if images.calibrate == "held-out-images":
        return None
    train, numbers = kept.all(), kept.numbers()  # (n, P, C) and (n,)
    notes, unseen = spread_notes(len(train), images.used), True
    with during("calibration"), torch.inference_mode():
        # images by the first of their copies, which are in one fold
        first, group = np.unique(images.copy_groups()[numbers], return_inverse=True)
        distinct = len(first)
        if images.calibrate == "in-sample":
            method, unseen = "in-sample", False
            errors = torch.cat([learned.errors(some) for some in train.split(64)])
        elif distinct > 1:
            method = "leave-one-image-out" if distinct <= _ONE_BY_ONE else "refitted-folds"
            folds = torch.from_numpy(group % (distinct if distinct <= _ONE_BY_ONE else _FOLDS))
            with limited_threads(1):
                errors = _left_out(train, learned.mean, gram, folds, explained_variance)
        else:
            method, unseen, notes = "within-image", False, (*notes, ONE_IMAGE)
            grid = learned.grid
            errors = learned.errors(train[:, cells_beside(grid.shape, grid.cells)])
        return TrainingScores(
            _of_images(errors),
            method,
            unseen,
            notes=notes,
            maps=learned.grid.statistics(errors, images.counted_pixels()),
            images=numbers,
        )


def _left_out(
    train: Tensor, mean: Tensor, gram: Tensor, fold: Tensor, explained_variance: float
) -> Tensor:
    """Return the FRE of each cell, (n, P) float32, by the PCA of the images of the other folds.

    What is left of an image is a sum of the images with weights that need the products of
    images alone; so all PCAs are of those, and the features are read once.

    Parameters
    ----------
    train
        (n, P, C) features.
    mean
        (P, C), theirs.
    gram
        (n, n) products of their differences from it.
    fold
        (n,) which fold an image is in, counted from 0.
    explained_variance
        The share of the variance that the components carry.
    """
    import torch

    number = torch.arange(len(gram), device=gram.device)
    fold = fold.to(number.device)
    weights = torch.zeros_like(gram)  # (n, n): a row is what is left of an image
    for one in range(int(fold.max()) + 1):
        out, stay = number[fold == one], number[fold != one]
        among = gram[stay][:, stay]
        across = gram[out][:, stay]
        means = among.mean(dim=1)
        centred = among - means - means[:, None] + means.mean()
        sigma, u = _principal(centred, explained_variance)
        # products of the differences from the others' mean
        to_others = across - across.mean(dim=1, keepdim=True) - means + means.mean()
        rebuilt = (to_others @ u / sigma.square()) @ u.T  # of the others' differences
        part = torch.zeros_like(gram[out])
        part[torch.arange(len(out)), out] = 1.0
        part[:, stay] = -rebuilt + (rebuilt.sum(dim=1, keepdim=True) - 1.0) / len(stay)
        weights[out] = part
    found = train.new_empty(train.shape[:2])
    for cell in range(train.shape[1]):
        away = train[:, cell].double() - mean[cell]  # (n, C)
        found[:, cell] = (weights @ away).square().sum(dim=1).float()
    return found


def _products(train: Tensor, mean: Tensor) -> Tensor:
    """Return the products (n, n) float64 of the differences of images (n, P, C) from the mean."""
    gram = mean.new_zeros((len(train), len(train))).double()
    for cell in range(train.shape[1]):
        away = train[:, cell].double() - mean[cell]  # (n, C)
        gram += away @ away.T
    return gram


@register_model(
    "vision_dfm",
    tags=("subspace", "pixel-map", "deep-features"),
    metadata={
        "paper": "Ahuja et al., Probabilistic Modeling of Deep Features for Out-of-Distribution "
        "and Adversarial Detection, 2019",
        "year": 2019,
        "link": "https://arxiv.org/abs/1909.11786",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: the subspace refitted without each image on "
        "features that are kept (in ten folds above 256 images)",
    },
    presets={
        "industrial-fast": {"resize": (224, 224)},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (384, 384)},
    },
)
class VisionDFM(Detector):
    """DFM: error of reconstructing features from a PCA that keeps 97 % of their variance.

    Attributes
    ----------
    n_components_
        How many principal components are kept; less than the number of images.

    Notes
    -----
    As in the authors' program for inspection (DFM of anomalib with `score_type` fre), an image
    is one vector: the pooled features of all cells of a layer side by side, so that the
    subspace knows where in the image something lies. The error of an image is the sum of the
    squared differences, that of a cell the sum over its channels; cells sum up to the image.
    That program takes the last layer of stride 16 of a ResNet50 (`layer3`) and squares of 4
    cells; here the layer is the same of any backbone, and cells are not pooled, because a map of 4
    x 4 cells shows no defect. Two more things differ: maps are smoothed with sigma 4 as all maps
    are, and the likelihood score of the 2019 paper is left out, which gives no map.

    The dimension is that of all cells together (28,672 by default), so no covariance is formed:
    the PCA is that of the n x n products of images. It is learned from at most 1,024 images, or 1
    GiB of their features, evenly spread over the training images; the time of 5,000 images
    and more is therefore that of reading them. Calibration refits the PCA from the same products,
    without each image in turn; above 256 images in ten interleaved folds.

    Scores depend neither on the batch nor on the number of threads. Several layers are brought
    to the grid of the finest, bilinearly.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_dfm", backbone="resnet50", weights="resnet50.pth")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = DFM


def _mean_from(vectors: Tensor, origin: Tensor) -> Tensor:
    """Return the mean of (n, P, C) less `origin`, (P, C) float64."""
    total = origin.new_zeros(origin.shape)
    for one in vectors:
        total += one.double() - origin
    return total / len(vectors)


def _principal(gram: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the PCA of images from their centred products (n, n).

    Returns
    -------
    sigma
        (k,) float64 descending: singular values, of as few components as carry `share` of the
        variance.
    u
        (n, k) float64: the left singular vectors.
    """
    import torch

    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    total = values.sum()
    some = values > _ROUNDING * total  # none where all images are the same
    enough = values.cumsum(0) - values < share * total
    k = int((some & enough).sum())
    return values[:k].sqrt(), vectors[:, :k]


def _of_images(errors: Tensor) -> npt.NDArray[np.float64]:
    """Return the FRE (B,) of images from that of their cells (B, P), in single precision."""
    found: npt.NDArray[np.float64] = errors.double().sum(dim=1).float().double().cpu().numpy()
    return found
