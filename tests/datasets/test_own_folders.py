"""Folders as people keep their photos: what is taken for what, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano.cli import run_subcommand
from pyimgano.datasets import check_dataset, load_dataset
from pyimgano.datasets.own_folders import require_good_parts
from pyimgano.datasets.words import meaning_in_name, meaning_of_folder, meaning_of_word
from pyimgano.errors import DataError
from pyimgano.pipelines import run_benchmark
from tests.conftest import MakeDataset, copy_registry, picture, save, spot_mask
from tests.stubs import register


def make(root: Path, folders: Mapping[str, int]) -> Path:
    """Put so many images into each folder; ones with a spot where the name says bad."""
    for number, (folder, count) in enumerate(folders.items()):
        spot = any(meaning_in_name(part) == 1 for part in Path(folder).parts)
        for i in range(count):
            image = picture(100 * number + i, 32, spot=spot)
            save(root / folder / f"{i:03d}.png", image)
    return root


def counts(root: Path) -> tuple[int, int, int]:
    """(training, good test, bad test) images as `custom` reads them."""
    info = load_dataset("custom", root).get_info()
    return info["n_train"], info["n_test_good"], info["n_test_defective"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"good": 10, "bad": 3}, (8, 2, 3)),
        ({"OK": 10, "NOK": 3}, (8, 2, 3)),
        ({"iO": 5, "niO": 1}, (4, 1, 1)),
        ({"Gut": 5, "Schlechtteile": 1}, (4, 1, 1)),
        ({"Conforme": 5, "Non conforme": 1}, (4, 1, 1)),
        ({"bueno": 5, "defecto": 2}, (4, 1, 2)),
        ({"良品": 5, "不良品": 2}, (4, 1, 2)),
        ({"ok_front": 5, "def_front": 2}, (4, 1, 2)),
        ({"good": 3, "bad": 3}, (3, 0, 3)),  # too few to set any aside
        ({"good/cam1": 5, "good/cam2": 10, "bad/cam1": 1}, (12, 3, 1)),
        ({"train/good": 4, "test/bad": 3}, (4, 0, 3)),
        ({"TRAIN/OK": 4, "Test/NG": 3, "Test/OK": 2}, (4, 2, 3)),
        ({"train": 4, "test/good": 1, "test/bad": 3}, (4, 1, 3)),
        ({"train/cam1": 4, "train/cam2": 4, "test/bad": 3}, (8, 0, 3)),
        ({"train/ok": 4, "train/nok": 2, "test/ok": 1, "test/nok": 3}, (4, 1, 3)),
        ({"training/good/batch 1": 4, "good": 2, "bad": 3}, (4, 2, 3)),
        ({"good": 4}, (4, 0, 0)),
        ({".": 2, "cam1": 3, "cam2/monday": 4}, (9, 0, 0)),
        ({"train/good": 4, "test/good": 1, "test/scratch": 2, "test/crack": 1}, (4, 1, 3)),
    ],
)
def test_what_people_have_is_understood(
    tmp_path: Path, folders: dict[str, int], expected: tuple[int, int, int]
) -> None:
    make(tmp_path, folders)
    assert counts(tmp_path) == expected


def test_what_was_taken_for_what_is_said(tmp_path: Path) -> None:
    make(tmp_path, {"OK/cam1": 10, "OK/cam2": 5, "NOK": 3, "old": 4})
    (tmp_path / "OK" / "Thumbs.db").touch()
    with pytest.warns(UserWarning, match="4 images in old are not used"):
        notes = load_dataset("custom", tmp_path).get_info()["notes"]
    assert notes[0] == (
        f"{tmp_path}: took 12 images as good training images (OK/cam1 8, OK/cam2 4), 3 images as "
        "good test images (OK/cam1 2, OK/cam2 1), 3 images as bad test images (NOK 3)"
    )
    assert "3 of 15" in notes[1] and "the last fifth" in notes[1]
    assert "4 images in old are not used" in notes[2] and len(notes) == 3
    found = check_dataset("custom", tmp_path).categories[0].findings
    assert [one.kind for one in found] == ["images_not_used", "note", "note", "note"]
    assert found[1].path == str(tmp_path) and found[1].message.startswith("took 12 images as")
    assert found[3].message.startswith("there are no masks")


def test_a_note_names_a_few_of_many_folders(tmp_path: Path) -> None:
    make(tmp_path, {f"cam{number}": 1 for number in range(9)})
    (note,) = load_dataset("custom", tmp_path).get_info()["notes"]
    assert note.endswith(
        "9 images as good training images (cam0 1, cam1 1, cam2 1, and 6 more folders)"
    )


def test_the_images_that_are_set_aside_are_the_last_of_each_folder(tmp_path: Path) -> None:
    dataset = load_dataset("custom", make(tmp_path, {"good/a": 10, "good/b": 5, "bad": 1}))
    paths, labels, _ = dataset.get_test_paths()
    names = [Path(path).relative_to(tmp_path).as_posix() for path in paths]
    assert names == ["good/a/008.png", "good/a/009.png", "good/b/004.png", "bad/000.png"]
    assert labels.tolist() == [0, 0, 0, 1]
    assert not set(paths) & set(dataset.get_train_paths())


def test_kinds_and_masks_of_bad_parts(tmp_path: Path) -> None:
    make(tmp_path, {"good": 5, "bad/scratch": 1, "bad/dent": 2, "bad": 1})
    save(tmp_path / "masks/bad/dent/000.png", spot_mask(32))
    save(tmp_path / "masks/bad/dent/001_mask.png", spot_mask(32))
    save(tmp_path / "masks/bad/000.png", spot_mask(32))
    info = load_dataset("custom", tmp_path).get_info()
    assert info["defects"] == {"anomaly": 1, "dent": 2, "scratch": 1} and info["n_masks"] == 3
    save(tmp_path / "masks/bad/dent/009.png", spot_mask(32))
    found = [one.kind for one in check_dataset("custom", tmp_path).categories[0].findings]
    assert found.count("mask_without_image") == 1 and found.count("mask_missing") == 1


def test_a_folder_of_parts_is_a_category_each(tmp_path: Path) -> None:
    make(tmp_path, {"lid/good": 5, "lid/bad": 2, "cup/OK": 10, "cup/NG": 1, "Thumbs": 0})
    assert load_dataset("custom", tmp_path).list_categories() == ["cup", "lid"]
    info = load_dataset("custom", tmp_path, "lid").get_info()
    assert (info["n_train"], info["n_test_good"], info["n_test_defective"]) == (4, 1, 2)


def test_a_manifest_beside_good_and_bad_is_still_what_counts(tmp_path: Path) -> None:
    make(tmp_path, {"good": 5, "bad": 2})
    (tmp_path / "manifest.csv").write_text("path,split\ngood/000.png,train\n")
    assert counts(tmp_path) == (1, 0, 0)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ({"cam1": 3, "scratches": 2}, r"holds bad parts \(scratches: 2 images\)"),
        ({".": 3, "NG_2026": 2}, r"holds bad parts \(NG_2026: 2 images\)"),
        ({"good/rejected": 2, "good": 2, "bad": 1}, r"good: holds bad parts \(rejected: 2"),
        ({"train": 3, "train/defects": 2}, r"train: holds bad parts \(defects: 2"),
    ],
)
def test_bad_parts_among_those_to_learn_from_are_refused(
    tmp_path: Path, folders: dict[str, int], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        load_dataset("custom", make(tmp_path, folders))


def test_names_of_files_that_say_good_and_bad_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"OK_{i}.png", picture(i, 32))
        save(tmp_path / f"NG_{i}.png", picture(i, 32, spot=True))
    with pytest.raises(DataError, match=r"3 images are bad by their names, such as NG_0\.png"):
        load_dataset("custom", tmp_path)


def test_the_names_of_good_parts_pass(tmp_path: Path) -> None:
    names = ("OK_1.png", "no_scratch/2.png", "defect-free/3.png", "io_board/4.png", "cam/good.png")
    require_good_parts(tmp_path, [tmp_path / name for name in names])
    with pytest.raises(DataError, match="is a folder of bad parts by its name"):
        require_good_parts(tmp_path / "NOK", [])


@pytest.mark.parametrize(
    ("folders", "dataset", "root", "said"),
    [
        ({"b/train/good": 1, "b/test/good": 1}, "btad", "b/train", "MVTec AD: --dataset mvtec"),
        ({"b/test/logical_anomalies": 1}, "visa", ".", "MVTec LOCO: --dataset mvtec_loco"),
        ({"b/test_public/good": 1}, "mvtec", "b/test_public", "AD 2: --dataset mvtec_ad2"),
        ({"b/Data/Images/Normal": 1}, "mvtec", ".", "looks like VisA: --dataset visa"),
        ({"good": 1, "bad": 1}, "mvtec", ".", "folders of your own: --dataset custom"),
    ],
)
def test_the_layout_that_fits_is_proposed(
    tmp_path: Path, folders: dict[str, int], dataset: str, root: str, said: str
) -> None:
    make(tmp_path, folders)
    with pytest.raises(DataError, match=said):
        load_dataset(dataset, tmp_path / root)


def test_mvtec_read_as_custom_names_the_layout_for_what_is_left_out(
    make_mvtec: MakeDataset,
) -> None:
    root = make_mvtec()
    with pytest.warns(UserWarning, match="not used"):
        notes = load_dataset("custom", root).get_info()["notes"]
    assert any(f"this looks like MVTec AD: --dataset mvtec --root {root}" in one for one in notes)


@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        ({"good": 6, "bad": 2}, "--train-dir {}/good"),
        ({"train/good": 6, "test/bad": 2}, "--train-dir {}/train/good"),
        ({"OK": 6, "Fehler/tief": 2}, "--train-dir {}/OK"),
    ],
)
def test_a_training_folder_one_too_high_is_refused_with_the_right_one(
    tmp_path: Path,
    folder: dict[str, int],
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path, folder)
    new = next(tmp_path.rglob("000.png"))
    words = ["--train-dir", str(tmp_path), "--input", str(new), "--no-pretrained"]
    assert run_subcommand("infer", words) == 1
    out, err = capsys.readouterr()
    assert out == "" and remedy.format(tmp_path) in err and len(err.splitlines()) == 1


def test_words_are_known_in_any_spelling() -> None:
    for good in ("Gut", "i.O.", "BUENO", "Conforme", "Gut-Teile", "in Ordnung"):
        assert meaning_of_word(good) == 0, good
    for bad in (
        "Défaut",
        unicodedata.normalize("NFD", "Défaut"),
        "n. i. O.",
        "No conforme",
        "брак",
    ):
        assert meaning_of_word(bad) == 1, bad
    assert meaning_in_name("Défaut_peinture") == meaning_in_name("NGScratch") == 1
    assert meaning_of_folder("scratch") is None  # in a published layout a kind of defect


@given(st.text(max_size=30))
def test_any_name_has_one_meaning(name: str) -> None:
    known = meaning_of_word(name)
    assert meaning_in_name(name) in (0, 1, None)
    assert known is None or meaning_in_name(name) == known == meaning_of_folder(name)


def test_a_report_of_one_category_has_the_means_of_several(
    make_custom: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_registry(monkeypatch)
    register()
    keywords: dict[str, Any] = {"dataset": "custom", "root": make_custom(), "model": "darkness"}
    one = run_benchmark(**keywords, category="custom", resize=(32, 32), save_run=False)
    several = run_benchmark(**keywords, category="all", resize=(32, 32), save_run=False)
    for name in ("mean_metrics", "std_metrics", "metric_categories", "categories"):
        assert one[name] == several[name], name
    assert one["mean_metrics"]["auroc"] == one["results"]["auroc"]
    assert list(one["per_category"]) == list(several["per_category"]) == ["custom"]
    assert json.loads(json.dumps(one)) == one and "per_category" not in one
    with pytest.raises(KeyError, match="nothing"):
        one["nothing"]
