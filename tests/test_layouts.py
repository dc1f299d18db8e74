"""Layouts of published datasets, written here as small as can be, as their archives have them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pyimgano.datasets import load_dataset
from pyimgano.errors import DataError
from pyimgano.pipelines import run_benchmark

from .conftest import picture, save, spot_mask


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    """bmp and png mixed within a category, in images and masks alike."""
    root = tmp_path / "BTech_Dataset_transformed"
    for category, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        folder = root / category
        for i in range(4):
            save(folder / "train/ok" / f"{i:04d}.{image}", picture(i))
        for i in range(2):
            save(folder / "test/ok" / f"{i:04d}.{image}", picture(50 + i))
            save(folder / "test/ko" / f"{i:04d}.{image}", picture(90 + i, spot=True))
            save(folder / "ground_truth/ko" / f"{i:04d}.{mask}", spot_mask())
    return root


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """The raw form: JPG in capitals, masks of 0 to k, one table for all categories."""
    root = tmp_path / "VisA_20220922"
    rows = []
    for category in ("candle", "pcb1"):
        data = root / category / "Data"
        for i in range(6):
            name = f"{category}/Data/Images/Normal/{i:04d}.JPG"
            save(root / name, picture(i), quality=95)
            split = "train" if i < 4 else "test"
            rows.append((category, split, "normal", name, ""))
        for i in range(2):
            name = f"{category}/Data/Images/Anomaly/{i:03d}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{i:03d}.png"
            save(root / name, picture(90 + i, spot=True), quality=95)
            save(root / mask, (spot_mask() > 0).astype(np.uint8) * (i + 1))
            rows.append((category, "test", "anomaly", name, mask))
        (data / "image_anno.csv").touch()
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("object", "split", "label", "image", "mask"))
        writer.writerows(rows)
    return root


def check(root: Path, dataset: str, categories: list[str]) -> None:
    """The one-click command runs over all categories and measures pixels too."""
    report = run_benchmark(
        dataset=dataset, root=root, category="all", resize=(64, 64), save_run=False
    )
    assert report["status"] == "complete" and report["categories"] == categories
    for category in report["per_category"].values():
        assert category["problems"] == [] and category["results"]["auroc"] == 1.0
        assert category["results"]["pixel_metrics"]["pixel_auroc"] > 0.9


def test_btad(btad: Path) -> None:
    check(btad, "btad", ["01", "02", "03"])
    dataset = load_dataset("btad", btad, "01")
    assert dataset.get_info()["defects"] == {"ko": 2}
    assert [Path(p).suffix for p in dataset.get_test_paths()[0]] == [".bmp"] * 4


def test_visa_raw(visa: Path) -> None:
    check(visa, "visa", ["candle", "pcb1"])
    info = load_dataset("visa", visa, "pcb1").get_info()
    assert info["n_train"] == 4 and info["n_test_good"] == 2 and info["n_masks"] == 2


def test_visa_converted(tmp_path: Path) -> None:
    root = tmp_path / "1cls"
    for i in range(4):
        save(root / "candle/train/good" / f"{i:04d}.JPG", picture(i), quality=95)
    for i in range(2):
        save(root / "candle/test/good" / f"{i:04d}.JPG", picture(50 + i), quality=95)
        save(root / "candle/test/bad" / f"{i:03d}.JPG", picture(90 + i, spot=True), quality=95)
        save(root / "candle/ground_truth/bad" / f"{i:03d}.png", spot_mask())
    check(root, "visa", ["candle"])


def test_a_mask_that_the_table_names_but_is_not_there(visa: Path) -> None:
    (visa / "candle/Data/Masks/Anomaly/001.png").unlink()
    with pytest.warns(UserWarning, match=r"001\.JPG: the defective image has no mask"):
        assert load_dataset("visa", visa, "candle").get_test_paths()[2] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("candle,train,normal,../../etc/passwd,", "line 2: .* leads out of the dataset's folder"),
        ("candle,train,normal,/etc/passwd,", "leads out"),
        ("candle,train,good,candle/x.JPG,", "line 2: label must be normal or anomaly, got 'good'"),
        ("candle,valid,normal,candle/x.JPG,", "split must be train or test, got 'valid'"),
        ("candle,train,normal", "names no image"),
        ("candle,test,normal,candle/x.JPG,", "lists no training image of category 'candle'"),
    ],
)
def test_a_table_that_will_not_do(visa: Path, line: str, said: str) -> None:
    (visa / "split_csv/1cls.csv").write_text(f"object,split,label,image,mask\n{line}\n")
    with pytest.raises(DataError, match=said):
        load_dataset("visa", visa, "candle")


def test_a_table_that_is_not_there_or_none(visa: Path, tmp_path: Path) -> None:
    table = visa / "split_csv/1cls.csv"
    table.write_text("a,b\n")
    with pytest.raises(DataError, match="lacks the column 'object'"):
        load_dataset("visa", visa, "candle")
    table.write_bytes(b"object,split,label,image,mask\n\xff\xfe,,,,\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("visa", visa, "candle")
    table.unlink()
    with pytest.raises(DataError, match=r"1cls\.csv: cannot be read .No such file"):
        load_dataset("visa", visa, "candle")
    (tmp_path / "empty").mkdir()
    for dataset in ("visa", "btad"):
        with pytest.raises(DataError, match="holds no category"):
            load_dataset(dataset, tmp_path / "empty")
