"""The dataset classes and splits that scripts and notebooks call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyimgano.datasets
from pyimgano.errors import DataError, UsageError
from pyimgano.pipelines import list_dataset_categories
from pyimgano.utils import datasets
from pyimgano.utils.datasets import (
    BTADDataset,
    CustomDataset,
    DatasetInfo,
    MVTecAD2Dataset,
    MVTecDataset,
    MVTecLOCODataset,
    VisADataset,
    load_dataset,
)
from pyimgano.utils.splits import split_train_calibration

from ..conftest import picture, save, spot_mask

SIZE = 16


def image(path: Path, seed: int = 0, *, spot: bool = False) -> Path:
    return save(path, picture(seed, SIZE, spot=spot))


def mask(path: Path) -> Path:
    return save(path, spot_mask(SIZE))


def mvtec_like(category: Path, bad: str = "bad", suffix: str = "_mask") -> Path:
    """One training image, and two test images."""
    image(category / "train/good/0.png", 0)
    image(category / "test/good/0.png", 1)
    image(category / f"test/{bad}/1.png", 2, spot=True)
    mask(category / f"ground_truth/{bad}/1{suffix}.png")
    return category


def test_each_class_has_the_methods_that_scripts_call(tmp_path: Path) -> None:
    mvtec_like(tmp_path / "mvtec/bottle", "broken")
    mvtec_like(tmp_path / "visa/candle", suffix="")
    loco = mvtec_like(tmp_path / "loco/pushpins", "logical_anomalies")
    image(loco / "validation/good/9.png", 9)
    btad = tmp_path / "btad/01"
    ad2 = tmp_path / "ad2/can"
    custom = tmp_path / "custom"
    for root, train, test, bad, truth in (
        (btad, "train/ok", "test/ok", "test/ko", "ground_truth/ko"),
        (
            ad2,
            "train/good",
            "test_public/good",
            "test_public/bad",
            "test_public/ground_truth/bad",
        ),
        (custom, "train/normal", "test/normal", "test/anomaly", "ground_truth/anomaly"),
    ):
        image(root / train / "0.png", 0)
        image(root / test / "0.png", 1)
        image(root / bad / "1.png", 2, spot=True)
        mask(root / truth / "1_mask.png")
    opened = [
        MVTecDataset(tmp_path / "mvtec", "bottle", (8, 8), True),
        MVTecLOCODataset(str(tmp_path / "loco"), "pushpins", resize=(8, 8), load_masks=True),
        MVTecAD2Dataset(root=tmp_path / "ad2", category="can", resize=(8, 8)),
        VisADataset(tmp_path / "visa", "candle", resize=(8, 8)),
        BTADDataset(tmp_path / "btad", "01", resize=(8, 8)),
        CustomDataset(custom, (8, 8)),
    ]
    names = ["mvtec", "mvtec_loco", "mvtec_ad2", "visa", "btad", "custom"]
    categories = ["bottle", "pushpins", "can", "candle", "01", "custom"]
    for dataset, name, category in zip(opened, names, categories, strict=True):
        train = dataset.get_train_paths()
        assert [type(path) for path in train] == [str] and Path(train[0]).is_file()
        paths, labels, masks = dataset.get_test_paths()
        assert len(paths) == 2 and labels.tolist() == (
            [1, 0] if "bad" in paths[0] or "broken" in paths[0] else [0, 1]
        )
        assert masks is not None and masks.shape == (2, 8, 8) and masks.dtype == np.uint8
        assert masks.any(axis=(1, 2)).astype(int).tolist() == labels.tolist()
        assert dataset.get_train_data().shape == (1, 8, 8, 3)
        images, again, _ = dataset.get_test_data()
        assert images.shape == (2, 8, 8, 3) and again.tolist() == labels.tolist()
        assert dataset.list_categories() == [category]
        info = dataset.get_info()
        assert isinstance(info, DatasetInfo) and json.loads(json.dumps(info)) == info
        assert info.name == info["name"] == name and info.category == category
        assert (info.n_train, info.n_test, info.n_masks) == (1, 2, 1)
        same = load_dataset(name, dataset.root, category)
        assert same.get_train_paths() == train and same.get_test_paths()[0] == paths
    with pytest.raises(AttributeError, match="DatasetInfo has no 'n_trian'"):
        _ = info.n_trian


def test_the_names_are_those_of_the_datasets_package() -> None:
    assert load_dataset is pyimgano.datasets.load_dataset
    for name in datasets.__all__:
        assert hasattr(datasets, name)
    assert issubclass(MVTecDataset, pyimgano.datasets.Dataset)


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, pyimgano.utils.datasets, pyimgano.utils.splits; "
        "print(sorted({'torch', 'sklearn', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_without_resize_images_keep_their_size(tmp_path: Path) -> None:
    nut = mvtec_like(tmp_path / "nut")
    dataset = MVTecDataset(tmp_path, "nut")
    assert dataset.get_train_data().shape == (1, SIZE, SIZE, 3)
    images, _, masks = dataset.get_test_data()
    assert images.shape == (2, SIZE, SIZE, 3) and masks is not None
    np.testing.assert_array_equal(masks[0], spot_mask(SIZE) > 0)
    assert dataset.get_info().resize is None
    assert MVTecDataset(tmp_path, "nut", load_masks=False).get_test_paths()[2] is None
    save(nut / "train/good/1.png", picture(5, 20))
    save(nut / "test/good/1.png", picture(6, 20))
    dataset = MVTecDataset(tmp_path, "nut")
    with pytest.raises(DataError, match=r"1\.png: is 20 x 20 pixels and .*0\.png 16 x 16; resize"):
        dataset.get_train_data()
    with pytest.warns(UserWarning, match="no masks are given: .*resize"):
        assert dataset.get_test_paths()[2] is None
    assert MVTecDataset(tmp_path, "nut", (8, 8)).get_train_data().shape == (2, 8, 8, 3)


def test_loco_with_validation_images_in_train(tmp_path: Path) -> None:
    box = mvtec_like(tmp_path / "breakfast_box", "logical_anomalies")
    image(box / "validation/good/9.png", 9)
    plain = MVTecLOCODataset(tmp_path, "breakfast_box")
    more = MVTecLOCODataset(tmp_path, "breakfast_box", include_validation_in_train=True)
    assert [Path(path).name for path in plain.get_train_paths()] == ["0.png"]
    assert [Path(path).name for path in more.get_train_paths()] == ["0.png", "9.png"]
    assert len(plain.get_validation_paths()) == 1 and more.get_validation_paths() == []
    assert more.get_info().n_train == 2


def test_loco_one_folder_deeper(tmp_path: Path) -> None:
    """Masks lie beside, as `<stem>.png`, `<stem>_mask.png`, or in a folder of their own."""
    box = tmp_path / "breakfast_box"
    image(box / "train/good/000/a.png", 0)
    image(box / "validation/good/000/v.png", 5)
    image(box / "test/good/000/g.png", 1)
    image(box / "test/logical_anomalies/000/bad_0.png", 2, spot=True)
    image(box / "test/structural_anomalies/crack/bad_1.png", 3, spot=True)
    image(box / "test/structural_anomalies/crack/bad_2.png", 4, spot=True)
    mask(box / "ground_truth/logical_anomalies/000/bad_0.png")
    mask(box / "ground_truth/structural_anomalies/crack/bad_1_mask.png")
    for name in ("000.png", "001.png"):
        mask(box / "ground_truth/structural_anomalies/crack/bad_2" / name)
    dataset = MVTecLOCODataset(tmp_path, "breakfast_box")
    assert dataset.get_info().n_train == 1 and dataset.get_info().n_validation == 1
    paths, labels, masks = dataset.get_test_paths()
    assert [Path(path).name for path in paths] == ["g.png", "bad_0.png", "bad_1.png", "bad_2.png"]
    assert labels.tolist() == [0, 1, 1, 1] and masks is not None
    assert masks.any(axis=(1, 2)).tolist() == [False, True, True, True]
    assert [len(sample.mask_paths) for sample in dataset.samples.test] == [0, 1, 1, 2]
    assert dataset.get_info().defects == {"logical_anomalies": 1, "structural_anomalies": 2}
    checked = pyimgano.datasets.check_dataset("mvtec_loco", tmp_path)
    assert checked.errors == 0
    mask(box / "ground_truth/logical_anomalies/000/stray.png")
    image(box / "test/logical_anomalies/000/too/deep.png", 7)
    (category,) = pyimgano.datasets.check_dataset("mvtec_loco", tmp_path).categories
    assert {(one.kind, Path(one.path).name) for one in category.findings if one.error} == {
        ("mask_without_image", "stray.png"),
        ("images_not_used", "000"),
    }


def test_ad2_splits_and_no_validation(tmp_path: Path) -> None:
    can = tmp_path / "can"
    image(can / "train/good/0.png", 0)
    image(can / "test_public/good/0.png", 1)
    image(can / "test_public/bad/1.png", 2, spot=True)
    mask(can / "test_public/ground_truth/bad/1_mask.png")
    image(can / "test_private/5.png", 5)
    dataset = MVTecAD2Dataset(tmp_path, "can")
    assert dataset.get_validation_paths() == []
    assert dataset.get_test_paths()[1].tolist() == [0, 1]
    private = MVTecAD2Dataset(tmp_path, "can", split="test_private")
    assert private.get_test_paths()[1].tolist() == [-1] and private.get_info().n_test == 1
    with pytest.raises(UsageError, match="unknown split"):
        MVTecAD2Dataset(tmp_path, "can", split="test_privat")


@pytest.mark.parametrize("folder", ["visa_pytorch", "VisA_pytorch", "visa_pytorch/1cls", "1cls"])
def test_a_visa_root_may_be_the_parent_of_the_converted_form(tmp_path: Path, folder: str) -> None:
    mvtec_like(tmp_path / folder / "candle", suffix="")
    dataset = VisADataset(tmp_path, "candle")
    assert dataset.list_categories() == ["candle"]
    assert list_dataset_categories(dataset="visa", root=tmp_path) == ["candle"]
    masks = dataset.get_test_paths()[2]
    assert masks is not None and masks[0].any() and not masks[1].any()
    assert pyimgano.datasets.check_dataset("visa", tmp_path).errors == 0


def test_the_converted_form_is_not_read_through_a_link_that_leads_out(tmp_path: Path) -> None:
    mvtec_like(tmp_path / "elsewhere/candle")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/visa_pytorch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="lies outside the dataset's folder"):
        VisADataset(tmp_path / "root", "candle")
    assert VisADataset(tmp_path / "root", "candle", allow_outside=True).get_info().n_train == 1


def test_btad_without_masks(tmp_path: Path) -> None:
    for name, seed in (("train/ok/0", 0), ("test/ok/0", 1), ("test/ko/1", 2)):
        image(tmp_path / "01" / f"{name}.bmp", seed, spot=seed == 2)
    with pytest.warns(UserWarning, match="no usable mask"):
        paths, labels, masks = BTADDataset(tmp_path, "01").get_test_paths()
    assert len(paths) == 2 and labels.tolist() == [0, 1] and masks is None


OFFICIAL = {
    "mvtec": ("bottle", "screw"),
    "mvtec_loco": ("pushpins", "screw_bag"),
    "mvtec_ad2": ("can", "fruit_jelly"),
    "visa": ("candle", "pcb1"),
    "btad": ("01", "03"),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_categories_are_official_folders_and_others_that_hold_one(
    tmp_path: Path, name: str
) -> None:
    """Also names that people gave to their own parts; other folders are none."""
    for category in OFFICIAL[name]:
        (tmp_path / category).mkdir()
    (tmp_path / "own part/train").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "@eaDir/train").mkdir(parents=True)
    assert list_dataset_categories(dataset=name, root=tmp_path) == sorted(
        [*OFFICIAL[name], "own part"]
    )
    with pytest.raises(DataError, match="the good training images have to be there"):
        load_dataset(name, tmp_path, OFFICIAL[name][1])


def test_a_custom_dataset_without_categories_is_called_custom(tmp_path: Path) -> None:
    image(tmp_path / "parts/train/normal/0.png")
    image(tmp_path / "flat/0.png")
    for folder in ("parts", "flat"):
        assert CustomDataset(tmp_path / folder).list_categories() == ["custom"]
        assert list_dataset_categories(dataset="custom", root=tmp_path / folder) == ["custom"]
        assert CustomDataset(tmp_path / folder).get_info().category == "custom"
        # as it was called before
        assert load_dataset("custom", tmp_path / folder, folder).get_info().n_train == 1
    with pytest.raises(DataError, match="unknown category 'other'"):
        load_dataset("custom", tmp_path / "parts", "other")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_splits_are_disjoint_complete_and_the_same_for_a_seed(
    count: int, fraction: float, seed: int
) -> None:
    paths = [f"{i}.png" for i in range(count)]
    train, calibration = split_train_calibration(paths, calibration_fraction=fraction, seed=seed)
    assert not set(train) & set(calibration) and sorted([*train, *calibration]) == sorted(paths)
    assert len(calibration) == min(max(int(fraction * count + 0.5), 1), count - 1)
    assert train == [path for path in paths if path in set(train)]
    assert (train, calibration) == split_train_calibration(paths, fraction, seed)


def test_splits_differ_by_seed_and_refuse_what_cannot_be_split() -> None:
    paths = [f"{i}.png" for i in range(40)]
    splits = {tuple(split_train_calibration(paths, seed=seed)[1]) for seed in range(5)}
    assert len(splits) == 5 and {len(one) for one in splits} == {8}
    for wrong, said in (
        ((["a"],), "train_paths: two images or more"),
        ((paths, 0.0), "calibration_fraction must lie between 0 and 1, got 0.0"),
        ((paths, float("nan")), "calibration_fraction must lie between"),
        ((paths, 0.2, -1), "seed must be a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            split_train_calibration(*wrong)  # type: ignore[misc]
