"""Runs cells in processes on this machine, each of which takes one cell after another.

They are new interpreters, never forks, and are talked to by lines of JSON on their stdin and
stdout; so neither a script needs a guard around its main code, nor does a thread or a lock of this
process reach them. A process that dies costs the cell that it was at, which is begun again in a new
one. When this process ends, however it does, their stdin ends and so do they.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...runs.sweep_schema import CellOutcome
from ...threads import available_cores
from ..cell import Job, outcome_of
from .executor import ATTEMPTS, RUN_CELL

if TYPE_CHECKING:
    from typing_extensions import Self


class Processes:
    """Runs cells in processes on this machine.

    Parameters
    ----------
    count
        How many cells run at a time; each has its share of the cores as threads.
    logs
        Folder for what the processes print besides the logs of their cells.
    work
        What they do, as `module:function`.
    """

    def __init__(self, count: int, logs: Path, work: str = RUN_CELL) -> None:
        self._threads = max(1, available_cores() // count)
        self._workers = [
            _Worker(logs / f"worker-{number}.log", self._threads, work)
            for number in range(1, count + 1)
        ]
        self._stops = threading.Event()
        self._threads_at_work: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stops.set()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads_at_work:
            thread.join()

    def run(self, jobs: Iterable[Job]) -> Iterator[CellOutcome]:
        """Yield the outcome of each job, once, as they end."""
        waiting = iter(jobs)
        taking = threading.Lock()
        ended: queue.SimpleQueue[CellOutcome | Exception | None] = queue.SimpleQueue()

        def work_off(worker: _Worker) -> None:
            try:
                while not self._stops.is_set():
                    with taking:
                        job = next(waiting, None)
                    if job is None:
                        break
                    done = job.model_copy(update={"threads": job.threads or self._threads})
                    ended.put(worker.do(done, self._stops))
            except Exception as error:  # so that nobody waits for this thread in vain
                ended.put(error)
            finally:
                ended.put(None)

        self._threads_at_work = [
            threading.Thread(target=work_off, args=(one,), name="sweep", daemon=True)
            for one in self._workers
        ]
        for one in self._threads_at_work:
            one.start()
        left = len(self._threads_at_work)
        while left:
            found = ended.get()
            if found is None:
                left -= 1
            elif isinstance(found, Exception):
                raise found
            else:
                yield found


class _Worker:
    """A process that does one job after another; begun when there is one."""

    def __init__(self, log: Path, threads: int, work: str) -> None:
        self._log, self._threads, self._work = log, threads, work
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def do(self, job: Job, stops: threading.Event) -> CellOutcome:
        """Return how a job ended; it is begun again where its process dies."""
        name, died = job.cell.name, ""
        for attempt in range(1, ATTEMPTS + 1):
            process = self._running(stops)
            if process is None:
                return outcome_of(name, "interrupted", "the sweep was ended")
            reply = _ask(process, job.model_dump_json())
            if reply:
                outcome = CellOutcome.model_validate_json(reply)
                if outcome.trouble == "disk" and attempt < ATTEMPTS:  # perhaps its own limit
                    self.stop()
                    continue
                return outcome.model_copy(update={"attempts": attempt})
            died = _in_words(process.wait())
            if stops.is_set():
                return outcome_of(name, "interrupted", "the sweep was ended")
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"process {process.pid} {died} at {name}, attempt {attempt}\n")
        why = f"its process {died}, {ATTEMPTS} times; see {self._log}"
        return outcome_of(name, "failed", why, attempts=ATTEMPTS)

    def stop(self) -> None:
        """End the process, whatever it is at."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):  # what was not read by then
                            pipe.close()

    def _running(self, stops: threading.Event) -> subprocess.Popen[str] | None:
        """Return the process, begun where there is none; None once the sweep is at its end."""
        with self._lock:
            if stops.is_set():
                return None
            if self._process is None or self._process.poll() is not None:
                program = [sys.executable, "-m", "pyimgano.sweep.executors.worker"]
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        [*program, self._work, str(self._threads)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        encoding="utf-8",
                    )
            return self._process


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """Send a line to a process and return its answer; an empty one if it has died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):  # it has died, or was stopped
        return ""


def _in_words(status: int) -> str:
    """Say how a process ended that should not have."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", as it is when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
