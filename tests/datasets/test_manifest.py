"""Manifests as spreadsheets, scripts and people write them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyimgano.datasets import Category, load_dataset
from pyimgano.datasets.manifest import read_manifest
from pyimgano.datasets.words import meaning_of_folder, meaning_of_label
from pyimgano.errors import DataError
from tests.conftest import picture, save

GOOD = "0 0.0 0,0 00 False FALSE false good Good OK ok Okay normal Normal pass PASS Passed iO i.O."
DEFECTIVE = (
    "1 1.0 1,0 True true bad BAD anomaly Anomalous abnormal defect Defective NG ng KO NOK nok fail "
    "FAILED reject niO n.i.O. not_ok Not-Good"
)
UNCLEAR = (
    "2 -1 0.5 10 yes no y n + - nan None null god goood positive negative TBD 1.0.0 1e400 ½ \u0661"
)


def read(path: Path, text: str | bytes) -> Category:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (category,) = read_manifest(path).values()
    return category


def refused(path: Path, text: str | bytes) -> str:
    with pytest.raises(DataError) as error:
        read(path, text)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("label", "meaning"),
    [(word, 0) for word in GOOD.split()] + [(word, 1) for word in DEFECTIVE.split()],
)
def test_labels_as_people_write_them(tmp_path: Path, label: str, meaning: int) -> None:
    assert meaning_of_label(label) == meaning
    (sample,) = read(tmp_path / "a.csv", f'path,split,label\nx.png,test," {label} "\n').test
    assert sample.label == meaning
    (sample,) = read(
        tmp_path / "a.jsonl", json.dumps({"path": "x.png", "split": "test", "label": label})
    ).test
    assert sample.label == meaning


@pytest.mark.parametrize(
    ("value", "meaning"), [(0, 0), (1, 1), (0.0, 0), (1.0, 1), (False, 0), (True, 1), (None, None)]
)
def test_labels_that_are_no_text_in_json(
    tmp_path: Path, value: object, meaning: int | None
) -> None:
    record = {"path": "x.png", "split": "test", "label": value}
    (sample,) = read(tmp_path / "a.jsonl", json.dumps(record)).test
    assert sample.label == meaning


@pytest.mark.parametrize("label", UNCLEAR.split())
def test_labels_that_may_mean_either_are_refused(tmp_path: Path, label: str) -> None:
    message = refused(tmp_path / "a.csv", f'path,split,label\ny.png,train,\nx.png,test,"{label}"\n')
    assert "line 3: label must be one of 0 good ok normal pass or 1 bad anomaly ng fail" in message
    assert repr(label) in message


@pytest.mark.parametrize("value", [2, -1, 0.5, 1e300, [1], {"a": 1}])
def test_values_that_are_no_label_in_json(tmp_path: Path, value: object) -> None:
    record = {"path": "x.png", "split": "test", "label": value}
    assert "line 1: label must be" in refused(tmp_path / "a.jsonl", json.dumps(record))


@pytest.mark.parametrize(
    ("split", "number"), [("Train", 0), ("TRAINING", 0), ("val", 1), ("Valid", 1), ("TEST", 2)]
)
def test_splits_as_people_write_them(tmp_path: Path, split: str, number: int) -> None:
    category = read(tmp_path / "a.csv", f"path,split\nx.png,{split}\n")
    counts = [len(category.train), len(category.validation), len(category.test)]
    assert counts == [int(i == number) for i in range(3)]


TABLE = "path,split,label\na.png,train,\nb.png,test,1\n"
SPREADSHEETS = {
    "header in capitals": "PATH,Split,LABEL\na.png,train,\nb.png,test,1\n",
    "blanks around the header": " path , split ,label \na.png,train,\nb.png,test,1\n",
    "semicolons": TABLE.replace(",", ";"),
    "semicolons and capitals": "Path;Split;Label\na.png;train;\nb.png;test;1\n",
    "a first line that says which": "sep=;\n" + TABLE.replace(",", ";"),
    "the same in capitals and quotes": '"SEP=;"\r\n' + TABLE.replace(",", ";"),
    "the same as a row of a table": "sep=;;;\n" + TABLE.replace(",", ";"),
    "a first line that says the usual": "sep=,\n" + TABLE,
    "a first line that says tabs": "sep=\t\n" + TABLE.replace(",", "\t"),
    "tabs": TABLE.replace(",", "\t"),
    "bars": TABLE.replace(",", "|"),
    "empty columns at the end": TABLE.replace("\n", ",,,\n"),
    "more of them in the lines than in the header": TABLE.replace("train,", "train,,, ,"),
    "lines of separators alone": ",,\n" + TABLE + ",,\n,,,,\n",
    "a mark in front": "\ufeff" + TABLE,
    "a mark in front of the line that says which": "\ufeffsep=;\n" + TABLE.replace(",", ";"),
    "quotes": '"Path";"Split";"Label"\n"a.png";"train";""\n"b.png";"test";"1"\n',
    "line ends of Windows": TABLE.replace("\n", "\r\n"),
    "line ends of old Macs": TABLE.replace("\n", "\r"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", SPREADSHEETS)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, name: str, encoding: str) -> None:
    text = SPREADSHEETS[name]
    if encoding != "utf-8":
        text = text.removeprefix("\ufeff")
    if encoding == "utf-16-be":
        text = "\ufeff" + text
    category = read(tmp_path / "a.csv", text.encode(encoding))
    assert [sample.path.name for sample in category.train] == ["a.png"]
    assert [(sample.path.name, sample.label) for sample in category.test] == [("b.png", 1)]


def test_json_lines_with_keys_in_any_case_and_in_utf_16(tmp_path: Path) -> None:
    line = '{"Path": "a.png", "SPLIT": "Train", "Label": "OK", "extra": 1}\r\n'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        category = read(tmp_path / "a.jsonl", line.encode(encoding))
        assert [sample.path.name for sample in category.train] == ["a.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TABLE.encode("utf-16-le"),
            "(it is not UTF-8, nor UTF-16|line contains NUL|lacks the column)",
        ),
        (b"\xff\xfe" + TABLE.encode("utf-16-le")[:-1], "it is not UTF-8, nor UTF-16"),
        ("Path,PATH,split\na,b,train\n", "has the column 'path' twice"),
        ("sep=x\n" + TABLE, "lacks the column 'path'"),
        ("path,split\na.png,train,x\n", "line 2: has 3 fields, the header 2"),
        ("sep=;\npath;split\na.png;train\nb.png;tset\n", "line 4: split must be"),
    ],
)
def test_tables_that_will_not_do(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=said):
        read_manifest(path)


def test_absolute_paths_inside_of_the_root(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    image = save(folder / "a, b/x.png", picture(1))
    save(folder / "y.png", picture(2))
    rows = f'path,split\n"{image}",train\n{folder}/y.png,test\n'
    (folder / "list.csv").write_text(rows)
    dataset = load_dataset("custom", folder / "list.csv")
    assert dataset.get_train_paths() == [str(image)]
    # the folder may be reached by another way than the one that the table names
    (tmp_path / "link").symlink_to(folder)
    linked = load_dataset("custom", tmp_path / "link/list.csv")
    assert Path(linked.get_train_paths()[0]).resolve() == image.resolve()
    (folder / "list.csv").write_text(f'{rows}"a, b/x.png",test\n')
    with pytest.raises(DataError, match="stands there already"):
        load_dataset("custom", folder / "list.csv")
    for outside in (tmp_path / "elsewhere.png", Path("/etc/passwd"), f"{folder}/../z.png"):
        (folder / "list.csv").write_text(f"path,split\n{outside},train\n")
        with pytest.raises(DataError, match=r"line 2: .* leads out of the dataset's folder"):
            load_dataset("custom", folder / "list.csv")


names = st.text(st.sampled_from("aé ü,;|\"'x1_-"), min_size=1, max_size=6).map(
    lambda name: f"{name.strip() or 'x'}.png"
)
good_words = st.sampled_from([*GOOD.split(), ""])
test_words = st.sampled_from([*GOOD.split(), *DEFECTIVE.split(), ""])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(names, st.sampled_from(["train", "validation", "test"]), test_words, good_words),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0],
    ),
    separator=st.sampled_from(",;\t|"),
    says=st.booleans(),
    header=st.sampled_from([str.upper, str.lower, str.title]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n"]),
    empty=st.integers(0, 3),
    absolute=st.booleans(),
)
def test_any_way_of_writing_a_table_is_read_the_same(
    tmp_path: Path,
    rows: list[tuple[str, str, str, str]],
    separator: str,
    says: bool,
    header: object,
    encoding: str,
    end: str,
    empty: int,
    absolute: bool,
) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, lineterminator=end)
    assert callable(header)
    writer.writerow([header("path"), header("label"), header("split"), *[""] * empty])
    wanted = []
    for name, split, word, good in rows:
        label = word if split == "test" else good
        path = f"{tmp_path}/{name}" if absolute else name
        writer.writerow([path, label, header(split), *[" "] * empty])
        meaning = meaning_of_label(label) if label else (None if split == "test" else 0)
        wanted.append((name, split, meaning))
    text = (f"sep={separator}{end}" if says else "") + written.getvalue()
    category = read(tmp_path / "list.csv", text.encode(encoding))
    found = [
        (str(sample.path.relative_to(tmp_path)), split, sample.label)
        for split in ("train", "validation", "test")
        for sample in getattr(category, split)
    ]
    assert sorted(found, key=str) == sorted(wanted, key=str)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=8))
def test_any_text_is_a_label_or_none_and_a_folder_never_contradicts_it(text: str) -> None:
    label, folder = meaning_of_label(text), meaning_of_folder(text)
    assert label in (0, 1, None)
    if folder in (0, 1):
        assert label == folder
    if label == 0:  # what is good in a manifest is no kind of defect as a folder
        assert folder in (0, "unclear")
