"""A run goes through the categories of a dataset, and is reported truly at any time.

One bad category costs that category alone; Ctrl-C leaves a run that says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..datasets import Category, limit_category, load_category
from ..errors import DataError, PyimganoError, during
from ..runs import FittedReport, shown
from .config import BenchmarkConfig, Options, make_postprocess
from .exclusion import read_exclusions, without_excluded
from .failures import failure_of
from .files import used_files
from .results import EvaluationProtocol, NormalPixelQuantile
from .run_documents import Report, RunDocuments

_log = logging.getLogger(__name__)

#: The runs that this process is at.
_under_way: list[RunDocuments[Any, Any]] = []


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
    excluded
        Training images that the user's list left out.
    """

    category: Category
    train: list[str]
    calibration_images: list[str] | None
    protocol: EvaluationProtocol
    excluded: tuple[str, ...] = ()


def load_task(run: RunDocuments[Any, Any], name: str) -> CategoryTask:
    """The category called `name`, as the run's config wants it.

    Raises
    ------
    DataError
        No training images, or no validation images where they are wanted.
    """
    config: Options = run.config
    with during("reading"):
        whole = load_category(run.layout, run.root, name)
        category = limit_category(whole, config.limit_train, config.limit_test, config.seed)
        held_out = config.calibration == "validation"
        if held_out and not category.validation:
            raise DataError(f"{run.root}: category {name!r} has no validation images")
        files = used_files(category, run.root) if run.directory is not None else None
        excluded: tuple[str, ...] = ()
        if config.exclude is not None:
            names = read_exclusions(config.exclude, run.root)
            category, excluded = without_excluded(category, names, run.root)
    if files is not None:
        with during("writing"):
            run.keep_files(name, files)
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
            **pixel_protocol(config),
        ),
        excluded,
    )


def pixel_protocol(config: Options) -> dict[str, Any]:
    """The fields of `EvaluationProtocol` about thresholds of pixels and post-processing."""
    if not isinstance(config, BenchmarkConfig):
        return {"segf1": config.pixel_segf1}
    strategy = None
    if config.pixel_threshold_strategy is not None:
        strategy = NormalPixelQuantile(
            config.pixel_normal_quantile,
            config.pixel_calibration_fraction,
            config.pixel_calibration_seed,
        )
    keywords = config.pixel_postprocess
    return {
        "background": config.pixel_segf1 or strategy is not None,
        "pixel_quantile": strategy,
        "postprocess": None if keywords is None else make_postprocess(keywords),
    }


def run_categories(
    run: RunDocuments[Any, Report],
    measure: Callable[[str], Report],
    listener: Listener | None,
    fail_fast: bool = False,
) -> dict[str, Any]:
    """Measure every category of a run that is not complete yet.

    Parameters
    ----------
    run
        Its reports are written as things stand, at any time.
    measure
        Gives the report of the category of that name.
    listener
        Object whose methods are called as the run advances.
    fail_fast
        Whether the first category that fails is the last one.

    Returns
    -------
    dict
        The top-level report as plain JSON values.

    Raises
    ------
    PyimganoError
        What is wrong with the category, where one alone is asked for. Its `report` has what was
        measured before, where a report cannot be written.
    """
    complete = set(run.reports)
    _under_way.append(run)
    try:
        run.write("running")
        for number, name in enumerate(run.names, start=1):
            if shown(name) in complete:
                continue
            if listener is not None:
                listener.category_started(name, number, len(run.names))
            report = _one_category(run, name, measure)
            if listener is not None:
                listener.category_finished(report)
            if report.status == "failed" and fail_fast:
                break
        return run.write("complete" if not run.failed else "failed")
    except KeyboardInterrupt:
        run.end_running("interrupted")
        run.write("interrupted")
        raise
    except Exception as error:
        failure = failure_of(error)
        if isinstance(error, PyimganoError):
            error.report = run.finished_part(failure)
        with contextlib.suppress(DataError):  # on a full disk the first error says which file
            run.write("failed", failure)
        raise
    finally:
        _under_way.remove(run)


def interrupt_all() -> None:
    """Write of every run under way that it was interrupted, from another thread than theirs."""
    for run in list(_under_way):
        with contextlib.suppress(DataError):  # a disk that is full; the others may be on another
            run.interrupt()


def _one_category(
    run: RunDocuments[Any, Report], name: str, measure: Callable[[str], Report]
) -> Report:
    """Measure it and write its report; of several, a failed one is a report that says so."""
    try:
        with during("writing"):
            if run.resumed and run.directory is not None:
                run.directory.clear(name)
            run.keep(run.category_report(name, status="running"))
        report = measure(name)
    except Exception as error:  # whatever it is, it costs this category alone
        report = run.unfinished(name, "failed", failure_of(error))
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
