"""RAD: the same place in the most similar good images, block by block of a vision transformer.

Zhang, Li, Henderson, Aragon-Camarasa, Long, "Is Training Necessary for Anomaly Detection?", 2026
(arXiv 2601.22763; retrieval-based anomaly detection). f_b(p) the features of block b at a
place p, of length one; R(x) the good images whose class tokens are nearest to that of x by cosine;
W(p) the places at most r rows and columns from p:

    d(p) = mean over b of min over y in R(x), q in W(p) of 1 - <f_b(x, p), f_b(y, q)>

and the score of an image is the mean of the largest 1 % of d.
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
from .few_images import mean_of_top
from .on_backbone import BackboneDetector
from .parameters import Count, Natural, Ratio, Size
from .registry import register_model
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import Tensor

    from ..backbones import Backbone, LayerChoice

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


@register_model(
    "vision_rad",
    tags=("memory-bank", "nearest-neighbours", "pixel-map", "deep-features"),
    metadata={
        "paper": "Zhang et al., Is Training Necessary for Anomaly Detection? (RAD), 2026",
        "year": 2026,
        "link": "https://arxiv.org/abs/2601.22763",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image is compared with the others",
    },
    presets={
        "industrial-fast": {"resize": (336, 336)},
        "industrial-balanced": {},
        "industrial-accurate": {"backbone": "dinov3_vitb16"},
    },
)
class VisionRAD(BackboneDetector):
    """RAD: distances to the same place in the most similar good images, at several depths.

    Parameters
    ----------
    similar_images
        How many good images an image is compared with.
    radius
        How many rows and columns of patches away from its own place a patch is compared. Parts
        that lie anyhow want more, or a method without places.
    top_share
        Of the distances of an image, the share of the largest whose mean is its score.
    memory_limit_gib
        GiB that the patches of the good images may take; what would take more is refused before
        an image is read.
    shared
        The keywords of `BackboneDetector`; the layers are the blocks at a quarter, half, three
        quarters and all of the depth, normed.

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

    def __init__(
        self,
        *,
        similar_images: Count = 150,
        radius: Natural = 1,
        top_share: Ratio = 0.01,
        memory_limit_gib: Gibibytes = 4.0,
        backbone: str = "dinov2_vits14",
        resize: Size = (448, 448),
        **shared: Any,
    ) -> None:
        super().__init__(backbone=backbone, resize=resize, **shared)
        self.similar_images = similar_images
        self.radius = radius
        self.top_share = top_share
        self.memory_limit_gib = memory_limit_gib

    # ---- features: the blocks, and the class token of the last one

    def _make_backbone(self, params: Any) -> Backbone:
        from types import SimpleNamespace

        from ..backbones.choice import Depths

        blocks = params.layers
        if blocks is None:
            plain = super()._make_backbone(params)
            blocks = Depths((0.25, 0.5, 0.75, 1.0))(plain.network)
            if plain.network.pyramid:
                raise UsageError(
                    f"vision_rad wants a vision transformer, which has a class token, got "
                    f"{params.backbone!r}"
                )
        layers = (*blocks, "1.0.normed.class")
        return super()._make_backbone(SimpleNamespace(**{**vars(params), "layers": layers}))

    def _layer_choice(self) -> LayerChoice:
        from ..backbones.choice import LastBlock

        return LastBlock()

    def _described(self, images: list[NetworkInput]) -> tuple[list[Tensor], Tensor]:
        """Of B images for each block (B, h, w, C), and the class tokens (B, C), of length one."""
        from torch.nn.functional import normalize

        *blocks, token = self._features(images)
        maps = [normalize(one.permute(0, 2, 3, 1), dim=-1).contiguous() for one in blocks]
        return maps, normalize(token.flatten(1), dim=-1)

    # ---- the memory

    def _start(self, params: Any, n_images: int) -> None:
        super()._start(params, n_images)
        *shapes, _ = self._backbone.shapes(self._size())
        numbers = n_images * sum(shape[1] * shape[2] * shape[3] for shape in shapes)
        gib = 4 * numbers / 2**30
        if gib > params.memory_limit_gib:
            fits = int(n_images * params.memory_limit_gib / gib)
            raise UsageError(
                f"the patches of {n_images} images take {gib:.1f} GiB, more than "
                f"memory_limit_gib={params.memory_limit_gib:g}: {fits} images fit, or give fewer "
                "layers, a smaller resize or a larger limit"
            )

    def _learn(self, batches: Iterator[list[NetworkInput]], progress: Progress | None) -> None:
        import torch

        blocks: list[list[Tensor]] = []
        tokens: list[Tensor] = []
        with torch.inference_mode():
            for images in batches:
                maps, token = self._described(images)
                if not blocks:
                    blocks = [[] for _ in maps]
                    self._set_grid(int(maps[0].shape[1]), int(maps[0].shape[2]))
                for block, some in zip(blocks, maps, strict=True):
                    block.append(some)
                tokens.append(token)
            self._memory: list[Tensor] = []
            while blocks:  # one after another, so that no more than one is there twice
                whole = torch.cat(blocks.pop(0))  # (n, h, w, C)
                self._memory.append(whole.permute(1, 2, 0, 3).contiguous())
            self._tokens = torch.cat(tokens)

    # ---- scores

    def _distances(self, maps: list[Tensor], tokens: Tensor, left_out: Tensor) -> Tensor:
        """d of B images, (B, k) at the cells that count."""
        import torch

        params = self.params_
        similar = most_similar(tokens, self._tokens, params.similar_images, left_out)
        found = [
            same_place_distances(one, memory, similar, params.radius)
            for one, memory in zip(maps, self._memory, strict=True)
        ]
        return self._counted(torch.stack(found).mean(dim=0).flatten(1))

    def _score_batch(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        with torch.inference_mode():
            described, tokens = self._described(images)
            nobody = torch.zeros(
                (len(images), len(self._tokens)), dtype=torch.bool, device=tokens.device
            )
            distances = self._distances(described, tokens, nobody)
            scores = mean_of_top(distances, self.params_.top_share)
            found = self._maps(distances).cpu().numpy() if maps else None
            return scores.double().cpu().numpy(), found

    def _training_scores(self, unseen: bool) -> TrainingScores:
        import torch

        n = len(self._tokens)
        groups = torch.from_numpy(self._copy_groups()).to(self._tokens.device)
        several = len(groups.unique()) > 1
        parts = []
        with torch.inference_mode():
            for some in torch.arange(n, device=groups.device).split(_AT_ONCE):
                maps = [memory[:, :, some].permute(2, 0, 1, 3) for memory in self._memory]
                if unseen and not several:  # so that no patch is compared with itself
                    maps = [one.roll(self.params_.radius + 1, dims=1) for one in maps]
                own = groups[some][:, None] == groups
                left_out = own if unseen and several else torch.zeros_like(own)
                parts.append(self._distances(maps, self._tokens[some], left_out))
            distances = torch.cat(parts)
            scores = mean_of_top(distances, self.params_.top_share)
            method = "leave-one-image-out" if several else "within-image"
            return TrainingScores(
                scores.double().cpu().numpy(),
                method if unseen else "in-sample",
                unseen and several,
                notes=(_ONE_IMAGE,) if unseen and not several else (),
                maps=self._statistics(distances),
            )

    # ---- saving

    def _state(self) -> State:
        arrays = {f"memory.{number}": one.cpu().numpy() for number, one in enumerate(self._memory)}
        arrays["tokens"] = self._tokens.cpu().numpy()
        return State(arrays=arrays, facts={"grid": list(self.grid_)})

    def _restore(self, saved: SavedState) -> None:
        import torch

        self._restore_backbone(saved)
        device = self._backbone.device
        *shapes, token = self._backbone.shapes(self._size())
        grid = list(shapes[0][2:])
        if saved.fact("grid", list[int]) != grid:
            raise SavedModelError(f"state.grid: the backbone's grid is {grid}")
        self._set_grid(grid[0], grid[1])
        tokens = saved.array("tokens", "float32", (None, token[1]))
        if len(tokens) != self.n_train_:
            raise SavedModelError("the array 'tokens' has another number of images than the fit")
        self._tokens = torch.from_numpy(tokens).to(device)
        self._memory = []
        for number, shape in enumerate(shapes):
            wanted = (grid[0], grid[1], len(tokens), shape[1])
            given = saved.array(f"memory.{number}", "float32", wanted)
            self._memory.append(torch.from_numpy(given).to(device))

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "grid": list(self.grid_),
            "memory": {"images": len(self._tokens), "blocks": len(self._memory)},
        }
