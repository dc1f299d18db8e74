"""PatchCore: a coreset of normal patch features, and the distance to it.

Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022. Symbols follow the paper: P(x) the patch features of image x, M the
memory bank, m_test* and m* the farthest test patch and its nearest memory feature, b the
number of neighbours in the re-weighting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .coreset_detector import CoresetDetector
from .parameters import Count
from .registry import register_model

if TYPE_CHECKING:
    from torch import Tensor


@register_model(
    "vision_patchcore",
    tags=("memory-bank", "pixel-map", "deep-features"),
    metadata={
        "paper": "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        "year": 2022,
        "link": "https://arxiv.org/abs/2106.08265",
        "needs_training": "one pass over the training images, no gradient steps",
        "calibration_method": "leave-one-image-out: an image's own patches masked in the bank",
    },
    presets={
        "industrial-fast": {"resize": (224, 224), "coreset_sampling_ratio": 0.02},
        "industrial-balanced": {},
        "industrial-accurate": {"resize": (320, 320)},
    },
)
class VisionPatchCore(CoresetDetector):
    """PatchCore on any backbone: nearest-neighbour distances to a coreset of good patches.

    Parameters
    ----------
    n_neighbors
        b of the re-weighting; 1 turns it off.
    shared
        The keywords of `CoresetDetector` and `BackboneDetector`.

    Notes
    -----
    Four things differ from the paper, each named here: images are resized whole, without
    the paper's centre crop, because defects at the border count; at the border a patch's
    neighbourhood is averaged over the cells that exist; features are joined at their full
    width instead of being pooled to 1024 channels; and the bank is bounded by `max_bank_size`.
    Above half a million training patches the coreset is selected block by block and merged
    (`pyimgano.models.bank.streamed_coreset`), and above 512 training images, or 1 GiB of
    their features, the threshold is calibrated on an evenly spread part of them.

    With a region of interest the bank holds, and the score comes from, the patches whose cell of
    the grid has a pixel that counts.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_patchcore")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    def __init__(self, *, n_neighbors: Count = 9, **shared: Any) -> None:
        super().__init__(**shared)
        self.n_neighbors = n_neighbors

    def _image_scores(
        self, patches: Tensor, distances: Tensor, rows: Tensor, image: Tensor | None
    ) -> Tensor:
        """Equations 6 and 7: s = w s*."""
        import torch

        s_star, where = distances.max(dim=1)  # s*, and which patch is m_test*
        b = self.params_.n_neighbors
        if b == 1:
            return s_star
        m_star = rows.gather(1, where[:, None]).squeeze(1)  # (B,) rows of the bank
        neighbours, valid = self._bank.neighbourhood(m_star, b, image)  # (B, b)
        m_test = patches[torch.arange(len(patches), device=patches.device), where]  # (B, D)
        away = (m_test[:, None, :] - self._bank.features[neighbours]).square().sum(-1).sqrt()
        away = away.masked_fill(~valid, -torch.inf)
        # exp(s*) / sum of exp over N_b(m*), shifted so that nothing overflows
        share = torch.exp(s_star - torch.logsumexp(away, dim=1))
        # with one neighbour alone, m* itself, the weight would be 0 whatever the distance
        weight = torch.where(valid.sum(dim=1) > 1, 1.0 - share, torch.ones_like(share))
        return weight.clamp(min=0.0) * s_star

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        from .graphs import PatchCoreGraph, region_of

        self._check_fitted()
        return PatchCoreGraph.of(
            self._backbone,
            self._bank,
            n_neighbors=self.params_.n_neighbors,
            grid=self.grid_,
            size=self.params_.resize,
            threshold=self.threshold_,
            region=region_of(self, self.grid_, original_size),
        )
