"""The run directory: names, schemas, atomic writes. Knows no detector and no torch."""

from .directory import DEFAULT_OUTPUT, RecordWriter, RunDirectory, write_document, write_text
from .schema import (
    SCHEMA_VERSION,
    CalibrationReport,
    CategoryReport,
    Counts,
    Failure,
    ImageRecord,
    MeasuredRate,
    Problem,
    Results,
    RunConfig,
    SingleReport,
    Status,
    SuiteReport,
    Timings,
    json_schemas,
)

__all__ = [
    "DEFAULT_OUTPUT",
    "SCHEMA_VERSION",
    "CalibrationReport",
    "CategoryReport",
    "Counts",
    "Failure",
    "ImageRecord",
    "MeasuredRate",
    "Problem",
    "RecordWriter",
    "Results",
    "RunConfig",
    "RunDirectory",
    "SingleReport",
    "Status",
    "SuiteReport",
    "Timings",
    "json_schemas",
    "write_document",
    "write_text",
]
