"""Runs one cell of a sweep into its run directory, unless that is complete already."""

from __future__ import annotations

import errno
import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from ..errors import PyimganoError
from ..models.registry import default_keywords
from ..pipelines.config import PATH_KEYWORDS
from ..runs.lock import InUseError
from ..runs.schema import Model
from ..runs.sweep_schema import CellOutcome, PlannedCell
from ..threads import limited_threads
from .folder import SweepFolder
from .plan import import_modules

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Options that name a file or a folder which is read.
_READ = ("root", "roi", "exclude")


class Job(Model):
    """A cell as an executor is given it, plain enough to be sent anywhere."""

    cell: PlannedCell
    folder: str = Field(description="the directory of the sweep")
    modules: list[str] = Field(default_factory=list, description="are imported first")
    threads: int | None = Field(default=None, description="of this cell; null for all")
    locks_required: bool = Field(default=False, description="whether other machines take cells")
    place: str = Field(default="", description="where it runs, as the executor calls it")


def run_cell(job: Job, **how: Any) -> CellOutcome:
    """Run a cell, and return how it ended; its outcome is written too.

    A cell that is complete is left as it is. One that was not finished is done again from its
    beginning. Where another process is at it, the outcome is `running` and is not written.

    Parameters
    ----------
    job
        The cell.
    how
        Further arguments of `run_benchmark` that are no options: `listener`, `create`.
    """
    folder = SweepFolder(job.folder)
    name = job.cell.name
    try:
        with folder.claim(name, required=job.locks_required):
            if folder.is_complete(name):
                return folder.outcome(name) or outcome_of(name, "complete", None)
            began = time.monotonic()
            started = _now()
            folder.outcome_file(name).unlink(missing_ok=True)
            with _logged(folder.log(name), name, job.place):
                failed, trouble = _run(job, folder, how)
            outcome = outcome_of(
                *(name, "complete" if failed is None else "failed", failed),
                started_at=started,
                seconds=time.monotonic() - began,
                trouble=trouble,
            )
            folder.keep_outcome(outcome)
            return outcome
    except InUseError:
        return outcome_of(name, "running", "another process is at it")


def outcome_of(cell: str, status: Any, why: str | None, **more: Any) -> CellOutcome:
    """Return an outcome of a cell in this process."""
    facts = {"host": platform.node(), "pid": os.getpid(), **more}
    return CellOutcome(cell=cell, status=status, why=why, **facts)


def _run(job: Job, folder: SweepFolder, how: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Run the benchmark of a cell; return why it failed, and whether the machine is to blame."""
    from ..pipelines import run_benchmark
    from ..pipelines.run import failure_of

    options = dict(job.cell.options)
    unseen = _unseen(options)
    if unseen is not None:
        why = f"{platform.node()} does not see {unseen}; every machine has to see it at this path"
        _log.error("%s", why)
        return why, "path"
    try:
        import_modules(job.modules)
        if "create" not in how and "cache_dir" in default_keywords(job.cell.model):
            options.setdefault("cache_dir", str(folder.features))
        folder.clear(job.cell.name)
        with limited_threads(job.threads):
            run_benchmark(**options, **how, output_dir=folder.run_dir(job.cell.name))
    except Exception as error:  # whatever it is, it costs this cell alone
        failure = failure_of(error)
        if isinstance(error, PyimganoError):
            _log.error("%s", error)
        else:  # a bug of ours, or of what we stand on
            _log.exception("cell %s failed", job.cell.name)
        stage = f"while {failure.stage}: " if failure.stage else ""
        place = f" ({failure.where})" if failure.where else ""
        return f"{stage}{failure.message}{place}", "disk" if is_full(error) else None
    return None, None


def is_full(error: BaseException | None) -> bool:
    """Return whether a disk that takes no more is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _unseen(options: Mapping[str, Any]) -> str | None:
    """Return a path that a cell reads and that is not there."""
    keywords = options.get("model_kwargs") or {}
    paths = [options.get(name) for name in _READ]
    paths += [keywords.get(name) for name in PATH_KEYWORDS if name != "checkpoint_dir"]
    for path in paths:
        if isinstance(path, str) and Path(path).is_absolute() and not Path(path).exists():
            return path
    return None


@contextmanager
def _logged(path: Path, cell: str, place: str) -> Iterator[None]:
    """Write what is logged and warned about meanwhile to a file too, with when and where."""
    try:
        handler: logging.Handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:  # a disk that is full; the cell itself will say so
        _log.warning("%s: cannot be written (%s)", path, error.strerror)
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("pyimgano")
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        shown = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            handler.handle(root.makeRecord(cell, logging.WARNING, "", 0, str(message), (), None))
            shown(message, category, *place, **more)

        warnings.showwarning = show
        root.addHandler(handler)
        root.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            where = f", {place}" if place else ""
            _log.info("%s begins on %s, process %d%s", cell, platform.node(), os.getpid(), where)
            yield
            _log.info("%s ended", cell)
        finally:
            root.setLevel(level)
            root.removeHandler(handler)
            handler.close()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
