"""The directory of a sweep: what lies where, and who may write it.

sweep.json            the cells that were planned
cells/<cell>/         the run directory of each, as pyimgano benchmark leaves it
outcomes/<cell>.json  how each ended, and on which machine
logs/<cell>.log       what each printed
claims/<cell>.lock    held by the process that is at it
features/             features that cells on the same images share, until all are complete
table.*, cells.csv, leaderboard.html
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from .. import __version__
from ..errors import DataError, UsageError
from ..runs import RunDirectory, finished_report, write_document
from ..runs.lock import InUseError, WriterLock
from ..runs.sweep_schema import CellOutcome, PlannedCell, SweepDocument
from ..untrusted_files import read_regular, reason_of_failure
from .plan import Plan

SWEEP_FILE = "sweep.json"


class SweepFolder:
    """What lies where in the directory of a sweep."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.features = self.path / "features"

    def run_dir(self, cell: str) -> Path:
        """Return the run directory of a cell."""
        return self.path / "cells" / cell

    def log(self, cell: str) -> Path:
        """Return the file of what a cell printed."""
        return self.path / "logs" / f"{cell}.log"

    def outcome_file(self, cell: str) -> Path:
        """Return the file that says how a cell ended."""
        return self.path / "outcomes" / f"{cell}.json"

    def make(self) -> None:
        """Make the folders that cells write into; raises `DataError` where that fails."""
        try:
            for name in ("cells", "claims", "logs", "outcomes"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from error

    def claim(self, cell: str, *, required: bool) -> WriterLock:
        """Return the lock of a cell; raises `InUseError` where another process is at it."""
        return WriterLock(self.path / "claims", f"{cell}.lock", required=required)

    def is_complete(self, cell: str) -> bool:
        """Return whether the run of a cell is complete."""
        try:
            return finished_report(self.run_dir(cell)) is not None
        except DataError:
            return False

    def outcome(self, cell: str) -> CellOutcome | None:
        """Return how a cell ended; None if that is not known."""
        try:
            return CellOutcome.model_validate_json(read_regular(self.outcome_file(cell)))
        except (OSError, ValueError):
            return None

    def keep_outcome(self, outcome: CellOutcome) -> None:
        """Write how a cell ended."""
        write_document(self.outcome_file(outcome.cell), outcome)

    def clear(self, cell: str) -> None:
        """Remove what a cell that was not finished has left."""
        place = self.run_dir(cell)
        if place.is_symlink() or not place.exists():
            place.unlink(missing_ok=True)
            return
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be removed ({error.strerror})") from error

    def drop_features(self) -> None:
        """Remove the features that the cells have shared."""
        shutil.rmtree(self.features, ignore_errors=True)


def read_sweep(path: str | Path) -> SweepDocument:
    """Return the sweep.json of a directory; raises `DataError` where it holds no sweep."""
    path = Path(path)
    file = path / SWEEP_FILE
    try:
        return SweepDocument.model_validate_json(read_regular(file))
    except FileNotFoundError:
        what = f"has no {SWEEP_FILE}" if path.is_dir() else "no such folder"
        if (path / "config.json").exists():
            what += "; it is a single run, of which pyimgano leaderboard makes a table"
        raise DataError(f"{path}: is not the directory of a sweep, {what}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise DataError(f"{file}: {place}: {first['msg'].lower()}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({reason_of_failure(error)})") from error


@contextmanager
def open_sweep(
    plan: Plan | None,
    *,
    name: str,
    shard: str | None,
    output_dir: str | Path | None,
    runs_dir: str | Path | None,
    resume: str | Path | None,
    claim: bool,
) -> Iterator[tuple[SweepFolder, SweepDocument]]:
    """Give the directory of a new sweep, or of one that goes on; held unless cells are claimed.

    Parameters
    ----------
    plan
        None where the sweep in `resume` goes on as it was planned.
    name
        Ends the name of a directory that is made in `runs_dir`.
    shard
        As `k/n`, where only these cells are run.
    output_dir, runs_dir, resume
        The directory, the folder that a named one is made in, or a sweep that goes on. With a plan
        `resume` also begins one, where there is none yet.
    claim
        Whether other processes may run cells of it too.

    Raises
    ------
    UsageError
        The plan lacks cells of the sweep that goes on, or it goes on as another shard.
    DataError
        The directory is that of no sweep or holds something else, another process runs the sweep,
        or it cannot be written.
    """
    given = [one for one in (output_dir, runs_dir, resume) if one is not None]
    if len(given) > 1:
        raise UsageError("output_dir, runs_dir and resume: give one of them")
    if plan is None and resume is None:
        raise UsageError("give a sweep file, or a sweep that goes on (resume)")
    wanted = None if plan is None else _document(plan, shard)
    place = resume if resume is not None else output_dir
    with ExitStack() as held:
        try:
            if place is None:
                assert wanted is not None
                began = datetime.fromisoformat(wanted.started_at)
                made = RunDirectory.create(
                    runs_dir, "sweep", name, began, documents={SWEEP_FILE: wanted}
                )
                held.enter_context(closing(made))
                path, document = made.path, wanted
            elif wanted is None or (Path(place) / SWEEP_FILE).exists():
                path = Path(place)
                if resume is None:
                    raise DataError(
                        f"{place}: holds a sweep already; go on with it (--resume {place}), or "
                        "name another folder"
                    )
                if not claim and (path / SWEEP_FILE).exists():
                    held.enter_context(closing(RunDirectory(path)))
                document = _go_on(path, wanted, shard, write=not claim)
            else:
                path = Path(place)
                begun, document = _begin_at(path, wanted, shard, claim=claim)
                if begun is not None:
                    held.enter_context(closing(begun))
        except InUseError:
            raise InUseError(
                f"{place}: another process runs this sweep; start both with --claim, and they "
                "share its cells"
            ) from None
        if claim:
            held.close()  # cells are what is locked
        folder = SweepFolder(path)
        folder.make()
        yield folder, document


def _begin_at(
    place: Path, document: SweepDocument, shard: str | None, *, claim: bool
) -> tuple[RunDirectory | None, SweepDocument]:
    """Begin a sweep in `place`, or join one that another claimant begins at this moment."""
    for attempt in range(50):
        try:
            return RunDirectory.create_at(place, {SWEEP_FILE: document}), document
        except DataError as error:
            joins = claim and (isinstance(error, InUseError) or (place / SWEEP_FILE).exists())
            if not joins or attempt == 49:
                raise
        if (place / SWEEP_FILE).exists():
            return None, _go_on(place, document, shard, write=False)
        time.sleep(0.1)
    raise AssertionError(place)


def _go_on(
    path: Path, wanted: SweepDocument | None, shard: str | None, *, write: bool
) -> SweepDocument:
    """Return the document of a sweep that goes on; `wanted` may have further cells."""
    known = read_sweep(path)
    if wanted is None:
        if shard is not None and shard != known.shard:
            raise UsageError(f"{path}: is shard {known.shard or 'of no kind'}, not {shard}")
        return known
    gone = {one.name for one in known.cells} - {one.name for one in wanted.cells}
    if gone:
        raise UsageError(
            f"{path}: holds cells that the sweep file does not ask for, such as {min(gone)}; go on "
            "without the file, or begin another sweep"
        )
    if known.shard != wanted.shard:
        raise UsageError(f"{path}: is shard {known.shard or 'of no kind'}, not {shard}")
    document = wanted.model_copy(update={"started_at": known.started_at})
    if write and document != known:
        write_document(path / SWEEP_FILE, document)
    return document


def _document(plan: Plan, shard: str | None) -> SweepDocument:
    return SweepDocument(
        pyimgano_version=__version__,
        started_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        resources=plan.resources,
        modules=list(plan.modules),
        shard=shard,
        cells=[PlannedCell.model_validate(one.model_dump()) for one in plan.cells],
        notes=list(plan.notes),
    )
