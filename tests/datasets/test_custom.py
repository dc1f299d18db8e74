"""Own images: folders, one flat folder, manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyimgano.datasets import load_dataset
from pyimgano.datasets.manifest import read_manifest
from pyimgano.errors import DataError
from pyimgano.pipelines import list_dataset_categories, run_benchmark
from tests.conftest import MakeDataset, picture, save, spot_mask


@pytest.fixture
def scattered(tmp_path: Path) -> Path:
    """Images here and there, and manifest.csv beside them; returns the manifest."""
    root = tmp_path / "line 3"
    rows = ["path,split,label,mask,category"]
    for part in ("lid", "cup"):
        for i in range(5):
            save(root / "2026" / part / f"{i}.png", picture(i))
            rows.append(f"2026/{part}/{i}.png,train,good,,{part}")
        for i in range(2):
            save(root / "kept, apart" / part / f"{i}.png", picture(50 + i))
            rows.append(f'"kept, apart/{part}/{i}.png",test,0,,{part}')
            save(root / "bad" / part / f"{i}.png", picture(90 + i, spot=True))
            save(root / "masks" / part / f"{i}.png", spot_mask())
            rows.append(f"bad\\{part}\\{i}.png,test,NG,masks/{part}/{i}.png,{part}")
        save(root / "held" / part / "0.png", picture(30))
        rows.append(f"held/{part}/0.png,validation,,,{part}")
    path = root / "manifest.csv"
    path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    return path


def test_a_manifest_runs_over_all_its_categories(scattered: Path) -> None:
    for root in (scattered, scattered.parent):
        report = run_benchmark(
            dataset="custom", root=root, category="all", resize=(64, 64), save_run=False
        )
        assert report["status"] == "complete" and report["categories"] == ["cup", "lid"]
        for category in report["per_category"].values():
            assert category["results"]["auroc"] == 1.0 and category["problems"] == []
            assert category["results"]["pixel_metrics"]["pixel_auroc"] > 0.9
            assert category["counts"]["validation"] == 1
            assert list(category["results"]["per_defect"]) == ["anomaly"]


def test_jsonl_says_the_same(scattered: Path) -> None:
    records = []
    for name, category in read_manifest(scattered).items():
        for split in ("train", "validation", "test"):
            for sample in getattr(category, split):
                path = sample.path.relative_to(scattered.parent).as_posix()
                masks = [str(m.relative_to(scattered.parent)) for m in sample.mask_paths]
                record = {"path": path, "split": split, "label": sample.label, "category": name}
                records.append({**record, "mask": masks, "camera": 7})
    path = scattered.with_name("other.jsonl")
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    assert read_manifest(path) == read_manifest(scattered)


def test_defaults_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "nut.csv"
    path.write_text("path;split;label;defect\na.png;train;;\nb.png;test;;\nc.png;Test;1;dent\n")
    ((name, category),) = read_manifest(path).items()
    assert name == "nut"
    assert [s.label for s in (*category.train, *category.test)] == [0, None, 1]
    assert [s.defect for s in category.test] == ["unlabelled", "dent"]


def test_names_with_colons_and_backslashes_and_other_separators(tmp_path: Path) -> None:
    for name in ("a:0.png", "b\\s.png", "c.png"):
        save(tmp_path / name, picture(1))
    path = tmp_path / "list.csv"
    path.write_text(
        '\n\npath;split;"remarks, free"\na:0.png;train;x\nb\\s.png;train\n.\\c.png;train'
    )
    (category,) = read_manifest(path).values()
    assert [s.path.name for s in category.train] == ["a:0.png", "b\\s.png", "c.png"]
    assert all(s.path.is_file() for s in category.train)


def test_images_without_a_label_are_scored_and_count_nowhere(
    scattered: Path, tmp_path: Path
) -> None:
    save(scattered.parent / "new.png", picture(99, spot=True))
    with scattered.open("a") as file:
        file.write("new.png,test,,,cup\n")
    report = run_benchmark(
        dataset="custom",
        root=scattered,
        category="cup",
        resize=(64, 64),
        runs_dir=tmp_path / "runs",
    )
    assert report["counts"]["test_unlabelled"] == 1 and report["counts"]["test"] == 5
    assert report["results"]["metrics"]["tp"] == 2 and report["results"]["undefined"] == {}
    lines = (Path(report["run_dir"]) / "categories/cup/per_image.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["y_true"] is None and last["pred"] == 1 and last["map"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the column 'path'; the columns are path, split, label, mask, category, defect"),
        ("path,label\n", "lacks the column 'split'"),
        ("path,split\n", "lists no image"),
        ("path,split,lable\na.png,test,1\n", "unknown column 'lable'; did you mean 'label'?"),
        ("path,split,path\n", "has the column 'path' twice"),
        ("path,split\na, b.png,train\n", "line 2: has 3 fields, the header 2; a comma"),
        ("path,split\n,train\n", "line 2: names no image"),
        ("path,split\na.png,\n", "line 2: split must be train, validation or test, got ''"),
        ("path,split,label\na.png,test,god\n", "line 2: label must be one of 0 good .*; got 'god'"),
        ("path,split,label\na.png,train,bad\n", "a train image must be good, got label 'bad'"),
        ("path,split\na.png,train\na.png,test\n", "line 3: 'a.png' stands there already .*line 2"),
        (
            "path,split\n../a.png,train\n",
            "line 2: '../a.png' leads out of the dataset's folder",
        ),
        ("path,split\n/etc/a.png,train\n", "leads out"),
        ("path,split\nC:\\a.png,train\n", "leads out"),
        ("path,split,label,mask\na.png,test,1,../m.png\n", "'../m.png' leads out"),
        ("path,split\nlink/a.png,train\n", "'link/a.png' leads out"),
        ('path,split\nb.png,train\n"a.png,train\n', "cannot be read after line 2"),
        (b"path,split\n\xe4.png,train\n", "it is not UTF-8"),
        ("path,split\na\0.png,train\n", "line 2: .* is not a path|line contains NUL"),
    ],
)
def test_a_manifest_that_will_not_do(tmp_path: Path, text: str, said: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=said) as error:
        load_dataset("custom", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: is not JSON"),
        ("[" * 100_000, "line 1: is not JSON"),
        ("[1]", "line 1: must be a JSON object"),
        ('{"path": "a.png"}', "line 1: lacks 'split'"),
        ('{"path": 3, "split": "train"}', "line 1: path must be text, got 3"),
        ('{"path": "a", "split": "test", "label": 1, "mask": [1]}', "mask must be a path or a"),
        ('{"path": "a", "split": "test", "label": 1, "mask": "../x"}', "leads out"),
        ('{"path": "a", "split": "test", "label": 2}', "label must be one of"),
        ('{"path": true, "split": "train"}', "path must be text, got True"),
        ('{"path": "a", "split": "train", "lable": "bad"}', "did you mean 'label'"),
        ('{"path": "a", "split": "train", "Label": "bad"}', "a train image must be good"),
        ('{"path": "a", "split": "test", "Label": "bad", "label": 1}', "has a key twice"),
        ('{"path": "a", "split": "test", "label": 1, "label": 0}', "has a key twice"),
        ('{"path": "a", "split": "test", "label": 1, "mask": " "}', "mask must be a path or a"),
        ('{"path": "a", "split": "test", "label": 1, "mask": 0}', "mask must be a path or a"),
        ('{"path": "\\ud800x.png", "split": "train"}', "is not a path"),
    ],
)
def test_a_jsonl_manifest_that_will_not_do(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=said) as error:
        load_dataset("custom", path)
    assert len(str(error.value)) < 500


def test_paths_that_leave_the_folder_if_that_is_wanted(tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere" / "a.png", picture(1))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "list.csv").write_text(f"path,split\n../elsewhere/a.png,train\n{outside},test\n")
    dataset = load_dataset("custom", folder / "list.csv", allow_outside=True)
    assert [os.path.realpath(p) for p in dataset.get_train_paths()] == [str(outside)]
    assert dataset.get_train_data().shape == (1, 256, 256, 3)
    assert list_dataset_categories(
        dataset="custom", root=folder / "list.csv", allow_outside=True
    ) == ["list"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from('ab,;"\n\t/\\.0{}[]:'), max_size=80).map(
            lambda s: b"path,split\n" + s.encode()
        ),
        st.text(st.sampled_from('ab,"/.0{}[]:1 '), max_size=60).map(
            lambda s: b'{"path":"a","split":"train",' + s.encode()
        ),
    ),
    suffix=st.sampled_from([".csv", ".jsonl"]),
)
def test_any_bytes_are_a_manifest_or_a_data_error(tmp_path: Path, text: bytes, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    path.write_bytes(text)
    try:
        for category in read_manifest(path).values():
            for sample in (*category.train, *category.test, *category.validation):
                assert os.path.realpath(sample.path).startswith(os.path.realpath(tmp_path))
    except DataError as error:
        assert str(path) in str(error)


def test_roots_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="is neither a folder nor a manifest"):
        load_dataset("custom", tmp_path / "notes.txt")
    with pytest.raises(DataError, match="found no dataset; it has to hold train/normal"):
        load_dataset("custom", tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt: is not a folder"):
        load_dataset("mvtec", tmp_path / "notes.txt")
    for suffix in ("csv", "jsonl"):
        (tmp_path / f"manifest.{suffix}").touch()
    with pytest.raises(DataError, match=r"holds both manifest\.csv and manifest\.jsonl"):
        load_dataset("custom", tmp_path)


def test_custom_is_a_name_for_the_only_category(tmp_path: Path) -> None:
    save(tmp_path / "set" / "part" / "train" / "normal" / "a.png", picture(1))
    assert load_dataset("custom", tmp_path / "set", "custom").get_train_paths() == (
        load_dataset("custom", tmp_path / "set", "part").get_train_paths()
    )


def test_a_manifest_without_training_images(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,split,label\na.png,test,0\n")
    with pytest.raises(DataError, match="lists no training image of category 'list'"):
        load_dataset("custom", path)


def test_a_flat_folder_of_good_images_calibrates_and_says_so(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "good parts" / f"{i}.JPG", picture(i))
    (tmp_path / "good parts" / "notes").mkdir()
    report = run_benchmark(
        dataset="custom",
        root=tmp_path / "good parts",
        resize=(64, 64),
        runs_dir=tmp_path / "runs",
    )
    assert report["status"] == "complete" and report["category"] == "custom"
    one = report
    assert one["counts"]["train"] == 4 and one["counts"]["test"] == 0 and one["threshold"] > 0
    assert one["notes"] == [
        "there are no test images: the threshold is calibrated, nothing is measured"
    ]
    assert set(one["results"]["undefined"].values()) == {"there are no test images"}
    records = Path(report["run_dir"]) / "categories/custom/per_image.jsonl"
    assert records.read_text() == ""


def test_validation_folders(make_custom: MakeDataset) -> None:
    root = make_custom()
    save(root / "validation/normal/0.png", picture(40))
    report = run_benchmark(
        dataset="custom", root=root, calibration="validation", resize=(64, 64), save_run=False
    )
    assert report["calibration"]["n_scores"] == 1
