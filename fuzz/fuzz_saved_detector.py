"""Fuzzes `targets.SavedDetectorReader`; see README.md."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["targets", "pyimgano", "PIL", "csv", "json"]):
    from targets import SavedDetectorReader

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    reader = SavedDetectorReader(Path(tempfile.mkdtemp()))
    atheris.Setup(sys.argv, reader.check)
    atheris.Fuzz()
