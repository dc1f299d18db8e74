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

#: Seconds that the main thread has.
PATIENCE = 3.5
INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Written by Python's own handler: the number of a signal. This is none.
_DONE = 0


@contextlib.contextmanager
def ended_cleanly_by_signals(complaint: str) -> Iterator[None]:
    """Within, SIGINT and SIGTERM end the process as described above.

    Once a signal has come it stays so: what the interpreter waits for when it ends may take as
    long as what was interrupted.

    Parameters
    ----------
    complaint
        The line for stderr, where the main thread does not get to saying it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are another's affair
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
        target=_watch, args=(ours, complaint, said), name="interruption", daemon=True
    )
    watcher.start()
    _under_way.append((handler, pythons))
    try:
        yield
    finally:
        _under_way.pop()
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


def stand_down() -> None:
    """The signal that came was the way to end what was done: the program ends as it always does."""
    for handler, pythons in _under_way:
        handler.called = False
        pythons.send(bytes([_DONE]))


_under_way: list[tuple[_Handler, socket.socket]] = []
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


def _watch(signals: socket.socket, complaint: str, said: threading.Event) -> None:
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
    _end(None if said.is_set() else complaint)


def how_to_go_on() -> str | None:
    """Return a line that says how the run that was interrupted goes on; None if there is none."""
    runs = sys.modules.get("pyimgano.runs")
    path = None if runs is None else runs.RunDirectory.latest
    command = None if path is None or runs is None else runs.resume_command(path)
    return None if command is None else f"to go on: {command}"


def _end(complaint: str | None) -> None:
    pipeline = sys.modules.get("pyimgano.pipelines.suite")
    with contextlib.suppress(Exception):
        if pipeline is not None:
            pipeline.interrupt_all()
    with contextlib.suppress(Exception):
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a progress bar hides the cursor
        if complaint is not None:
            os.write(2, complaint.encode(errors="replace") + b"\n")
            if (line := how_to_go_on()) is not None:
                os.write(2, line.encode(errors="replace") + b"\n")
    os._exit(INTERRUPTED)
