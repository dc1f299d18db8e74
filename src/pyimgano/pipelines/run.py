"""A run: its categories one after another, its documents true at any time, and config.json.

One bad category costs that category alone; Ctrl-C leaves a run that says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, Field, model_validator

from .. import __version__
from ..datasets import (
    Category,
    limit_category,
    load_category,
    read_exclusions,
    without_excluded,
)
from ..errors import DataError, PyimganoError, during, stage_of
from ..images import max_pixels
from ..memory import one_line
from ..models.registry import create_model
from ..pages import REPORT_PAGE, write_report_page
from ..runs import (
    EarlierRun,
    Failure,
    FittedReport,
    Plain,
    Problem,
    ResumedSession,
    RunDirectory,
    RunFields,
    Status,
    Text,
    shown,
    shown_within,
    used_files,
    write_document,
)
from ..runs.environment import command_line
from ..tracking import track_run
from .config import BenchmarkConfig, Options, RobustnessConfig, as_json, make_postprocess
from .measure import EvaluationProtocol, NormalPixelQuantile, Task

if TYPE_CHECKING:
    from typing_extensions import Self

    from .open_run import Opened
    from .report import CategoryReporter

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parents[1]

Report = TypeVar("Report", bound=FittedReport)
Config = TypeVar("Config", bound=Options)

#: Options of which config.json holds the value that they came to, by preset and defaults.
_SETTLED = (
    *("category", "resize", "contamination", "calibration_quantile", "calibration_tail"),
    *("pixel_aupro_limit", "max_pixels"),
)


class _Settled(BaseModel):
    """What config.json adds to the options, and the values that they came to."""

    #: Versions of config.json that are read.
    readable: ClassVar[tuple[int, ...]] = (1, 2)

    schema_version: int = 2
    pyimgano_version: str
    started_at: str = Field(description="ISO 8601 with offset")
    root: Text
    category: Text = Field(description="one, several separated by commas, or all")
    categories: list[Text] = Field(description="the names that this came to")
    own_metrics: list[str] = Field(description="the metrics that the dataset's authors report")
    model_kwargs: Plain | None = Field(
        description="null if they hold something that JSON cannot; such a run cannot be resumed"
    )
    detector_parameters: Plain = Field(
        description="the model's other keywords, by preset and defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_is_now(cls, document: Any) -> Any:
        """Read the first version too, and write no text that JSON cannot hold."""
        if isinstance(document, dict) and document.get("schema_version") == 1:
            document = cls._from_first_version(document)
        return shown_within(document)

    @classmethod
    def _from_first_version(cls, document: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of now from a config.json that held most options twice.

        At its top were some options as they came to, and under `arguments` all as they were given.
        """
        known = {name: value for name, value in document.items() if name in cls.model_fields}
        arguments = document.get("arguments") or {"model_kwargs": None}
        if "corruptions" in known:  # had no say there
            no_options = BenchmarkConfig.model_fields.keys() - RobustnessConfig.model_fields.keys()
            arguments = {name: v for name, v in arguments.items() if name not in no_options}
        given = {name: v for name, v in arguments.items() if name not in _SETTLED}
        keywords = given.get("model_kwargs")
        if keywords and known.get("resize"):  # which image_size came to
            given["model_kwargs"] = {k: v for k, v in keywords.items() if k != "image_size"}
        return {**known, **given, "schema_version": 2}


class RunConfig(_Settled, BenchmarkConfig):  # type: ignore[misc]
    """config.json: the options of the run with the values that they came to, each once."""


class RobustnessConfigDocument(_Settled, RobustnessConfig):  # type: ignore[misc]
    """config.json of a robustness run: its options with the values that they came to."""

    corruption_parameters: dict[str, list[dict[str, float]]] = Field(
        description="by corruption, of the severities asked for"
    )


class Listener(Protocol):
    """Told how a run goes on; what the command line's progress bar is."""

    def category_started(self, name: str, number: int, total: int) -> None: ...

    def stage(self, stage: str, done: int, total: int) -> None: ...

    def category_finished(self, report: FittedReport) -> None: ...


@runtime_checkable
class Interrupter(Listener, Protocol):
    """A listener that may have to end a run from another thread, by `Run.interrupt`."""

    def run_begins(self, run: Run[Any, Any]) -> None: ...


class Run(ABC, Generic[Config, Report]):
    """A run that begins or goes on: knows its categories, and makes and writes its documents.

    `open_run` gives one, in a `with` block that holds its directory. When the block is left, the
    top-level report says how the run ended.

    Attributes
    ----------
    config, keywords, layout, root, names, category
        What was asked for, and what it came to; see `Opened`.
    reports
        The categories' reports so far, by name, in the order of `names`.
    aupro_limit
        Of AUPRO and sPRO: what was asked for, else that of the dataset's authors.
    parameters
        The detector's keywords as plain JSON values.
    environment
        What the run is made with; of a resumed one, what it was begun with.
    directory
        Where the run is saved; None if it is not.
    """

    #: Stands in the name of the run's directory; none for a benchmark.
    kind: ClassVar[str | None] = None
    #: The options, and the models of config.json and of a category's report.
    config_class: ClassVar[type[Options]]
    config_document: ClassVar[type[RunConfig | RobustnessConfigDocument]]
    report_class: ClassVar[type[FittedReport]]
    #: Gathers what a category's report says.
    reporter: ClassVar[Callable[..., CategoryReporter]]

    def __init__(
        self,
        opened: Opened[Config],
        listener: Listener | None,
        fail_fast: bool,
        earlier: EarlierRun[Any, Report] | None = None,
    ) -> None:
        self.config = opened.config
        self.keywords = opened.keywords
        self.create = opened.create
        self.layout = opened.layout
        self.root = opened.root
        self.names = opened.names
        self.category = opened.category
        self.parameters = opened.parameters
        self.environment = opened.environment
        self.started_at = opened.environment.started_at
        self.listener = listener
        self.fail_fast = fail_fast
        self.reports: dict[str, Report] = {}
        limit = self.config.pixel_aupro_limit
        self.aupro_limit = self.layout.aupro_limit if limit is None else limit
        self.directory: RunDirectory | None = None
        self.resumed = earlier is not None
        self._writing = threading.RLock()
        self._ended = False
        self._summary: dict[str, Any] = {}
        if earlier is not None:
            self.started_at = earlier.config.started_at
            known = {name: earlier.complete_report(name) for name in map(shown, self.names)}
            self.reports = {name: one for name, one in known.items() if one is not None}

    # ---- the way of a run

    def begin(self, output_dir: str | Path | None, runs_dir: str | Path | None) -> None:
        """Make the directory of a new run, if it is saved."""
        if not self.config.save_run:
            return
        first = {"config.json": self.config_json(), "environment.json": self.environment}
        if output_dir is not None:
            self.directory = RunDirectory.create_at(output_dir, first)
            return
        started = datetime.fromisoformat(self.started_at)
        names = self.layout.name, self.config.model
        self.directory = RunDirectory.create(runs_dir, *names, started, self.kind, first)

    def go_on(
        self, directory: RunDirectory, earlier: EarlierRun[Any, Report], differs: list[str]
    ) -> None:
        """Note that an earlier run goes on, and in what it `differs` from what was begun."""
        self.directory = directory
        began = earlier.environment or self.environment
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        session = ResumedSession(at=at, command_line=command_line(), differs=differs)
        self.environment = began.model_copy(update={"resumed": [*began.resumed, session]})
        directory.sweep()
        directory.write("environment.json", self.environment)

    def __enter__(self) -> Self:
        if isinstance(self.listener, Interrupter):
            self.listener.run_begins(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                try:
                    self._summary = self.write("failed" if self.failed else "complete")
                except Exception as full:  # a disk, most likely
                    self._fail(full)
                    raise
            elif isinstance(error, KeyboardInterrupt):
                self._end_running("interrupted")
                self.write("interrupted")
            elif isinstance(error, Exception):
                self._fail(error)
        finally:
            self._ended = True
            if self.directory is not None:
                self.directory.close()

    def pending(self) -> Iterator[str]:
        """Yield the names of the categories that are not complete yet, one to be run after another.

        With `fail_fast` the first category that fails is the last.
        """
        complete = set(self.reports)
        self.write("running")
        for number, name in enumerate(self.names, start=1):
            if shown(name) in complete:
                continue
            if self.listener is not None:
                self.listener.category_started(name, number, len(self.names))
            yield name
            report = self.reports[shown(name)]
            if self.listener is not None:
                self.listener.category_finished(report)
            if report.status == "failed" and self.fail_fast:
                break

    @contextmanager
    def reporting(self, name: str) -> Iterator[Any]:
        """Give what gathers the report of a category, and write it when the block is left.

        An error is the report of this category, and the run goes on with the others. Where one
        category alone is asked for, it is raised too.
        """
        reporter = self.reporter(self, name)
        try:
            with reporter:
                yield reporter
            report = reporter.report
        except Exception as error:  # whatever it is, it costs this category alone
            self.keep(self._unfinished(name, "failed", failure_of(error)))
            if len(self.names) == 1:
                raise
            if not isinstance(error, PyimganoError):  # a bug of ours, or of what we stand on
                _log.exception("category %r failed", name)
        except KeyboardInterrupt:
            self.keep(self._unfinished(name, "interrupted"))
            raise
        else:
            self.keep(report)
        self.write("running")

    def summary(self) -> dict[str, Any]:
        """Return the top-level report of a run that has ended, as plain JSON values."""
        return self._summary

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell the listener how far the stage of a category is."""
        if self.listener is not None:
            self.listener.stage(stage, done, total)

    def load(self, name: str) -> Task:
        """Load the category called `name` as the options want it, and begin its report.

        Raises
        ------
        DataError
            No training images, or no validation images where they are wanted.
        """
        config = self.config
        with during("writing"):
            if self.resumed and self.directory is not None:
                self.directory.clear(name)
            self.keep(self.category_report(name, status="running"))
        with during("reading"):
            whole, category = self.read_category(name)
            held_out = config.calibration == "validation"
            if held_out and not category.validation:
                raise DataError(f"{self.root}: category {name!r} has no validation images")
            files = None if self.directory is None else used_files(category, self.root)
            excluded: tuple[str, ...] = ()
            if config.exclude is not None:
                unwanted = read_exclusions(config.exclude, self.root)
                category, excluded = without_excluded(category, unwanted, self.root)
        if files is not None and self.directory is not None:
            with during("writing"):
                write_document(self.directory.category(shown(name)) / "files.json", files)
                self._keep_fingerprint(shown(name), files.fingerprint)
        return Task(
            [str(sample.path) for sample in category.train],
            category.test,
            EvaluationProtocol(
                pixel=config.pixel,
                pro_integration_limit=self.aupro_limit,
                spro="spro" in self.layout.own_metrics,
                saturation=category.saturation,
                kinds=tuple(sorted({sample.defect for sample in whole.test if sample.label})),
                kinds_apart=self.layout.kinds_apart,
                **_pixel_protocol(config),
            ),
            [str(sample.path) for sample in category.validation] if held_out else None,
            config.on_error,
            config.exclude_suspects,
            category=category,
            excluded=excluded,
        )

    def read_category(self, name: str) -> tuple[Category, Category]:
        """Return a category as it lies there, and with as many images as were asked for."""
        config = self.config
        whole = load_category(self.layout, self.root, name)
        return whole, limit_category(whole, config.limit_train, config.limit_test, config.seed)

    def create_detector(self) -> Any:
        """Make a detector of the model that was asked for."""
        return self.create(self.config.model, **self.keywords)

    # ---- documents

    @property
    def failed(self) -> list[str]:
        """Return the names of the categories that failed."""
        return [name for name, one in self.reports.items() if one.status == "failed"]

    def keep(self, report: Report) -> None:
        """Take a category's report into the run, in place of an earlier one, and write it."""
        with self._writing:
            known = {**self.reports, report.category: report}
            self.reports = {name: known[name] for name in map(shown, self.names) if name in known}
            if self.directory is not None:
                write_document(self.directory.category(report.category) / "report.json", report)

    def write(self, status: Status, failure: Failure | None = None) -> dict[str, Any]:
        """Write the top-level report as things stand, and return it as plain JSON values.

        A run that has ended also gets its page, and is logged to its tracker.
        """
        with self._writing:
            report = self._top_report(status, failure)
            if self.directory is not None:
                self.directory.write("report.json", report)
                if self.config.html and status in ("complete", "failed"):
                    write_page(self.directory.path)
                if self.config.track is not None and status in ("complete", "failed"):
                    _track(self.directory.path, self.config.track, self.config.track_dir)
        return _plain(report)

    def interrupt(self) -> None:
        """Write that the run was interrupted; from then on nothing is written any more.

        For a process that is about to end and cannot wait for what it is doing.
        """
        if self._ended or not self._writing.acquire(timeout=1.0):
            return  # there is nothing to interrupt, or the disk does not answer
        self._end_running("interrupted")
        # The lock is never released: the thread that was interrupted writes nothing after this.
        self.write("interrupted")

    def category_report(self, name: str, **fields: Any) -> Report:
        """Return a category's report; what is not given is not known yet."""
        unknown = (
            *("score_threshold_strategy", "calibration_quantile", "threshold", "calibration"),
            *("pixel_calibration", "counts"),
        )
        known: dict[str, Any] = {
            **self._asked(name),
            **dict.fromkeys(unknown),
            "problems": list[Problem](),
            "notes": list[str](),
            "detector": {"parameters": self.parameters},
            **self._unmeasured(),
        }
        return self.report_class(**{**known, **fields})  # type: ignore[return-value]

    def config_json(self) -> BaseModel:
        """Return config.json: the options with what they came to."""
        config = self.config
        keywords = as_json(config.model_kwargs)
        fields = {
            **config.model_dump(),
            "root": str(self.root),
            "category": self.category,
            "resize": self.parameters["resize"],
            "pixel_aupro_limit": self.aupro_limit,
            "max_pixels": max_pixels(),
            "model_kwargs": keywords,
        }
        if self.create is create_model:
            # another's detectors may not take these as keywords, if they were not given
            for name in ("contamination", "calibration_quantile", "calibration_tail"):
                fields[name] = self.parameters.get(name)
            if self.parameters["resize"] is not None and keywords:
                keywords.pop("image_size", None)  # has become resize
        return self.config_document(
            **fields,
            pyimgano_version=__version__,
            started_at=self.started_at,
            categories=self.names,
            own_metrics=list(self.layout.own_metrics),
            detector_parameters=config.further_parameters(self.parameters),
            **self._config_facts(),
        )

    @abstractmethod
    def _unmeasured(self) -> dict[str, Any]:
        """Return the fields of a category's report that measuring fills, while it has not begun."""

    @abstractmethod
    def _single(self, fields: dict[str, Any]) -> RunFields:
        """Return the top-level report of a run over one category, given all its fields."""

    @abstractmethod
    def _suite(self, fields: dict[str, Any]) -> RunFields:
        """Return that of several, given the fields that every kind of run has."""

    def _config_facts(self) -> dict[str, Any]:
        """Return further fields of config.json of this kind of run."""
        return {}

    def _keep_fingerprint(self, name: str, fingerprint: str) -> None:
        assert self.directory is not None
        known = {**self.environment.dataset_fingerprints, name: fingerprint}
        ordered = {one: known[one] for one in map(shown, self.names) if one in known}
        self.environment = self.environment.model_copy(update={"dataset_fingerprints": ordered})
        self.directory.write("environment.json", self.environment)

    def _fail(self, error: Exception) -> None:
        """Write that the run failed; the error keeps what was measured before."""
        failure = failure_of(error)
        if isinstance(error, PyimganoError) and any(
            one.status == "complete" for one in self.reports.values()
        ):
            error.report = _plain(self._top_report("failed", failure))
        with contextlib.suppress(DataError):  # on a full disk the first error says which file
            self.write("failed", failure)

    def _end_running(self, status: Status) -> None:
        """Give the categories under way, if any, another status."""
        for name, one in list(self.reports.items()):
            if one.status == "running":
                self.keep(self._unfinished(name, status))

    def _unfinished(self, name: str, status: Status, failure: Failure | None = None) -> Report:
        """Return the report of a category that stopped: what was known of it stays."""
        known = self.reports.get(shown(name))
        if known is None:
            return self.category_report(name, status=status, failure=failure)
        return known.model_copy(update={"status": status, "failure": failure})

    def _asked(self, category: str) -> dict[str, Any]:
        """Return the fields that every report begins with."""
        return {
            "dataset": self.layout.name,
            "root": str(self.root),
            "split": self.layout.split,
            "own_metrics": list(self.layout.own_metrics),
            "category": category,
            "model": self.config.model,
            "preset": self.config.preset,
            "device": self.config.device,
            "resize": self.parameters["resize"],
        }

    def _top_report(self, status: Status, failure: Failure | None) -> RunFields:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        run: dict[str, Any] = {
            "run_dir": None if self.directory is None else str(self.directory.path),
            "pyimgano_version": __version__,
            "started_at": self.started_at,
            "finished_at": None if status == "running" else now,
            "resumed_at": [session.at for session in self.environment.resumed],
        }
        if len(self.names) == 1 and self.category != "all":
            name = self.names[0]
            category = self.reports.get(shown(name)) or self.category_report(name, status="running")
            fields = {**category.model_dump(), **run}
            if failure is not None:
                fields["failure"] = failure
            if status != "complete":
                fields["status"] = status
            return self._single(fields)
        complete = [one for one in self.reports.values() if one.status == "complete"]
        first = complete[0] if complete else None
        fields = {
            **run,
            **self._asked(self.category),
            "status": status,
            "calibration_quantile": first.calibration_quantile if first else None,
            "categories": self.names,
            "per_category": self.reports,
            "failed_categories": self.failed,
            "not_begun": [name for name in map(shown, self.names) if name not in self.reports],
            "failure": failure,
        }
        if first is not None:
            fields["device"] = first.device  # where it ran, which `auto` does not tell
            if all(one.resize == first.resize for one in complete):
                fields["resize"] = first.resize
        return self._suite(fields)


class FinishedRun:
    """A run that is complete: there is nothing to do, and its report is as it stands there."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    def pending(self) -> Iterator[str]:
        """Yield nothing."""
        return iter(())

    def join(self) -> None:
        """Do nothing."""

    def summary(self) -> dict[str, Any]:
        """Return its top-level report."""
        return self._report


def failure_of(error: Exception) -> Failure:
    """Return the kind, message and stage of an error, as a report says why something failed.

    Of an error that nobody foresaw it has the innermost line of ours too.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    where = None if isinstance(error, PyimganoError) else _innermost(error)
    return Failure(kind=type(error).__name__, message=message, stage=stage_of(error), where=where)


def _innermost(error: Exception) -> str | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        try:
            file = Path(frame.filename).resolve().relative_to(_PACKAGE)
        except (ValueError, OSError):  # of another package, or no file
            continue
        return f"{file.as_posix()}:{frame.lineno}"
    return None


def _pixel_protocol(config: Options) -> dict[str, Any]:
    """Return the fields of `EvaluationProtocol` on thresholds of pixels and post-processing."""
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


def write_page(run: Path) -> None:
    """Write the page of a run; where that fails the run is whole all the same, and this is said."""
    try:
        write_report_page(run)
    except Exception as error:  # whatever it is, it must not cost hours of measuring
        if not isinstance(error, PyimganoError):
            _log.exception("the page of %s failed", run)
        warnings.warn(
            f"{run / REPORT_PAGE} could not be written ({one_line(error)}); "
            "pyimgano report makes it from the run",
            stacklevel=2,
        )


def _track(run: Path, tracker: str, folder: str | None) -> None:
    """Log a run to a tracker; where that fails the run is whole all the same, and this is said."""
    try:
        track_run(run, tracker, folder)
    except Exception as error:  # whatever a library raises, it must not cost the run
        _log.debug("logging %s to %s failed", run, tracker, exc_info=True)
        warnings.warn(
            f"{run} could not be logged to {tracker} ({one_line(error)}); the run is complete "
            f"without, and pyimgano.tracking.track_run({str(run)!r}, {tracker!r}) logs it again",
            stacklevel=2,
        )


def _plain(report: RunFields) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(report.model_dump_json())
    return plain
