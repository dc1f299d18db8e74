"""Beginning a run, or taking one up again where it stopped.

A category that is complete is kept as it is, byte for byte; any other is done again from its
beginning. That is right only while all is as it was, so what differs is looked for first: the
program and what it stands on, the configuration, the files of the complete categories.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..datasets import limit_category, load_category
from ..errors import DataError, PyimganoError, UsageError
from ..images import limited_pixels
from ..runs import EarlierRun, RunConfig, RunDirectory, finished_report, shown
from ..threads import limited_threads
from .config import BenchmarkConfig
from .environment import program_changes
from .files import changes, used_files
from .opened_run import open_run
from .run_documents import RunDocuments
from .suite import Listener, run_categories

Documents = TypeVar("Documents", bound=RunDocuments[Any, Any])

#: Arguments that may be other ones when a run goes on: no result depends on them.
_FREE = ("num_threads",)
#: Differences that an error message lists.
_LISTED = 6


def run_or_resume(
    documents: type[Documents],
    measure: Callable[[Documents, str], Any],
    asked: Mapping[str, Any],
    *,
    root: str | Path | None,
    output_dir: str | Path | None,
    resume: str | Path | None,
    force: bool,
    fail_fast: bool,
    listener: Listener | None,
) -> dict[str, Any]:
    """Run from the beginning, or go on with the run in the directory `resume`.

    Parameters
    ----------
    documents
        Of this kind of run.
    measure
        Gives the report of the category of that name.
    asked
        The arguments of `documents.config_class.check`. Where a run goes on they are checked by
        the caller (`require_same`), and only `num_threads` of them counts.
    root, output_dir, resume, force, fail_fast, listener
        As `run_benchmark`.
    """
    config: Any
    if resume is None:
        if force:
            raise UsageError("force is for a run that goes on (resume)")
        config = documents.config_class.check(**asked)
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            opened = open_run(config, root)
            with documents(config, opened, output_dir) as run:
                return run_categories(run, lambda name: measure(run, name), listener, fail_fast)
    done = finished_report(resume)
    if done is not None:
        return done
    path = Path(resume)
    _read(documents, path)  # of what is no run, or of another kind, nothing is locked
    directory = RunDirectory(path)
    try:
        earlier = _read(documents, path)
        config = _checked(earlier, documents.config_class, {"num_threads": asked["num_threads"]})
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            opened = open_run(config, earlier.config.root)
            run = documents(config, opened, None, directory, earlier)
            found = list(_differences(run, earlier))
            if found and not force:
                more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
                raise DataError(
                    f"{path}: is not what it was when it began: {'; '.join(found[:_LISTED])}{more} "
                    "(--force goes on all the same)"
                )
            run.take_up(earlier, found)
            return run_categories(run, lambda name: measure(run, name), listener, fail_fast)
    finally:
        directory.close()


def require_same(
    documents: type[RunDocuments[Any, Any]], resume: str | Path, given: Mapping[str, Any]
) -> None:
    """Raise `UsageError` where one of the `given` arguments is not that of the run.

    `root` and `output_dir` may be among them. A run that is no run is a `DataError`.
    """
    finished_report(resume)
    earlier = _read(documents, Path(resume))
    if not given:
        return
    places = {
        "root": _place(earlier.config.root),
        "output_dir": _place(earlier.path.absolute().parent),
    }
    config = documents.config_class
    before = _checked(earlier, config, {}).model_dump()
    rest = {name: value for name, value in given.items() if name not in places}
    after = config.check(**{**earlier.arguments, **rest}).model_dump()
    was: Any
    is_now: Any
    for name, value in given.items():
        if name in places:
            was, is_now = str(places[name]), _place(value)
        else:
            was, is_now = before[name], after[name]
            if was is None:  # the run took a default, which its config names
                was = getattr(earlier.config, name, None)
                is_now = None if was is None else type(was)(is_now)
            if name == "category":
                was, is_now = _names(was), _names(is_now)
        if was != is_now and name not in _FREE:
            raise UsageError(
                f"{name}: the run has {was!r}, got {is_now!r}; a run that goes on keeps its own"
            )


def _place(path: str | Path) -> str:
    return os.path.normpath(Path(path).expanduser().absolute())


def _names(category: str | list[str]) -> list[str]:
    return category.split(",") if isinstance(category, str) else list(category)


def given_besides(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are not the defaults of a function's arguments."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if value != parameters[name].default}


def _read(documents: type[RunDocuments[Any, Any]], path: Path) -> EarlierRun[Any, Any]:
    return EarlierRun(path, documents.config_document, documents.report_class)


def _checked(
    earlier: EarlierRun[Any, Any], config: type[BenchmarkConfig], other: Mapping[str, Any]
) -> BenchmarkConfig:
    """The run's arguments, with `other` in place of its own where they are not None."""
    arguments = earlier.arguments
    place = earlier.path / "config.json"
    fields = config.model_fields
    missing = {name for name, one in fields.items() if one.is_required()} - set(arguments)
    wrong = missing | (set(arguments) - set(fields))
    if wrong:
        raise DataError(f"{place}: arguments: {min(wrong)!r} is unknown or missing")
    arguments.update({name: value for name, value in other.items() if value is not None})
    try:
        return config.check(**arguments)
    except UsageError as error:
        raise DataError(f"{place}: arguments: {error}") from None


def _differences(run: RunDocuments[Any, Any], earlier: EarlierRun[Any, Any]) -> Iterator[str]:
    """What is not as it was when the run began, in words."""
    if earlier.environment is None:
        yield "environment.json is missing or damaged, so what the run was made with is not known"
    else:
        yield from program_changes(earlier.environment, run.environment)
    yield from _edits(earlier.config, run.config_json())
    for name in run.names:
        report = run.reports.get(shown(name))
        if report is None:  # done again, whatever its files are now
            continue
        if report.detector.get("parameters") != run.parameters:
            yield f"{shown(name)} was measured with other parameters than config.json has"
        known = earlier.files(name)
        if known is None:
            yield f"{shown(name)}: files.json is missing or damaged"
            continue
        try:
            whole = load_category(run.layout, run.root, name)
            config = run.config
            category = limit_category(whole, config.limit_train, config.limit_test, config.seed)
            changed = changes(known, used_files(category, run.root, known))
        except PyimganoError as error:
            changed = str(error)
        if changed is not None:
            yield f"{shown(name)}: {changed}"


def _edits(then: RunConfig, now: RunConfig) -> Iterator[str]:
    """Where config.json is not what its own arguments come to."""
    stored, derived = _flat(then), _flat(now)
    for name in sorted({*stored, *derived}):
        was, is_now = stored.get(name), derived.get(name)
        if name == "categories":
            if was != is_now:
                before, after = (", ".join(names or ()) for names in (was, is_now))
                yield f"the categories were {before} and are {after}"
        elif was != is_now:
            yield f"config.json has {name} {was!r}, which comes to {is_now!r}"


def _flat(config: RunConfig) -> dict[str, Any]:
    fields = config.model_dump(exclude={"pyimgano_version", "started_at", "arguments"})
    parameters = fields.pop("detector_parameters")
    return {**fields, **{f"detector_parameters.{name}": v for name, v in parameters.items()}}
