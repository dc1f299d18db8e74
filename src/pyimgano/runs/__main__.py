"""`python -m pyimgano.runs FOLDER` writes the JSON Schemas of a run's documents there."""

import sys
from pathlib import Path

from .documents import json_schemas

for name, text in json_schemas().items():
    Path(sys.argv[1]).joinpath(name).write_text(text)
