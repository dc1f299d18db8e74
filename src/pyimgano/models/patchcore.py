"""PatchCore: a coreset of normal patch features, and the distance to it, by one of two recipes.

`patchcore_paper` is the paper's: Roth, Pemula, Zepeda, Schoelkopf, Brox, Gehler, "Towards Total
Recall in Industrial Anomaly Detection", CVPR 2022. `patchcore_whitened` is for small backbones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from .detector import Detector
from .method import Learned, Method, TrainingScores
from .parameters import Count, Ratio, Size
from .patch_summary import SummaryKind
from .patchcore_paper import CoresetParams, PaperRecipe
from .patchcore_whitened import WhitenedRecipe
from .registry import register_model
from .saved_state import SavedState
from .working_size import LEAST

if TYPE_CHECKING:
    from .training_images import TrainingImages


class PatchCoreParams(CoresetParams):
    """The keywords of PatchCore. Checked, those that are None have what the recipe puts for it."""

    recipe: Literal["whitened", "paper"] | None = Field(
        None,
        description=(
            "`paper` is the recipe of the paper, and `whitened` one that is made for small "
            "backbones (docs/embedded-backbone.md). None is `whitened` for the backbones that come "
            "with the program, EfficientNet-Lite, and else `paper`."
        ),
    )
    n_neighbors: Count = Field(
        9,
        description=(
            "The number of neighbours b in the paper's re-weighting; 1 turns it off. The whitened "
            "recipe has none."
        ),
    )
    image_score: SummaryKind = Field(
        "own",
        description=(
            "What of its patches' distances is an image's score. `own` is the recipe's own: the "
            "re-weighted largest distance for the paper's, power means for the whitened one. "
            "`largest` is the largest distance, and `top_share` the mean of the largest ones. The "
            "whitened recipe takes it of near patches and of the context, and joins the two."
        ),
    )
    top_share: Ratio = Field(
        0.01,
        description="The share of the patches that `image_score='top_share'` takes the mean of.",
    )
    resize: Size | None = Field(  # type: ignore[assignment]
        None,
        description=(
            "Height and width in pixels that images are resized to and maps are given at. None is "
            "256 x 256 for the paper's recipe. For the whitened one it is as many pixels as a "
            "square of 256 to 512 pixels a side, by how many the training images have, and in "
            "their shape (`working_size`); `params_.resize` holds it after `fit`."
        ),
    )
    patch_grid: Literal["fine", "coarse"] | None = Field(
        None,
        description=(
            "`fine` takes patches on the grid of the finest layer, by default stride 8, as in the "
            "paper; `coarse` on a grid of twice its stride, which has a quarter as many. None is "
            "`coarse` for the whitened recipe and `fine` for the paper's."
        ),
    )
    max_bank_size: Count | None = Field(  # type: ignore[assignment]
        None,
        description=(
            "The largest number of patches that the memory bank keeps, whatever the ratio. None is "
            "32,768 for the paper's recipe and 10,000 for the whitened one."
        ),
    )

    @model_validator(mode="after")
    def _settle(self) -> PatchCoreParams:
        if self.recipe is None:
            small = self.backbone.startswith("efficientnet_lite")
            self.recipe = "whitened" if small else "paper"
        whitens = self.recipe == "whitened"
        if self.patch_grid is None:
            # of stride 16 with the published networks; vision transformers have it as they are
            transformer = self.backbone.startswith(("dinov2_", "dinov3_"))
            self.patch_grid = "coarse" if whitens and not transformer else "fine"
        if self.max_bank_size is None:
            self.max_bank_size = 10_000 if whitens else 32_768
        if self.resize is None and not whitens:
            self.resize = (LEAST, LEAST)
        return self


class PatchCore(Method):
    """PatchCore by the recipe that its keywords ask for."""

    Params = PatchCoreParams
    exports = True

    def __init__(self, params: PatchCoreParams) -> None:
        super().__init__(params)
        recipe = WhitenedRecipe if params.recipe == "whitened" else PaperRecipe
        self._recipe: Method = recipe(params)
        self.backbone = self._recipe.backbone

    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        return self._recipe.learn(images)

    def restore(self, saved: SavedState) -> Learned:
        return self._recipe.restore(saved)


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
        "industrial-fast": {"resize": (256, 256), "max_bank_size": 4096},
        "industrial-balanced": {},
        "industrial-accurate": {"max_bank_size": 30_000, "coreset_sampling_ratio": 0.3},
    },
)
class VisionPatchCore(Detector):
    """PatchCore on any backbone: nearest-neighbour distances to a coreset of good patches.

    Attributes
    ----------
    params_
        The keywords of the fit, with what the recipe and the images put for None.

    Notes
    -----
    Recipe `paper`. Four things differ from the paper, each named here: images are resized whole,
    without the paper's centre crop, because defects at the border count; at the border a patch's
    neighbourhood is averaged over the cells that exist; features are joined at their full
    width instead of being pooled to 1024 channels; and the bank is bounded by `max_bank_size`.
    Above half a million training patches the coreset is selected block by block and merged
    (`pyimgano.models.neighbors.streamed_coreset`), and above 512 training images, or 1 GiB of
    their features, the threshold is calibrated on an evenly spread part of them.

    Recipe `whitened`, found by measuring (docs/embedded-backbone.md). Patch features are whitened
    before distances are taken (`pyimgano.models.neighbors.Whitening`), so that an image is compared
    in what good ones hardly vary in too. How features move in disturbed copies of training images
    (`pyimgano.models.nuisance`: compression, noise, light, a slight blur) is discounted in it, and
    more so where good images hardly differ from each other. Distances are divided by how large they
    are among good images where the nearest patch lies, and at the border of the frame
    (`neighbors.patch_memory`). What deeper layers see around a patch has a memory of its own
    (`near_and_context`): maps come from the near layers alone, and scores from the distances of
    both (`power_means`), in units of what they are in a good image, 1 in the middle. The working
    size follows the images; the grid is that of stride 16; a bank is selected from six times as
    many patches, spread over all; and a map's smoothing is 4 pixels in 256, at any size.

    With a region of interest the bank holds, and the score comes from, the patches whose cell of
    the grid has a pixel that counts.

    Examples
    --------
    >>> from pyimgano.models import create_model
    >>> detector = create_model("vision_patchcore")
    >>> detector.fit(train_paths).predict(test_paths)  # doctest: +SKIP
    """

    method = PatchCore
