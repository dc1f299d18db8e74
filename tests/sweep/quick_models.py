"""Models for tests of sweeps, registered when this module is imported, in any process.

`quick` takes as long as it is told to. It can also do what happens to machines: the first process
that takes the file `disk` away can write no file of more than a few bytes from then on.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

from pydantic import Field

from pyimgano.models import register_model
from pyimgano.models.method import Learned, TrainingScores
from pyimgano.models.training_images import TrainingImages
from tests.pixel_detector import DarknessParams
from tests.stubs import SavedDarkness, SavedDarknessMethod


class QuickParams(DarknessParams):
    """The keywords of `Quick`."""

    seconds: float = Field(0.0, description="How long learning takes.")
    disk: str = Field("", description="The file that fills the disk of who takes it away.")


class QuickMethod(SavedDarknessMethod):
    """Learns for as long as it is told to."""

    Params = QuickParams

    def learn(self, images: TrainingImages) -> tuple[Learned, TrainingScores | None]:
        disk = Path(self.params.disk)
        if self.params.disk:
            try:
                disk.unlink()
            except FileNotFoundError:
                pass
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        time.sleep(self.params.seconds)
        return super().learn(images)


@register_model("quick", overwrite=True)
class Quick(SavedDarkness):
    """Learns for as long as it is told to."""

    method = QuickMethod
