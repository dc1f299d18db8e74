"""What is logged of a run: its parameters, its metrics and its files, under the same names in
every tracker.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..untrusted_files import parse_json, read_regular, reason_of_failure

# Fields of report.json that are means over the categories, or of the categories' conditions.
_OVER_CATEGORIES = (
    *("mean_metrics", "std_metrics", "metric_categories"),
    *("clean", "corruptions", "summary"),
)
# Numbers that measure nothing.
_NO_METRICS = frozenset({"schema_version", "parameters"})
_FILES = ("report.json", "report.html", "config.json", "environment.json")
# What MLflow, the strictest of the trackers, does not take in a name, and the longest it takes.
_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
_LONGEST_NAME = 240
_PICTURE = re.compile(r'<img src="data:image/jpeg;base64,([^"]+)"[^>]*?alt="([^"]*)"')


@dataclass(frozen=True)
class RunRecord:
    """What is logged of a run.

    Attributes
    ----------
    name
        Of the run directory.
    status
        As report.json has it: complete, failed or interrupted.
    started_at, finished_at
        ISO 8601 with offset; `finished_at` is None where it is not known.
    parameters
        The values of config.json by name; what stands deeper is joined with slashes, as
        `model_kwargs/n_neighbors`. A list is a list.
    metrics
        The numbers of report.json by name, as `mean_metrics/auroc` and
        `per_category/bottle/results/auroc`. A run over one category has the same names as a run
        over several.
    files
        Those of the run directory that are kept with the run.
    """

    name: str
    status: str
    started_at: str
    finished_at: str | None
    parameters: dict[str, Any]
    metrics: dict[str, float]
    files: list[Path]

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Yield the pictures of report.html as JPEG files, with what they show."""
        for path in self.files:
            if path.suffix == ".html":
                text = path.read_text(encoding="utf-8")
                for number, found in enumerate(_PICTURE.finditer(text), start=1):
                    shown = f"{number:03d} {html.unescape(found[2])}"
                    yield shown, base64.b64decode(found[1])


def read_run_record(run: str | Path) -> RunRecord:
    """Read what is logged of the run in a directory.

    Raises
    ------
    DataError
        It is no run directory, has no report yet, or one of the two documents is damaged.
    """
    path = Path(run)
    config, report = _document(path / "config.json"), _document(path / "report.json")
    categories = report.get("per_category")
    if categories is None:
        one = {name: value for name, value in report.items() if name not in _OVER_CATEGORIES[:3]}
        categories = {report.get("category", ""): one}
    measured = {name: report[name] for name in _OVER_CATEGORIES if name in report}
    measured["per_category"] = categories
    numbers = {
        name: float(value)
        for name, value in _leaves(measured, _NO_METRICS)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return RunRecord(
        path.absolute().name,
        str(report.get("status")),
        str(report.get("started_at")),
        report.get("finished_at"),
        _named(dict(_leaves(config))),
        _named(numbers),
        [path / name for name in _FILES if (path / name).is_file()],
    )


def _leaves(
    document: dict[str, Any], without: frozenset[str] = frozenset(), before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield what stands in a document and is no object itself, with its name."""
    for key, value in document.items():
        if key in without:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, without, f"{before}{key}/")
        else:
            yield before + key, value


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values under names that every tracker takes; no two become one."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME]
        free, number = plain, 2
        while free in found:
            free, number = f"{plain}_{number}", number + 1
        found[free] = value
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no document of a run")
    return found


def as_text(value: Any) -> str:
    """Return a parameter as text: JSON, but for text itself, which has no quotes."""
    return value if isinstance(value, str) else json.dumps(value)
