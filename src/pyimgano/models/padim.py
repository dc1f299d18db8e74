"""PaDiM: a Gaussian of features at every position, and the Mahalanobis distance to it.

Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR Workshops 2020 (arXiv 2011.08785, 2020). Symbols follow the
paper: x_ij the embedding vector at position (i, j), mu_ij and Sigma_ij its mean and covariance
over N training images, d the number of channels that are kept, epsilon the regularisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..errors import SavedModelError, UsageError
from ..images import NetworkInput
from .detector import Progress, TrainingScores
from .gaussian import (
    ONE_IMAGE,
    Moments,
    by_eights,
    cells_beside,
    group_left_out,
    left_out_squared,
    whitening,
)
from .on_backbone import BackboneDetector, on_grid
from .parameters import Count
from .registry import register_model
from .saved_state import SavedState, State
from .spread import KeptVectors, Spread, spread_notes

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import LayerChoice

Epsilon = Annotated[float, Strict(), Field(ge=1e-6, le=1e6)]
Gibibytes = Annotated[float, Strict(), Field(gt=0, le=1e6)]

# While fitting: the products in double precision and the factors in single.
_BYTES_A_NUMBER = 12


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
class VisionPaDiM(BackboneDetector):
    """PaDiM on any backbone: one Gaussian a position, Mahalanobis distances as the map.

    Parameters
    ----------
    d_reduced
        d, how many of the joined channels are kept, drawn from `random_seed`; all of them where
        there are no more. The paper takes 100 with ResNet18 and 550 with Wide ResNet50.
    covariance_eps
        epsilon, added to every variance.
    memory_limit_gib
        GiB that the Gaussians may take while fitting: 12 bytes times positions times d squared.
        At 256 pixels and stride 4 with d 100 that is 0.46, with d 550 it is 13.8. What would
        take more is refused before an image is read.
    shared
        The keywords of `BackboneDetector`; the layers are the last of the strides 4, 8 and 16 by
        default.

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

    def __init__(
        self,
        *,
        d_reduced: Count = 100,
        covariance_eps: Epsilon = 0.01,
        memory_limit_gib: Gibibytes = 3.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.d_reduced = d_reduced
        self.covariance_eps = covariance_eps
        self.memory_limit_gib = memory_limit_gib

    # ---- embedding vectors, section III A

    def _layer_choice(self) -> LayerChoice:
        from ..backbones import LastOfStrides

        return LastOfStrides((4, 8, 16))

    def _prepare_grid(self) -> list[int]:
        """Set the grid and the cells that count; the channels of each layer."""
        shapes = self._backbone.shapes(self._size())
        self._set_grid(*max((shape[2], shape[3]) for shape in shapes))
        return [shape[1] for shape in shapes]

    def _start(self, params: Any, n_images: int) -> None:
        import torch

        super()._start(params, n_images)
        widths = self._prepare_grid()
        d = min(params.d_reduced, sum(widths))
        numbers = self._n_cells() * d * d
        gib = _BYTES_A_NUMBER * numbers / 2**30
        if gib > params.memory_limit_gib:
            fits = int((params.memory_limit_gib * 2**30 / _BYTES_A_NUMBER / self._n_cells()) ** 0.5)
            raise UsageError(
                f"d_reduced={d} at {self.grid_[0]} x {self.grid_[1]} positions needs {gib:.1f} GiB "
                f"while fitting, more than memory_limit_gib={params.memory_limit_gib:g}: "
                + (f"at most d_reduced={fits} fits, or " if fits else "")
                + "give a smaller resize or a larger limit"
            )
        generator = torch.Generator().manual_seed(params.random_seed)
        drawn = torch.randperm(sum(widths), generator=generator)[:d]
        self._keep_channels(drawn.sort().values, widths)

    def _keep_channels(self, channels: Tensor, widths: list[int]) -> None:
        self.channels_ = channels
        self._of_layer: list[Tensor] = []  # the channels that are kept of each layer
        start = 0
        for width in widths:
            own = channels[(channels >= start) & (channels < start + width)] - start
            self._of_layer.append(own.to(self._backbone.device))
            start += width

    def _embedding(self, images: list[NetworkInput]) -> Tensor:
        """x of B images: (B, P, d) float32 at the positions that count."""
        layers = [
            layer[:, own]
            for layer, own in zip(self._features(images), self._of_layer, strict=True)
            if len(own)
        ]
        return self._counted(on_grid(layers, self.grid_).flatten(1, 2))

    # ---- the Gaussians, section III B

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        moments: Moments | None = None
        for images in batches:
            vectors = self._embedding(images)
            if moments is None:
                moments = Moments(vectors[0])
                spread = Spread.of_images(self._n_images, vectors[0].nbytes)
                kept = KeptVectors(spread, vectors[0])  # to calibrate on
            moments.add(vectors)
            kept.add(vectors)
        assert moments is not None
        self._moments, self._kept = moments, kept.all()  # (n, P, d)
        self._numbers = kept.numbers()
        n = moments.count
        identity = torch.eye(vectors.shape[2], dtype=torch.float64, device=vectors.device)
        self._means = moments.mean().float()
        self._factors = vectors.new_empty((*vectors.shape[1:], vectors.shape[2]))
        with torch.inference_mode():
            for block in moments.blocks():
                # of one image nothing is known of the variances
                sigma = moments.scatter(block) / max(n - 1, 1)
                sigma += self.params_.covariance_eps * identity
                self._factors[block] = whitening(sigma).float()
                if progress is not None:
                    done = min(block.stop, len(self._means))
                    progress("Gaussians", done, len(self._means))

    # ---- scores, section III C

    def _distances(self, vectors: Tensor) -> Tensor:
        """M(x) of (B, P, d): (B, P) float32."""
        import torch

        away = vectors - self._means
        found = [
            torch.bmm(self._factors, some).square().sum(dim=1).sqrt().T for some in by_eights(away)
        ]
        return torch.cat(found)[: len(vectors)]

    def _scores_and_maps(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, H, W) of distances (B, P)."""
        import torch

        # one at a time: a product of another shape rounds otherwise
        maps = torch.cat([self._maps(one) for one in distances.split(1)])
        pixels = maps.flatten(1)
        counted = self.counted_pixels(self._size())
        if counted is not None:
            pixels = pixels[:, torch.from_numpy(counted.flatten()).to(pixels.device)]
        return pixels.amax(dim=1), maps

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            scores, found = self._scores_and_maps(self._distances(self._embedding(images)))
            return scores.double().cpu().numpy(), found.cpu().numpy() if maps else None

    # ---- scores of the training images

    def _training_scores(self, unseen: bool) -> TrainingScores:
        import torch

        n = self._moments.count
        notes = spread_notes(len(self._kept), n)
        method = "leave-one-image-out" if unseen else "in-sample"
        several = len(np.unique(self._copy_groups())) > 1
        with torch.inference_mode():
            if not unseen:
                distances = torch.cat([self._distances(some) for some in self._kept.split(64)])
            elif several:
                distances = self._left_out()
            else:
                method, unseen, notes = "within-image", False, (*notes, ONE_IMAGE)
                beside = cells_beside(self.grid_, self._cells)
                distances = self._distances(self._kept[:, beside])
            scores = [self._scores_and_maps(some)[0] for some in distances.split(64)]
            return TrainingScores(
                torch.cat(scores).double().cpu().numpy(),
                method,
                unseen,
                notes=notes,
                maps=self._statistics(distances),
                images=self._numbers,
            )

    def _left_out(self) -> Tensor:
        """(n, P) float32: distances of the images kept, each without itself and its copies.

        The covariance without an image is (S' + (N - 2) epsilon I) / (N - 2), with S' the
        scatter S less that image's part; so one factor of S + (N - 2) epsilon I at a position
        serves for all images that have no copies. Without an image and its copies, m in all, it
        is (S' + (N - m - 1) epsilon I) / (N - m - 1): one more factor for each m that there is.
        """
        import torch

        moments, epsilon = self._moments, self.params_.covariance_eps
        n, d = moments.count, self._kept.shape[2]
        identity = torch.eye(d, dtype=torch.float64, device=self._kept.device)
        found = self._kept.new_empty(self._kept.shape[:2])
        for block in moments.blocks():
            away = self._kept[:, block].double() - moments.mean(block)  # (n, p, d)
            if n == 2:  # one image is left, and its covariance is epsilon I
                squared = 4.0 * away.square().sum(dim=2) / epsilon
            else:
                factor = whitening(moments.scatter(block) + (n - 2) * epsilon * identity)
                q = torch.bmm(factor, away.permute(1, 2, 0)).square().sum(dim=1).T  # (n, p)
                squared = (n - 2) * left_out_squared(q, n)
            for count, groups in self._copied().items():
                # of the one image that may be left nothing is known of the variances
                rest = max(n - count - 1, 1)
                ridge = rest * epsilon * identity
                scatter = moments.scatter(block) if n - count > 1 else moments.scatter(block) * 0.0
                factor = whitening(scatter + ridge)
                for members in groups:
                    z = torch.bmm(factor, away[members].permute(1, 2, 0))  # (p, d, k)
                    known = n - count > 1
                    squared[members] = rest * group_left_out(z, n, count, scattered=known)
            found[:, block] = squared.sqrt().float()
        return found

    def _copied(self) -> dict[int, list[npt.NDArray[np.int64]]]:
        """Of images that have copies: by their number, the places among those kept."""
        everywhere = self._copy_groups()
        first, counts = np.unique(everywhere, return_counts=True)
        own = everywhere[self._numbers]
        found: dict[int, list[npt.NDArray[np.int64]]] = {}
        for one, count in zip(first[counts > 1], counts[counts > 1], strict=True):
            members = np.flatnonzero(own == one)
            if len(members):
                found.setdefault(int(count), []).append(members)
        return found

    def _finish(self) -> None:
        del self._moments, self._kept, self._numbers

    # ---- saving

    def _state(self) -> State:
        rows, columns = np.tril_indices(len(self.channels_))
        return State(
            arrays={
                "channels": self.channels_.numpy(),
                "means": self._means.cpu().numpy(),
                # the lower triangles, row by row
                "factors": self._factors[:, rows, columns].cpu().numpy(),
            },
            facts={"grid": list(self.grid_)},
        )

    def _restore(self, saved: SavedState) -> None:
        import torch

        self._restore_backbone(saved)
        widths = self._prepare_grid()
        if saved.fact("grid", list[int]) != list(self.grid_):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(self.grid_)}")
        d = min(self.params_.d_reduced, sum(widths))
        channels = saved.array("channels", "int64", (d,))
        if channels.min() < 0 or channels.max() >= sum(widths) or (np.diff(channels) <= 0).any():
            raise SavedModelError("the array 'channels' names channels that do not exist")
        positions, rows = self._n_cells(), np.tril_indices(d)
        means = saved.array("means", "float32", (positions, d))
        packed = saved.array("factors", "float32", (positions, len(rows[0])))
        if not (packed[:, rows[0] == rows[1]] > 0).all():
            raise SavedModelError("the array 'factors' has a diagonal that is not positive")
        self._keep_channels(torch.from_numpy(channels), widths)
        device = self._backbone.device
        self._means = torch.from_numpy(means).to(device)
        self._factors = torch.zeros((positions, d, d), device=device)
        self._factors[:, rows[0], rows[1]] = torch.from_numpy(packed).to(device)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "gaussians": {"positions": len(self._means), "dimension": len(self.channels_)},
        }
