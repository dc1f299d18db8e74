"""A detector whose map is a pure function of pixels, so that tests know what is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyimgano.calibration import MapStatistics
from pyimgano.models import Detector
from pyimgano.models.detector import TrainingScores
from pyimgano.models.parameters import CalibrationSource, Contamination, Quantile, Seed, Size


class Darkness(Detector):
    """Score of a pixel: how much darker than 255 its red channel is; of an image the largest."""

    batch_size = 4

    def __init__(
        self,
        *,
        resize: Size = (64, 64),
        contamination: Contamination | None = None,
        calibration: CalibrationSource = "out-of-sample",
        calibration_quantile: Quantile | None = None,
        device: str = "cpu",
        random_seed: Seed = 0,
    ) -> None:
        self.resize = resize
        self.contamination = contamination
        self.calibration = calibration
        self.calibration_quantile = calibration_quantile
        self.device = device
        self.random_seed = random_seed

    def _start(self, params: Any, n_images: int) -> None:
        self.batches: list[int] = []
        self._maps: list[np.ndarray] = []

    def _learn(self, batches: Iterator[list[Any]], progress: Any) -> None:
        for images in batches:
            self._maps.extend(self._of(images))

    def _training_scores(self, unseen: bool) -> TrainingScores:
        statistics = MapStatistics()
        statistics.add(np.stack(self._maps))
        scores = np.array([one.max() for one in self._maps], np.float64)
        return TrainingScores(scores, "all-images", unseen, maps=statistics)

    def _of(self, images: list[Any]) -> np.ndarray:
        return 255.0 - np.stack([image[:, :, 0] for image in images]).astype(np.float32)

    def _score_batch(self, images: list[Any], maps: bool) -> Any:
        self.batches.append(len(images))
        found = self._of(images)
        return found.max(axis=(1, 2)).astype(np.float64), (found if maps else None)


def plain(value: int = 200, height: int = 64, width: int = 64) -> np.ndarray:
    """A (height, width, 3) uint8 image of one grey."""
    return np.full((height, width, 3), value, np.uint8)


def fitted(**keywords: Any) -> Darkness:
    """Threshold just above 60: images with a pixel darker than 195 are defective."""
    return Darkness(**keywords).fit([plain(200), plain(195)])
