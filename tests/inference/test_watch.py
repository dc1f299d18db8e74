"""A watched folder: every file once, when it is complete, also after a restart.

Clocks are the tests' own; nothing waits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyimgano.errors import DataError
from pyimgano.inference.outputs import Wanted
from pyimgano.inference.records import RecordFile, as_line, key_of
from pyimgano.inference.session import Session
from pyimgano.inference.watch import Watcher
from pyimgano.runs import InferenceRecord
from tests.conftest import save
from tests.pixel_detector import fitted, plain


class Clock:
    """Time that passes when it is told to; before each sleep something may happen."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[Callable[[], object]] = []
        self.sleeps = 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        assert self.sleeps < 500, "it does not end"
        if self.events:
            self.events.pop(0)()
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def line(tmp_path: Path) -> Path:
    folder = tmp_path / "line"
    folder.mkdir()
    return folder


def watcher(line: Path, clock: Clock, **more: object) -> Watcher:
    return Watcher(line, **{"settle": 2.0, "known": set(), "clock": clock, **more})  # type: ignore[arg-type]


def run(
    line: Path, clock: Clock, jsonl: Path | None = None, *, idle: float = 10.0, **more: object
) -> list[InferenceRecord]:
    """Watch until nothing has happened for `idle` seconds."""
    records: list[InferenceRecord] = []
    file = None if jsonl is None else RecordFile(jsonl, keep=True)

    def emit(record: InferenceRecord) -> None:
        records.append(record)
        if file is not None:
            file.write(as_line(record))

    session = Session(fitted(), Wanted(), emit)
    if file is not None:
        session.first = file.count
        more["known"] = file.known
    session.watch(
        watcher(line, clock, **more), interval=1.0, stop_when_idle=idle, clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    if file is not None:
        file.close()
    return records


def paths(records: list[InferenceRecord]) -> list[str]:
    return [one.file.path for one in records if one.file is not None]


def test_a_file_counts_when_it_has_not_changed_for_the_settle_time(
    line: Path, clock: Clock
) -> None:
    watch = watcher(line, clock)
    path = save(line / "a.png", plain())
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert watch.look() == [] and watch.waiting == 1
    clock.now += 1.9
    assert watch.look() == []
    path.write_bytes(whole)
    clock.now += 1.9  # long since it came, not since it changed
    assert watch.look() == []
    clock.now += 1.9
    assert watch.look() == []
    clock.now += 0.2
    (found,) = watch.look()
    assert (found.relative, found.size) == ("a.png", len(whole))
    assert watch.look() == [found]  # until it is dealt with
    watch.done(found)
    clock.now += 50
    assert watch.look() == [] and watch.waiting == 0


def test_a_change_of_time_alone_is_a_change(line: Path, clock: Clock) -> None:
    watch = watcher(line, clock)
    path = save(line / "a.png", plain())
    watch.look()
    clock.now += 3
    (found,) = watch.look()
    watch.done(found)
    os.utime(path, ns=(found.mtime_ns + 1, found.mtime_ns + 1))
    assert watch.look() == [] and watch.waiting == 1
    clock.now += 3
    assert watch.look()[0].mtime_ns == found.mtime_ns + 1


def test_files_come_the_oldest_first_and_a_bounded_number_at_a_time(
    line: Path, clock: Clock
) -> None:
    for i in range(300):
        path = line / f"{i:03d}.png"
        path.write_bytes(b"x")
        os.utime(path, ns=(10**18 - i, 10**18 - i))
    watch = watcher(line, clock, settle=0.0)
    first = watch.look()
    assert [one.relative for one in first] == [f"{i:03d}.png" for i in range(299, 43, -1)]
    for one in first:
        watch.done(one)
    assert [one.relative for one in watch.look()] == [f"{i:03d}.png" for i in range(43, -1, -1)]


def test_each_file_is_recorded_once(line: Path, clock: Clock) -> None:
    save(line / "a.png", plain(220))
    save(line / "sub" / "b.png", plain(10))
    (line / "notes.txt").write_text("x")
    (line / ".c.png").write_text("hidden, as a copy under way is")
    clock.events += [
        lambda: None,
        lambda: save(line / "tmp.part", plain(), format="PNG"),
        lambda: (line / "tmp.part").rename(line / "c.png"),
        *[lambda: None] * 6,
        lambda: save(line / "a.png", plain(11)),  # new content under the old name
    ]
    records = run(line, clock)
    assert paths(records) == ["a.png", "sub/b.png", "c.png", "a.png"]
    assert [one.pred for one in records] == [0, 1, 0, 1]
    assert [one.index for one in records] == [0, 1, 2, 3]


def test_nothing_is_done_again_after_a_restart(line: Path, clock: Clock, tmp_path: Path) -> None:
    jsonl = tmp_path / "records.jsonl"
    for name in ("a", "b"):
        save(line / f"{name}.png", plain())
    assert len(run(line, clock, jsonl)) == 2
    text = jsonl.read_bytes()
    assert run(line, clock, jsonl) == [] and jsonl.read_bytes() == text
    save(line / "b.png", plain(3))
    save(line / "c.png", plain())
    for length in (1, 30):  # the last line was cut by a crash
        jsonl.write_bytes(text + text.splitlines()[0][:length])
        RecordFile(jsonl, keep=True).close()
        assert jsonl.read_bytes() == text
    again = run(line, clock, jsonl)
    assert paths(again) == ["b.png", "c.png"] and [one.index for one in again] == [2, 3]
    lines = jsonl.read_text().splitlines()
    assert [json.loads(one)["index"] for one in lines] == [0, 1, 2, 3]


def test_only_new_passes_over_what_is_there(line: Path, clock: Clock) -> None:
    save(line / "old.png", plain())
    clock.events += [lambda: save(line / "new.png", plain())]
    assert paths(run(line, clock, only_new=True)) == ["new.png"]


def test_an_unreadable_file_is_looked_at_again_and_recorded_once(line: Path, clock: Clock) -> None:
    (line / "never.png").write_bytes(b"no image")
    whole = save(line / "late.png", plain(220)).read_bytes()
    (line / "late.png").write_bytes(whole[:-20])  # a writer that pauses
    clock.events += [*[lambda: None] * 3, lambda: (line / "late.png").write_bytes(whole)]
    records = run(line, clock, idle=30)
    assert sorted(paths(records)) == ["late.png", "never.png"]
    by_name = {one.file.path: one for one in records if one.file is not None}
    assert by_name["late.png"].pred == 0 and by_name["late.png"].error is None
    assert by_name["never.png"].pred is None
    assert by_name["never.png"].error == "not an image in a known format"


def test_a_file_that_changes_while_it_is_read_is_another(
    line: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(line / "a.png", plain(220))
    unchanged = Watcher.unchanged
    changes = [lambda: save(line / "a.png", plain(7))]

    def changing(self: Watcher, arrival: object) -> bool:
        if changes:
            changes.pop()()
        return unchanged(self, arrival)  # type: ignore[arg-type]

    monkeypatch.setattr(Watcher, "unchanged", changing)
    records = run(line, clock)
    assert [one.pred for one in records] == [1]


def test_a_file_that_is_taken_away_has_a_record_only_if_it_was_seen(
    line: Path, clock: Clock
) -> None:
    watch = watcher(line, clock)
    path = save(line / "a.png", plain())
    watch.look()
    clock.now += 3
    (found,) = watch.look()
    path.unlink()
    assert watch.unchanged(found) and not watch.unreadable(found)
    assert watch.waiting == 0 and watch.look() == []
    save(line / "b.png", plain())
    watch.look()
    (line / "b.png").unlink()
    assert watch.look() == [] and watch.waiting == 0


def test_a_folder_may_vanish_for_a_while(line: Path, clock: Clock, tmp_path: Path) -> None:
    away = tmp_path / "away"
    said: list[str] = []
    save(line / "a.png", plain())
    clock.events += [
        *[lambda: None] * 4,
        lambda: line.rename(away),
        *[lambda: None] * 3,
        lambda: away.rename(line),
        lambda: save(line / "b.png", plain()),
    ]
    assert paths(run(line, clock, warn=said.append)) == ["a.png", "b.png"]
    assert len(said) == 2
    assert said[0].startswith(f"{line}: cannot be listed (No such file or directory)")
    assert said[1] == f"{line}: is there again"
    shutil.rmtree(line)
    assert run(line, clock, warn=said.append) == [] and len(said) == 3


def test_folders_of_outputs_are_not_watched(line: Path, clock: Clock) -> None:
    save(line / "a.png", plain())
    save(line / "found" / "a.png.mask.png", plain())
    assert paths(run(line, clock, leave_out=[line / "found"])) == ["a.png"]


def test_names_that_are_no_utf8_are_known_again(line: Path, clock: Clock, tmp_path: Path) -> None:
    image = save(line / "a.png", plain())
    try:
        os.rename(image, os.fsencode(line) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    jsonl = tmp_path / "records.jsonl"
    assert paths(run(line, clock, jsonl)) == ["caf\\xe9.png"]
    assert run(line, clock, jsonl) == []


def test_what_is_known_takes_the_same_room_whatever_the_path() -> None:
    keys = {key_of("x" * n, 1, 2) for n in range(1, 300)}
    assert len(keys) == 299 and {len(key) for key in keys} == {16}
    assert len({key_of("a", 1, 2), key_of("a", 2, 2), key_of("a", 1, 3), key_of("b", 1, 2)}) == 4


def test_a_file_that_holds_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for text in ("shopping\n", "shopping", '{"a": 1}\n', '{"index": "x"}\n', "[1]\n", "\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="line 1 is not a record"):
            RecordFile(path, keep=True)
        assert path.read_text() == text
    with pytest.raises(DataError, match="cannot be written"):
        RecordFile(tmp_path / "no" / "x.jsonl")


def test_a_full_disk_is_an_error_of_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    file = RecordFile(Path("/dev/full"))
    with pytest.raises(DataError, match="/dev/full: cannot be written"):
        file.write("{}")


@pytest.fixture
def locked(line: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A folder `restricted` in the watched one that cannot be listed while this holds True."""
    (line / "restricted").mkdir()
    state = [True]
    plain_scandir = os.scandir

    def scandir(path: str) -> object:
        if state[0] and str(path).endswith("restricted"):
            raise PermissionError(13, "Permission denied")
        return plain_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return state


def test_a_folder_that_cannot_be_listed_holds_up_no_other(
    line: Path, clock: Clock, locked: list[bool]
) -> None:
    save(line / "restricted" / "old.png", plain())
    watched = watcher(line, clock, only_new=True)
    assert watched.look() == [] and not watched.away
    save(line / "new.png", plain())
    assert watched.look() == [] and watched.waiting == 1
    clock.sleep(2)
    (arrival,) = watched.look()
    assert arrival.relative == "new.png"
    watched.done(arrival)
    locked[0] = False  # what lay in it before is passed over, what comes now is not
    assert watched.look() == [] and watched.waiting == 0
    save(line / "restricted" / "late.png", plain())
    assert watched.look() == [] and watched.waiting == 1


def test_it_does_not_stop_while_complete_files_wait(
    line: Path, clock: Clock, locked: list[bool]
) -> None:
    for index in range(4):
        save(line / f"{index}.png", plain())
    assert len(run(line, clock, idle=1.0)) == 4
