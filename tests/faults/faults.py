"""Faults to inject: disks that fill up, permissions that bite, a watchdog for what hangs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: Seconds after which a test is taken to hang.
WATCHDOG = 120.0


@contextlib.contextmanager
def watchdog(seconds: float = WATCHDOG) -> Iterator[None]:
    """Fails, with where it hangs, what is not through in time."""

    def bark(number: int, frame: Any) -> None:
        raise AssertionError(f"hangs: nothing came of it in {seconds} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Filling:
    """A file on a disk that has room for a few bytes more."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        size = len(data)
        if self._room[0] <= 0 and size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(size, self._room[0])
        self._room[0] -= taken
        self._file.write(bytes(data[:taken]))
        if taken < size and not self.raw:  # what buffers tries again with the rest
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    @property
    def raw(self) -> bool:
        return not hasattr(self._file, "raw")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def fill_disk(
    monkeypatch: pytest.MonkeyPatch, concerns: Callable[[Path], bool], room: int = 0
) -> None:
    """From now on files that `concerns` is true of have `room` bytes left, together."""
    left = [room]
    opened, fdopened = Path.open, os.fdopen

    def open_path(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        file = opened(self, mode, *args, **keywords)
        writes = set(mode) & set("wax+")
        return _Filling(file, left) if writes and concerns(self) else file

    def open_descriptor(descriptor: int, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        file = fdopened(descriptor, mode, *args, **keywords)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return _Filling(file, left) if "w" in mode and concerns(path) else file

    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(os, "fdopen", open_descriptor)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes mounted at `folder`; skips where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def permissions_bite() -> Iterator[None]:
    """Permissions hold for root too: its capabilities to pass over them are put down.

    Of this thread and those that it starts.
    """
    if os.geteuid() != 0:
        yield
        return
    header, sets = _Header(0x20080522, 0), (_Sets * 2)()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.capget(ctypes.byref(header), ctypes.byref(sets))
    except (OSError, AttributeError):
        failed = True
    if failed:
        pytest.skip("this is root, and permissions do not bite")
    before = sets[0].effective
    sets[0].effective = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)):
        pytest.skip("this is root, and permissions do not bite")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), ctypes.byref(sets))


@contextlib.contextmanager
def forbidden(path: Path, mode: int = 0) -> Iterator[None]:
    """`path` has no permissions but `mode`, and that bites."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with permissions_bite():
            yield
    finally:
        path.chmod(before)
