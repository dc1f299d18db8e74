"""The dataset check: each kind of planted problem is found, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyimgano.cli import datasets
from pyimgano.datasets import check_dataset
from pyimgano.errors import DataError, UsageError
from tests.conftest import MakeDataset, picture, save, spot_mask


def found(root: Path, dataset: str = "mvtec", **keywords: object) -> list[tuple[str, str, bool]]:
    """Kind, file name and whether it is an error, of all findings."""
    checked = check_dataset(dataset, root, **keywords)  # type: ignore[arg-type]
    return [
        (one.kind, Path(one.path).name, one.error)
        for category in checked.categories
        for one in category.findings
    ]


def test_a_whole_dataset_has_no_findings(make_mvtec: MakeDataset) -> None:
    checked = check_dataset("mvtec", make_mvtec(("nut", "bolt")))
    assert [one.name for one in checked.categories] == ["bolt", "nut"] and checked.errors == 0
    nut = checked.categories[1]
    assert (nut.train, nut.good, nut.defective, nut.masks) == (6, 3, 3, 3)
    assert nut.sizes == {"64x64": 12} and nut.modes == {"RGB": 12} and nut.findings == []


def truncate(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


PLANTED: dict[str, tuple[Callable[[Path], object], tuple[str, str, bool]]] = {
    "no image at all": (
        lambda root: (root / "train/good/001.png").write_text("<html>"),
        ("image_unreadable", "001.png", True),
    ),
    "empty file": (
        lambda root: (root / "test/spot/001.png").write_bytes(b""),
        ("image_unreadable", "001.png", True),
    ),
    "truncated": (
        lambda root: truncate(root / "test/good/002.png"),
        ("image_unreadable", "002.png", True),
    ),
    "a dead link": (
        lambda root: (root / "test/good/x.png").symlink_to(root / "nowhere.png"),
        ("image_missing", "x.png", True),
    ),
    "in train and in test": (
        lambda root: shutil.copy(root / "train/good/001.png", root / "test/good/copy.png"),
        ("duplicate_image", "copy.png", True),
    ),
    "twice in train": (
        lambda root: shutil.copy(root / "train/good/001.png", root / "train/good/copy.png"),
        ("repeated_image", "copy.png", False),
    ),
    "no mask": (
        lambda root: (root / "ground_truth/spot/001_mask.png").unlink(),
        ("mask_missing", "001.png", True),
    ),
    "a mask that is none": (
        lambda root: (root / "ground_truth/spot/001_mask.png").write_text("x"),
        ("mask_unreadable", "001_mask.png", True),
    ),
    "a mask of another size": (
        lambda root: save(root / "ground_truth/spot/001_mask.png", spot_mask(50)),
        ("mask_size", "001_mask.png", True),
    ),
    "an empty mask": (
        lambda root: save(root / "ground_truth/spot/001_mask.png", np.zeros((64, 64), np.uint8)),
        ("mask_empty", "001_mask.png", True),
    ),
    "a mask of two images": (
        lambda root: save(root / "test/spot/001.bmp", picture(77, spot=True)),
        ("mask_shared", "001_mask.png", True),
    ),
    "a mask of a good image": (
        lambda root: save(root / "ground_truth/good/001_mask.png", spot_mask()),
        ("mask_without_image", "001_mask.png", True),
    ),
    "a mask without its image": (
        lambda root: (root / "test/spot/001.png").unlink(),
        ("mask_without_image", "001_mask.png", True),
    ),
    "masks of a kind without images": (
        lambda root: save(root / "ground_truth/dent/007_mask.png", spot_mask()),
        ("mask_without_image", "007_mask.png", True),
    ),
    "no training images": (
        lambda root: shutil.rmtree(root / "train"),
        ("category_unusable", "nut", True),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_problem_is_found(make_mvtec: MakeDataset, name: str) -> None:
    root = make_mvtec()
    plant, expected = PLANTED[name]
    plant(root / "nut")
    assert found(root) == [expected]


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".tif", ".webp", ".png"])
def test_files_that_end_too_early(make_mvtec: MakeDataset, suffix: str) -> None:
    root = make_mvtec(suffix=suffix)
    assert [f for f in found(root) if f[0] != "mask_size"] == []
    truncate(root / f"nut/train/good/003{suffix}", 0.9)
    assert found(root) == [("image_unreadable", f"003{suffix}", True)]


def test_files_that_state_a_wrong_length_but_are_whole(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    good = root / "nut/test/good"
    save(good / "a.jpg", picture(61, 80), quality=95)
    (good / "a.jpg").write_bytes((good / "a.jpg").read_bytes() + bytes(100_000))
    save(good / "b.bmp", picture(62))
    data = bytearray((good / "b.bmp").read_bytes())
    data[2:6] = (len(data) + 2).to_bytes(4, "little")
    (good / "b.bmp").write_bytes(bytes(data))
    save(good / "c.tif", picture(63))
    data = bytearray((good / "c.tif").read_bytes())
    table = int.from_bytes(data[4:8], "little")
    for entry in range(table + 2, table + 2 + 12 * data[table], 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 279:  # StripByteCounts
            data[entry + 8 : entry + 12] = (10**6).to_bytes(4, "little")
    (good / "c.tif").write_bytes(bytes(data))
    assert found(root) == []


def test_files_cut_short_behind_a_wrong_length(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    good = root / "nut/test/good"
    thumbnail = io.BytesIO()
    Image.fromarray(picture(3, 32)).save(thumbnail, "JPEG")
    block = b"\xff\xe2" + (len(thumbnail.getvalue()) + 2).to_bytes(2, "big") + thumbnail.getvalue()
    save(good / "a.jpg", picture(61, 80), quality=95)
    data = (good / "a.jpg").read_bytes()
    (good / "a.jpg").write_bytes(data[:2] + block + data[2 : 2 * len(data) // 3])
    save(good / "b.bmp", picture(62))
    data = bytearray((good / "b.bmp").read_bytes())
    data[2:6] = bytes(4)
    (good / "b.bmp").write_bytes(bytes(data[: len(data) // 2]))
    assert found(root) == [
        ("image_unreadable", "a.jpg", True),
        ("image_unreadable", "b.bmp", True),
    ]


def test_what_cannot_be_looked_at_is_a_finding(tmp_path: Path) -> None:
    rows = [f"{'x' * 300}.png", "a.png"]
    text = "\n".join(json.dumps({"path": name, "split": "train"}) for name in rows)
    (tmp_path / "list.jsonl").write_text(text)
    save(tmp_path / "a.png", picture(1))
    assert [one[0] for one in found(tmp_path / "list.jsonl", "custom")] == ["image_unreadable"]


def test_damage_inside_a_file_is_found_by_decoding(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    path = root / "nut/train/good/003.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert found(root) == []
    assert found(root, deep=True) == [("image_unreadable", "003.png", True)]


def test_several_pages_are_remarked(make_mvtec: MakeDataset) -> None:
    root = make_mvtec(suffix=".tif")
    pages = [Image.fromarray(picture(i)) for i in (1, 2)]
    pages[0].save(root / "nut/test/good/000.tif", save_all=True, append_images=pages[1:])
    assert found(root) == [("several_pages", "000.tif", False)]


def test_images_of_equal_size_and_ends_are_told_apart(make_mvtec: MakeDataset) -> None:
    root = make_mvtec(suffix=".bmp")
    for i in range(2):  # equal but for one pixel in the middle
        image = picture(1, 512)
        image[255, 17 + i] ^= 1
        save(root / f"nut/{('train', 'test')[i]}/good/big.bmp", image)
    assert found(root) == []


def test_a_manifest_that_names_what_is_not_there(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(1))
    save(tmp_path / "b.png", picture(2))
    rows = "path,split,label,mask\na.png,train,,\nx.png,test,0,\nb.png,test,1,m.png\n"
    (tmp_path / "list.csv").write_text(rows)
    assert found(tmp_path / "list.csv", "custom") == [
        ("image_missing", "x.png", True),
        ("mask_missing", "m.png", True),
    ]


def test_names_that_are_not_there(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    with pytest.raises(UsageError, match="unknown dataset"):
        check_dataset("mvtek", root)
    with pytest.raises(DataError, match="unknown category 'nutt'; did you mean nut"):
        check_dataset("mvtec", root, category="nutt")


def test_the_command(make_mvtec: MakeDataset, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_mvtec(("nut", "bolt"))
    (root / "bolt/train/good/\x1b[31m.png").write_bytes(b"")
    arguments = ["check", "--dataset", "mvtec", "--root", str(root)]
    with pytest.raises(SystemExit) as done:
        datasets(arguments)
    out, err = capsys.readouterr()
    assert done.value.code == 1 and err == "1 error found\n"
    header, _, bolt, nut, finding = out.splitlines()
    assert header.split() == [
        "category", "train", "good", "defective", "masks", "sizes", "modes", "errors"
    ]  # fmt: skip
    assert bolt.split() == ["bolt", "7", "3", "3", "3", "64x64", "RGB", "12", "1"]
    assert nut.split() == ["nut", "6", "3", "3", "3", "64x64", "RGB", "12", "0"]
    assert finding.startswith("bolt: error: image_unreadable: ") and "\x1b" not in out
    with pytest.raises(SystemExit):
        datasets([*arguments, "--json", "--category", "bolt"])
    document = json.loads(capsys.readouterr().out)
    assert document["errors"] == 1 and document["categories"][0]["name"] == "bolt"
    with pytest.raises(SystemExit) as done:
        datasets([*arguments, "--category", "nut"])
    assert done.value.code == 0 and capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as done:
        datasets([*arguments, "--split", "x"])
    assert done.value.code == 2 and "has no splits" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        datasets(["list"])
    assert done.value.code == 0 and "mvtec_loco\n" in capsys.readouterr().out


def test_nothing_is_wrong_with_bottle(real_mvtec: Path) -> None:
    checked = check_dataset("mvtec", real_mvtec, category="bottle")
    (bottle,) = checked.categories
    assert checked.errors == 0 and bottle.findings == []
    assert (bottle.train, bottle.good, bottle.defective, bottle.masks) == (209, 20, 63, 63)
    assert bottle.sizes == {"900x900": 292} and bottle.modes == {"RGB": 292}


def test_the_empty_mask_of_magnetic_tile_is_found(real_mvtec: Path) -> None:
    assert found(real_mvtec, category="magnetic_tile") == [
        ("mask_empty", "exp3_num_45042_mask.png", True)
    ]


def test_copies_and_images_of_another_make_are_found_by_the_command(
    make_mvtec: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(good=4)
    (root / "nut/test/good/003.png").unlink()
    with Image.open(root / "nut/train/good/000.png") as image:
        image.save(root / "nut/test/good/copy.jpg", quality=90)

    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            datasets(["check", "--dataset", "mvtec", "--root", str(root), *words])
        assert left.value.code == 0  # remarks are no errors
        return capsys.readouterr().out

    text = said()
    assert "remark: shared_image" in text and "copy.jpg" in text and "000.png (train)" in text
    assert "1 of 7 test images is JPEG, and the training images are PNG" in text
    assert "shared_image" not in said("--quick") and said("--deep") == text
