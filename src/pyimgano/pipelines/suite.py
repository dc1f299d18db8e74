"""A run goes through the categories of a dataset, and is reported truly at any time.

One bad category costs that category alone; Ctrl-C leaves a run that says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..datasets import Category, limit_category, load_category
from ..errors import DataError, PyimganoError
from ..runs import Failure, FittedReport
from .config import BenchmarkConfig
from .results import EvaluationProtocol
from .run_documents import Report, RunDocuments

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Told how a run goes on; what the command line's progress bar is."""

    def category_started(self, name: str, number: int, total: int) -> None: ...

    def stage(self, stage: str, done: int, total: int) -> None: ...

    def category_finished(self, report: FittedReport) -> None: ...


@dataclass(frozen=True)
class CategoryTask:
    """One category to fit and measure.

    Attributes
    ----------
    category
        With as many images as were asked for.
    train
        Paths of the images to fit on.
    calibration_images
        Paths of images to calibrate on, instead of the training images; None without.
    protocol
        What is measured.
    """

    category: Category
    train: list[str]
    calibration_images: list[str] | None
    protocol: EvaluationProtocol


def load_task(run: RunDocuments[Any, Any], name: str) -> CategoryTask:
    """The category called `name`, as the run's config wants it.

    Raises
    ------
    DataError
        No training images, or no validation images where they are wanted.
    """
    config: BenchmarkConfig = run.config
    whole = load_category(run.layout, run.root, name)
    category = limit_category(whole, config.limit_train, config.limit_test, config.seed)
    held_out = config.calibration == "validation"
    if held_out and not category.validation:
        raise DataError(f"{run.root}: category {name!r} has no validation images")
    return CategoryTask(
        category,
        [str(sample.path) for sample in category.train],
        [str(sample.path) for sample in category.validation] if held_out else None,
        EvaluationProtocol(
            pixel=config.pixel,
            pro_integration_limit=run.aupro_limit,
            spro="spro" in run.layout.own_metrics,
            saturation=category.saturation,
            kinds=tuple(sorted({sample.defect for sample in whole.test if sample.label})),
            kinds_apart=run.layout.kinds_apart,
        ),
    )


def run_categories(
    run: RunDocuments[Any, Report],
    measure: Callable[[str], Report],
    listener: Listener | None,
) -> dict[str, Any]:
    """Measure every category of a run; gives the top-level report as plain JSON values.

    Parameters
    ----------
    run
        Its reports are written as things stand, at any time.
    measure
        Gives the report of the category of that name.
    listener
        Told of progress.

    Raises
    ------
    PyimganoError
        What is wrong with the category, where one alone is asked for.
    """
    run.write("running")
    try:
        for number, name in enumerate(run.names, start=1):
            if listener is not None:
                listener.category_started(name, number, len(run.names))
            report = _one_category(run, name, measure)
            if listener is not None:
                listener.category_finished(report)
        return run.write("complete" if not run.failed else "failed")
    except KeyboardInterrupt:
        run.write("interrupted")
        raise
    except Exception as error:
        run.write("failed", _failure(error))
        raise


def _one_category(
    run: RunDocuments[Any, Report], name: str, measure: Callable[[str], Report]
) -> Report:
    """Measure it and write its report; of several, a failed one is a report that says so."""
    try:
        run.keep(run.category_report(name, status="running"))
        report = measure(name)
    except Exception as error:  # whatever it is, it costs this category alone
        report = run.unfinished(name, "failed", _failure(error))
        run.failed.append(name)
        if len(run.names) == 1:
            run.keep(report)
            raise
        if not isinstance(error, PyimganoError):  # a bug of ours, or of what we stand on
            _log.exception("category %r failed", name)
    except KeyboardInterrupt:
        run.keep(run.unfinished(name, "interrupted"))
        raise
    run.keep(report)
    run.write("running")
    return report


def _failure(error: Exception) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error) or type(error).__name__)
