"""Runs a program while every connection, process and written file of it is recorded and refused.

`python watched.py LOG PROGRAM ARGUMENT...` runs a Python file. What is recorded goes to LOG, one
JSON list a line: `["connect", ...]` and `["process", ...]` for what is refused, and
`["write", path]` for what is done.

The audit events of the interpreter see what Python code does, whichever library it is in; they do
not see a socket that machine code opens.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

CONNECTIONS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
    "urllib.Request",
    "http.client.connect",
)
PROCESSES = (
    "subprocess.Popen",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "os.exec",
    "pty.spawn",
)
FILES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move")


def watch(log: str) -> None:
    """Record from now on, for the rest of the process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(kind: str, *what: object) -> None:
        os.write(descriptor, (json.dumps([kind, *map(str, what)]) + "\n").encode())

    def absolute(path: object) -> str:
        return os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CONNECTIONS:
            record("connect", event, arguments)
            raise OSError(f"{event} is refused by the test")
        if event in PROCESSES:
            record("process", event, arguments)
            raise OSError(f"{event} is refused by the test")
        if event == "open":
            path, mode, flags = arguments
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (written or set(str(mode or "")) & set("wax+")) and not isinstance(path, int):
                record("write", absolute(path))
        elif event in FILES:
            # the place that is written to: the only one of mkdir, the second of the others
            place = arguments[0] if event == "os.mkdir" else arguments[1]
            if isinstance(place, (str, bytes, os.PathLike)):
                record("write", absolute(place))

    sys.addaudithook(hook)

    # under the start methods "spawn" and "forkserver" no event tells of a new process
    from multiprocessing.process import BaseProcess

    def start(process: BaseProcess) -> None:
        record("process", "multiprocessing", process)
        raise OSError("a new process is refused by the test")

    BaseProcess.start = start  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(sys.argv[1])
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120
    runpy.run_path(sys.argv[0], run_name="__main__")
