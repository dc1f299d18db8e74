"""What a user names, and the files that it comes to."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path, PurePath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyimgano.inference.inputs import OUTSIDE, common_root, lines_of, list_input, place_of
from tests.conftest import picture, save


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for name in ("b/2.png", "b/10.JPG", "a.tif", "b/c/d.webp", ".hidden/e.png", "b/.f.png"):
        save(root / name, picture(0, 8)) if not name.endswith(("JPG", "webp")) else (
            (root / name).parent.mkdir(parents=True, exist_ok=True),
            (root / name).write_bytes(b"x"),
        )
    (root / "notes.md").write_text("x")
    return root


def names(root: Path, paths: list[str]) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths]


def test_folders_hold_images_at_any_depth_in_order(parts: Path) -> None:
    found = list_input(str(parts))
    assert names(parts, found.paths) == ["a.tif", "b/10.JPG", "b/2.png", "b/c/d.webp"]
    assert found.roots == [str(parts)] and found.problems == []
    left = list_input(str(parts), leave_out=[parts / "b" / "c"])
    assert names(parts, left.paths) == ["a.tif", "b/10.JPG", "b/2.png"]
    (parts / "empty").mkdir()
    empty = list_input(str(parts / "empty"))
    assert empty.paths == [] and "holds no images" in empty.problems[0]


def test_a_file_whose_name_begins_like_a_list_is_itself(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(parts / "@first.png", picture(0, 8))
    monkeypatch.chdir(parts)
    assert list_input("@first.png").paths == ["@first.png"]
    (parts / "first.txt").write_text("a.tif\n")
    assert list_input("@first.txt").paths == ["a.tif"]


def test_links_to_folders_are_followed_once(parts: Path) -> None:
    (parts / "b" / "loop").symlink_to(parts, target_is_directory=True)
    assert len(list_input(str(parts)).paths) == 4
    other = parts.parent / "other"
    other.mkdir()
    (other / "linked").symlink_to(parts / "b", target_is_directory=True)
    assert len(list_input(str(other)).paths) == 4  # through b, and by its loop the rest


def test_patterns(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list_input(f"{parts}/**/*")
    assert names(parts, found.paths) == ["a.tif", "b/10.JPG", "b/2.png", "b/c/d.webp"]
    assert found.roots == [str(parts)]
    assert names(parts, list_input(f"{parts}/*.md").paths) == ["notes.md"]
    assert names(parts, list_input(f"{parts}/b/?.png").paths) == ["b/2.png"]
    assert "matches no image" in list_input(f"{parts}/*.gif").problems[0]
    assert list_input(f"{parts}/**/*", leave_out=[parts / "b"]).paths == [str(parts / "a.tif")]
    monkeypatch.chdir(parts)
    relative = list_input("b/*.png")
    assert relative.paths == ["b/2.png"] and relative.roots == [str(parts / "b")]
    save(parts / "x[1].png", picture(0, 8))
    assert list_input("x[1].png").paths == ["x[1].png"]  # the very name beats the pattern


def test_a_file_is_taken_whatever_its_suffix(parts: Path) -> None:
    assert list_input(str(parts / "notes.md")).paths == [str(parts / "notes.md")]
    missing = list_input(str(parts / "no.png"))
    assert missing.paths == [] and missing.problems == [
        f"{parts / 'no.png'}: no such file or folder"
    ]


def test_lists_are_relative_to_their_own_folder(parts: Path) -> None:
    text = "\ufeff# today's\nb/2.png\r\n\n  a.tif  \n/elsewhere/x.png\n../up.png\n"
    (parts / "today.txt").write_text(text, encoding="utf-8")
    for given_name in (f"@{parts}/today.txt", f"{parts}/today.txt"):
        found = list_input(given_name)
        assert found.problems == []
        assert found.paths == [
            f"{parts}/b/2.png",
            f"{parts}/a.tif",
            "/elsewhere/x.png",
            f"{parts}/../up.png",
        ]
    (parts / "good.txt").write_text("a.tif\nb/2.png\n")
    assert list_input(f"{parts}/good.txt").roots == [str(parts)]


def test_backslashes_of_a_list(parts: Path) -> None:
    save(parts / "odd\\name.png", picture(0, 8))  # a name of POSIX may hold one
    text = "b\\2.png\r\n.\\b\\c\\d.webp\r\nodd\\name.png\r\n"
    (parts / "today.txt").write_bytes(text.encode())
    found = list_input(f"{parts}/today.txt")
    assert [os.path.normpath(path) for path in found.paths] == [
        f"{parts}/b/2.png",
        f"{parts}/b/c/d.webp",
        f"{parts}/odd\\name.png",
    ]


def test_files_that_are_not_images_are_said(parts: Path) -> None:
    found = list_input(str(parts))
    assert found.notes == [
        f"{parts}: 1 file is not used: the suffix is not that of an image (.md 1)"
    ]
    for name in ("b/x.HEIC", "b/y.heic", "b/c/z.gif", "t", "Thumbs.db"):
        (parts / name).touch()
    images, files = list_input(str(parts)).notes
    assert images == (
        f"{parts}: 3 images are not used: the format is not read (.heic 2, .gif 1); "
        "convert to PNG, TIFF or JPEG"
    )
    assert files == (
        f"{parts}: 2 files are not used: the suffix is not that of an image (.md 1, none 1)"
    )
    assert list_input(f"{parts}/**/*").notes == []


@pytest.mark.skipif(os.sep == "\\", reason="these are the separators there")
def test_lists_that_were_written_on_windows(parts: Path) -> None:
    text = "a.tif\r\nb\\2.png\r\nc\\d.png\r\nno\\such.png\r\n"
    (parts / "c\\d.png").write_bytes(b"")  # a backslash in a name stays one
    wanted = ["a.tif", "b/2.png", "c\\d.png", "no\\such.png"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be"):
        data = text.encode(encoding)
        if encoding == "utf-16-be":
            data = b"\xfe\xff" + data
        (parts / "list.txt").write_bytes(data)
        found = list_input(f"{parts}/list.txt")
        assert found.problems == [] and found.paths == [f"{parts}/{one}" for one in wanted]
    (parts / "list.txt").write_bytes(b"\xff\xfea")
    assert "list.txt: begins as UTF-16 and is none" in list_input(f"{parts}/list.txt").problems[0]
    given = io.BytesIO(f"{parts}\\b\\2.png\n".replace("/", "\\").encode())
    assert list(lines_of(given)) == [f"{parts}/b/2.png"]


def test_what_is_wrong_with_a_list_is_named_by_line(parts: Path) -> None:
    (parts / "bad.txt").write_bytes(b"a.tif\n\xffb.png\nb/2.png\nx\0.png\n")
    found = list_input(f"{parts}/bad.txt")
    assert found.paths == [f"{parts}/a.tif", f"{parts}/b/2.png"]
    assert (
        found.problems[0] == f"{parts}/bad.txt: line 2: is not UTF-8 (byte 1 of the line is 0xFF)"
    )
    assert "line 4: holds a null byte" in found.problems[1]
    (parts / "none.txt").write_text("# nothing\n")
    assert "names no image" in list_input(f"{parts}/none.txt").problems[0]
    assert "cannot be read" in list_input(f"@{parts}/missing.txt").problems[0]


@settings(max_examples=200)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=12), max_size=8))
def test_any_text_makes_a_list(lines: list[str]) -> None:
    text = "\n".join(lines)
    read = list(lines_of(io.BytesIO(text.encode())))
    wanted = [line.rstrip("\r\n") for line in text.split("\n")]
    wanted = [one for one in wanted if one.strip() and not one.lstrip().startswith("#")]
    assert read == wanted


def test_paths_on_stdin_may_be_any_bytes() -> None:
    read = list(lines_of(io.BytesIO(b"caf\xe9.png\r\n\n# no\nb.png")))
    assert [os.fsencode(one) for one in read] == [b"caf\xe9.png", b"b.png"]


names_of_files = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=9
) | st.sampled_from([".", "..", "%outside", "a%b", "a.png", "A" * 300, "é" * 200])
paths_of_files = st.lists(names_of_files, min_size=1, max_size=4).map("/".join)


@settings(max_examples=300)
@given(paths_of_files, paths_of_files, st.booleans(), st.booleans())
@example("0", "0/\\", True, True)  # a file may be called \ where that separates nothing
def test_places_never_collide_nor_escape(
    first: str, second: str, absolute: bool, other: bool
) -> None:
    root = "/data/parts"
    given_paths = [
        ("/" if one_is else f"{root}/") + path
        for path, one_is in ((first, absolute), (second, other))
    ]
    places = [place_of(path, root) for path in given_paths]
    same = os.path.normpath(given_paths[0]) == os.path.normpath(given_paths[1])
    assert (places[0] == places[1]) == same
    for place, path in zip(places, given_paths):
        if os.path.normpath(path) in ("/", root):
            continue
        joined = PurePath("/out").joinpath(*place)
        assert joined.parts[:2] == ("/", "out") and ".." not in joined.parts
        assert all(part and "/" not in part for part in place)
        assert all(len(part.encode()) <= 220 for part in place)


def test_places_mirror_the_common_folder(tmp_path: Path) -> None:
    assert place_of("/d/a/good/0.png", "/d") == ("a", "good", "0.png")
    assert place_of("/x/0.png", "/d") == (OUTSIDE, "x", "0.png")
    assert place_of("/d/../x/0.png", "/d") == (OUTSIDE, "x", "0.png")
    assert common_root(["/d/a", "/d/b"]) == "/d" and common_root([]) is None


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_named(parts: Path) -> None:
    (parts / "b").chmod(0)
    try:
        found = list_input(str(parts))
    finally:
        (parts / "b").chmod(0o755)
    assert names(parts, found.paths) == ["a.tif"] and "cannot be listed" in found.problems[0]
