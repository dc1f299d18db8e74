"""Writing a run: whole documents, whole lines, names that do not collide."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyimgano.errors import DataError
from pyimgano.runs import ImageRecord, RecordWriter, RunDirectory, write_text
from pyimgano.runs.directory import safe_name

RECORD = ImageRecord(
    index=0,
    dataset="d",
    category="c",
    input="i",
    y_true=None,
    defect="good",
    score=1.0,
    threshold=2.0,
    pred=0,
)

names = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)


@given(name=names)
def test_any_name_can_be_written_down(name: str) -> None:
    record = RECORD.model_validate({**RECORD.model_dump(), "category": name, "input": name})
    record.model_dump_json().encode()
    if name.isprintable():
        assert record.category == name


@example(first="\ud800", second="\udcfc")
@given(first=names, second=names)
def test_two_names_never_share_a_folder(first: str, second: str) -> None:
    for name in (first, second):
        safe = safe_name(name)
        assert safe and safe not in (".", "..") and "/" not in safe and "\\" not in safe
        assert Path("x", safe).parent == Path("x")
    assert (safe_name(first) == safe_name(second)) == (first == second)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("bottle", "metal nut 2", "größe", "v1.2", "a,b"):
        assert safe_name(name) == name
    assert safe_name("..") == ".%2E" and safe_name("a/b") == "a%2Fb"


def test_a_document_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"report\.json: cannot be written .No space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert got == ["through"] and pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with (
        pytest.raises(DataError, match=r"cannot be written .No space left"),
        RecordWriter(Path("/dev/full")) as records,
    ):
        records.write(RECORD)


def test_records_are_whole_lines_as_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "per_image.jsonl"
    with RecordWriter(path) as records:
        for count in (1, 2, 3):
            records.write(RECORD)
            assert len(path.read_text().splitlines()) == count  # with the system already
            assert path.read_text().endswith("\n")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    from datetime import datetime

    run = RunDirectory.create(tmp_path, "d", "m", datetime.now().astimezone())
    (run.path / "categories").touch()
    with pytest.raises(DataError, match="cannot be made"):
        run.category("c")
