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
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipelines.run import Run

#: Seconds that the main thread has.
PATIENCE = 3.5
INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Written by Python's own handler: the number of a signal. This is none.
_DONE = 0


class Interruption:
    """What a signal is to do besides ending the process.

    Attributes
    ----------
    run
        The run that is under way, which is marked as interrupted; None if there is none.
    """

    def __init__(self) -> None:
        self.run: Run[Any, Any] | None = None
        self._handler: _Handler | None = None
        self._wakes: socket.socket | None = None

    def end_as_usual(self) -> None:
        """Let the program end as it always does: the signal was the way to end what was done."""
        if self._handler is not None and self._wakes is not None:
            self._handler.called = False
            self._wakes.send(bytes([_DONE]))

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Within, signals are for who handles them there, and end nothing by themselves."""
        if self._wakes is None:
            yield
            return
        earlier = signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier, warn_on_full_buffer=False)


@contextlib.contextmanager
def ended_cleanly_by_signals(complaint: str) -> Iterator[Interruption]:
    """Within, SIGINT and SIGTERM end the process as described above.

    Once a signal has come it stays so: what the interpreter waits for when it ends may take as
    long as what was interrupted. Gives what is to be told of the run under way.

    Parameters
    ----------
    complaint
        The line for stderr, where the main thread does not get to saying it.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # signals are another's affair
        return
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    # one that is ignored stays so: a job in the background is not Ctrl-C's affair
    found = {one: signal.getsignal(one) for one in _SIGNALS}
    before = {one: was for one, was in found.items() if was not in (signal.SIG_IGN, None)}
    earlier = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    handler = _Handler()
    for one in before:
        signal.signal(one, handler)
    said = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(ours, complaint, said, interruption), name="interruption", daemon=True
    )
    watcher.start()
    interruption._handler, interruption._wakes = handler, pythons
    try:
        yield interruption
    finally:
        interruption._handler = interruption._wakes = None
        if handler.called:
            said.set()  # by the main thread, which now waits for others to end
            _kept.append(pythons)
        else:
            for one, was in before.items():
                signal.signal(one, was)
            signal.set_wakeup_fd(earlier)
            pythons.send(bytes([_DONE]))
            watcher.join()
            ours.close()
            pythons.close()


#: Open until the process ends.
_kept: list[socket.socket] = []


class _Handler:
    """The first signal is a `KeyboardInterrupt`; what comes after it is the watcher's."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.called:
            self.called = True
            raise KeyboardInterrupt


def _watch(
    signals: socket.socket, complaint: str, said: threading.Event, interruption: Interruption
) -> None:
    """Wait for a first signal, then for a second, or for as long as the main thread has."""
    came = 0
    while came < 2:
        try:
            numbers = signals.recv(64)
        except TimeoutError:
            break
        if _DONE in numbers:
            return
        came += sum(number in _SIGNALS for number in numbers)
        if came:
            signals.settimeout(PATIENCE)
    _end(None if said.is_set() else complaint, interruption.run)


def how_to_go_on(run: Run[Any, Any] | None) -> str | None:
    """Return a line that says how the run that was interrupted goes on; None if there is none."""
    from ..runs import resume_command

    if run is None or run.directory is None:
        return None
    command = resume_command(run.directory.path)
    return None if command is None else f"to go on: {command}"


def _end(complaint: str | None, run: Run[Any, Any] | None) -> None:
    with contextlib.suppress(Exception):  # a disk that is full
        if run is not None:
            run.interrupt()
    with contextlib.suppress(Exception):
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a progress bar hides the cursor
        if complaint is not None:
            os.write(2, complaint.encode(errors="replace") + b"\n")
            if (line := how_to_go_on(run)) is not None:
                os.write(2, line.encode(errors="replace") + b"\n")
    os._exit(INTERRUPTED)
