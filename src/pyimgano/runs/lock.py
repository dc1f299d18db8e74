"""One writer a run directory: a lock of the operating system, which dies with its process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from typing_extensions import Self

_log = logging.getLogger(__name__)

#: The file in a run directory that is locked; it stays there, empty.
LOCK_FILE = ".lock"


class InUseError(DataError):
    """Another process holds the lock."""


class WriterLock:
    """Held by the process that writes a run; let go of by `release`, or by its end, however.

    Where the file system has no locks (some network drives), there is none, and the log says so,
    unless a lock is `required`.

    Parameters
    ----------
    folder
        What is written.
    file
        The file in it that is locked.
    required
        Whether a file system without locks is an error.

    Raises
    ------
    InUseError
        Another process, or another run in this one, holds it.
    DataError
        The folder cannot be written, or a lock is required and cannot be had.
    """

    def __init__(self, folder: Path, file: str = LOCK_FILE, *, required: bool = False) -> None:
        self._lock: BaseFileLock | None = None
        from filelock import Timeout

        path = folder / file
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise DataError(f"{path}: is a link or not a file, and not the lock that a run makes")
        lock = _make(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InUseError(f"{folder}: another process is writing this run") from None
        except PermissionError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
        except (OSError, NotImplementedError) as error:
            if _read_only(error):
                raise DataError(f"{folder}: cannot be written ({error})") from error
            if required:
                raise DataError(f"{folder}: its file system has no locks ({error})") from error
            _log.warning("%s: cannot be locked (%s); see that one process writes it", folder, error)
            return
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _make(path: Path) -> BaseFileLock:
    from filelock import FileLock

    options: dict[str, Any] = {"thread_local": False}
    try:
        # a lock that is nothing but a file outlives a killed process
        return FileLock(path, fallback_to_soft=False, **options)
    except TypeError:  # an earlier version, which has no such way out
        return FileLock(path, **options)


def _read_only(error: Exception) -> bool:
    import errno

    return getattr(error, "errno", None) in (errno.EROFS, errno.ENOENT, errno.ENOTDIR)
