"""`pyimgano check GOOD NEW`: what it says, what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyimgano.calibration import calibrate, promise_of
from pyimgano.cli import main
from pyimgano.images import differences, origin_of, strangers
from pyimgano.inference import kept as kept_detectors
from pyimgano.inference.kept import KeptDetectors, same_files
from pyimgano.models import register_model
from pyimgano.pages import NewImagesPage
from pyimgano.runs import InferenceRecord
from tests.conftest import copy_registry, picture, save
from tests.stubs import SavedDarkness

Check = Callable[..., tuple[int, str, str]]


class Dark(SavedDarkness):
    """The quick model of these tests."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight good photos in `good`, and in `new` two good ones and one with a spot."""
    for i in range(8):
        save(tmp_path / "good" / f"{i}.png", tinted(200 + i))
    for i in range(2):
        save(tmp_path / "new" / f"{i}.png", tinted(210 + i))
    spot = tinted(204)
    spot[20:40, 20:30] = 20
    save(tmp_path / "new" / "tief" / "ä.png", spot)
    return tmp_path


def tinted(value: int) -> np.ndarray:
    """A flat (64, 64, 3) uint8 picture in colour, of that brightness."""
    return np.full((64, 64, 3), (value, value - 10, value - 30), np.uint8)


@pytest.fixture
def check(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Runs `pyimgano check` in the folder of the photos with a quick model that can be saved."""
    copy_registry(monkeypatch)
    register_model("dark", overwrite=True)(Dark)
    monkeypatch.chdir(photos)
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / ".cache"))

    def run(*words: object, good: str = "good", new: str = "new") -> tuple[int, str, str]:
        given = ["check", good, new, "--model", "dark", "--resize", "64", "64"]
        status = main([*given, *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_an_answer_with_its_files(check: Check, photos: Path) -> None:
    status, out, err = check("--output-dir", "answer")
    assert status == 0
    lines = out.splitlines()
    assert lines[1].startswith("defective") and "new/tief/ä.png" in lines[1]
    assert "3 images: 1 defective, 2 good, 0 unreadable" in lines
    assert any(
        line.startswith("With 8 good photos, expect about one good part in 9") for line in lines
    )
    assert "takes photos of bad parts" in out and "Open answer/report.html to look" in out
    assert "learning from 8 good photos" in err
    answer = photos / "answer"
    table = rows(answer)
    assert [row["verdict"] for row in table] == ["good", "good", "defective"]
    assert float(table[2]["score"]) >= float(table[2]["threshold"]) and table[2]["x"] != ""
    assert (answer / "overlays/tief/ä.png.overlay.png").is_file()
    page = (answer / "report.html").read_text()
    assert "3 images: 1 called defective" in page and "What this promises" in page
    assert "one good part in 9" in page and "ä.png" in page
    records = [json.loads(line) for line in (answer / "records.jsonl").read_text().splitlines()]
    for record in records:
        InferenceRecord.model_validate(record)
    summary = json.loads((answer / "check.json").read_text())
    assert (summary["images"], summary["defective"], summary["good_photos"]) == (3, 1, 8)


def test_the_detector_is_kept_for_these_files_and_settings(check: Check, photos: Path) -> None:
    def fitted(*words: object) -> bool:
        _, out, _ = check("--json", "--output-dir", f"out{len(list(photos.iterdir()))}", *words)
        return not json.loads(out)["fit"]["kept_before"]

    assert fitted() and not fitted()
    os.utime(photos / "good/0.png", (1, 1))  # the same content at another time is the same
    assert not fitted()
    assert fitted("--resize", 32, 32) and not fitted("--resize", 32, 32)
    assert fitted("--refit")
    Image.fromarray(tinted(199)).save(photos / "good/0.png")
    assert fitted() and not fitted()
    (photos / "good/7.png").unlink()
    assert fitted()
    first = json.loads(check("--json", "--output-dir", "a")[1])
    again = json.loads(check("--json", "--output-dir", "b", "--refit")[1])
    assert first["threshold"] == again["threshold"]
    assert rows(photos / "a")[2]["score"] == rows(photos / "b")[2]["score"]


def test_the_page_shows_the_regions_of_the_records(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold for pixels would outline places in photos that are called good."""
    given: dict[str, object] = {}

    class Page(NewImagesPage):
        def __init__(self, path: Path, **facts: Any) -> None:
            given.update(facts)
            super().__init__(path, **facts)

    monkeypatch.setattr("pyimgano.pages.NewImagesPage", Page)
    assert check()[0] == 0
    assert given and given.get("pixel_threshold") is None


def test_it_is_kept_under_the_same_place_however_that_is_typed(
    check: Check, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "good" / "cut.png").write_bytes(b"no image")
    assert "learning from" in check()[2]
    (photos / "elsewhere").mkdir()
    monkeypatch.chdir(photos / "elsewhere")
    _, _, err = check(good="../good", new="../new")
    assert "using the detector that was kept" in err and str(photos / "good" / "cut.png") in err


def test_a_damaged_kept_detector_is_fitted_anew(check: Check) -> None:
    check()
    (place,) = KeptDetectors().folder.iterdir()
    (place / "model/detector.json").write_text("{")
    assert "learning from" in check()[2]
    assert "kept" in check()[2]


def test_the_oldest_detectors_are_removed(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_detectors, "MOST_KEPT", 2)
    for side in (32, 48, 64):
        check("--resize", side, side)
    assert len(list(KeptDetectors().folder.iterdir())) == 2
    assert "kept" in check()[2] and "learning" in check("--resize", 32, 32)[2]


def test_unreadable_files_are_listed_and_left_out(check: Check, photos: Path) -> None:
    (photos / "good/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (photos / "new/cut.png").write_bytes(b"")
    (photos / "new/Thumbs.db").write_bytes(b"x")
    (photos / "new/a.heic").write_bytes(b"x")
    for expected in ("learning from 9", "kept for these 9"):  # both list it
        status, out, err = check()
        assert status == 1 and expected in err
        assert "good/cut.jpg: " in err and "not learned from" in err
        assert "4 images: 1 defective, 2 good, 1 unreadable" in out
        assert out.splitlines()[1].startswith("unreadable") and "the file is empty" in out
        assert "1 image is not used: the format is not read (.heic 1)" in err
    assert check("--on-error", "skip")[0] == 0


def test_what_is_refused(check: Check, photos: Path) -> None:
    save(photos / "parts/good/0.png", picture(1))
    save(photos / "parts/NOK/0.png", picture(1, spot=True))
    status, _, err = check(good="parts")
    assert status == 1 and "holds bad parts (NOK: 1 image)" in err and "parts/good" in err
    assert check(good="nowhere")[0] == 1 and check(new="nowhere")[0] == 1
    status, _, err = check(new="good")
    assert status == 2 and "is the folder of good photos too" in err
    save(photos / "full/0.png", picture(1))
    status, _, err = check("--output-dir", "full")
    assert status == 1 and "is not empty" in err
    assert not (photos / "checks").exists()


def test_new_photos_within_the_good_ones_and_the_other_way(check: Check, photos: Path) -> None:
    shutil.move(photos / "new", photos / "good/new")
    _, out, _ = check("--json", new="good/new")
    found = json.loads(out)
    assert (found["good_photos"], found["images"]) == (8, 3)
    shutil.move(photos / "good/new", photos / "new")
    shutil.move(photos / "good", photos / "new/good")
    _, out, _ = check("--json", good="new/good")
    found = json.loads(out)
    assert (found["good_photos"], found["images"]) == (8, 3)


def test_its_own_pictures_are_not_taken_for_new_ones(check: Check, photos: Path) -> None:
    for _ in range(2):
        _, out, _ = check("--json", new=".")
        assert json.loads(out)["images"] == 3
    assert len(list((photos / "checks").iterdir())) == 2


def test_a_name_that_a_spreadsheet_would_compute(check: Check, photos: Path) -> None:
    save(photos / "=1+1.png", picture(70))
    check("--output-dir", "answer", new="=1+1.png")
    assert [row["image"] for row in rows(photos / "answer")] == ["'=1+1.png"]


def test_photos_of_another_kind_are_said_before_the_answer(check: Check, photos: Path) -> None:
    for path in photos.glob("new/**/*.png"):
        Image.open(path).convert("L").resize((200, 200)).save(path.with_suffix(".jpg"), quality=60)
        path.unlink()
    shutil.copy(photos / "good/3.png", photos / "new/again.png")
    _, out, err = check("--json")
    notes = "\n".join(json.loads(out)["notes"])
    assert "3 of 4 new images are JPEG, and the training images are PNG" in notes
    assert "3 of 4 new images are grey, and the training images are in colour" in notes
    assert "3 of 4 new images are 200 x 200 pixels, and the training images are 64 x 64" in notes
    assert "1 of 4 new images are the same files, byte by byte" in notes
    assert all(f"note: {line}" in err for line in notes.splitlines() if "new images" in line)


def test_where_files_come_from(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "One"
    for quality in (50, 75, 95):
        path = tmp_path / f"{quality}.jpg"
        save(path, picture(1), quality=quality, exif=exif)
        found = origin_of(path)
        assert found.quality is not None and abs(found.quality - quality) <= 2
        assert found.camera == "Maker One" and found.file_format == "JPEG"
    grey = save(tmp_path / "grey.png", np.full((8, 9, 3), 90, np.uint8))
    assert origin_of(grey).grey is None and origin_of(grey, decode=True).grey is True
    training, new = [origin_of(tmp_path / "95.jpg")], [origin_of(tmp_path / "50.jpg")]
    (said,) = differences(training, new)
    assert (
        said == "all new images are JPEG of quality 50, and the training images are of quality 95"
    )
    assert differences(training, training) == differences([], new) == differences(new, []) == []


def test_unreadable_files_have_no_origin(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    good = save(tmp_path / "b.png", picture(1))
    assert strangers([good], [tmp_path / "a.png"]) == []
    assert same_files([str(good)], [str(tmp_path / "a.png"), str(tmp_path / "none.png")]) == []


@pytest.mark.parametrize(
    ("n", "unseen", "said"),
    [
        (
            10,
            True,
            "With 10 good photos, .* one good part in 11 .* 199 good photos are always enough",
        ),
        (400, True, "expect about one good part in 200"),
        (10, False, "allow no promise about false alarms"),
    ],
)
def test_the_promise_in_words(n: int, unseen: bool, said: str) -> None:
    scores: Any = np.linspace(1, 2, n)
    calibration = calibrate(scores, 0.995, method="x", unseen=unseen, tail="conformal")
    text = promise_of(calibration)
    assert re.search(said, text), text
    assert "photos of bad parts" in text
