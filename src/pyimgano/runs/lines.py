"""A file that grows by whole lines, also on a disk that is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError


def append_line(file: BinaryIO, path: Path, line: bytes) -> None:
    """Append a line and its end to an unbuffered file: all of it, or nothing.

    A file system that is filling up takes a part of it and says so afterwards; that part is
    taken back, so that the file ends with a whole line.

    Raises
    ------
    DataError
        It cannot be written.
    """
    data = memoryview(line + b"\n")
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        taken = len(line) + 1 - len(data)
        if taken:
            with contextlib.suppress(OSError):  # a pipe or a device keeps what it has
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - taken)
                file.seek(0, os.SEEK_END)
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
