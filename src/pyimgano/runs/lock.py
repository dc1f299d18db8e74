"""One writer a run directory: a lock of the operating system, which dies with its process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_log = logging.getLogger(__name__)

#: The file in a run directory that is locked; it stays there, empty.
LOCK_FILE = ".lock"


class WriterLock:
    """Held by the process that writes a run; let go of by `release`, or by its end, however.

    Where the file system has no locks (some network drives), there is none, and the log says so.

    Raises
    ------
    DataError
        Another process, or another run in this one, holds it; or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._lock: BaseFileLock | None = None
        from filelock import Timeout

        path = folder / LOCK_FILE
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise DataError(f"{path}: is a link or not a file, and not the lock that a run makes")
        lock = _make(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{folder}: another process is writing this run") from None
        except PermissionError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
        except (OSError, NotImplementedError) as error:
            if _read_only(error):
                raise DataError(f"{folder}: cannot be written ({error})") from error
            _log.warning("%s: cannot be locked (%s); see that one process writes it", folder, error)
            return
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


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
