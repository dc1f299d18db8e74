"""A run as its directory holds it: what a page is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..datasets import get_layout, load_category
from ..errors import DataError, PyimganoError
from ..runs import (
    CategoryReport,
    CurvesDocument,
    EnvironmentDocument,
    ImageRecord,
    RobustnessCategoryReport,
    RobustnessRecord,
    RobustnessSingleReport,
    RobustnessSuiteReport,
    SingleReport,
    SuiteReport,
    TrainingScoreRecord,
    category_folder,
)
from ..untrusted_files import parse_json, read_regular, reason_of_failure
from .page_facts import same_path

TopReport = SingleReport | SuiteReport | RobustnessSingleReport | RobustnessSuiteReport
AnyCategory = CategoryReport | RobustnessCategoryReport

_KINDS: dict[str, type[TopReport]] = {
    "benchmark-category": SingleReport,
    "benchmark-suite": SuiteReport,
    "robustness-category": RobustnessSingleReport,
    "robustness-suite": RobustnessSuiteReport,
}

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class CategoryFiles:
    """One category of a run.

    Attributes
    ----------
    name
        As reports show it.
    report
        Of the category.
    folder
        Of the category in the run directory.
    images
        Records of the test images as they are (of a robustness run, the clean ones); empty
        without per_image.jsonl.
    training
        Records of the scores that the threshold comes from, highest first; empty in runs of
        earlier versions.
    curves
        None without.
    masks
        The files of the ground truth, by the path of an image as records show it.
    paths
        The paths of the dataset's images, by what records show.
    """

    name: str
    report: AnyCategory
    folder: Path
    images: list[ImageRecord] = field(default_factory=list)
    training: list[TrainingScoreRecord] = field(default_factory=list)
    curves: CurvesDocument | None = None
    masks: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """All of a run.

    Attributes
    ----------
    path
        The run directory.
    report
        report.json.
    config
        config.json as plain JSON values.
    environment
        environment.json; None if it cannot be read.
    categories
        Those that were begun, in the order of the report.
    """

    path: Path
    report: TopReport
    config: dict[str, Any]
    environment: EnvironmentDocument | None
    categories: list[CategoryFiles]

    @property
    def bit_depth(self) -> int | None:
        """Return how many bits of 16 the run's images use; None for what files declare."""
        value = (self.config.get("arguments") or self.config).get("bit_depth")
        return value if isinstance(value, int) else None

    @property
    def max_pixels(self) -> int | None:
        """Return the run's limit of the pixels of an image; None where it is not known."""
        value = self.config.get("max_pixels")
        return value if isinstance(value, int) and value > 0 else None


def read_run(path: str | Path) -> RunFiles:
    """Read a run directory.

    Raises
    ------
    DataError
        It is not a run directory, has no report yet, or one of its files is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: {'is not a folder' if path.exists() else 'no such folder'}; give "
            "a run directory"
        )
    config = _json(path / "config.json", "it is not a run directory")
    document = _json(path / "report.json", "the run has no report yet")
    kind = document.get("kind")
    if kind not in _KINDS:
        raise DataError(f"{path / 'report.json'}: is not a report of a run (kind {kind!r})")
    report: TopReport = _model(_KINDS[kind], document, path / "report.json")
    if isinstance(report, (SuiteReport, RobustnessSuiteReport)):
        reports: dict[str, AnyCategory] = dict(report.per_category)
    else:
        reports = {report.category: report}
    categories = [_category(path, name, one, config) for name, one in reports.items()]
    environment = None
    if (path / "environment.json").exists():
        place = path / "environment.json"
        environment = _model(EnvironmentDocument, _json(place, ""), place)
    return RunFiles(path, report, config, environment, categories)


def _category(
    run: Path, name: str, report: AnyCategory, config: Mapping[str, Any]
) -> CategoryFiles:
    folder = category_folder(run, name)
    robust = isinstance(report, RobustnessCategoryReport)
    record: type[ImageRecord] = RobustnessRecord if robust else ImageRecord
    images: list[ImageRecord] = [
        one
        for one in _lines(folder / "per_image.jsonl", record)
        if not isinstance(one, RobustnessRecord) or one.corruption is None
    ]
    training = _lines(folder / "training_scores.jsonl", TrainingScoreRecord)
    curves = None
    if (folder / "curves.json").exists():
        place = folder / "curves.json"
        curves = _model(CurvesDocument, _json(place, ""), place)
    masks, paths = _dataset(report, name, config)
    return CategoryFiles(
        name,
        report,
        folder,
        images,
        sorted(training, key=lambda one: (-one.score, one.index)),
        curves,
        masks,
        paths,
    )


def _dataset(
    report: AnyCategory, name: str, config: Mapping[str, Any]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Path]]:
    """Return masks and paths of a category's images; none where the dataset is gone.

    The page then says of each image that it cannot be read.
    """
    try:
        outside = bool(config.get("allow_outside"))
        layout = get_layout(report.dataset, split=report.split, allow_outside=outside)
        category = load_category(layout, Path(report.root), name)
    except PyimganoError:
        return {}, {}
    samples = [*category.train, *category.validation, *category.test]
    masks = {same_path(one.path): tuple(one.mask_paths) for one in category.test if one.mask_paths}
    return masks, {same_path(one.path): one.path for one in samples}


def _lines(path: Path, model: type[_Model]) -> list[_Model]:
    """Return the records of a file of lines; a last line that a crash has cut is left out."""
    if not path.exists():
        return []
    found: list[_Model] = []
    lines = _bytes(path, "").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(model.model_validate_json(line))
        except ValidationError:
            if number == len(lines):  # without an end
                break
            raise DataError(f"{path}: line {number} is not a record of a run") from None
    return found


def _bytes(path: Path, missing: str) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {missing}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error


def _json(path: Path, missing: str) -> dict[str, Any]:
    data = _bytes(path, missing)
    try:
        document = parse_json(data)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({reason_of_failure(error)})") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: is not a document of a run")
    return document


def _model(model: type[_Model], document: Mapping[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{path}: {place}: {first['msg']}") from None


def labelled(images: Iterable[ImageRecord], label: int | None) -> list[ImageRecord]:
    """Return the records with a score and this label."""
    return [one for one in images if one.score is not None and one.y_true == label]
