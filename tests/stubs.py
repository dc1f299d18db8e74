"""Detectors for tests of runs: a quick one, and one that is busy. `register` makes them known."""

from __future__ import annotations

import ctypes
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pyimgano.errors import during
from pyimgano.models import Detector, register_model
from pyimgano.models.method import Learned, TrainingScores
from pyimgano.models.saved_state import SavedState, State
from pyimgano.models.training_images import TrainingImages

from .pixel_detector import DarknessMethod, DarknessParams, LearnedDarkness


@dataclass(eq=False)
class LearnedMean(LearnedDarkness):
    """The mean of the training maps, which scores do not depend on."""

    mean: Any = None

    def state(self) -> State:
        return State({"mean": self.mean})


class SavedDarknessMethod(DarknessMethod):
    """`Darkness` that can be saved."""

    Learned = LearnedMean

    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        maps = np.concatenate([LearnedMean().of(batch) for batch in images.batches()])
        mean = np.mean(maps, axis=0, dtype=np.float64).astype(np.float32)
        learned = self.Learned(mean=mean)
        with during("calibration"):
            return learned, self.scores(maps, images)

    def restore(self, saved: SavedState) -> Learned:
        return self.Learned(mean=saved.array("mean", "float32", tuple(self.params.resize)))


class SavedDarkness(Detector):
    """`Darkness` that can be saved; it has learned the mean of its training maps."""

    method = SavedDarknessMethod


class BusyParams(DarknessParams):
    """The keywords of `Busy`."""

    at: str = Field("", description="The place: fit, calibration or scoring.")
    how: str = Field("", description="The way: python, native or thread.")
    sign: str = Field("", description="The file that is touched.")


@dataclass(eq=False)
class LearnedBusy(LearnedMean):
    """What is busy while it scores."""

    params: Any = None

    def score(self, images: list[Any], maps: bool) -> Any:
        work(self.params, "scoring")
        return super().score(images, maps)


class BusyMethod(SavedDarknessMethod):
    """Is busy for a minute at one place."""

    Params = BusyParams

    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        learned, found = super().learn(images)
        work(self.params, "fit")
        with during("calibration"):
            work(self.params, "calibration")
        return LearnedBusy(mean=learned.mean, params=self.params), found  # type: ignore[attr-defined]

    def restore(self, saved: SavedState) -> Learned:
        learned = super().restore(saved)
        return LearnedBusy(mean=learned.mean, params=self.params)  # type: ignore[attr-defined]


class Busy(Detector):
    """Is busy for a minute at one place (`at`), in one way (`how`), once it has touched a file."""

    method = BusyMethod


def work(params: Any, place: str) -> None:
    if place != params.at:
        return
    Path(params.sign).touch()
    if params.how == "python":
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(1000))
    elif params.how == "native":  # the main thread does not come back to Python code
        mutex = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_init(mutex, None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
    elif params.how == "thread":  # and waits for it, whatever comes
        with ThreadPoolExecutor(1) as pool:
            pool.submit(time.sleep, 60).result()


def command(*words: object) -> list[str]:
    """`pyimgano WORDS` as a process that knows these detectors, which need no torch."""
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tests import stubs; stubs.register()\n"
        "runpy.run_module('pyimgano', run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", program, *map(str, words)]


def register() -> None:
    """As `darkness` and `busy`; in a test, after `copy_registry`."""
    register_model("darkness", overwrite=True)(SavedDarkness)
    register_model("busy", overwrite=True)(Busy)
