"""Detectors for tests of runs: a quick one, and one that is busy. `register` makes them known."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pyimgano.models import register_model
from pyimgano.models.detector import TrainingScores
from pyimgano.models.parameters import CalibrationSource, Contamination, Quantile, Seed, Size
from pyimgano.models.saved_state import SavedState, State

from .pixel_detector import Darkness


class SavedDarkness(Darkness):
    """`Darkness` that can be saved; it has learned the mean of its training maps."""

    def _training_scores(self, unseen: bool) -> TrainingScores:
        self._mean = np.mean(self._maps, axis=0, dtype=np.float64).astype(np.float32)
        return super()._training_scores(unseen)

    def _finish(self) -> None:
        del self._maps

    def _state(self) -> State:
        return State({"mean": self._mean})

    def _restore(self, saved: SavedState) -> None:
        self._mean = saved.array("mean", "float32", tuple(self.params_.resize))


class Busy(SavedDarkness):
    """Is busy for a minute at one place (`at`), in one way (`how`), once it has touched a file."""

    def __init__(
        self,
        *,
        at: str = "",
        how: str = "",
        sign: str = "",
        resize: Size = (64, 64),
        contamination: Contamination | None = None,
        calibration: CalibrationSource = "out-of-sample",
        calibration_quantile: Quantile | None = None,
        device: str = "cpu",
        random_seed: Seed = 0,
    ) -> None:
        super().__init__(
            resize=resize,
            contamination=contamination,
            calibration=calibration,
            calibration_quantile=calibration_quantile,
            device=device,
            random_seed=random_seed,
        )
        self.at, self.how, self.sign = at, how, sign

    def _learn(self, batches: Iterator[list[Any]], progress: Any) -> None:
        super()._learn(batches, progress)
        self._work("fit")

    def _training_scores(self, unseen: bool) -> TrainingScores:
        self._work("calibration")
        return super()._training_scores(unseen)

    def _score_batch(self, images: list[Any], maps: bool) -> Any:
        self._work("scoring")
        return super()._score_batch(images, maps)

    def _work(self, place: str) -> None:
        if place != self.at:
            return
        Path(self.sign).touch()
        if self.how == "python":
            end = time.monotonic() + 60
            while time.monotonic() < end:
                sum(range(1000))
        elif self.how == "native":  # the main thread does not come back to Python code
            mutex = ctypes.create_string_buffer(64)
            libc = ctypes.CDLL(None)
            libc.pthread_mutex_init(mutex, None)
            libc.pthread_mutex_lock(mutex)
            libc.pthread_mutex_lock(mutex)
        elif self.how == "thread":  # and waits for it, whatever comes
            with ThreadPoolExecutor(1) as pool:
                pool.submit(time.sleep, 60).result()


def register() -> None:
    """As `darkness` and `busy`; in a test, after `copy_registry`."""
    register_model("darkness", overwrite=True)(SavedDarkness)
    register_model("busy", overwrite=True)(Busy)
