"""Fuzzes `targets.ImageReader`; see README.md."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["targets", "pyimgano", "PIL", "csv", "json"]):
    from targets import ImageReader

from PIL import Image

if __name__ == "__main__":
    # files that declare more are refused as with the limit that users have, only sooner
    Image.MAX_IMAGE_PIXELS = 2**19
    warnings.simplefilter("ignore")
    reader = ImageReader(Path(tempfile.mkdtemp()))
    atheris.Setup(sys.argv, reader.check)
    atheris.Fuzz()
