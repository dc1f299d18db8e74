"""RAD: the same place in the most similar good images, block by block of a vision transformer.

Zhang, Li, Henderson, Aragon-Camarasa, Long, "Is Training Necessary for Anomaly Detection?", 2026
(arXiv 2601.22763; retrieval-based anomaly detection). f_b(p) the features of block b at a
place p, of length one; R(x) the good images whose class tokens are nearest to that of x by cosine;
W(p) the places at most r rows and columns from p:

    d(p) = mean over b of min over y in R(x), q in W(p) of 1 - <f_b(x, p), f_b(y, q)>

and the score of an image is the mean of the largest 1 % of d.
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
from .few_images import mean_of_top
from .method import Learned, Method, TrainingScores
from .on_backbone import PatchGrid, features_of, open_backbone, require_exportable
from .parameters import BackboneParams, Count, Natural, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State
from .training_images import TrainingImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone

Gibibytes = Annotated[float, Strict(), Field(gt=0, le=1e6)]

_ONE_IMAGE = (
    "one distinct training image: the threshold is its score against itself, moved by more rows "
    "than places are compared, and no false-alarm rate is promised"
)
# Images that are compared together while calibrating.
_AT_ONCE = 8


def same_place_distances(queries: Tensor, memory: Tensor, similar: Tensor, radius: int) -> Tensor:
    """Return the cosine distances of one block to the nearest patch around the same place.

    Parameters
    ----------
    queries
        (B, h, w, C) float32, vectors of length one.
    memory
        (h, w, n, C) float32, those of n good images.
    similar
        (B, n) bool: which good images an image is compared with; one at least.
    radius
        How many rows and columns away a patch of the memory may lie.

    Returns
    -------
    torch.Tensor
        (B, h, w) float32.
    """
    import torch

    height, width = memory.shape[:2]
    count = len(queries)
    nearest = queries.new_full((count, height, width), -torch.inf)  # the largest product
    others = ~similar.T[:, :, None]  # (n, B, 1)
    for row in range(height):
        rows = slice(max(0, row - radius), row + radius + 1)
        for column in range(width):
            columns = slice(max(0, column - radius), column + radius + 1)
            near = queries[:, rows, columns].flatten(1, 2)  # (B, m, C): who sees this place
            products = memory[row, column] @ near.flatten(0, 1).T  # (n, B m)
            products = products.view(len(memory[row, column]), count, -1)
            found = products.masked_fill(others, -torch.inf).amax(dim=0)  # (B, m)
            part = nearest[:, rows, columns]
            nearest[:, rows, columns] = torch.maximum(part, found.view(part.shape))
    return (1.0 - nearest).clamp(min=0.0)


def most_similar(tokens: Tensor, gallery: Tensor, count: int, left_out: Tensor) -> Tensor:
    """Return which `count` images of a gallery have the nearest class tokens, (B, n) bool.

    `tokens` (B, C) and `gallery` (n, C) are of length one; images `left_out` (B, n) are none.
    """
    import torch

    products = (tokens @ gallery.T).masked_fill(left_out, -torch.inf)
    best = products.topk(min(count, len(gallery)), dim=1).indices
    found = torch.zeros_like(left_out).scatter_(1, best, True)
    return found & ~left_out


class RADParams(BackboneParams):
    """The keywords of RAD."""

    similar_images: Count = Field(
        150, description="How many good images an image is compared with, at most."
    )
    radius: Natural = Field(
        1,
        description=(
            "How many rows and columns of patches away from its own place a patch is compared. "
            "Parts that lie anyhow want more, or a method without places."
        ),
    )
    top_share: Ratio = Field(
        0.01,
        description=(
            "The share of an image's patches, those with the largest distances, whose mean "
            "distance is its score."
        ),
    )
    memory_limit_gib: Gibibytes = Field(
        4.0,
        description=(
            "GiB that the patches of the good images may take. What would take more is refused "
            "before an image is read."
        ),
    )
    backbone: str = Field(
        "dinov2_vits14",
        description=(
            "The network that gives the features, a vision transformer: a name of "
            "`pyimgano.backbones.list_backbones()`, or `timm:<name>`. The layers are the blocks at "
            "a quarter, half, three quarters and all of the depth, normed, where none are named."
        ),
    )
    resize: Size = Field(
        (448, 448),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )


class RAD(Method):
    """The same place in the most similar good images."""

    Params = RADParams
    exports = True

    def __init__(self, params: RADParams) -> None:
        from ..backbones.choice import WithClassToken

        super().__init__(params)
        named = None if params.layers is None else tuple(params.layers)
        choice = WithClassToken((0.25, 0.5, 0.75, 1.0), named)
        unnamed = params.model_copy(update={"layers": None})
        self.backbone: Backbone = open_backbone(unnamed, layers=choice)

    def learn(self, images: TrainingImages) -> tuple[LearnedRAD, TrainingScores | None]:
        import torch

        self._require_memory(len(images))
        blocks: list[list[Tensor]] = [[] for _ in self.backbone.layers[:-1]]
        tokens: list[Tensor] = []
        for batch in images.batches():
            maps, token = blocks_and_token(self.backbone, batch)
            for block, some in zip(blocks, maps, strict=True):
                block.append(some)
            tokens.append(token)
        memory: list[Tensor] = []
        while blocks:  # one after another, so that no more than one is there twice
            whole = torch.cat(blocks.pop(0))  # (n, h, w, C)
            memory.append(whole.permute(1, 2, 0, 3).contiguous())
        learned = self._learned(memory, torch.cat(tokens))
        return learned, _score_training_images(learned, images)

    def _learned(self, memory: list[Tensor], tokens: Tensor) -> LearnedRAD:
        p = self.params
        grid = PatchGrid.of(memory[0].shape[:2], self.region, self.backbone.device)
        return LearnedRAD(
            self.backbone, grid, memory, tokens, p.similar_images, p.radius, p.top_share
        )

    def _require_memory(self, n_images: int) -> None:
        """Raise `UsageError` where the patches of the images would take more than they may."""
        *shapes, _ = self.backbone.shapes(self.region.size)  # (1, C, h, w) of each block
        limit = self.params.memory_limit_gib
        gib = 4 * n_images * sum(c * h * w for _, c, h, w in shapes) / 2**30
        if gib > limit:
            raise UsageError(
                f"the patches of {n_images} images take {gib:.1f} GiB, more than "
                f"memory_limit_gib={limit:g}: {int(n_images * limit / gib)} images fit, or give "
                "fewer layers, a smaller resize or a larger limit"
            )

    def restore(self, saved: SavedState) -> LearnedRAD:
        import torch

        device = self.backbone.device
        *shapes, token = self.backbone.shapes(self.region.size)
        grid = list(shapes[0][2:])
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        tokens = saved.array("tokens", "float32", (None, token[1]))
        if len(tokens) != saved.n_train:
            raise SavedModelError("the array 'tokens' has another number of images than the fit")
        memory = []
        for number, shape in enumerate(shapes):
            wanted = (grid[0], grid[1], len(tokens), shape[1])
            given = saved.array(f"memory.{number}", "float32", wanted)
            memory.append(torch.from_numpy(given).to(device))
        return self._learned(memory, torch.from_numpy(tokens).to(device))


def blocks_and_token(backbone: Backbone, images: list[NetworkInput]) -> tuple[list[Tensor], Tensor]:
    """Return of B images each block's patches (B, h, w, C), and class tokens (B, C).

    All vectors are of length one.
    """
    from torch.nn.functional import normalize

    *blocks, token = features_of(backbone, images)
    maps = [normalize(one.permute(0, 2, 3, 1), dim=-1).contiguous() for one in blocks]
    return maps, normalize(token.flatten(1), dim=-1)


@dataclass(eq=False)
class LearnedRAD(Learned):
    """The memory of RAD.

    Attributes
    ----------
    backbone, grid
        What gives blocks and the class token, and where patches are.
    memory
        For each block (h, w, n, C), of n good images.
    tokens
        (n, C'), the class tokens of these.
    similar_images, radius, top_share
        The keywords.
    """

    backbone: Backbone
    grid: PatchGrid
    memory: list[Tensor]
    tokens: Tensor
    similar_images: int
    radius: int
    top_share: float

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of patches."""
        return self.grid.shape

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            blocks, tokens = blocks_and_token(self.backbone, images)
            nobody = torch.zeros_like(tokens @ self.tokens.T, dtype=torch.bool)
            distances = self.distances(blocks, tokens, nobody)
            scores = mean_of_top(distances, self.top_share)
            found = self.grid.maps(distances).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def distances(self, blocks: list[Tensor], tokens: Tensor, left_out: Tensor) -> Tensor:
        """Return d of B images at the cells that count, (B, k); images `left_out` (B, n) apart."""
        import torch

        similar = most_similar(tokens, self.tokens, self.similar_images, left_out)
        found = [
            same_place_distances(one, memory, similar, self.radius)
            for one, memory in zip(blocks, self.memory, strict=True)
        ]
        return self.grid.counted(torch.stack(found).mean(dim=0).flatten(1))

    def state(self) -> State:
        arrays = {f"memory.{number}": one.cpu().numpy() for number, one in enumerate(self.memory)}
        arrays["tokens"] = self.tokens.cpu().numpy()
        return State(arrays=arrays, facts={"grid": list(self.grid_)})

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "memory": {"images": len(self.tokens), "blocks": len(self.memory)},
        }

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import RADGraph

        require_exportable(self.backbone)
        return RADGraph(
            [one.cpu() for one in self.memory],
            self.tokens.cpu(),
            self.similar_images,
            self.radius,
            self.backbone,
            self.grid,
            self.top_share,
            threshold,
            original_size,
        ).eval()


def _score_training_images(learned: LearnedRAD, images: TrainingImages) -> TrainingScores | None:
    """Return the scores of the training images, each against the others."""
    import torch

    if images.calibrate == "held-out-images":
        return None
    groups = torch.from_numpy(images.copy_groups()).to(learned.tokens.device)
    unseen, several = images.calibrate != "in-sample", len(groups.unique()) > 1
    parts = []
    with during("calibration"), torch.inference_mode():
        for some in torch.arange(len(groups), device=groups.device).split(_AT_ONCE):
            blocks = [memory[:, :, some].permute(2, 0, 1, 3) for memory in learned.memory]
            if unseen and not several:  # so that no patch is compared with itself
                blocks = [one.roll(learned.radius + 1, dims=1) for one in blocks]
            own = groups[some][:, None] == groups
            left_out = own if unseen and several else torch.zeros_like(own)
            parts.append(learned.distances(blocks, learned.tokens[some], left_out))
        distances = torch.cat(parts)
        method = "leave-one-image-out" if several else "within-image"
        return TrainingScores(
            mean_of_top(distances, learned.top_share).double().cpu().numpy(),
            method if unseen else "in-sample",
            unseen and several,
            notes=(_ONE_IMAGE,) if unseen and not several else (),
            maps=learned.grid.statistics(distances, images.counted_pixels()),
        )


@register_model(
    "vision_rad",
    tags=("memory-bank", "nearest-neighbours", "pixel-map", "deep-features"),
    metadata={
        "paper": "Zhang et al., Is Training Necessary for Anomaly Detection? (RAD), 2026",
        "year": 2026,
        "link": "https://arxiv.org/abs/2601.22763",
        "weights": "yours: the authors' DINOv2 (Apache-2.0; `pyimgano weights fetch`) or DINOv3 "
        "(its own licence; ask its authors), by weights=",
        "authors_report": "MVTec AD, DINOv3 ViT-B, all images: pixel AUROC 98.5 (the paper's, not "
        "measured here)",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image is compared with the others",
    },
    presets={
        "industrial-fast": {"resize": (336, 336)},
        "industrial-balanced": {},
        "industrial-accurate": {"backbone": "dinov3_vitb16"},
    },
)
class VisionRAD(Detector):
    """RAD: distances to the same place in the most similar good images, at several depths.

    Notes
    -----
    The paper resizes to 512 pixels and takes the 448 in the middle; here images are resized whole,
    because defects at the border count. Maps are smoothed with sigma 4 as all maps are, where
    the paper takes 5 taps of sigma 1 on its grid.

    Every distance is found: the memory is compared place by place, and no neighbour is missed.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_rad", backbone="dinov3_vitb16", weights="dinov3")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = RAD
