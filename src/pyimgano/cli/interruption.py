"""Ctrl-C: once for a clean end within seconds, whatever the program is at.

Python raises `KeyboardInterrupt` when its main thread comes back to Python code. While that is in
native code, or waits for a thread that is, nothing would happen; so another thread is told of the
signal too, gives the main thread a while to end the run cleanly, and then ends the process
itself: the reports say `interrupted`, and the exit status is the same. A second Ctrl-C ends it at
once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType

#: Seconds that the main thread has.
PATIENCE = 3.5
INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_cleanly_on_signals(complaint: str) -> None:
    """From now on SIGINT and SIGTERM end the process as described above.

    Parameters
    ----------
    complaint
        The line for stderr, where it is not the main thread that ends.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # signals are another's affair
    ours, pythons = socket.socketpair()
    for end in (ours, pythons):
        end.setblocking(False)
    try:
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    except ValueError:  # not the main interpreter
        return
    if before != -1:  # somebody waits for signals already
        signal.set_wakeup_fd(before)
    for one in _SIGNALS:
        signal.signal(one, _Handler(pythons))
    ours.setblocking(True)
    threading.Thread(
        target=_watch, args=(ours, complaint), name="interruption", daemon=True
    ).start()


class _Handler:
    """The first signal is a `KeyboardInterrupt`; what comes after it is the watcher's."""

    def __init__(self, pythons: socket.socket) -> None:
        self._pythons = pythons  # open as long as signals are written to it

    def __call__(self, number: int, frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, _ignore)
        raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, this lets the watcher know."""


def _watch(signals: socket.socket, complaint: str) -> None:
    wanted = {int(one) for one in _SIGNALS}
    first = False
    while True:
        try:
            numbers = signals.recv(64)
        except TimeoutError:
            break
        except OSError:
            return
        if not numbers:
            return
        come = sum(number in wanted for number in numbers)
        if come > 1 or (come and first):
            break
        if come:
            first = True
            signals.settimeout(PATIENCE)
    _end(complaint)


def _end(complaint: str) -> None:
    pipeline = sys.modules.get("pyimgano.pipelines.suite")
    with contextlib.suppress(Exception):
        if pipeline is not None:
            pipeline.interrupt_all()
    with contextlib.suppress(Exception):
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a progress bar hides the cursor
        os.write(2, complaint.encode(errors="replace") + b"\n")
    os._exit(INTERRUPTED)
