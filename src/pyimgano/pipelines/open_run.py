"""A run is opened: what it needs is found out before it begins, or it goes on where it stopped.

A category that is complete is kept as it is, byte for byte; any other is done again from its
beginning. That is right only while all is as it was, so what differs is looked for first: the
program and what it stands on, the categories, the files of those that are complete.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from .. import __version__
from ..datasets import (
    Layout,
    get_layout,
    open_root,
    outside_of_categories,
)
from ..errors import DataError, PyimganoError, UsageError
from ..images import limited_pixels
from ..models.many_products import require_names, require_shareable
from ..models.registry import create_model
from ..models.saving import require_saveable
from ..pages import REPORT_PAGE
from ..runs import (
    EarlierRun,
    EnvironmentDocument,
    RunDirectory,
    changes,
    finished_report,
    require_empty,
    shown,
    used_files,
)
from ..runs.environment import describe_environment, program_changes
from ..threads import limited_threads
from ..tracking import require_tracker
from ..untrusted_files import quoted
from .config import BenchmarkConfig, Execution
from .run import Config, FinishedRun, Listener, Run, write_page

#: Makes a detector from a model's name and its keywords.
MakeDetector = Callable[..., Any]
AnyRun = TypeVar("AnyRun", bound=Run[Any, Any])

#: Options that may be other ones when a run goes on: no result depends on them.
_FREE = ("num_threads",)
#: Differences that an error message lists.
_LISTED = 6


@dataclass(frozen=True)
class Opened(Generic[Config]):
    """What a run needs, looked at before any image is read.

    Attributes
    ----------
    config
        What was asked for.
    create, keywords
        Makes a detector for each category, with these keywords.
    layout, root
        Of the dataset.
    names
        The categories asked for, which are there.
    category
        What was asked for, as reports say it: a name, several with commas, or `all`. A custom
        dataset without categories is always `custom`.
    parameters
        The detector's keywords as documents have them.
    environment
        What the run is made with.
    """

    config: Config
    create: MakeDetector
    keywords: dict[str, Any]
    layout: Layout
    root: Path
    names: list[str]
    category: str
    parameters: dict[str, Any]
    environment: EnvironmentDocument


@contextmanager
def open_run(
    kind: type[AnyRun], function: Callable[..., Any], given: Mapping[str, Any]
) -> Iterator[AnyRun]:
    """Give a new run, or the one in the directory `resume`; its directory is held meanwhile.

    Parameters
    ----------
    kind
        The class of the run.
    function, given
        What the user called, and its arguments by name: the options of `kind.config_class` and of
        `Execution`, `listener` and `create`.

    Raises
    ------
    UsageError
        An unknown name, a value out of range, or one that is not that of the run that goes on.
    DataError
        A missing root or category; a `resume` that is no run, that another process writes, or
        that is not what it was.
    WeightsError
        No weights for the detector.
    """
    how = {name: given[name] for name in Execution.model_fields}
    options = {name: given[name] for name in kind.config_class.model_fields if name in given}
    listener: Listener | None = given["listener"]
    create: MakeDetector = given["create"]
    resume, output_dir, runs_dir = how["resume"], how["output_dir"], how["runs_dir"]
    if resume is not None:
        defaults = inspect.signature(function).parameters
        places = {"output_dir": output_dir, "runs_dir": runs_dir}
        typed = {**options, **places}
        require_same(kind, resume, {n: v for n, v in typed.items() if v != defaults[n].default})
    if output_dir is not None and runs_dir is not None:
        raise UsageError(
            "output_dir and runs_dir: give one of them; output_dir is the run directory itself, "
            "runs_dir the folder that a named one is made in"
        )
    if resume is None:
        if how["force"]:
            raise UsageError("force is for a run that goes on (resume)")
        config = kind.config_class.check(**options)
        if config.save_run and output_dir is not None:
            require_empty(output_dir)  # found out before weights are looked for
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            run = kind(_look(config, create), listener, how["fail_fast"])
            run.begin(output_dir, runs_dir)
            with run:
                yield run
        return
    done = finished_report(resume)
    if done is not None:
        # a run that was killed while its page was made is complete, and lacks only that
        wanted = _read(kind, Path(resume)).config.html
        if wanted and not (Path(resume) / REPORT_PAGE).exists():
            write_page(Path(resume))
        yield cast(AnyRun, FinishedRun(done))
        return
    path = Path(resume)
    _read(kind, path)  # of what is no run, or of another kind, nothing is locked
    directory = RunDirectory(path)
    try:
        earlier = _read(kind, path)
        config = _options_of(earlier, kind, {"num_threads": options["num_threads"]})
        if getattr(config, "joint", False):
            raise DataError(
                f"{path}: a joint run cannot go on, since the detectors of its complete categories "
                "were not kept one by one; begin it anew"
            )
        with limited_threads(config.num_threads), limited_pixels(config.max_pixels):
            names = None if earlier.config.category == "all" else earlier.config.categories
            run = kind(_look(config, create, names), listener, how["fail_fast"], earlier)
            found = list(_differences(run, earlier))
            if found and not how["force"]:
                more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
                raise DataError(
                    f"{path}: is not what it was when it began: {'; '.join(found[:_LISTED])}{more} "
                    "(--force goes on all the same)"
                )
            run.go_on(directory, earlier, found)
            with run:
                yield run
    finally:
        directory.close()


def require_same(kind: type[Run[Any, Any]], resume: str | Path, given: Mapping[str, Any]) -> None:
    """Raise `UsageError` where one of the `given` options is not that of the run.

    `root`, `output_dir` and `runs_dir` may be among them. A run that is no run is a `DataError`.
    """
    finished_report(resume)
    earlier = _read(kind, Path(resume))
    if not given:
        return
    places = {
        "root": _place(earlier.config.root),
        "output_dir": _place(earlier.path),
        "runs_dir": _place(earlier.path.absolute().parent),
    }
    before = _options_of(earlier, kind, {})
    rest = {name: value for name, value in given.items() if name not in places}
    after = kind.config_class.check(**{**dict(before), **rest})
    was: Any
    is_now: Any
    for name, value in given.items():
        if name in places:
            was, is_now = places[name], _place(value)
        else:
            was, is_now = getattr(before, name), getattr(after, name)
        if name == "category":
            was, is_now = _names(was), _names(is_now)
        if was != is_now and name not in _FREE:
            raise UsageError(
                f"{name}: the run has {was!r}, got {is_now!r}; a run that goes on keeps its own"
            )


def _look(
    config: Config, create: MakeDetector, categories: list[str] | None = None
) -> Opened[Config]:
    """Find out what can be found out before a run begins.

    `categories` are those of a run that goes on, unless it is over all.
    """
    if config.track is not None:
        require_tracker(config.track)
    keywords = config.detector_keywords(ours=create is create_model)
    detector = create(config.model, **keywords)
    if create is create_model:
        keywords = detector.get_params()
    layout = get_layout(config.dataset, split=config.split, allow_outside=config.allow_outside)
    if config.calibration == "validation" and not layout.has_validation:
        raise UsageError(f"calibration: dataset {layout.name!r} has no validation images")
    # whatever folder a run is begun or resumed in, its documents say the same
    root = open_root(layout, config.root).absolute()
    names = _choose_categories(layout, root, categories or config.category)
    asked = config.category if isinstance(config.category, str) else ",".join(config.category)
    if asked == "all" and layout.name == "custom" and names == ["custom"]:
        asked = "custom"
    _require_distinct(root, names)
    if isinstance(config, BenchmarkConfig) and config.joint:
        if create is not create_model:
            raise UsageError("joint is for detectors of pyimgano, which can share a network")
        require_names(names)
        require_shareable(detector)
    if isinstance(config, BenchmarkConfig) and config.save_model:
        require_saveable(detector)
    region = detector.region_of_interest()
    # a device or weights that are not there fail here, not in each category
    backbone = detector.prepare()
    environment = describe_environment(
        __version__,
        backbone,
        config.device,
        None if region is None else region.sha256,
        datetime.now().astimezone().isoformat(timespec="seconds"),
        keywords,
    )
    parameters = config.plain_parameters(detector.get_params())
    return Opened(config, create, keywords, layout, root, names, asked, parameters, environment)


def _choose_categories(layout: Layout, root: Path, wanted: str | list[str]) -> list[str]:
    if wanted == "all":
        names = layout.list_categories(root)
        outside = outside_of_categories(layout, root, names)
        if outside is not None:
            warnings.warn(outside, stacklevel=4)
        return names
    if isinstance(wanted, list):
        names = wanted
    elif wanted in layout.list_categories(root):  # also one with a comma in its name
        names = [wanted]
    else:
        names = [name.strip() for name in wanted.split(",")]
    if not names or not all(names):
        raise UsageError(
            f"category must be a name, several separated by commas, or 'all': {wanted!r}"
        )
    for name in names:
        layout.require_category(root, name)
    return list(dict.fromkeys(names))


def _require_distinct(root: Path, names: list[str]) -> None:
    """Refuse names that reports cannot tell apart: one would be written over the other."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(shown(name), name)
        if other != name:
            raise DataError(
                f"{root}: categories {quoted(other)} and {quoted(name)} are written alike, "
                "since one of them is not text; rename it"
            )


def _place(path: str | Path) -> str:
    return os.path.normpath(Path(path).expanduser().absolute())


def _names(category: str | list[str]) -> list[str]:
    names = category.split(",") if isinstance(category, str) else category
    return [name.strip() for name in names]


def _read(kind: type[Run[Any, Any]], path: Path) -> EarlierRun[Any, Any]:
    return EarlierRun(path, kind.config_document, kind.report_class)


def _options_of(
    earlier: EarlierRun[Any, Any], kind: type[Run[Any, Any]], other: Mapping[str, Any]
) -> Any:
    """Return the run's options, with `other` in place of its own where they are not None.

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
    own = {name: getattr(earlier.config, name) for name in kind.config_class.model_fields}
    own.update({name: value for name, value in other.items() if value is not None})
    try:
        return kind.config_class.check(**own)
    except UsageError as error:
        raise DataError(f"{earlier.path / 'config.json'}: {error}") from None


def _differences(run: Run[Any, Any], earlier: EarlierRun[Any, Any]) -> Iterator[str]:
    """Yield what is not as it was when the run began, in words."""
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
            _, category = run.read_category(name)
            changed = changes(known, used_files(category, run.root, known))
        except PyimganoError as error:
            changed = str(error)
        if changed is not None:
            yield f"{shown(name)}: {changed}"
