"""Forwards to `pyimgano.inference`, and results as plain JSON."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..runs import plain_json
from .calibrate import calibrate_threshold
from .scoring import InferenceResult, infer

__all__ = [
    "InferenceResult",
    "calibrate_threshold",
    "infer",
    "result_to_jsonable",
    "results_to_jsonable",
]


def result_to_jsonable(
    result: InferenceResult,
    *,
    anomaly_map_path: str | Path | None = None,
    include_anomaly_map_values: bool = False,
) -> dict[str, Any]:
    """Return a result as a dictionary that `json.dumps` takes.

    Parameters
    ----------
    result
        Of `infer`.
    anomaly_map_path
        Where the map was saved, if it was; named in `anomaly_map`.
    include_anomaly_map_values
        Whether the values of the map are included; by default its shape and dtype are.

    Returns
    -------
    dict
        `score` and `label`; `index`, `input`, `threshold` and what else is known; and
        `anomaly_map` with `path`, `shape` and `dtype`, where the result has a map.
    """
    fields = {
        name: value
        for name, value in vars(result).items()
        if name in ("score", "label", "index", "input", "threshold")
        or (value is not None and name not in ("anomaly_map", "map_scale"))
    }
    if result.anomaly_map is not None:
        about: dict[str, Any] = {
            "path": None if anomaly_map_path is None else str(anomaly_map_path),
            "shape": list(result.anomaly_map.shape),
            "dtype": str(result.anomaly_map.dtype),
        }
        if include_anomaly_map_values:
            about["values"] = result.anomaly_map
        fields["anomaly_map"] = about
    found: dict[str, Any] = plain_json(fields, where="the result")
    return found


def results_to_jsonable(
    results: Iterable[InferenceResult], *, include_anomaly_map_values: bool = False
) -> list[dict[str, Any]]:
    """Return results as a list that `json.dumps` takes; see `result_to_jsonable`."""
    return [
        result_to_jsonable(one, include_anomaly_map_values=include_anomaly_map_values)
        for one in results
    ]
