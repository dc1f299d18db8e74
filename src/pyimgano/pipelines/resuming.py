"""Beginning a run, or taking one up again where it stopped.

A category that is complete is kept as it is, byte for byte; any other is done again from its
beginning. That is right only while all is as it was, so what differs is looked for first: the
program and what it stands on, the configuration, the files of the complete categories.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..datasets import limit_category, load_category
from ..errors import DataError, PyimganoError, UsageError
from ..images import limited_pixels
from ..runs import EarlierRun, RunDirectory, finished_report, require_empty, shown
from ..threads import limited_threads
from .config import Execution, Options
from .environment import program_changes
from .files import changes, used_files
from .opened_run import MakeDetector, open_run
from .run_documents import RunDocuments
from .suite import Listener, run_categories

Documents = TypeVar("Documents", bound=RunDocuments[Any, Any])

#: Arguments that may be other ones when a run goes on: no result depends on them.
_FREE = ("num_threads",)
#: Differences that an error message lists.
_LISTED = 6


def run_or_resume(
    documents: type[Documents],
    measure: Callable[..., Any],
    function: Callable[..., Any],
    given: dict[str, Any],
) -> dict[str, Any]:
    """Run from the beginning, or go on with the run in the directory `resume`.

    Parameters
    ----------
    documents
        Of this kind of run.
    measure
        Gives the report of the category of that name.
    function, given
        What was called, and its arguments by name.
    """
    if given["resume"] is not None:
        require_same(documents, given["resume"], given_besides(function, given))
    listener: Listener | None = given.pop("listener")
    create: MakeDetector = given.pop("create")
    own = {name: given.pop(name) for name in Execution.model_fields}
    output_dir, runs_dir, resume, force, fail_fast = (
        own[name] for name in ("output_dir", "runs_dir", "resume", "force", "fail_fast")
    )
    measure = partial(measure, listener=listener, create=create)
    config: Any
    if output_dir is not None and runs_dir is not None:
        raise UsageError(
            "output_dir and runs_dir: give one of them; output_dir is the run directory itself, "
            "runs_dir the folder that a named one is made in"
        )
    if resume is None:
        if force:
            raise UsageError("force is for a run that goes on (resume)")
        config = documents.config_class.check(**given)
        if config.save_run and output_dir is not None:
            require_empty(output_dir)  # found out before weights are looked for
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            opened = open_run(config, create)
            with documents(config, opened, output_dir, runs_dir) as run:
                return run_categories(run, lambda name: measure(run, name), listener, fail_fast)
    done = finished_report(resume)
    if done is not None:
        return done
    path = Path(resume)
    _read(documents, path)  # of what is no run, or of another kind, nothing is locked
    directory = RunDirectory(path)
    try:
        earlier = _read(documents, path)
        config = _checked(earlier, documents.config_class, {"num_threads": given["num_threads"]})
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            whole = earlier.config.category == "all"
            opened = open_run(config, create, None if whole else earlier.config.categories)
            run = documents(config, opened, directory=directory, earlier=earlier)
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

    `root`, `output_dir` and `runs_dir` may be among them. A run that is no run is a `DataError`.
    """
    finished_report(resume)
    earlier = _read(documents, Path(resume))
    if not given:
        return
    places = {
        "root": _place(earlier.config.root),
        "output_dir": _place(earlier.path),
        "runs_dir": _place(earlier.path.absolute().parent),
    }
    config = documents.config_class
    before = _checked(earlier, config, {})
    rest = {name: value for name, value in given.items() if name not in places}
    after = config.check(**{**dict(before), **rest})
    was: Any
    is_now: Any
    for name, value in given.items():
        if name in places:
            was, is_now = str(places[name]), _place(value)
        else:
            was, is_now = getattr(before, name), getattr(after, name)
        if name == "category":
            was, is_now = _names(was), _names(is_now)
        if was != is_now and name not in _FREE:
            raise UsageError(
                f"{name}: the run has {was!r}, got {is_now!r}; a run that goes on keeps its own"
            )


def _place(path: str | Path) -> str:
    return os.path.normpath(Path(path).expanduser().absolute())


def _names(category: str | list[str]) -> list[str]:
    names = category.split(",") if isinstance(category, str) else category
    return [name.strip() for name in names]


def given_besides(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are not the defaults of a function's arguments, and that say what the
    run is, not how it goes on."""
    parameters = inspect.signature(function).parameters
    how = ("resume", "force", "fail_fast", "listener", "create")
    return {
        name: value
        for name, value in values.items()
        if name not in how and value != parameters[name].default
    }


def _read(documents: type[RunDocuments[Any, Any]], path: Path) -> EarlierRun[Any, Any]:
    return EarlierRun(path, documents.config_document, documents.report_class)


def _checked(
    earlier: EarlierRun[Any, Any], config: type[Options], other: Mapping[str, Any]
) -> Options:
    """The run's options, with `other` in place of its own where they are not None.

    Raises
    ------
    DataError
        They are not known.
    """
    if earlier.config.model_kwargs is None:
        raise DataError(
            f"{earlier.path}: cannot be resumed: its config.json does not hold model_kwargs, "
            "which JSON could not, or an earlier version wrote it"
        )
    own = {name: getattr(earlier.config, name) for name in config.model_fields}
    own.update({name: value for name, value in other.items() if value is not None})
    try:
        return config.check(**own)
    except UsageError as error:
        raise DataError(f"{earlier.path / 'config.json'}: {error}") from None


def _differences(run: RunDocuments[Any, Any], earlier: EarlierRun[Any, Any]) -> Iterator[str]:
    """What is not as it was when the run began, in words."""
    if earlier.environment is None:
        yield "environment.json is missing or damaged, so what the run was made with is not known"
    else:
        yield from program_changes(earlier.environment, run.environment)
    if earlier.config.categories != list(map(shown, run.names)):
        before, after = (", ".join(names) for names in (earlier.config.categories, run.names))
        yield f"the categories were {before} and are {after}"
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
