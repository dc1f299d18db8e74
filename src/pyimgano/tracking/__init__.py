"""Log a finished run to an experiment tracker: MLflow, TensorBoard or Weights & Biases.

Each of them writes into a folder and sends nothing. The libraries are extras of the installation,
and are imported when a run is logged.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..errors import UsageError, unknown_name
from .run_record import RunRecord, read_run_record
from .trackers import TRACKERS

__all__ = ["TRACKERS", "RunRecord", "read_run_record", "require_tracker", "track_run"]


def require_tracker(name: str) -> None:
    """Raise `UsageError` unless a tracker of this name exists and its library is installed."""
    if name not in TRACKERS:
        raise UsageError(unknown_name("tracker", name, TRACKERS))
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder of this name is no library
        raise UsageError(
            f"track: {name} is not installed; pip install 'pyimgano[{name}]' installs it"
        )


def track_run(run: str | Path, tracker: str, folder: str | Path | None = None) -> Path:
    """Log a run that has ended, and return the folder that the tracker has written into.

    Parameters
    ----------
    run
        The run directory.
    tracker
        One of `TRACKERS`.
    folder
        What the tracker writes into; several runs may share it. By default the folder in the run
        directory that is called like the tracker.

    Raises
    ------
    UsageError
        An unknown tracker, or one whose library is not installed.
    DataError
        It is no run directory, or one without a report.
    """
    require_tracker(tracker)
    record = read_run_record(run)
    target = (Path(run) / tracker if folder is None else Path(folder)).expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    TRACKERS[tracker](record, target)
    return target
