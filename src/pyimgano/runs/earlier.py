"""A run that is on disk already, read to be taken up again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import DataError, UsageError
from ..untrusted_files import parse_json, read_regular
from .directory import category_folder
from .environment_schema import EnvironmentDocument, FilesDocument
from .schema import FittedReport

_Config = TypeVar("_Config", bound=BaseModel)
_Report = TypeVar("_Report", bound=FittedReport)
_Document = TypeVar("_Document", bound=BaseModel)

#: In the config.json of a robustness run alone.
_ROBUSTNESS = "corruptions"


class EarlierRun(Generic[_Config, _Report]):
    """What a run directory holds.

    Parameters
    ----------
    path
        The run directory.
    config, report
        The models of its config.json (which says what versions it reads), and of a category's
        report.json.

    Attributes
    ----------
    config
        Its config.json.
    environment
        Its environment.json; None if there is none that can be read.

    Raises
    ------
    DataError
        No run directory, one of another kind or of another version, or a config.json that is not
        valid.
    """

    def __init__(self, path: Path, config: type[_Config], report: type[_Report]) -> None:
        self.path = path
        self._report = report
        document = _require_run(path)
        self._require_kind(document, config)
        version = document.get("schema_version")
        readable: tuple[int, ...] = config.readable  # type: ignore[attr-defined]
        if version not in readable:
            raise DataError(
                f"{path / 'config.json'}: schema_version is {version!r}, this program reads "
                f"{' and '.join(map(str, readable))}"
            )
        try:
            self.config = config.model_validate(document)
        except ValidationError as error:
            raise DataError(f"{path / 'config.json'}: {_first(error)}") from None
        self.environment = _read(path / "environment.json", EnvironmentDocument)

    def complete_report(self, category: str) -> _Report | None:
        """Return the report of a category that was finished; None if it was not, or cannot be
        read.
        """
        report = _read(self._category(category) / "report.json", self._report)
        return report if report is not None and report.status == "complete" else None

    def files(self, category: str) -> FilesDocument | None:
        """Return what the category was measured on; None if that is not known."""
        return _read(self._category(category) / "files.json", FilesDocument)

    def _category(self, name: str) -> Path:
        return category_folder(self.path, name)

    def _require_kind(self, document: dict[str, Any], config: type[BaseModel]) -> None:
        is_robust, wanted = _ROBUSTNESS in document, _ROBUSTNESS in config.model_fields
        if is_robust != wanted:
            kinds = {False: ("benchmark", "benchmark"), True: ("robustness", "robust-benchmark")}
            what, command = kinds[is_robust]
            raise UsageError(f"{self.path}: is a {what} run; pyimgano {command} resumes it")


def resume_command(run: Path) -> str | None:
    """Return the command that goes on with a run; None where it is complete, or cannot go on."""
    try:
        document = _require_run(run)
        complete = finished_report(run) is not None
    except DataError:
        return None
    # what a run was asked for may be nothing that JSON holds, such as an array
    asked = document.get("model_kwargs", document.get("arguments"))
    if complete or asked is None:
        return None
    command = "robust-benchmark" if _ROBUSTNESS in document else "benchmark"
    return f"pyimgano {command} --resume {shlex.quote(str(run))}"


def finished_report(run: str | Path) -> dict[str, Any] | None:
    """Return the top-level report of a run that is complete, as it stands there; None if it is not.

    Raises
    ------
    DataError
        It is not a run directory.
    """
    path = Path(run)
    _require_run(path)
    try:
        report = parse_json(read_regular(path / "report.json"))
    except (OSError, ValueError):  # killed before the first was written
        return None
    return report if isinstance(report, dict) and report.get("status") == "complete" else None


def _require_run(path: Path) -> dict[str, Any]:
    """Read the config.json of a run directory."""
    try:
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "no such folder"
            raise DataError(f"{path}: {what}; give a run directory")
        data = read_regular(path / "config.json")
    except FileNotFoundError:
        raise DataError(f"{path}: is not a run directory, it has no config.json") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error
    try:
        document = parse_json(data)
    except ValueError as error:
        raise DataError(f"{path / 'config.json'}: is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{path / 'config.json'}: is not a config of a run")
    return document


def _read(path: Path, model: type[_Document]) -> _Document | None:
    try:
        return model.model_validate_json(read_regular(path))
    except (OSError, ValueError):
        return None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the document"
    shown = repr(first["input"])
    return f"{place}: {first['msg']}, got {shown if len(shown) <= 80 else shown[:80] + '...'}"
