"""Files of a dataset that nothing uses are said, and what is good by its name is never a defect."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyimgano.cli import benchmark, datasets
from pyimgano.datasets import Finding, check_dataset, load_dataset
from pyimgano.errors import DataError
from pyimgano.images import IMAGE_SUFFIXES
from pyimgano.inference.inputs import list_input
from pyimgano.inference.watch import Watcher
from pyimgano.models.efficientad_penalty import penalty_files
from pyimgano.pipelines import run_benchmark
from tests.conftest import MakeDataset, picture, save, spot_mask

SYSTEM = (
    "@eaDir",
    "#recycle",
    "@Recycle",
    "$RECYCLE.BIN",
    "__MACOSX",
    "System Volume Information",
    "lost+found",
    ".Trash-1000",
)


def found(root: Path, dataset: str = "mvtec", **keywords: object) -> list[Finding]:
    checked = check_dataset(dataset, root, **keywords)  # type: ignore[arg-type]
    return [one for category in checked.categories for one in category.findings]


READS = "dataset mvtec reads the images directly in train/good, test/<kind> and ground_truth/<kind>"
DEEPER = "images are read from this folder itself and not from folders in it"

#: What is put into a category, and the kind, folder and text of the one finding.
DROPPED: dict[str, tuple[Callable[[Path], object], tuple[str, str, str]]] = {
    "batches of training images": (
        lambda nut: [save(nut / f"train/good/batch{i}/{i}.png", picture(300 + i)) for i in (0, 1)],
        (
            "images_not_used",
            "train/good",
            f"2 images in 2 folders (batch0, batch1) are not used: {DEEPER}",
        ),
    ),
    "far down": (
        lambda nut: save(nut / "train/good/a/b/c/0.png", picture(300)),
        ("images_not_used", "train/good", f"1 image in a/b/c is not used: {DEEPER}"),
    ),
    "directly in train": (
        lambda nut: save(nut / "train/0.png", picture(300)),
        ("images_not_used", "train", f"1 image is not used: {READS}"),
    ),
    "directly in test": (
        lambda nut: [save(nut / f"test/{i}.png", picture(300 + i)) for i in range(3)],
        ("images_not_used", "test", f"3 images are not used: {READS}"),
    ),
    "a second camera": (
        lambda nut: save(nut / "test/spot/cam2/0.png", picture(300, spot=True)),
        ("images_not_used", "test/spot", f"1 image in cam2 is not used: {DEEPER}"),
    ),
    "nested kinds": (
        lambda nut: save(nut / "test/scratches/deep/0.png", picture(300, spot=True)),
        ("images_not_used", "test", f"1 image in scratches/deep is not used: {READS}"),
    ),
    "defective training images": (
        lambda nut: save(nut / "train/bad/0.png", picture(300, spot=True)),
        ("images_not_used", "train", f"1 image in bad is not used: {READS}"),
    ),
    "a part that the layout does not have": (
        lambda nut: save(nut / "validation/good/0.png", picture(300)),
        ("images_not_used", ".", f"1 image in validation/good is not used: {READS}"),
    ),
    "masks of a second camera": (
        lambda nut: save(nut / "ground_truth/spot/cam2/0_mask.png", spot_mask()),
        ("images_not_used", "ground_truth/spot", f"1 image in cam2 is not used: {DEEPER}"),
    ),
    "suffixes that are not read": (
        lambda nut: [
            (nut / f"train/good/{name}").write_bytes(b"x") for name in ("a.txt", "b.TXT", "c")
        ],
        (
            "files_not_used",
            "train/good",
            "3 files are not used: the suffix is not that of an image (.txt 2, none 1)",
        ),
    ),
    "suffixes that are not read, further down": (
        lambda nut: [
            (nut / "test/good/more").mkdir(),
            (nut / "test/good/more/a.gif").write_bytes(b"x"),
        ],
        (
            "images_not_used",
            "test/good",
            "1 image in more is not used: the format is not read (.gif 1); convert to PNG, TIFF or "
            "JPEG",
        ),
    ),
    "pictures of a telephone": (
        lambda nut: [(nut / f"train/good/{i}.HEIC").write_bytes(b"x") for i in range(2)],
        (
            "images_not_used",
            "train/good",
            "2 images are not used: the format is not read (.heic 2); convert to PNG, TIFF or JPEG",
        ),
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_is_not_used_is_found_with_its_number_and_why(
    make_mvtec: MakeDataset, name: str
) -> None:
    root = make_mvtec()
    put, (kind, folder, text) = DROPPED[name]
    put(root / "nut")
    (one,) = found(root)
    assert (one.kind, Path(one.path), one.message) == (
        kind,
        root / "nut" / folder,
        text,
    )
    assert one.error == (kind == "images_not_used")


def test_a_run_says_what_it_did_not_use(
    make_mvtec: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec()
    for i in range(2):
        save(root / f"nut/train/good/batch0/{i}.png", picture(300 + i))
    (root / "nut/test/good/clip.mp4").write_bytes(b"x")
    with pytest.raises(SystemExit) as done:
        benchmark(
            [
                *("--dataset", "mvtec", "--root", str(root), "--category", "nut"),
                *("--resize", "64", "64", "--no-pretrained", "--no-save-run", "--json"),
            ]
        )
    err = capsys.readouterr().err
    assert done.value.code == 0
    assert f"nut: {root}/nut/train/good: 2 images in batch0 are not used: {DEEPER}" in err
    assert "1 file is not used: the suffix is not that of an image (.mp4 1)" in err
    report = run_benchmark(
        dataset="mvtec",
        root=root,
        category="nut",
        resize=(64, 64),
        pretrained=False,
        save_run=False,
    )
    assert [note.split(": ")[0] for note in report["notes"]] == [
        f"{root}/nut/test/good",
        f"{root}/nut/train/good",
    ]
    with pytest.warns(UserWarning, match="2 images in batch0 are not used"):
        assert load_dataset("mvtec", root).get_info()["notes"] == report["notes"]


def test_a_run_directory_in_the_root_is_no_part_of_the_dataset(make_custom: MakeDataset) -> None:
    root = make_custom()
    run = root / "runs" / "today"
    save(run / "categories/custom/overlays/0.png", picture(1))
    assert [one.kind for one in found(root, "custom")] == ["images_not_used"]
    for name in ("config.json", "report.json"):
        (run / name).write_text("{}")
    assert found(root, "custom") == []


def test_a_folder_that_was_meant_as_a_category_is_said(
    make_mvtec: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec()
    for i in range(2):
        save(root / f"bolt/Train/Good/{i}.png", picture(300 + i))
    save(root / "overview.png", picture(302))
    save(root / "@eaDir/a.png", picture(303))
    message = "3 images in 2 folders (., bolt) are not used: outside of all categories"
    checked = check_dataset("mvtec", root)
    assert [(one.kind, one.path, one.message) for one in checked.findings] == [
        ("images_in_no_category", str(root), message)
    ]
    assert checked.errors == 0 and check_dataset("mvtec", root, category="nut").findings == []
    with pytest.raises(SystemExit):
        datasets(["check", "--dataset", "mvtec", "--root", str(root)])
    assert f"remark: images_in_no_category: {root}: {message}" in capsys.readouterr().out
    keywords = {"dataset": "mvtec", "root": root, "resize": (64, 64), "save_run": False}
    with pytest.warns(UserWarning, match="outside of all categories"):
        run_benchmark(**keywords, category="all", pretrained=False)  # type: ignore[arg-type]


def test_a_folder_is_known_by_the_name_under_which_it_is_read(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    (root / "nut/train/good").rename(root / "nut/a pool")
    (root / "nut/train/good").symlink_to(root / "nut/a pool")
    assert found(root) == []
    save(root / "nut/a pool/more/0.png", picture(300))
    (one,) = found(root)
    assert (Path(one.path), one.message.split(":")[0]) == (
        root / "nut/train/good",
        "1 image in more is not used",
    )


def test_images_that_the_table_of_visa_does_not_name(tmp_path: Path) -> None:
    data = tmp_path / "candle/Data"
    rows = ["object,split,label,image,mask"]
    for i in range(3):
        save(data / f"Images/Normal/{i}.JPG", picture(i))
        rows.append(f"candle,{'test' if i else 'train'},normal,candle/Data/Images/Normal/{i}.JPG,")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows[:3]))
    (data / "image_anno.csv").touch()
    (one,) = found(tmp_path, "visa")
    assert one.path == str(data / "Images/Normal")
    assert one.message == "1 image is not used: absent from the table of the split"


def test_a_flat_folder_takes_what_lies_below_it_and_says_so(tmp_path: Path) -> None:
    save(tmp_path / "0.png", picture(0))
    save(tmp_path / "more/1.png", picture(1))
    (one,) = found(tmp_path, "custom")
    assert one.message == ("took 2 images as good training images (the folder itself 1, more 1)")


def test_training_images_that_all_lie_too_deep(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    (root / "nut/train/good").rename(root / "nut/train/batch0")
    (root / "nut/train/good").mkdir()
    (root / "nut/train/batch0").rename(root / "nut/train/good/batch0")
    with pytest.raises(DataError, match="train/good: holds no images itself, only 6 in folders in"):
        load_dataset("mvtec", root)


def test_other_splits_are_left_out_on_purpose(tmp_path: Path) -> None:
    can = tmp_path / "can"
    names = ("train/good", "test_public/good", "test_private", "test_private_mixed")
    for number, name in enumerate(names):
        save(can / name / "0.png", picture(number))
    save(can / "test_public/dent/0.png", picture(5))
    for split in ("test_public", "private"):
        findings = found(tmp_path, "mvtec_ad2", split=split)
        assert [one.message.split(":")[0] for one in findings] == (
            ["1 image in dent is not used"] if split == "test_public" else []
        )


def test_links_that_lead_out_are_not_followed_to_count(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec()
    save(tmp_path / "elsewhere/0.png", picture(300))
    (root / "nut/train/good/linked").symlink_to(tmp_path / "elsewhere")
    (root / "nut/train/good/loop").symlink_to(root / "nut")
    assert found(root) == []
    (one,) = found(root, allow_outside=True)
    assert one.message.startswith("1 image in linked is not used")


@pytest.mark.parametrize(
    "name",
    ["Good", "GOOD", "OK", "ok", "okay", "normal", "Normal", "iO", "i.O.", "Pass", "defect-free"],
)
def test_names_of_good_are_good(make_mvtec: MakeDataset, name: str) -> None:
    root = make_mvtec()
    (root / "nut/test/good").rename(root / "nut/test/other")
    (root / "nut/test/other").rename(root / "nut/test" / name)
    (root / "nut/train/good").rename(root / "nut/train/other")
    (root / "nut/train/other").rename(root / "nut/train" / name)
    info = load_dataset("mvtec", root).get_info()
    assert (info["n_train"], info["n_test_good"], info["n_test_defective"]) == (6, 3, 3)
    assert info["defects"] == {"spot": 3} and info["notes"] == [] and found(root) == []


@pytest.mark.parametrize("dataset", ["mvtec", "mvtec_loco", "visa"])
@pytest.mark.parametrize("name", ["good_parts", "good2", "OK-1", "normalImages", "0", "negative"])
def test_names_that_may_be_good_are_refused(
    make_mvtec: MakeDataset, dataset: str, name: str
) -> None:
    root = make_mvtec()
    (root / "nut/test/good").rename(root / "nut/test" / name)
    with pytest.raises(DataError, match="may hold good images or a kind of defect") as error:
        load_dataset(dataset, root)
    assert str(root / "nut/test" / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["not_good", "NOK", "n.i.O.", "abnormal", "no-good", "nut_io_bent"]
)
def test_names_that_deny_good_are_kinds_of_defects(make_mvtec: MakeDataset, name: str) -> None:
    root = make_mvtec()
    (root / "nut/test/spot").rename(root / "nut/test" / name)
    (root / "nut/ground_truth/spot").rename(root / "nut/ground_truth" / name)
    assert load_dataset("mvtec", root).get_info()["defects"] == {name: 3} and found(root) == []


def test_numbered_kinds_beside_good_images(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    (root / "nut/test/spot").rename(root / "nut/test/0")
    with pytest.warns(UserWarning, match="no usable mask"):
        assert load_dataset("mvtec", root).get_test_paths()[1].tolist() == [1, 1, 1, 0, 0, 0]
    save(root / "nut/test/good_ones/0.png", picture(300))
    with pytest.raises(DataError, match="good_ones: may hold good images"):
        load_dataset("mvtec", root)


def test_layouts_with_one_folder_of_defects_know_its_other_names(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "btad/01/train/OK" / f"{i}.png", picture(i))
        save(tmp_path / "btad/01/test/Good" / f"{i}.png", picture(10 + i))
        save(tmp_path / "btad/01/test/NOK" / f"{i}.png", picture(20 + i, spot=True))
        save(tmp_path / "btad/01/ground_truth/ko" / f"{i}.png", spot_mask())
        save(tmp_path / "own/train/good" / f"{i}.png", picture(i))
        save(tmp_path / "own/test/iO" / f"{i}.png", picture(10 + i))
        save(tmp_path / "own/test/niO" / f"{i}.png", picture(20 + i, spot=True))
        save(tmp_path / "own/ground_truth/niO" / f"{i}_mask.png", spot_mask())
    for dataset, root, kind in (("btad", "btad", "ko"), ("custom", "own", "anomaly")):
        info = load_dataset(dataset, tmp_path / root).get_info()
        assert (info["n_train"], info["n_test_good"], info["n_masks"]) == (2, 2, 2)
        assert info["defects"] == {kind: 2}
        assert found(tmp_path / root, dataset) == []


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_the_system_are_passed_over(make_mvtec: MakeDataset, name: str) -> None:
    root = make_mvtec()
    for place in ("", "nut", "nut/train", "nut/train/good", "nut/test", "nut/test/spot"):
        save(root / place / name / "train/good/0.png", picture(300))
        save(root / place / name / "0.png", picture(301))
    (root / "nut/train/good/Thumbs.db").touch()
    assert load_dataset("mvtec", root).list_categories() == ["nut"]
    info = load_dataset("mvtec", root).get_info()
    assert (info["n_train"], info["n_test"], info["notes"]) == (6, 6, []) and found(root) == []
    listed = list_input(str(root / "nut/train"))
    assert len(listed.paths) == 6 and listed.problems == []
    assert len(penalty_files(root / "nut/train")) == 6
    assert len(list_input(f"{root}/nut/**/*.png").paths) == 15
    assert len(list_input(f"{root}/nut/train/*/*.png").paths) == 6
    assert len(list_input(f"{root}/nut/train/{name}/*.png").paths) == 1  # named outright
    assert len(list_input(str(root / "nut/train" / name / "0.png")).paths) == 1
    watcher = Watcher(root / "nut/train", settle=0, known=set())
    assert len(watcher.look()) == watcher.waiting == 6


def test_the_suffixes_of_images_are_one_list(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    for number, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        source = save(root / f"x{number}.png", picture(400 + number))
        shutil.move(source, root / f"nut/train/good/x{number}{suffix.upper()}")
    assert load_dataset("mvtec", root).get_info()["n_train"] == 6 + len(IMAGE_SUFFIXES)
    assert len(list_input(str(root / "nut/train")).paths) == 6 + len(IMAGE_SUFFIXES)
