"""A folder in which images keep arriving: each is found once, when it is complete.

By polling, so that it works on network shares as on local disks. A file is known by its path
below the folder, its size and its time of modification: one that is overwritten with new
content is a new one. It is handed out when neither has changed for the settle time, as seen by
this process's own clock, whatever the clock of the share says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runs import shown
from .inputs import UNLISTED, walk_images
from .records import key_of

#: How often a file that has settled is looked at before it is called unreadable.
ATTEMPTS = 3
#: Files handed out at a time: what arrived meanwhile waits no longer than these take.
_ROUND = 256


@dataclass(frozen=True)
class Arrival:
    """A file that is complete, as far as its size and time tell.

    Attributes
    ----------
    path
        Of the file.
    relative
        Its path below the folder, with `/`, as it is written in records.
    size
        In bytes.
    mtime_ns
        Time of modification, nanoseconds.
    """

    path: str
    relative: str
    size: int
    mtime_ns: int

    @property
    def key(self) -> bytes:
        return key_of(self.relative, self.size, self.mtime_ns)


@dataclass
class _Waiting:
    arrival: Arrival
    due: float
    attempts: int = 0


class Watcher:
    """Finds new files in a folder.

    Parameters
    ----------
    folder
        Also its subfolders; it may come and go.
    settle
        Seconds without a change after which a file is complete.
    known
        Keys of the files that were dealt with earlier; is added to. Sixteen bytes a file are
        held, however many there were.
    leave_out
        Folders in it that are not looked into: those of the outputs.
    only_new
        Whether files that are there at the first look are passed over.
    warn
        Told, in one line, of what is wrong with a folder, once until it changes.
    clock
        Seconds, from anywhere, never backwards.

    Attributes
    ----------
    active
        When something last arrived, changed or was dealt with, by `clock`.
    away
        Whether at the last look the folder could not be listed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle: float,
        known: set[bytes],
        leave_out: Sequence[Path] = (),
        only_new: bool = False,
        warn: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = str(folder)
        self._prefix = len(os.path.join(self._folder, ""))  # noqa: PTH118
        self._settle = settle
        self._known = known
        self._leave_out = leave_out
        self._pass_over = only_new
        self._never_listed: set[str] = set()
        self._warn = warn
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._said: set[str] = set()
        self.active = clock()
        self.away = False

    @property
    def waiting(self) -> int:
        """Files that have been seen and not yet been dealt with."""
        return len(self._waiting)

    def look(self) -> list[Arrival]:
        """Look once; gives files that are complete, the oldest first, at most 256 of them.

        The caller reports each as `done` or `unreadable`.
        """
        now = self._clock()
        problems: list[str] = []
        seen: set[str] = set()
        for entry in walk_images(self._folder, self._leave_out, problems):
            try:
                state = entry.stat()
            except OSError:  # gone again, or a link to nothing
                continue
            relative = entry.path[self._prefix :].replace(os.sep, "/")
            key = key_of(relative, state.st_size, state.st_mtime_ns)
            if key in self._known:
                continue
            if self._pass_over or _below(entry.path, self._never_listed):
                self._known.add(key)
                continue
            found = Arrival(entry.path, shown(relative), state.st_size, state.st_mtime_ns)
            seen.add(found.path)
            before = self._waiting.get(found.path)
            if before is None or before.arrival != found:
                self._waiting[found.path] = _Waiting(found, now + self._settle)
                self.active = now
        unlisted = {problem.split(UNLISTED)[0] for problem in problems}
        self.away = self._folder in unlisted
        if not self.away:
            # what is in a folder that could not be listed yet is passed over when it can be
            self._never_listed = unlisted if self._pass_over else self._never_listed & unlisted
            self._pass_over = False
            for path in self._waiting.keys() - seen:
                if not _below(path, unlisted):
                    del self._waiting[path]  # taken away before it was complete
        self._tell(problems)
        due = [one.arrival for one in self._waiting.values() if one.due <= now]
        return sorted(due, key=lambda one: (one.mtime_ns, one.relative))[:_ROUND]

    def unchanged(self, arrival: Arrival) -> bool:
        """Return whether the file still is what it was, or is gone; also if it is unreadable
        now.
        """
        try:
            state = os.stat(arrival.path)  # noqa: PTH116
        except OSError:
            return True
        return (state.st_size, state.st_mtime_ns) == (arrival.size, arrival.mtime_ns)

    def done(self, arrival: Arrival) -> None:
        """It has a record: it is not handed out again."""
        self._known.add(arrival.key)
        self._waiting.pop(arrival.path, None)
        self.active = self._clock()

    def unreadable(self, arrival: Arrival) -> bool:
        """It could not be decoded. False: it is looked at again later. True: that was the last.

        Some writers pause for longer than the settle time; so there is a second look after as
        long again, and a third after twice that. A file that is gone is forgotten.
        """
        waiting = self._waiting.get(arrival.path)
        if waiting is None:
            return False
        if not os.path.lexists(arrival.path):
            if os.path.isdir(self._folder):  # noqa: PTH112
                del self._waiting[arrival.path]
            return False
        waiting.attempts += 1
        if waiting.attempts >= ATTEMPTS:
            return True
        waiting.due = self._clock() + self._settle * 2 ** (waiting.attempts - 1)
        self.active = self._clock()
        return False

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self._said:
                self._warn(f"{problem}; looked at again and again")
        for gone in self._said - set(problems):
            self._warn(f"{gone.split(UNLISTED)[0]}: is there again")
        self._said = set(problems)


def _below(path: str, folders: set[str]) -> bool:
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)  # noqa: PTH118
