"""A process that does one job after another: `python -m pyimgano.sweep.executors.worker`.

A job is a line of JSON on stdin, its outcome a line on stdout.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import TextIO


def main(work: str, threads: str) -> None:
    """Do jobs until stdin ends; then end at once, even amid a job.

    Parameters
    ----------
    work
        What is done, as `module:function`.
    threads
        How many threads the libraries may have, which has to be said before they are imported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the sweep, and that ends this
    os.environ["OMP_NUM_THREADS"] = threads
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a model prints is no answer
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), name="jobs", daemon=True).start()
    _work_off(jobs, work, answers)


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # whoever asked is gone


def _work_off(jobs: queue.SimpleQueue[str], name: str, answers: TextIO) -> None:
    from ..cell import Job
    from .executor import attempt, find_work

    work = find_work(name)
    while True:
        outcome = attempt(work, Job.model_validate_json(jobs.get()))
        answers.write(outcome.model_dump_json() + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
