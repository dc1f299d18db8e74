"""The documents of a run and their JSON Schemas."""

from __future__ import annotations

import json

from pydantic import BaseModel

from .environment_schema import EnvironmentDocument, FilesDocument
from .inference_schema import InferenceRecord
from .robustness_schema import (
    RobustnessCategoryReport,
    RobustnessConfigDocument,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
)
from .schema import (
    CategoryReport,
    CurvesDocument,
    ImageRecord,
    RunConfig,
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
    "config": RunConfig,
    "environment": EnvironmentDocument,
    "files": FilesDocument,
    "training_scores": TrainingScoreRecord,
    "curves": CurvesDocument,
    "robustness.report.category": RobustnessCategoryReport,
    "robustness.report.single": RobustnessSingleReport,
    "robustness.report.suite": RobustnessSuiteReport,
    "robustness.per_image": RobustnessRecord,
    "robustness.config": RobustnessConfigDocument,
    "inference": InferenceRecord,
}


def json_schemas() -> dict[str, str]:
    """File name to JSON Schema text, for every document of a run."""
    return {
        f"{name}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for name, model in DOCUMENTS.items()
    }
