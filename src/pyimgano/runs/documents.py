"""The documents of a run and their JSON Schemas."""

from __future__ import annotations

import json

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from .environment_schema import EnvironmentDocument, FilesDocument
from .inference_schema import InferenceRecord
from .robustness_schema import (
    RobustnessCategoryReport,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
)
from .schema import (
    CategoryReport,
    CurvesDocument,
    ImageRecord,
    SingleReport,
    SuiteReport,
    TrainingScoreRecord,
)

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
}


#: The file that the schemas in `docs/schemas` share; each document's own file refers to it.
SHARED = "documents.schema.json"


def json_schemas() -> dict[str, str]:
    """Return the JSON Schema of every document of a run by file name, each complete in itself."""
    return {
        f"{name}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for name, model in _documents().items()
    }


def schema_files() -> dict[str, str]:
    """Return the files of `docs/schemas`: one with all definitions, and one for each document."""
    documents = _documents()
    places, shared = models_json_schema([(one, "validation") for one in documents.values()])
    files = {SHARED: {"$schema": GenerateJsonSchema.schema_dialect, **shared}}
    for name, model in documents.items():
        place = places[model, "validation"]["$ref"]
        files[f"{name}.schema.json"] = {"$ref": f"{SHARED}{place}"}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def _documents() -> dict[str, type[BaseModel]]:
    """Return all models; those of config.json are the options that the pipelines above define."""
    from ..pipelines.run import RobustnessConfigDocument, RunConfig

    return {**DOCUMENTS, "config": RunConfig, "robustness.config": RobustnessConfigDocument}
