"""SubspaceAD: what a subspace of good patches of a vision transformer cannot give back.

Lendering, Akdag, Bondarev, "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace
Modeling", CVPR 2026 (arXiv 2602.23013). x the mean of a patch's features over the middle blocks;
mu their mean over all patches of the references and their turned copies, C the principal
components that carry 99 % of their variance; the score of a patch is |x - mu|^2 - |C^T (x - mu)|^2,
that of an image the mean of the largest 1 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import SavedModelError
from ..images import NetworkInput, Recall
from ..threads import limited_threads
from .detector import Progress, TrainingScores
from .few_images import mean_of_top, turned
from .on_backbone import BackboneDetector
from .parameters import Count, Natural, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import LayerChoice

# Groups of images that are left out together, at most: of each the sums are kept.
_GROUPS = 16
_TURNED_ALONE = (
    "one distinct training image: the threshold is its score by the subspace of its turned copies, "
    "and no false-alarm rate is promised"
)
_NOTHING_ELSE = (
    "one distinct training image and no turned copy: the threshold is its score by its own "
    "subspace, and no false-alarm rate is promised"
)
# Least share of the variance that is not rounding.
_ROUNDING = 1e-12


@dataclass
class PatchSums:
    """Sums over patches x (D,): enough for their mean and principal components.

    Attributes
    ----------
    count
        How many there were.
    total, products
        The sum of x - origin, (D,), and of its products with itself, (D, D), both float64.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, patches: Tensor, origin: Tensor) -> PatchSums:
        """Return the sums of patches (k, D) around an origin (D,), near their mean."""
        away = patches.double() - origin
        return cls(len(away), away.sum(dim=0), away.T @ away)

    def __add__(self, other: PatchSums) -> PatchSums:
        return PatchSums(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    def __sub__(self, other: PatchSums) -> PatchSums:
        return PatchSums(
            self.count - other.count, self.total - other.total, self.products - other.products
        )


@dataclass(frozen=True)
class Subspace:
    """The mean (D,) and principal components (D, k) of patches, float32."""

    mean: Tensor
    components: Tensor

    @classmethod
    def of(cls, sums: PatchSums, origin: Tensor, share: float) -> Subspace:
        """Return the components that carry at least `share` of the variance."""
        import torch

        mean = sums.total / sums.count
        covariance = sums.products / sums.count - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        carried = values.cumsum(dim=0)
        enough = int((carried < share * carried[-1]).sum()) + 1
        above = int((values > _ROUNDING * carried[-1]).sum())  # with one patch none is
        return cls((origin + mean).float(), vectors[:, : min(enough, above)].float().contiguous())

    def residuals(self, patches: Tensor) -> Tensor:
        """Return what the subspace leaves of patches (B, k, D), squared lengths (B, k)."""
        away = patches - self.mean
        rest = away - (away @ self.components) @ self.components.T
        return rest.square().sum(dim=-1)


@register_model(
    "vision_subspace",
    tags=("subspace", "few-shot", "pixel-map", "deep-features"),
    metadata={
        "paper": "Lendering et al., SubspaceAD: Training-Free Few-Shot Anomaly Detection via "
        "Subspace Modeling, CVPR 2026",
        "year": 2026,
        "link": "https://arxiv.org/abs/2602.23013",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: the subspace refitted without each image and "
        "its turned copies (in 16 groups above 16 images)",
    },
    presets={
        "industrial-fast": {"resize": (336, 336), "turns": 8},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (672, 672)},
    },
)
class VisionSubspace(BackboneDetector):
    """SubspaceAD: squared error of rebuilding patches from a PCA of few turned good images.

    Parameters
    ----------
    explained_variance
        Share of the variance that the components which are kept carry at least, in (0, 1].
    turns
        How many turned copies of each reference are learned from besides, at angles drawn from
        `random_seed`; 0 where the orientation of a part may be the defect. More than
        `turned_images` references, and references with a region of interest, are not turned.
    turned_images
        How many references there may be for them to be turned.
    top_share
        Of the errors of an image's patches, the share of the largest whose mean is its score.
    shared
        The keywords of `BackboneDetector`; the layers, whose mean is taken, are the blocks from
        half to three quarters of the depth, unnormed.

    Attributes
    ----------
    n_components_
        How many principal components are kept.

    Notes
    -----
    The paper takes 672 pixels; here it is `resize`, 448 x 448 by default. Turned copies are filled
    by reflection at the border.

    Nothing is kept of the references but sums: of each of up to 16 groups of images, which one is
    left out of when it is scored to calibrate. Up to 16 images are groups of their own; above, a
    group is every 16th image, and an image that has a copy in another group is no part of the
    calibration.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_subspace", weights="dinov2_vitb14_pretrain.pth")
    >>> detector.fit(train_paths[:4]).predict(test_paths)  # doctest: +SKIP
    """

    n_components_: int

    def __init__(
        self,
        *,
        explained_variance: Ratio = 0.99,
        turns: Natural = 30,
        turned_images: Count = 16,
        top_share: Ratio = 0.01,
        backbone: str = "dinov2_vits14",
        resize: Size = (448, 448),
        **shared: Any,
    ) -> None:
        super().__init__(backbone=backbone, resize=resize, **shared)
        self.explained_variance = explained_variance
        self.turns = turns
        self.turned_images = turned_images
        self.top_share = top_share

    def _layer_choice(self) -> LayerChoice:
        from ..backbones.choice import MiddleBlocks

        return MiddleBlocks()

    def _recall(self) -> Recall | None:
        return None  # turned copies are made of pixels

    def _patches(self, images: list[NetworkInput]) -> Tensor:
        """x of B images: (B, k, D) float32 of the cells that count, the mean over the layers."""
        import torch

        layers = self._features(images)
        maps = torch.stack(layers).mean(dim=0)  # (B, D, h, w)
        if not hasattr(self, "grid_"):
            self._set_grid(int(maps.shape[2]), int(maps.shape[3]))
        return self._counted(maps.flatten(2).transpose(1, 2).contiguous())

    # ---- the subspace

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        params = self.params_
        rng = np.random.default_rng(params.random_seed)
        many = self._n_images > params.turned_images or self.roi_ is not None
        groups: dict[int, PatchSums] = {}
        plain: list[Tensor] = []
        with torch.inference_mode(), limited_threads(1):  # sums do not depend on their number
            for images in batches:
                for image in images:
                    assert isinstance(image, np.ndarray)
                    angles = [] if many else rng.uniform(0, 360, params.turns).tolist()
                    for angle in (0.0, *angles):
                        patches = self._patches([turned(image, angle)])[0]
                        if not plain:
                            self._origin = patches.double().mean(dim=0)
                        if angle == 0.0:
                            plain.append(patches)
                        sums = PatchSums.of(patches, self._origin)
                        group = (len(plain) - 1) % _GROUPS
                        groups[group] = groups[group] + sums if group in groups else sums
            self._plain = torch.stack(plain)  # (n, k, D), unturned
            self._groups = groups
            whole = next(iter(groups.values()))
            for number, sums in groups.items():
                whole = whole + sums if number else whole
            self._whole = whole
            self._subspace = Subspace.of(whole, self._origin, params.explained_variance)
        self.n_components_ = int(self._subspace.components.shape[1])
        if progress is not None:
            progress("components", self.n_components_, self.n_components_)

    # ---- scores

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            residuals = self._subspace.residuals(self._patches(images))
            scores = mean_of_top(residuals, self.params_.top_share)
            found = self._maps(residuals).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def _training_scores(self, unseen: bool) -> TrainingScores:
        import torch

        n = len(self._plain)
        copies = self._copy_groups()
        group = np.arange(n) % _GROUPS
        # images whose copies are all in their own group, or have none
        alone = np.array(
            [bool((group[copies == copies[number]] == group[number]).all()) for number in range(n)]
        )
        notes: tuple[str, ...] = ()
        several = len(self._groups) > 1 and bool(alone.any())
        kept = np.arange(n)
        method = "leave-one-image-out" if n <= _GROUPS else "refitted-folds"
        with torch.inference_mode(), limited_threads(1):
            if not unseen:
                method = "in-sample"
                residuals = self._subspace.residuals(self._plain)
            elif several:
                if n > _GROUPS:
                    notes = (f"{n} images in {_GROUPS} groups, one of which is left out at a time",)
                if not alone.all():
                    notes = (*notes, f"{n - alone.sum()} images with copies do not calibrate")
                kept = np.flatnonzero(alone)
                left_out = (self._groups[int(group[number])] for number in kept)
                residuals = self._without(left_out, kept)
            else:
                method, notes = "within-image", (_TURNED_ALONE,)
                own = [PatchSums.of(one, self._origin) for one in self._plain]
                if self._whole.count == sum(sums.count for sums in own):  # there is nothing else
                    residuals, notes = self._subspace.residuals(self._plain), (_NOTHING_ELSE,)
                else:
                    everything = own[0]
                    for sums in own[1:]:
                        everything = everything + sums
                    residuals = self._without((everything for _ in kept), kept)
            scores = mean_of_top(residuals, self.params_.top_share)
            return TrainingScores(
                scores.double().cpu().numpy(),
                method,
                unseen and several,
                notes=notes,
                maps=self._statistics(residuals),
                images=kept,
            )

    def _without(self, left_out: Iterable[PatchSums], kept: npt.NDArray[np.int64]) -> Tensor:
        """Residuals (m, k) of the images `kept` (m,), each by all patches but those left out."""
        import torch

        share = self.params_.explained_variance
        parts = []
        for number, sums in zip(kept, left_out, strict=True):
            left = Subspace.of(self._whole - sums, self._origin, share)
            parts.append(left.residuals(self._plain[int(number)][None]))
        return torch.cat(parts)

    def _finish(self) -> None:
        del self._plain, self._groups, self._whole, self._origin

    # ---- saving

    def _state(self) -> State:
        arrays = {"mean": self._subspace.mean.cpu().numpy()}
        if self.n_components_:
            arrays["components"] = self._subspace.components.cpu().numpy()
        facts = {"grid": list(self.grid_), "n_components": self.n_components_}
        return State(arrays=arrays, facts=facts)

    def _restore(self, saved: SavedState) -> None:
        import torch

        self._restore_backbone(saved)
        device = self._backbone.device
        shapes = self._backbone.shapes(self._size())
        grid, dimension = list(shapes[0][2:]), shapes[0][1]
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        self._set_grid(grid[0], grid[1])
        self.n_components_ = count = saved.fact("n_components", int)
        if not 0 <= count <= dimension:
            raise SavedModelError(f"state.n_components: it must lie in 0..{dimension}")
        mean = torch.from_numpy(saved.array("mean", "float32", (dimension,))).to(device)
        components = mean.new_zeros((dimension, 0))
        if count:
            given = saved.array("components", "float32", (dimension, count))
            components = torch.from_numpy(given).to(device)
        self._subspace = Subspace(mean, components)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "subspace": {
                "dimension": int(self._subspace.mean.numel()),
                "components": self.n_components_,
            },
        }
