"""`python -m pyimgano.runs FOLDER` writes the JSON Schemas of a run's documents there."""

import sys
from pathlib import Path

from .documents import schema_files

for name, text in schema_files().items():
    Path(sys.argv[1]).joinpath(name).write_text(text)
