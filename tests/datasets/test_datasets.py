"""Layouts on disk, samples, masks, limits, and the demo."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.datasets import (
    MaskError,
    Sample,
    get_layout,
    limit_samples,
    list_datasets,
    load_dataset,
    load_mask,
)
from pyimgano.errors import DataError, UsageError
from tests.conftest import MakeDataset, picture, save, spot_mask


def test_mvtec_layout(make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("nut", "my part 2"))
    (root / "license.txt").touch()
    (root / "not a category").mkdir()
    dataset = load_dataset("mvtec", root, "nut")
    assert dataset.list_categories() == ["my part 2", "nut"]
    assert [Path(p).name for p in dataset.get_train_paths()] == [f"{i:03d}.png" for i in range(6)]
    paths, labels, masks = dataset.get_test_paths()
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(isinstance(path, str) for path in paths)
    assert masks is not None and masks.shape == (6, 256, 256) and masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert not masks[:3].any() and masks[3:].any(axis=(1, 2)).all()
    info = dataset.get_info()
    assert info["n_train"] == 6 and info["defects"] == {"spot": 3} and info["n_masks"] == 3
    assert load_dataset("mvtec_ad", str(root)).category == "my part 2"  # the first


def test_pixels_on_demand(make_mvtec: MakeDataset) -> None:
    dataset = load_dataset("mvtec", make_mvtec(), "nut", resize=(32, 48))
    assert dataset.get_train_data().shape == (6, 32, 48, 3)
    images, labels, masks = dataset.get_test_data()
    assert images.shape == (6, 32, 48, 3) and len(labels) == 6
    assert masks is not None and masks.shape == (6, 32, 48)


def test_any_suffix_and_case_and_hidden_files(tmp_path: Path) -> None:
    folder = tmp_path / "c" / "train" / "good"
    for name in ("a.JPG", "b.jpeg", "c.bmp", "d.tif", "e.WEBP", ".hidden.png"):
        save(folder / name, picture(1))
    (folder / "notes.txt").touch()
    (folder / "folder.png").mkdir()
    names = [Path(p).name for p in load_dataset("mvtec", tmp_path).get_train_paths()]
    assert names == ["a.JPG", "b.jpeg", "c.bmp", "d.tif", "e.WEBP"]


def test_custom_layout(make_custom: MakeDataset) -> None:
    root = make_custom()
    dataset = load_dataset("custom", root)
    assert dataset.list_categories() == ["custom"] == [dataset.category]
    assert load_dataset("custom", root, "custom").get_info()["n_train"] == 6
    _, labels, masks = dataset.get_test_paths()
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and masks is not None
    assert load_dataset("custom", root.parent, "plates").get_info()["n_test"] == 6


def test_custom_without_masks_or_test(make_custom: MakeDataset, tmp_path: Path) -> None:
    dataset = load_dataset("custom", make_custom(masks=False))
    with pytest.warns(UserWarning, match=r"3 of the defective images have no usable mask.*0\.png"):
        assert dataset.get_test_paths()[2] is None
    save(tmp_path / "only" / "train" / "normal" / "a.png", picture(1))
    assert load_dataset("custom", tmp_path / "only").get_test_paths()[0] == []


def test_what_is_missing_is_named(tmp_path: Path, make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("nut", "bolt"))
    with pytest.raises(UsageError, match="unknown dataset 'mvtek'; did you mean mvtec"):
        load_dataset("mvtek", root)
    with pytest.raises(UsageError, match="needs a root"):
        load_dataset("mvtec")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        load_dataset("mvtec", tmp_path / "nowhere")
    with pytest.raises(DataError, match="unknown category 'bollt'; did you mean bolt"):
        load_dataset("mvtec", root, "bollt")
    with pytest.raises(DataError, match="is itself a category"):
        load_dataset("mvtec", root / "nut")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no category"):
        load_dataset("mvtec", tmp_path / "empty")
    with pytest.raises(DataError, match="it has to hold train/normal"):
        load_dataset("custom", tmp_path / "empty")
    for path in (root / "nut" / "train" / "good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"nut/train/good: holds no images.*\.jpg"):
        load_dataset("mvtec", root, "nut")


def test_masks_of_several_files_are_united_and_checked(tmp_path: Path) -> None:
    first, second = spot_mask(), np.zeros((64, 64), np.uint8)
    second[:4, :4] = 255
    paths = [save(tmp_path / "0.png", first), save(tmp_path / "1.png", second)]
    union = load_mask(paths, (64, 64), (64, 64))
    np.testing.assert_array_equal(union, ((first + second) > 0).astype(np.uint8))
    with pytest.raises(MaskError, match=r"0\.png: the mask is 64 x 64 pixels, its image 80 x 64"):
        load_mask(paths, (64, 80), (64, 64))


def test_mask_values(tmp_path: Path) -> None:
    soft = np.array([[0, 100], [128, 255]], np.uint8)  # anti-aliased: above 127 is defect
    kinds = np.array([[0, 1], [2, 7]], np.uint8)  # numbers of kinds: above 0 is defect
    assert load_mask([save(tmp_path / "s.png", soft)], None, (2, 2)).tolist() == [[0, 0], [1, 1]]
    assert load_mask([save(tmp_path / "k.png", kinds)], None, (2, 2)).tolist() == [[0, 1], [1, 1]]


def samples(sizes: dict[str, int]) -> list[Sample]:
    return [
        Sample(Path(f"{kind}/{i:03d}"), int(kind != "good"), kind)
        for kind, size in sizes.items()
        for i in range(size)
    ]


def test_a_limit_keeps_every_kind_and_spreads() -> None:
    whole = samples({"broken": 20, "cut": 5, "good": 40, "rare": 1})
    few = limit_samples(whole, 20, seed=0)
    counts = Counter(s.defect for s in few)
    assert len(few) == 20 and set(counts) == {"broken", "cut", "good", "rare"}
    assert 9 <= counts["good"] <= 12 and counts["rare"] == 1
    good = [int(s.path.name) for s in few if s.defect == "good"]
    assert max(b - a for a, b in pairwise(good)) <= 5  # evenly spread
    assert few == limit_samples(whole, 20, seed=0) != limit_samples(whole, 20, seed=1)
    assert limit_samples(whole, None, 0) == tuple(whole) == limit_samples(whole, 66, 0)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    limit=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_a_limit_is_met_without_repeats(sizes: list[int], limit: int, seed: int) -> None:
    kinds = ["good", "a", "b", "c", "d", "e"]
    whole = samples(dict(zip(kinds, sizes)))
    few = limit_samples(whole, limit, seed)
    assert len(few) == min(limit, len(whole)) and len(set(few)) == len(few)
    assert [s for s in whole if s in set(few)] == list(few)  # in their order
    if limit >= len(sizes):
        assert {s.defect for s in few} == {s.defect for s in whole}
    else:
        assert any(s.defect == "good" for s in few)


def few_demo_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo have 3, 2 and 1 images of each kind; to draw all takes seconds."""
    from pyimgano.datasets import demo

    for name, count in (("_TRAIN", 3), ("_TEST_GOOD", 2), ("_TEST_EACH_DEFECT", 1)):
        monkeypatch.setattr(demo, name, count)


def test_the_demo_is_whole_seeded_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("demo", category="washer")
    first, second = Path(dataset.root), tmp_path / "b"
    assert dataset.list_categories() == ["fabric", "washer"]
    info = dataset.get_info()
    assert info["n_train"] == 60 and info["n_test_good"] == 20 and info["n_masks"] == 24
    assert len(info["defects"]) == 4
    _, labels, masks = dataset.get_test_paths()
    assert masks is not None
    area = masks[labels == 1].mean(axis=(1, 2))
    assert area.min() > 0.0005 and area.max() < 0.1
    stamp = (first / ".complete").stat().st_mtime_ns
    load_dataset("demo", first)
    assert (first / ".complete").stat().st_mtime_ns == stamp
    few_demo_images(monkeypatch)
    load_dataset("demo", second)
    again = list(second.rglob("*.png"))
    assert len(again) == 2 * (3 + 2 + 4 + 4)
    for path in again:
        assert path.read_bytes() == (first / path.relative_to(second)).read_bytes()


def test_demo_masks_mark_what_changed() -> None:
    """The same part drawn without its defect differs from it where the mask says, and nowhere
    else but for the grain."""
    from pyimgano.datasets.demo_images import PARTS, draw_defective

    for part in PARTS:
        for kind in part.defects:
            image, mask = draw_defective(part, kind, np.random.default_rng(5))
            plain, _ = draw_defective(
                type(part)(part.name, part.draw, {kind: _without(part.defects[kind])}),
                kind,
                np.random.default_rng(5),
            )
            changed = np.abs(image.astype(int) - plain).mean(axis=2)
            assert changed[mask > 0].mean() > 8 * max(changed[mask == 0].mean(), 0.2), kind


def _without(defect):  # type: ignore[no-untyped-def]
    """Draws the defect aside, so that the same random numbers are used up."""
    return lambda canvas, rng: defect(canvas.copy(), rng)


def test_two_at_once_make_one_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_demo_images(monkeypatch)
    root = tmp_path / "demo"
    failures: list[Exception] = []

    def prepare() -> None:
        try:
            get_layout("demo").prepare(root)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failures
    assert len(list(root.rglob("*.png"))) == 2 * (3 + 2 + 4 + 4)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]  # nothing half-made is left


def test_the_demo_does_not_write_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="is not empty and holds no demo dataset"):
        load_dataset("demo", tmp_path)


def test_paths_that_no_system_takes(tmp_path: Path, make_mvtec: MakeDataset) -> None:
    with pytest.raises(DataError, match="File name too long"):
        load_dataset("mvtec", tmp_path / ("x" * 300))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is not a folder"):
        load_dataset("mvtec", tmp_path / "file")
    root = make_mvtec()
    save(root / "nut/test/spot" / f"{'s' * 250}.png", picture(1))
    (root / "loop").symlink_to(root / "loop")
    dataset = load_dataset("mvtec", root)
    assert dataset.list_categories() == ["nut"]
    with pytest.warns(UserWarning, match="1 of the defective images"):
        dataset.get_test_paths()


@pytest.mark.parametrize(
    "options",
    [{"limit_train": 0}, {"limit_test": -1}, {"resize": (0, 5)}, {"seed": -1}, {"resize": 3}],
)
def test_options_out_of_range(make_mvtec: MakeDataset, options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        load_dataset("mvtec", make_mvtec(), "nut", **options)


def test_options_are_used_as_they_were_checked(make_mvtec: MakeDataset) -> None:
    dataset = load_dataset("mvtec", make_mvtec(), "nut", limit_train="3", resize=[32, 32])
    assert dataset.get_info()["n_train"] == 3 and dataset.get_train_data().shape == (3, 32, 32, 3)


def test_bad_masks_and_images_do_not_stop_the_paths(make_mvtec: MakeDataset) -> None:
    root = make_mvtec()
    (root / "nut/test/spot/000.png").write_text("broken")
    masks = load_dataset("mvtec", root).get_test_paths()[2]
    assert masks is not None and masks[3].any()
    (root / "nut/ground_truth/spot/001_mask.png").write_text("broken")
    with pytest.warns(UserWarning, match="001_mask.png: not an image"):
        assert load_dataset("mvtec", root).get_test_paths()[2] is None


PLUGIN = """
from pathlib import Path
from pyimgano.datasets import Category, Layout, Sample

class Flat(Layout):
    name = "flat"
    def list_categories(self, root): return ["all-of-it"]
    def load(self, root, category):
        return Category(category, tuple(Sample(p, 0, "good") for p in sorted(root.iterdir())))
"""


def test_another_package_adds_its_layout(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(PLUGIN)
    info = tmp_path / "flat-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyimgano.datasets]\nflat = flat:Flat\n")
    save(tmp_path / "images" / "a.png", picture(1))
    code = (
        "import sys; from pyimgano.datasets import load_dataset, list_datasets\n"
        "assert 'flat' in list_datasets()\n"
        "print(load_dataset('flat', sys.argv[1]).get_train_paths())"
    )

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "images")],
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )

    done = ask()
    assert done.stdout.strip() == str([str(tmp_path / "images" / "a.png")])
    # one that is broken is complained of, and harms neither the built-in ones nor the others
    (info / "entry_points.txt").write_text(
        "[pyimgano.datasets]\nbroken = nothing:X\nflat = flat:Flat\n"
    )
    again = ask()
    assert again.stdout == done.stdout
    assert "the dataset plug-in 'broken' (nothing:X) cannot be loaded" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5, "x"), "dataset must be a name, got 5"),
        (("mvtec", 5), "root must be a path, got 5"),
        (("custom", "x", None, {"allow_outside": "no"}), "allow_outside must be True or False"),
        (("visa", "x", None, {"split": 5}), "unknown split '5'"),
    ],
)
def test_arguments_of_other_types(arguments: tuple, said: str) -> None:
    keywords = arguments[3] if len(arguments) > 3 else {}
    with pytest.raises(UsageError, match=said):
        load_dataset(*arguments[:3], **keywords)


def test_a_mask_has_a_file() -> None:
    with pytest.raises(UsageError, match="paths is empty"):
        load_mask([], None, (2, 2))


def test_the_documented_import_path_is_the_same_function() -> None:
    import pyimgano
    from pyimgano.utils.datasets import load_dataset as documented

    assert documented is load_dataset is pyimgano.load_dataset
    assert {"mvtec", "custom", "demo"} <= set(list_datasets())
