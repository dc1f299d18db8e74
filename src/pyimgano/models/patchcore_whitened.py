"""PatchCore for small backbones: whitened patches, and distances in units of good images.

Found by measuring (docs/embedded-backbone.md). It differs from the paper's recipe
(`patchcore_paper`) in these steps, in the order of the code:

1. Patches come on the grid of stride 16; what deeper layers see around them has a grid of its own.
2. A bank is selected from six times as many patches, spread over all images, for each grid.
3. How features move in disturbed copies of training images is learned, and discounted.
4. Patches are whitened before distances are taken, and distances are divided by how large they are
   among good images (`neighbors.patch_memory`).
5. A map comes from the near patches alone. A score is made of the distances of the near patches
   and of the context, both in units of what they are in a good image (`power_means`).

The shapes are those of B images with k near patches (h, w, D) that count, and l of the context
(h', w', E); n training images are kept to calibrate on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..calibration import DisturbedScores
from ..errors import SavedModelError, during
from ..images import NetworkInput
from ..threads import single_torch_thread
from .anomaly_map import SIGMA
from .evenly_spread import WHOLE_MAPS, EvenlySpread, evenly, spread_notes
from .method import Learned, Method, TrainingScores
from .near_and_context import CONTEXT_SHARE, NearAndContext
from .nuisance import (
    DisturbedCopy,
    are_enough_for_drift,
    drift_copies,
    everyday_copies,
    words_for,
)
from .on_backbone import PatchGrid, features_of, open_backbone, peaks, require_exportable
from .patch_summary import PatchSummary
from .patchcore_paper import described_bank, few, restored_bank, restored_grid
from .power_means import image_scores, joint_score
from .region_cells import RegionCells
from .saved_state import SavedState, State
from .within_image import within_image_note
from .working_size import LEAST

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..backbones import Backbone
    from .neighbors import PatchMemory, PatchMemoryLearner
    from .training_images import TrainingImages

# Layers of larger strides see mostly what lies around a patch.
_NEAR = 16


class WhitenedRecipe(Method):
    """The recipe for small backbones; `params` are those of `patchcore.PatchCore`."""

    def __init__(self, params: Any) -> None:
        from ..backbones.choice import WithContext

        super().__init__(params)
        self.backbone: Backbone = open_backbone(
            params, layers=WithContext(), patches=params.patch_grid, context_above=_NEAR
        )

    def learn(self, images: TrainingImages) -> tuple[LearnedWhitened, TrainingScores | None]:
        grids: list[PatchGrid] = []
        learners: list[PatchMemoryLearner] = []  # of the near patches, and of the context
        for batch in images.batches():
            features = features_of(self.backbone, batch)  # (B, h, w, D) and (B, h', w', E)
            if not grids:
                grids = [self._grid(images.region, some.shape[1:3]) for some in features]
            patches = _counted(grids, features)  # (B, k, D) and (B, l, E)
            if not learners:
                learners = self._new_learners(images, grids, patches)
            for learner, some in zip(learners, patches, strict=True):
                learner.add(some)
        for learner in learners:
            learner.group_copies(images.copy_groups())
        self._learn_disturbances(images, grids, learners)
        near, *context = [learner.finish() for learner in learners]
        summary = PatchSummary(self.params.image_score, self.params.top_share)
        memories = NearAndContext(near, context[0] if context else None, summary=summary)
        means = summary.of([learner.unseen for learner in learners])  # (n,) each
        memories.near_unit = _middle(means[0])
        if context:
            memories.context_unit = _middle(means[1])
        assert near.indices is not None
        learned = LearnedWhitened(self.backbone, grids, memories, grids[0].whole(near.indices))
        return learned, _score_training_images(learned, images, learners, means)

    def _grid(self, region: RegionCells, shape: Sequence[int]) -> PatchGrid:
        height, width = region.size
        sigma = SIGMA / LEAST * float(np.sqrt(height * width))  # 4 pixels in 256, at any size
        return PatchGrid.of(shape, region, self.backbone.device, sigma=sigma, double=True)

    def _new_learners(
        self, images: TrainingImages, grids: list[PatchGrid], patches: list[Tensor]
    ) -> list[PatchMemoryLearner]:
        from .neighbors import PatchMemoryLearner

        params, progress = self.params, images.progress
        spread = EvenlySpread.of_images(len(images), sum(some[0].nbytes for some in patches))
        bounds = params.max_bank_size, _context_bound(params.max_bank_size)
        return [
            PatchMemoryLearner(
                grid=grid.shape,
                size=images.region.size,
                cells=grid.cells,
                spread=spread,
                like=some[0],
                images=len(images),
                ratio=params.coreset_sampling_ratio,
                max_rows=bound,
                projection_dim=params.feature_projection_dim,
                seed=params.random_seed,
                progress=None if progress is None else lambda a, b: progress("coreset", a, b),
            )
            for grid, some, bound in zip(grids, patches, bounds)
        ]

    def _learn_disturbances(
        self, images: TrainingImages, grids: list[PatchGrid], learners: list[PatchMemoryLearner]
    ) -> None:
        """Show the learners how far features move under what is no defect."""
        numbers, seed = learners[0].kept_numbers(), self.params.random_seed
        everyday = everyday_copies(numbers, len(grids[0]), seed)
        self._learn_copies(images, grids, learners, everyday)
        if not all(learner.everyday_is_enough() for learner in learners):
            self._learn_copies(images, grids, learners, drift_copies(numbers, seed))

    def _learn_copies(
        self,
        images: TrainingImages,
        grids: list[PatchGrid],
        learners: list[PatchMemoryLearner],
        copies: list[DisturbedCopy],
    ) -> None:
        region = images.region
        sources = (
            copy.source(images.source(copy.image), images.bit_depth, region.roi) for copy in copies
        )
        with images.stream(sources) as stream:
            while loaded := list(islice(stream, self.batch_size)):
                batch = []
                for one in loaded:
                    if one.pixels is None:  # though it could be read a moment ago
                        assert one.error is not None
                        raise one.error
                    batch.append(one.pixels)
                these = [copies[one.index] for one in loaded]
                numbers, kinds, everyday = zip(
                    *((copy.image, copy.disturbance.name, copy.everyday) for copy in these)
                )
                patches = _counted(grids, features_of(self.backbone, batch))
                for learner, some in zip(learners, patches, strict=True):
                    learner.disturbed(numbers, kinds, everyday, some)
                if images.progress is not None:
                    images.progress("disturbed copies", loaded[-1].index + 1, len(copies))

    def restore(self, saved: SavedState) -> LearnedWhitened:
        region = self.region
        shapes = self.backbone.shapes(region.size)  # (N, h, w, D) and (N, h', w', E)
        near = restored_grid(saved, self.backbone, region)
        bound = self.params.max_bank_size
        bank, indices, _ = restored_bank(saved, self.backbone, near, bound)
        grids = [self._grid(region, shape[1:3]) for shape in shapes]
        cells = [len(grid) for grid in grids]
        memories = NearAndContext.restored(saved, bank, cells, shapes[-1][3])
        memories.summary = PatchSummary(self.params.image_score, self.params.top_share)
        context = memories.context
        if context is not None and len(context.bank) > _context_bound(bound):
            raise SavedModelError("the array 'context_features' has more rows than it may")
        return LearnedWhitened(self.backbone, grids, memories, indices)


@dataclass(eq=False)
class LearnedWhitened(Learned):
    """Memories of good patches, near and around, in whitened features.

    Attributes
    ----------
    backbone
        Gives the near patches, and those of the context.
    grids
        The grid of the near patches and, if there is a context, the grid of that.
    memories
        What good patches look like, and how large their distances are.
    coreset_indices_
        (M,) int64: which training patches the near bank holds, as of `LearnedCoreset`.
    """

    backbone: Backbone
    grids: list[PatchGrid]
    memories: NearAndContext
    coreset_indices_: Tensor

    @property
    def grid_(self) -> tuple[int, int]:
        """Return the grid (h, w) of the near patches."""
        return self.grids[0].shape

    @property
    def context_counts(self) -> bool:
        """Return whether a score is the peak of its map and a part for context added to it.

        This is so of detectors that were saved before scores were power means. Of a power mean no
        part is the peak of the map.
        """
        return self.memories.context is not None and not self.memories.power_means

    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        import torch

        grid, bank = self.grids[0], self.memories.near.bank
        with torch.inference_mode():
            patches = _counted(self.grids, features_of(self.backbone, images))
            with single_torch_thread(few(patches[0], bank)):
                near, context = self.memories.distances(patches)  # (B, k) and (B, l)
                found = grid.maps(near)  # (B, H, W)
                scores = image_scores(
                    near,
                    context,
                    self.memories.means_of,
                    lambda: peaks(found, grid.region),
                )  # (B,)
            return scores.double().cpu().numpy(), found.cpu().numpy() if maps else None

    def state(self) -> State:
        arrays = {
            "features": self.memories.near.bank.features.cpu().numpy(),
            "coreset_indices": self.coreset_indices_.cpu().numpy(),
        }
        facts = {"grid": list(self.grid_), "selections": 1}
        return State({**arrays, **self.memories.arrays()}, {**facts, **self.memories.facts()})

    def describe(self) -> dict[str, Any]:
        found = {
            **super().describe(),
            "grid": list(self.grid_),
            "memory_bank": described_bank(self.memories.near.bank, 1),
            "recipe": "whitened",
            "nuisance_strength": [one.strength for _, one, _ in self.memories.memories()],
        }
        if self.memories.context is not None:
            size, dimension = (int(n) for n in self.memories.context.bank.features.shape)
            found["context_bank"] = {"size": size, "dimension": dimension}
        return found

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        from .graphs import WhitenedGraph, region_of

        require_exportable(self.backbone)
        near, *context = self.grids
        return WhitenedGraph.of(
            self.backbone,
            self.memories,
            context_cells=context[0].cells if context else None,
            grid=near.shape,
            size=near.region.size,
            sigma=near.sigma,
            threshold=threshold,
            region=region_of(near.region, near.shape, original_size),
        )


def _score_training_images(
    learned: LearnedWhitened,
    images: TrainingImages,
    learners: list[PatchMemoryLearner],
    means: list[Tensor],
) -> TrainingScores | None:
    """Return the scores of the training images that the learners kept.

    `means` (n,) are what `PatchSummary.of` makes of each image's near distances, and of its
    distances around, as if the image had not been learned from.
    """
    import torch

    if images.calibrate == "held-out-images":
        return None
    unseen = images.calibrate != "in-sample"
    grid = learned.grids[0]
    with during("calibration"), torch.inference_mode():
        memories = [(memory, unit) for _, memory, unit in learned.memories.memories()]
        distances = [one.unseen for one in learners]  # (n, k) and (n, l)
        if not unseen:
            pairs = zip(learners, memories, strict=True)
            distances = [learner.in_sample(memory) for learner, (memory, _) in pairs]
            means = learned.memories.summary.of(distances)
        whole = evenly(np.arange(len(distances[0])), WHOLE_MAPS)
        scores = joint_score(*(each / unit for each, (_, unit) in zip(means, memories)))  # (n,)
        several = all(learner.several for learner in learners)
        method = "leave-one-image-out" if several else "within-image"
        notes = list(spread_notes(len(scores), images.used))
        if unseen and not several:
            notes.insert(0, within_image_note(images.used))
        disturbed = None
        enough = are_enough_for_drift(len(scores))
        if unseen and enough and all(one.unseen_copies is not None for one in learners):
            disturbed = _score_copies(learners, memories, scores, learned.memories.summary)
        return TrainingScores(
            scores.double().cpu().numpy(),
            method if unseen else "in-sample",
            unseen and several,
            notes=tuple(notes),
            maps=grid.statistics(distances[0][whole] / memories[0][1], images.counted_pixels()),
            images=learners[0].numbers,
            disturbed=disturbed,
        )


def _score_copies(
    learners: list[PatchMemoryLearner],
    memories: list[tuple[PatchMemory, float]],
    scores: Tensor,
    summary: PatchSummary,
) -> DisturbedScores:
    """Return the scores of the disturbed copies, beside those (n,) of the images themselves."""
    copies = [learner.unseen_copies for learner in learners]
    means = summary.of([one for one in copies if one is not None])  # (c,) each
    found = joint_score(*(each / unit for each, (_, unit) in zip(means, memories, strict=True)))
    place = {int(number): i for i, number in enumerate(learners[0].numbers)}
    own = scores[[place[number] for number, _ in learners[0].copied]]
    return DisturbedScores(
        found.double().cpu().numpy(),
        own.double().cpu().numpy(),
        [words_for(kind) for _, kind in learners[0].copied],
    )


def _counted(grids: list[PatchGrid], features: list[Tensor]) -> list[Tensor]:
    """Return the patches that count of each grid (B, h, w, D), (B, k, D)."""
    return [grid.counted(some.flatten(1, 2)) for grid, some in zip(grids, features, strict=True)]


def _context_bound(max_bank_size: int) -> int:
    """Return how many rows the memory of the context may have beside one of so many."""
    return max(1, int(CONTEXT_SHARE * max_bank_size))


def _middle(means: Tensor) -> float:
    """Return their median; 1 where it is 0."""
    found = float(np.median(means.double().cpu().numpy()))
    return found if found > 0 else 1.0
