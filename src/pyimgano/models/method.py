"""What a method is: it learns from good images, and returns a value that scores others.

A method is made with checked keywords, a `DetectorParams`. `learn` reads the images once and
returns what was learned, with scores of the training images that the threshold is calibrated on.
Everything else, such as reading, thresholds, saving and the face of an estimator, is the
business of `pyimgano.models.Detector`, which a public class gives its method to:

    class VisionPaDiM(Detector):
        method = PaDiM
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..calibration import DisturbedScores, MapStatistics
from ..errors import UsageError
from ..images import NetworkInput
from .parameters import DetectorParams
from .region_cells import RegionCells
from .saved_state import SavedState, State

if TYPE_CHECKING:
    from torch import nn

    from ..backbones import Backbone
    from .training_images import TrainingImages


@dataclass(frozen=True)
class TrainingScores:
    """Scores of normal images, and how they were obtained.

    Attributes
    ----------
    scores
        (n,) float64.
    method
        How they were obtained, such as `leave-one-image-out`.
    unseen
        Whether no image was scored by a model that had seen it, or a copy of it.
    notes
        What a reader of a report should know of them, in sentences.
    maps
        The statistics of the images' maps, if the method has maps.
    images
        (n,) int64: which images the scores belong to, by their positions among the images learned
        from in their order; None where every image has a score. Of held-out images they are
        positions among all of these.
    copies
        Of held-out images: the positions of those that are copies of each other, a tuple for each
        distinct image that has copies.
    disturbed
        Scores of slightly disturbed copies of the images, which the threshold is kept above
        unless the user chose its quantile; None where the method makes none.
    """

    scores: npt.NDArray[np.float64]
    method: str
    unseen: bool
    notes: tuple[str, ...] = ()
    maps: MapStatistics = field(default_factory=MapStatistics)
    images: npt.NDArray[np.int64] | None = None
    copies: tuple[tuple[int, ...], ...] = ()
    disturbed: DisturbedScores | None = None


class Learned(ABC):
    """What a method learned, and nothing else: it never changes, and several threads score with it.

    Attributes whose names end in an underscore are the detector's too: `detector.grid_` is
    `detector.learned_.grid_`.
    """

    #: The frozen network that gives the features, whose weights were not learned. What has none
    #: need not have the attribute (a value here would be the default of a dataclass).
    backbone: Backbone | None

    @abstractmethod
    def score(
        self, images: list[NetworkInput], maps: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32] | None]:
        """Return the scores (B,) of B images and, if `maps` and there are any, maps (B, H, W).

        Images are (H, W, 3) uint8 RGB at the fit's `resize`, filled with a constant outside the
        region of interest; with a cache of features they are `KeyedImage`s, which a backbone
        takes as they are. Maps are 0 or more; the caller sets them to 0 where nothing counts.
        """

    def state(self) -> State:
        """Return what was learned as arrays and plain JSON values; `Method.restore` reads it."""
        raise UsageError(f"{type(self).__name__} cannot be saved: it lacks state")

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it, as plain JSON values."""
        backbone = getattr(self, "backbone", None)
        return {} if backbone is None else {"backbone": backbone.describe()}

    def export_graph(
        self, threshold: float, original_size: tuple[int, int] | None = None
    ) -> nn.Module:
        """Return it as one torch module on the CPU; for methods with `exports` alone.

        Parameters
        ----------
        threshold
            The score from which on an image is defective.
        original_size
            (height, width) of images before resizing: with a region of interest they say
            which pixels count. None for images that come at `resize`.
        """
        raise NotImplementedError


class Method(ABC):
    """A way to tell defective images from good ones.

    Parameters
    ----------
    params
        The checked keywords, an object of `Params`. What learning needs besides images, such as
        the backbone, is made ready from them.

    Raises
    ------
    UsageError, WeightsError
        A device, a network or weights that are not there.
    """

    #: The keywords, with their types, ranges, defaults and meanings.
    Params: ClassVar[type[DetectorParams]] = DetectorParams
    #: Whether there are anomaly maps.
    has_maps: ClassVar[bool] = True
    #: How many images are read and scored together.
    batch_size: ClassVar[int] = 8
    #: Whether what was learned has an `export_graph`.
    exports: ClassVar[bool] = False

    #: The frozen network that gives the features; None if the method has none. Its cache of
    #: features serves the images that are read.
    backbone: Backbone | None = None

    def __init__(self, params: Any) -> None:
        self.params = params

    @property
    def region(self) -> RegionCells:
        """Return the frame that images are resized to, and which of its pixels and cells count."""
        return RegionCells(self.params.resize, self.params.roi)

    def prepare(self) -> None:
        """Raise an error now if something that learning needs, besides images, is not there."""
        return None

    @abstractmethod
    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        """Return what was learned from good images, and scores of them.

        `images.calibrate` says which scores are wanted: as if unseen, by the cheapest honest way
        (`out-of-sample`); of images that were learned from (`in-sample`); or none
        (`held-out-images`), because other images are scored.
        """

    def restore(self, saved: SavedState) -> Learned:
        """Return what `Learned.state` was made of. A method that has this can be saved.

        The kinds and shapes of arrays and facts are checked by `saved`; the method checks their
        values, and raises `SavedModelError` or any `ValueError`. That the backbone has the
        weights of the fit is checked before.
        """
        raise NotImplementedError
