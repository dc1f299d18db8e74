"""A detector whose map is a pure function of pixels, so that tests know what is right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from pyimgano.calibration import MapStatistics
from pyimgano.models import Detector
from pyimgano.models.method import Learned, Method, TrainingScores
from pyimgano.models.parameters import DetectorParams, Size
from pyimgano.models.training_images import TrainingImages


class DarknessParams(DetectorParams):
    """The keywords of `Darkness`."""

    resize: Size = Field((64, 64), description="Height and width of the maps.")
    device: str = Field("cpu", description="Not used.")


@dataclass(eq=False)
class LearnedDarkness(Learned):
    """Nothing; `batches` are the sizes of the batches that were scored."""

    batches: list[int] = field(default_factory=list)

    def of(self, images: list[Any]) -> np.ndarray:
        return 255.0 - np.stack([image[:, :, 0] for image in images]).astype(np.float32)

    def score(self, images: list[Any], maps: bool) -> Any:
        self.batches.append(len(images))
        found = self.of(images)
        return found.max(axis=(1, 2)).astype(np.float64), (found if maps else None)


class DarknessMethod(Method):
    """Score of a pixel: how much darker than 255 its red channel is; of an image the largest."""

    Params = DarknessParams
    batch_size = 4
    Learned: type[LearnedDarkness] = LearnedDarkness

    def learn(self, images: TrainingImages) -> tuple[LearnedDarkness, TrainingScores | None]:
        learned = self.Learned()
        maps = np.concatenate([learned.of(batch) for batch in images.batches()])
        return learned, self.scores(maps, images)

    def scores(self, maps: np.ndarray, images: TrainingImages) -> TrainingScores | None:
        if images.calibrate == "held-out-images":
            return None
        statistics = MapStatistics()
        statistics.add(maps)
        scores = maps.max(axis=(1, 2)).astype(np.float64)
        unseen = images.calibrate != "in-sample"
        return TrainingScores(scores, "all-images", unseen, maps=statistics)


class Darkness(Detector):
    """Score of a pixel: how much darker than 255 its red channel is; of an image the largest."""

    method = DarknessMethod


def plain(value: int = 200, height: int = 64, width: int = 64) -> np.ndarray:
    """A (height, width, 3) uint8 image of one grey."""
    return np.full((height, width, 3), value, np.uint8)


def fitted(**keywords: Any) -> Darkness:
    """Threshold just above 60: images with a pixel darker than 195 are defective."""
    return Darkness(**keywords).fit([plain(200), plain(195)])
