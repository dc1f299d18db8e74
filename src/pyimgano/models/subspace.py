"""SubspaceAD: what a subspace of good patches of a vision transformer cannot give back.

Lendering, Akdag, Bondarev, "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace
Modeling", CVPR 2026 (arXiv 2602.23013). x the mean of a patch's features over the middle blocks;
mu their mean over all patches of the references and their turned copies, C the principal
components that carry 99 % of their variance; the score of a patch is |x - mu|^2 - |C^T (x - mu)|^2,
that of an image the mean of the largest 1 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import SavedModelError, UsageError, during
from ..images import NetworkInput
from ..threads import limited_threads
from .detector import Detector
from .few_images import mean_of_top, turned
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, open_backbone, require_exportable
from .parameters import BackboneParams, Count, Natural, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State
from .training_images import TrainingImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone

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


class SubspaceParams(BackboneParams):
    """The keywords of SubspaceAD."""

    explained_variance: Ratio = Field(
        0.99,
        description=(
            "Share of the variance that the components which are kept carry at least, in (0, 1]."
        ),
    )
    turns: Natural = Field(
        30,
        description=(
            "How many turned copies of each reference are learned from besides, at angles drawn "
            "from `random_seed`; 0 where the orientation of a part may be the defect. More than "
            "`turned_images` references, and references with a region of interest, are not turned."
        ),
    )
    turned_images: Count = Field(
        16, description="How many references there may be for them to be turned."
    )
    top_share: Ratio = Field(
        0.01,
        description=(
            "The share of an image's patches, those with the largest errors, whose mean error is "
            "its score."
        ),
    )
    backbone: str = Field(
        "dinov2_vits14",
        description=(
            "The network that gives the features, a vision transformer: a name of "
            "`pyimgano.backbones.list_backbones()`, or `timm:<name>`. The layers, whose mean is "
            "taken, are the blocks from half to three quarters of the depth, unnormed, where none "
            "are named."
        ),
    )
    resize: Size = Field(
        (448, 448),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class SubspaceAD(Method):
    """A subspace of the patches of few good images and their turned copies."""

    Params = SubspaceParams
    exports = True

    def __init__(self, params: SubspaceParams) -> None:
        from ..backbones.choice import MiddleBlocks

        super().__init__(params)
        # without a cache of features, for turned copies are made of pixels
        self.backbone: Backbone = open_backbone(params, layers=MiddleBlocks(), cached=False)
        kinds = self.backbone.network.layer_kinds()
        if len({kinds.get(layer) for layer in self.backbone.layers}) > 1:
            raise UsageError(
                "vision_subspace takes the mean of its layers, which have to be of one width and "
                f"stride; those of {params.backbone!r} are not: {', '.join(self.backbone.layers)}; "
                "give layers, one or several alike"
            )

    def learn(self, images: TrainingImages) -> tuple[LearnedSubspace, TrainingScores | None]:
        import torch

        params, grid = self.params, self._grid()
        rng = np.random.default_rng(params.random_seed)
        many = len(images) > params.turned_images or self.region.roi is not None
        groups: dict[int, PatchSums] = {}
        plain: list[Tensor] = []
        with torch.inference_mode(), limited_threads(1):  # sums do not depend on their number
            for batch in images.batches():
                for image in batch:
                    assert isinstance(image, np.ndarray)
                    group = len(plain) % _GROUPS
                    angles = [] if many else rng.uniform(0, 360, params.turns).tolist()
                    for angle in (0.0, *angles):
                        patches = mean_patches(self.backbone, grid, [turned(image, angle)])[0]
                        if not plain:
                            origin = patches.double().mean(dim=0)  # (D,)
                        if angle == 0.0:
                            plain.append(patches)
                        sums = PatchSums.of(patches, origin)
                        groups[group] = groups[group] + sums if group in groups else sums
            whole = reduce(add, groups.values())
            subspace = Subspace.of(whole, origin, params.explained_variance)
        learned = LearnedSubspace(self.backbone, grid, subspace, params.top_share)
        held = _Held(torch.stack(plain), origin, whole, groups, params.explained_variance)
        return learned, _score_training_images(learned, images, held)

    def _grid(self) -> PatchGrid:
        shapes = self.backbone.shapes(self.region.size)  # (1, D, h, w) of each layer
        return PatchGrid.of(shapes[0][2:], self.region, self.backbone.device)

    def restore(self, saved: SavedState) -> LearnedSubspace:
        import torch

        grid, device = self._grid(), self.backbone.device
        dimension = self.backbone.shapes(self.region.size)[0][1]
        if saved.fact("grid", list[int]) != list(grid.shape):
            raise SavedModelError(f"state.grid: the backbone's grid is {list(grid.shape)}")
        count = saved.fact("n_components", int)
        if not 0 <= count <= dimension:
            raise SavedModelError(f"state.n_components: it must lie in 0..{dimension}")
        mean = torch.from_numpy(saved.array("mean", "float32", (dimension,))).to(device)
        components = mean.new_zeros((dimension, 0))
        if count:
            given = saved.array("components", "float32", (dimension, count))
            components = torch.from_numpy(given).to(device)
        subspace = Subspace(mean, components)
        return LearnedSubspace(self.backbone, grid, subspace, self.params.top_share)


def mean_patches(backbone: Backbone, grid: PatchGrid, images: list[NetworkInput]) -> Tensor:
    """Return x of B images at the cells that count, the mean over the layers, (B, k, D) float32."""
    import torch

    maps = torch.stack(features_of(backbone, images)).mean(dim=0)  # (B, D, h, w)
    return grid.counted(maps.flatten(2).transpose(1, 2).contiguous())


@dataclass(eq=False)
class LearnedSubspace(Learned):
    """A subspace of good patches, and the grid that patches are on."""

    backbone: Backbone
    grid: PatchGrid
    subspace: Subspace
    top_share: float

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of patches."""
        return self.grid.shape

    @property
    def n_components_(self) -> int:
        """Return how many principal components are kept."""
        return int(self.subspace.components.shape[1])

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            patches = mean_patches(self.backbone, self.grid, images)
            residuals = self.subspace.residuals(patches)
            scores = mean_of_top(residuals, self.top_share)
            found = self.grid.maps(residuals).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def state(self) -> State:
        arrays = {"mean": self.subspace.mean.cpu().numpy()}
        if self.n_components_:
            arrays["components"] = self.subspace.components.cpu().numpy()
        facts = {"grid": list(self.grid_), "n_components": self.n_components_}
        return State(arrays=arrays, facts=facts)

    def describe(self) -> dict[str, Any]:
        dimension = int(self.subspace.mean.numel())
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "subspace": {"dimension": dimension, "components": self.n_components_},
        }

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import SubspaceGraph

        require_exportable(self.backbone)
        mean, components = self.subspace.mean.cpu(), self.subspace.components.cpu()
        facts = (self.backbone, self.grid, self.top_share, threshold, original_size)
        return SubspaceGraph(mean, components, *facts).eval()


@dataclass(eq=False)
class _Held:
    """What calibration needs: patches (n, k, D), unturned, and the sums of all and of groups."""

    plain: Tensor
    origin: Tensor
    whole: PatchSums
    groups: dict[int, PatchSums]
    share: float

    def residuals(self, left_out: Iterable[PatchSums], numbers: npt.NDArray[np.int64]) -> Tensor:
        """Return those (m, k) of images, each by all patches but what is left out for it."""
        import torch

        parts = []
        for number, sums in zip(numbers, left_out, strict=True):
            left = Subspace.of(self.whole - sums, self.origin, self.share)
            parts.append(left.residuals(self.plain[int(number)][None]))
        return torch.cat(parts)


def _score_training_images(
    learned: LearnedSubspace, images: TrainingImages, held: _Held
) -> TrainingScores | None:
    """Return the scores of training images, each by the subspace of the other groups."""
    import torch

    if images.calibrate == "held-out-images":
        return None
    n, copies = len(held.plain), images.copy_groups()
    group = np.arange(n) % _GROUPS
    # images whose copies are all in their own group, or that have none
    alone = np.array(
        [bool((group[copies == copies[number]] == group[number]).all()) for number in range(n)]
    )
    unseen = images.calibrate != "in-sample"
    several = len(held.groups) > 1 and bool(alone.any())
    kept = np.arange(n)
    notes: tuple[str, ...] = ()
    method = "leave-one-image-out" if n <= _GROUPS else "refitted-folds"
    with during("calibration"), torch.inference_mode(), limited_threads(1):
        if not unseen:
            method, residuals = "in-sample", learned.subspace.residuals(held.plain)
        elif several:
            if n > _GROUPS:
                notes = (f"{n} images in {_GROUPS} groups, one of which is left out at a time",)
            if not alone.all():
                notes = (*notes, f"{n - alone.sum()} images with copies do not calibrate")
            kept = np.flatnonzero(alone)
            residuals = held.residuals((held.groups[int(group[one])] for one in kept), kept)
        else:
            method, notes = "within-image", (_TURNED_ALONE,)
            own = reduce(add, (PatchSums.of(one, held.origin) for one in held.plain))
            if held.whole.count == own.count:  # there is nothing else
                residuals, notes = learned.subspace.residuals(held.plain), (_NOTHING_ELSE,)
            else:
                residuals = held.residuals((own for _ in kept), kept)
        return TrainingScores(
            mean_of_top(residuals, learned.top_share).double().cpu().numpy(),
            method,
            unseen and several,
            notes=notes,
            maps=learned.grid.statistics(residuals, images.counted_pixels()),
            images=kept,
        )


@register_model(
    "vision_subspace",
    tags=("subspace", "few-shot", "pixel-map", "deep-features"),
    metadata={
        "paper": "Lendering et al., SubspaceAD: Training-Free Few-Shot Anomaly Detection via "
        "Subspace Modeling, CVPR 2026",
        "year": 2026,
        "link": "https://arxiv.org/abs/2602.23013",
        "weights": "yours: the authors' DINOv2 (Apache-2.0; `pyimgano weights fetch`) or DINOv3 "
        "(its own licence; ask its authors), by weights=",
        "authors_report": "MVTec AD, ViT-L, 1 / 4 images: image AUROC 97.3 / 98.0 (the paper's, "
        "not measured here)",
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
class VisionSubspace(Detector):
    """SubspaceAD: squared error of rebuilding patches from a PCA of few turned good images.

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
    group is every 16th image, and an image that has a copy in another group is not part of the
    calibration.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_subspace", weights="dinov2_vitb14_pretrain.pth")
    >>> detector.fit(train_paths[:4]).predict(test_paths)  # doctest: +SKIP
    """

    method = SubspaceAD
