"""DFM: a linear subspace of deep features, and how badly it reconstructs others.

Ahuja, Ndiour, Kalyanpur, Tickoo, "Probabilistic Modeling of Deep Features for Out-of-Distribution
and Adversarial Detection", 2019 (arXiv 1909.11786); the feature reconstruction error (FRE)
as in Ndiour, Ahuja, Tickoo, "Out-of-Distribution Detection With Subspace Techniques And
Probabilistic Modeling Of Features", 2020 (arXiv 2012.04250). u the features of a layer, T the
principal components that carry 97 % of their variance: FRE(u) = |u - T^+ T u|^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError
from ..images import NetworkInput
from ..threads import limited_threads
from .detector import Detector
from .gaussian import ONE_IMAGE, by_eights, cells_beside
from .hooks import BackboneDetector
from .method import TrainingScores
from .parameters import BackboneParams, Count, Ratio
from .registry import register_model
from .saved_state import SavedState, State
from .spread import KeptVectors, Spread, spread_notes
from .training_images import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import LayerChoice

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


class DFM(BackboneDetector):
    """The method of `VisionDFM`."""

    Params = DFMParams

    n_components_: int

    # ---- features

    def _layer_choice(self) -> LayerChoice:
        from ..backbones import LastOfStrides

        return LastOfStrides((16,))

    def _pooled(self, images: list[NetworkInput]) -> Tensor:
        """u of B images, (B, h, w, C) float32."""
        from torch.nn.functional import avg_pool2d

        from .on_backbone import on_grid

        layers = self._features(images)
        joined = on_grid(layers, max((int(m.shape[2]), int(m.shape[3])) for m in layers))
        k = self.params_.pooling_kernel_size
        if k == 1:
            return joined
        maps = joined.permute(0, 3, 1, 2)
        kernel = (min(k, int(maps.shape[2])), min(k, int(maps.shape[3])))
        # one at a time, so that every image is pooled alike
        pooled = [
            avg_pool2d(one[None], kernel, ceil_mode=True, count_include_pad=False)[0]
            for one in maps
        ]
        import torch

        return torch.stack(pooled).permute(0, 2, 3, 1).contiguous()

    # ---- the subspace

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        kept: KeptVectors | None = None
        seen = 0
        with torch.inference_mode():
            for images in batches:
                grid = self._pooled(images)
                if not seen:
                    self._set_grid(int(grid.shape[1]), int(grid.shape[2]))
                vectors = self._counted(grid.flatten(1, 2))
                if kept is None:
                    most = max(1, min(_IMAGES, _BYTES // vectors[0].nbytes))
                    kept = KeptVectors(Spread(self._n_images, most), vectors[0])
                kept.add(vectors)
                seen += len(vectors)
            assert kept is not None
            self._n_seen = seen
            self._train = kept.all()  # (n, P, C)
            self._numbers = kept.numbers()
            self._n_learned = len(self._train)
            # around the first, so that equal images have a difference of 0 from their mean
            first = self._train[0].double()
            self._mean = (first + _mean_from(self._train, first)).float()  # (P, C)
            with limited_threads(1):  # what is learned does not depend on their number
                self._gram = self._products()
                sigma, u = _principal(self._gram, self.params_.explained_variance)
                # T, as (P, k, C): sum_n u_nk (u_n - mean) / sigma_k
                weights = (u / sigma).T
                self._components = self._train.new_empty(
                    (self._train.shape[1], len(sigma), self._train.shape[2])
                )
                for cell in range(self._train.shape[1]):
                    away = self._train[:, cell].double() - self._mean[cell]
                    self._components[cell] = (weights @ away).float()
        self.n_components_ = len(sigma)
        if progress is not None:
            progress("components", self.n_components_, self.n_components_)

    def _products(self) -> Tensor:
        """(n, n) float64: products of the images' differences from the mean."""
        n, cells = len(self._train), self._train.shape[1]
        gram = self._mean.new_zeros((n, n)).double()
        for cell in range(cells):
            away = self._train[:, cell].double() - self._mean[cell]
            gram += away @ away.T
        return gram

    # ---- scores

    def _errors(self, vectors: Tensor) -> Tensor:
        """FRE of each cell, (B, P) float32, of (B, P, C)."""
        import torch

        found = []
        for away in by_eights(vectors - self._mean):  # (P, C, 8)
            rest = away
            if self.n_components_:
                coordinates = torch.bmm(self._components, away).sum(dim=0)  # (k, 8)
                rebuilt = torch.bmm(
                    self._components.mT, coordinates.expand(len(away), -1, -1).contiguous()
                )
                rest = away - rebuilt
            found.append(rest.square().sum(dim=1).T)
        return torch.cat(found)[: len(vectors)]

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            errors = self._errors(self._counted(self._pooled(images).flatten(1, 2)))
            scores = _of_images(errors)
            if not maps:
                return scores, None
            # one at a time: a product of another shape rounds otherwise
            found = torch.cat([self._maps(one) for one in errors.split(1)])
            return scores, found.cpu().numpy()

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        import torch

        n = len(self._train)
        notes = spread_notes(n, self._n_seen)
        # images by the first of their copies, which are in one fold
        first, group = np.unique(self._copy_groups()[self._numbers], return_inverse=True)
        distinct = len(first)
        with torch.inference_mode():
            if not unseen:
                method = "in-sample"
                errors = torch.cat([self._errors(some) for some in self._train.split(64)])
            elif distinct > 1:
                method = "leave-one-image-out" if distinct <= _ONE_BY_ONE else "refitted-folds"
                folds = distinct if distinct <= _ONE_BY_ONE else _FOLDS
                with limited_threads(1):
                    errors = self._left_out(torch.from_numpy(group % folds))
            else:
                method, unseen, notes = "within-image", False, (*notes, ONE_IMAGE)
                errors = self._errors(self._train[:, cells_beside(self.grid_, self._cells)])
            return TrainingScores(
                _of_images(errors),
                method,
                unseen,
                notes=notes,
                maps=self._statistics(errors),
                images=self._numbers,
            )

    def _left_out(self, fold: Tensor) -> Tensor:
        """(n, P) float32: FRE of each cell by the PCA of the images of the other folds.

        `fold` (n,) counts from 0.

        What is left of an image is a sum of the images with weights that need the products of
        images alone; so all PCAs are of those, and the features are read once.
        """
        import torch

        n = len(self._gram)
        number = torch.arange(n, device=self._gram.device)
        fold = fold.to(number.device)
        weights = torch.zeros_like(self._gram)  # (n, n): a row is what is left of an image
        for one in range(int(fold.max()) + 1):
            out, stay = number[fold == one], number[fold != one]
            among = self._gram[stay][:, stay]
            across = self._gram[out][:, stay]
            means = among.mean(dim=1)
            centred = among - means - means[:, None] + means.mean()
            sigma, u = _principal(centred, self.params_.explained_variance)
            # products of the differences from the others' mean
            to_others = across - across.mean(dim=1, keepdim=True) - means + means.mean()
            rebuilt = (to_others @ u / sigma.square()) @ u.T  # of the others' differences
            part = torch.zeros_like(self._gram[out])
            part[torch.arange(len(out)), out] = 1.0
            part[:, stay] = -rebuilt + (rebuilt.sum(dim=1, keepdim=True) - 1.0) / len(stay)
            weights[out] = part
        found = self._train.new_empty(self._train.shape[:2])
        for cell in range(self._train.shape[1]):
            away = self._train[:, cell].double() - self._mean[cell]
            found[:, cell] = (weights @ away).square().sum(dim=1).float()
        return found

    def _finish(self) -> None:
        del self._train, self._gram, self._numbers

    # ---- saving

    def _state(self) -> State:
        arrays = {"mean": self._mean.cpu().numpy()}
        if self.n_components_:
            arrays["components"] = self._components.cpu().numpy()
        return State(
            arrays=arrays,
            facts={
                "grid": list(self.grid_),
                "n_components": self.n_components_,
                "n_learned": self._n_learned,
            },
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        device = self._backbone.device
        shapes = self._backbone.shapes(self._size())
        k = self.params_.pooling_kernel_size
        finest = max((shape[2], shape[3]) for shape in shapes)
        grid = [-(-side // min(k, side)) for side in finest]
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        self._set_grid(*grid)
        channels = sum(shape[1] for shape in shapes)
        shape = (self._n_cells(), channels)
        self._mean = torch.from_numpy(saved.array("mean", "float32", shape)).to(device)
        self._n_learned = saved.fact("n_learned", Count)
        self.n_components_ = saved.fact("n_components", int)
        if not 0 <= self.n_components_ < self._n_learned <= self.n_train_:
            raise SavedModelError("state.n_components: it must be below the number of images")
        if self.n_components_:
            wanted = (shape[0], self.n_components_, channels)
            components = saved.array("components", "float32", wanted)
            self._components = torch.from_numpy(components).to(device)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "subspace": {
                "dimension": int(self._mean.numel()),
                "components": self.n_components_,
                "images": self._n_learned,
            },
        }


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
    """(P, C) float64: the mean of (n, P, C), less `origin`."""
    total = origin.new_zeros(origin.shape)
    for one in vectors:
        total += one.double() - origin
    return total / len(vectors)


def _principal(gram: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """PCA of images from their centred products (n, n).

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
    """FRE (B,) of images from that of their cells (B, P), in single precision."""
    found: npt.NDArray[np.float64] = errors.double().sum(dim=1).float().double().cpu().numpy()
    return found
