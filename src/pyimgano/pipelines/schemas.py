"""The documents of a run and their JSON Schemas.

`python -m pyimgano.pipelines.schemas FOLDER` writes the schemas there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from ..runs import (
    CategoryReport,
    EnvironmentDocument,
    FilesDocument,
    ImageRecord,
    InferenceRecord,
    RobustnessCategoryReport,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
    SingleReport,
    SuiteReport,
)
from ..runs.schema import CurvesDocument, TrainingScoreRecord
from ..runs.sweep_schema import CellOutcome, SweepDocument, SweepFile, SweepTableDocument
from .run import RobustnessConfigDocument, RunConfig

#: The documents of a run, by the name of their schema file.
DOCUMENTS: dict[str, type[BaseModel]] = {
    "report.category": CategoryReport,
    "report.single": SingleReport,
    "report.suite": SuiteReport,
    "per_image": ImageRecord,
    "environment": EnvironmentDocument,
    "files": FilesDocument,
    "training_scores": TrainingScoreRecord,
    "curves": CurvesDocument,
    "robustness.report.category": RobustnessCategoryReport,
    "robustness.report.single": RobustnessSingleReport,
    "robustness.report.suite": RobustnessSuiteReport,
    "robustness.per_image": RobustnessRecord,
    "inference": InferenceRecord,
    "config": RunConfig,
    "robustness.config": RobustnessConfigDocument,
    "sweep.file": SweepFile,
    "sweep": SweepDocument,
    "sweep.outcome": CellOutcome,
    "sweep.table": SweepTableDocument,
}


#: The file that the schemas in `docs/schemas` share; each document's own file refers to it.
SHARED = "documents.schema.json"


def json_schemas() -> dict[str, str]:
    """Return the JSON Schema of every document of a run by file name, each complete in itself."""
    return {
        f"{name}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for name, model in DOCUMENTS.items()
    }


def schema_files() -> dict[str, str]:
    """Return the files of `docs/schemas`: one with all definitions, and one for each document."""
    places, shared = models_json_schema([(one, "validation") for one in DOCUMENTS.values()])
    files = {SHARED: {"$schema": GenerateJsonSchema.schema_dialect, **shared}}
    for name, model in DOCUMENTS.items():
        place = places[model, "validation"]["$ref"]
        files[f"{name}.schema.json"] = {"$ref": f"{SHARED}{place}"}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


if __name__ == "__main__":
    for name, text in schema_files().items():
        Path(sys.argv[1]).joinpath(name).write_text(text)
