"""PaDiM: a Gaussian of features at every position, and the Mahalanobis distance to it.

Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR Workshops 2020 (arXiv 2011.08785, 2020). Symbols follow the
paper: x_ij the embedding vector at position (i, j), mu_ij and Sigma_ij its mean and covariance
over N training images, d the number of channels that are kept, epsilon the regularisation.

The shapes are those of B images with P positions that count on a grid of h w, and d channels;
n of the N training images are kept to calibrate on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError, UsageError, during
from ..images import NetworkInput
from .detector import Detector
from .evenly_spread import EvenlySpread, KeptVectors, spread_notes
from .gaussian import (
    ONE_IMAGE,
    Moments,
    by_eights,
    cells_beside,
    group_left_out,
    left_out_squared,
    whitening,
)
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, on_grid, open_backbone, peaks
from .parameters import BackboneParams, Count
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone
    from .training_images import TrainingImages

Epsilon = Annotated[float, Strict(), Field(ge=1e-6, le=1e6)]
Gibibytes = Annotated[float, Strict(), Field(gt=0, le=1e6)]

# While fitting: the products in double precision and the factors in single.
_BYTES_A_NUMBER = 12


class PaDiMParams(BackboneParams):
    """The keywords of PaDiM."""

    d_reduced: Count = Field(
        100,
        description=(
            "d, how many of the joined channels are kept, drawn from `random_seed`; all of "
            "them where there are no more. The paper takes 100 with ResNet18 and 550 with "
            "Wide ResNet50."
        ),
    )
    covariance_eps: Epsilon = Field(0.01, description=("epsilon, added to every variance."))
    memory_limit_gib: Gibibytes = Field(
        3.0,
        description=(
            "GiB that the Gaussians may take while fitting: 12 bytes times positions times "
            "d squared. At 256 pixels and stride 4 with d 100 that is 0.46, with d 550 it "
            "is 13.8. What would take more is refused before an image is read."
        ),
    )


class PaDiM(Method):
    """One Gaussian a position, and the Mahalanobis distance to it."""

    Params = PaDiMParams

    def __init__(self, params: PaDiMParams) -> None:
        from ..backbones import LastOfStrides

        super().__init__(params)
        self.backbone: Backbone = open_backbone(params, layers=LastOfStrides((4, 8, 16)))

    def learn(self, images: TrainingImages) -> tuple[LearnedPaDiM, TrainingScores | None]:
        import torch

        epsilon = self.params.covariance_eps
        embedding = self._embedding(self._draw_channels())
        moments: Moments | None = None
        for batch in images.batches():
            vectors = embedding.of(self.backbone, batch)  # (B, P, d), x_ij
            if moments is None:
                moments = Moments(vectors[0])
                spread = EvenlySpread.of_images(len(images), vectors[0].nbytes)
                kept = KeptVectors(spread, vectors[0])  # to calibrate on
            moments.add(vectors)
            kept.add(vectors)
        assert moments is not None
        d, N = vectors.shape[2], moments.count
        identity = torch.eye(d, dtype=torch.float64, device=vectors.device)
        means = moments.mean().float()  # (P, d), mu_ij
        factors = vectors.new_empty((len(means), d, d))  # W with W^T W the inverse of Sigma_ij
        with torch.inference_mode():
            for block in moments.blocks():
                # of one image nothing is known of the variances
                sigma = moments.scatter(block) / max(N - 1, 1)  # (p, d, d)
                sigma += epsilon * identity
                factors[block] = whitening(sigma).float()
                if images.progress is not None:
                    images.progress("Gaussians", min(block.stop, len(means)), len(means))
        learned = LearnedPaDiM(self.backbone, embedding, means, factors)
        return learned, _score_training_images(learned, images, kept, moments, epsilon)

    def _draw_channels(self) -> Tensor:
        """Return which of the joined channels are kept, (d,) int64 ascending (section III A).

        Raises
        ------
        UsageError
            The Gaussians would take more memory than they may.
        """
        import torch

        params, (widths, grid) = self.params, self._joined()
        d = min(params.d_reduced, sum(widths))
        gib = _BYTES_A_NUMBER * len(grid) * d * d / 2**30
        if gib > params.memory_limit_gib:
            fits = int((params.memory_limit_gib * 2**30 / _BYTES_A_NUMBER / len(grid)) ** 0.5)
            raise UsageError(
                f"d_reduced={d} at {grid.shape[0]} x {grid.shape[1]} positions needs {gib:.1f} GiB "
                f"while fitting, more than memory_limit_gib={params.memory_limit_gib:g}: "
                + (f"at most d_reduced={fits} fits, or " if fits else "")
                + "give a smaller resize or a larger limit"
            )
        generator = torch.Generator().manual_seed(params.random_seed)
        return torch.randperm(sum(widths), generator=generator)[:d].sort().values

    def _joined(self) -> tuple[list[int], PatchGrid]:
        """Return the channels of each layer, and the finest grid, on which all are joined."""
        shapes = self.backbone.shapes(self.region.size)  # (N, C_l, H_l, W_l)
        finest = max((shape[2], shape[3]) for shape in shapes)
        return [shape[1] for shape in shapes], PatchGrid.of(
            finest, self.region, self.backbone.device
        )

    def _embedding(self, channels: Tensor) -> Embedding:
        widths, grid = self._joined()
        of_layer, start = [], 0
        for width in widths:
            own = channels[(channels >= start) & (channels < start + width)] - start
            of_layer.append(own.to(self.backbone.device))
            start += width
        return Embedding(grid, channels, of_layer)

    def restore(self, saved: SavedState) -> LearnedPaDiM:
        import torch

        widths, grid = self._joined()
        if saved.fact("grid", list[int]) != list(grid.shape):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(grid.shape)}")
        d = min(self.params.d_reduced, sum(widths))
        channels = saved.array("channels", "int64", (d,))
        if channels.min() < 0 or channels.max() >= sum(widths) or (np.diff(channels) <= 0).any():
            raise SavedModelError("the array 'channels' names channels that do not exist")
        positions, rows = len(grid), np.tril_indices(d)
        means = saved.array("means", "float32", (positions, d))
        packed = saved.array("factors", "float32", (positions, len(rows[0])))
        if not (packed[:, rows[0] == rows[1]] > 0).all():
            raise SavedModelError("the array 'factors' has a diagonal that is not positive")
        device = self.backbone.device
        factors = torch.zeros((positions, d, d), device=device)
        factors[:, rows[0], rows[1]] = torch.from_numpy(packed).to(device)
        embedding = self._embedding(torch.from_numpy(channels))
        return LearnedPaDiM(self.backbone, embedding, torch.from_numpy(means).to(device), factors)


@dataclass(eq=False)
class Embedding:
    """How embedding vectors are made of the features of several layers, section III A.

    Attributes
    ----------
    grid
        The positions: the finest grid of the layers.
    channels
        (d,) int64 ascending: which of the joined channels are kept.
    of_layer
        The channels of each layer that these are, on the device.
    """

    grid: PatchGrid
    channels: Tensor
    of_layer: list[Tensor]

    def of(self, backbone: Backbone, images: list[NetworkInput]) -> Tensor:
        """Return x of B images, (B, P, d) float32, at the positions that count."""
        layers = [
            layer[:, own]  # (B, d_l, H_l, W_l)
            for layer, own in zip(features_of(backbone, images), self.of_layer, strict=True)
            if len(own)
        ]
        return self.grid.counted(on_grid(layers, self.grid.shape).flatten(1, 2))


@dataclass(eq=False)
class LearnedPaDiM(Learned):
    """A Gaussian at each position, section III B.

    Attributes
    ----------
    backbone, embedding
        What makes embedding vectors of images.
    means
        (P, d) float32, mu_ij.
    factors
        (P, d, d) float32 lower triangular: W_ij with W^T W the inverse of Sigma_ij.
    """

    backbone: Backbone
    embedding: Embedding
    means: Tensor
    factors: Tensor

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of the positions."""
        return self.embedding.grid.shape

    @property
    def channels_(self) -> Tensor:
        """Return which of the joined channels are kept, (d,) int64 ascending."""
        return self.embedding.channels

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            vectors = self.embedding.of(self.backbone, images)  # (B, P, d)
            scores, found = self.scores_and_maps(self.distances(vectors))
            return scores.double().cpu().numpy(), found.cpu().numpy() if maps else None

    def distances(self, vectors: Tensor) -> Tensor:
        """Return M(x) of (B, P, d), section III C: (B, P) float32."""
        import torch

        away = vectors - self.means
        found = [
            torch.bmm(self.factors, some).square().sum(dim=1).sqrt().T for some in by_eights(away)
        ]
        return torch.cat(found)[: len(vectors)]

    def scores_and_maps(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B,) and maps (B, H, W) of distances (B, P)."""
        import torch

        grid = self.embedding.grid
        # one at a time: a product of another shape rounds otherwise
        maps = torch.cat([grid.maps(one) for one in distances.split(1)])
        return peaks(maps, grid.region), maps

    def state(self) -> State:
        rows, columns = np.tril_indices(len(self.channels_))
        return State(
            arrays={
                "channels": self.channels_.numpy(),
                "means": self.means.cpu().numpy(),
                # the lower triangles, row by row
                "factors": self.factors[:, rows, columns].cpu().numpy(),
            },
            facts={"grid": list(self.grid_)},
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "gaussians": {"positions": len(self.means), "dimension": len(self.channels_)},
        }


# ---- scores of the training images


def _score_training_images(
    learned: LearnedPaDiM,
    images: TrainingImages,
    vectors: KeptVectors,
    moments: Moments,
    epsilon: float,
) -> TrainingScores | None:
    """Return the scores of the images kept, each by the Gaussians of all the others."""
    import torch

    if images.calibrate == "held-out-images":
        return None
    grid, kept, groups = learned.embedding.grid, vectors.all(), images.copy_groups()  # (n, P, d)
    notes = spread_notes(len(kept), moments.count)
    unseen = images.calibrate != "in-sample"
    method = "leave-one-image-out" if unseen else "in-sample"
    with during("calibration"), torch.inference_mode():
        if not unseen:
            distances = torch.cat([learned.distances(some) for some in kept.split(64)])
        elif len(np.unique(groups)) > 1:
            copied = _copied(groups, vectors.numbers())
            distances = _left_out(kept, moments, epsilon, copied)
        else:
            method, unseen, notes = "within-image", False, (*notes, ONE_IMAGE)
            distances = learned.distances(kept[:, cells_beside(grid.shape, grid.cells)])
        scores = [learned.scores_and_maps(some)[0] for some in distances.split(64)]
        return TrainingScores(
            torch.cat(scores).double().cpu().numpy(),
            method,
            unseen,
            notes=notes,
            maps=grid.statistics(distances, images.counted_pixels()),
            images=vectors.numbers(),
        )


def _left_out(
    kept: Tensor,
    moments: Moments,
    epsilon: float,
    copied: dict[int, list[npt.NDArray[np.int64]]],
) -> Tensor:
    """Return the distances (n, P) float32 of images, each without itself and its copies.

    The covariance without an image is (S' + (N - 2) epsilon I) / (N - 2), with S' the
    scatter S less that image's part; so one factor of S + (N - 2) epsilon I at a position
    serves for all images that have no copies. Without an image and its copies, m in all, it
    is (S' + (N - m - 1) epsilon I) / (N - m - 1): one more factor for each m that there is.

    `kept` (n, P, d) are their vectors, and `copied` those of them that have copies.
    """
    import torch

    N, d = moments.count, kept.shape[2]
    identity = torch.eye(d, dtype=torch.float64, device=kept.device)
    found = kept.new_empty(kept.shape[:2])  # (n, P)
    for block in moments.blocks():
        away = kept[:, block].double() - moments.mean(block)  # (n, p, d)
        if N == 2:  # one image is left, and its covariance is epsilon I
            squared = 4.0 * away.square().sum(dim=2) / epsilon  # (n, p)
        else:
            factor = whitening(moments.scatter(block) + (N - 2) * epsilon * identity)
            q = torch.bmm(factor, away.permute(1, 2, 0)).square().sum(dim=1).T  # (n, p)
            squared = (N - 2) * left_out_squared(q, N)
        for count, groups in copied.items():
            # of the one image that may be left nothing is known of the variances
            rest = max(N - count - 1, 1)
            ridge = rest * epsilon * identity
            scatter = moments.scatter(block) if N - count > 1 else moments.scatter(block) * 0.0
            factor = whitening(scatter + ridge)
            for members in groups:
                z = torch.bmm(factor, away[members].permute(1, 2, 0))  # (p, d, k)
                known = N - count > 1
                squared[members] = rest * group_left_out(z, N, count, scattered=known)
        found[:, block] = squared.sqrt().float()
    return found


def _copied(
    groups: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> dict[int, list[npt.NDArray[np.int64]]]:
    """Return, of images that have copies, by how many they are, the places among those kept.

    `groups` are of all images, and `numbers` says which are kept.
    """
    first, counts = np.unique(groups, return_counts=True)
    own = groups[numbers]
    found: dict[int, list[npt.NDArray[np.int64]]] = {}
    for one, count in zip(first[counts > 1], counts[counts > 1], strict=True):
        members = np.flatnonzero(own == one)
        if len(members):
            found.setdefault(int(count), []).append(members)
    return found


@register_model(
    "vision_padim",
    tags=("gaussian", "pixel-map", "deep-features"),
    metadata={
        "paper": "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly "
        "Detection and Localization, 2020 (ICPR Workshops)",
        "year": 2020,
        "link": "https://arxiv.org/abs/2011.08785",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out, in closed form: mean and covariance "
        "of every position downdated",
    },
    presets={
        "industrial-fast": {"resize": (224, 224), "d_reduced": 50},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (320, 320)},
    },
)
class VisionPaDiM(Detector):
    """PaDiM on any backbone: one Gaussian a position, Mahalanobis distances as the map.

    Attributes
    ----------
    channels_
        (d,) int64 ascending: which of the joined channels are kept.

    Notes
    -----
    The score is the largest value of the map: distances (not their squares) on the finest grid,
    upsampled bilinearly and smoothed with sigma 4, as in the paper. Three things differ, each
    named here. Deeper layers are brought to the finest grid bilinearly, where the authors' and
    other programs repeat the nearest cell: the paper joins the vectors that lie at the same place,
    and with sizes that do not divide each other, repeated cells lie up to half a cell off; with
    those that do, the two differ between the centres of deep cells alone. Images are resized
    whole, without the paper's centre crop, because defects at the border count. Maps are not
    rescaled to the test set's range: a score must not depend on other images.

    Sums are in double precision around the first image; a distance agrees with one in double
    precision to about 1e-5. Leaving an image out is exact: without image k of N, mean and
    scatter change by one vector and one outer product, whose inverse Sherman and Morrison give
    (`pyimgano.models.gaussian.left_out_squared`); one more factorisation a position serves for
    all images. Above 512 training images, or 1 GiB of their vectors, the threshold is calibrated
    on an evenly spread part of them; nothing else grows with their number.

    Scores depend neither on the batch nor on the number of threads.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_padim", backbone="resnet18", d_reduced=100)
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = PaDiM
