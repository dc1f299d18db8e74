"""Any files in the place of a saved detector are a detector, or a `SavedModelError` of one line.

The first byte chooses the file: the document, the arrays, or the arrays with a document that
vouches for their length and hash, as a forger would write it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np
import torch

with atheris.instrument_imports(include=["pyimgano", "safetensors", "json"]):
    from pyimgano import load_model
    from pyimgano.errors import SavedModelError, UsageError
    from pyimgano.models import create_model

warnings.simplefilter("ignore")
torch.set_num_threads(1)
_HOME = Path(tempfile.mkdtemp())
_DOCUMENT, _ARRAYS = "detector.json", "arrays.safetensors"


def _pristine() -> Path:
    """A saved detector with few weights, in few bytes."""
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 255, (3, 32, 32, 3), np.uint8))
    detector = create_model(
        "vision_patchcore",
        backbone="resnet18",
        layers=["layer1"],
        pretrained=False,
        engine="torch",
        resize=(32, 32),
        coreset_sampling_ratio=0.02,
    )
    return detector.fit(images).save(_HOME / "pristine")


_PRISTINE = _pristine()
_FOLDER = Path(shutil.copytree(_PRISTINE, _HOME / "model"))


def check(data: bytes) -> None:
    """Load it; anything but a detector or the documented error is raised."""
    for name in (_DOCUMENT, _ARRAYS):
        shutil.copyfile(_PRISTINE / name, _FOLDER / name)
    choice = data[0] % 3 if data else 0
    name = _DOCUMENT if choice == 0 else _ARRAYS
    (_FOLDER / name).write_bytes(data[1:])
    if choice == 2:
        document = json.loads((_PRISTINE / _DOCUMENT).read_text())
        digest = hashlib.sha256(data[1:]).hexdigest()
        document["arrays"] = {"bytes": len(data) - 1, "sha256": digest}
        (_FOLDER / _DOCUMENT).write_text(json.dumps(document))
    try:
        load_model(_FOLDER)
    except SavedModelError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:3000]
    except UsageError as error:  # of the machine, not of the folder
        assert "device" in str(error)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
