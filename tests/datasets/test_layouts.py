"""Layouts of published datasets, written here as small as can be, as their archives have them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyimgano.cli import benchmark
from pyimgano.datasets import (
    MaskError,
    Saturation,
    check_dataset,
    get_layout,
    load_dataset,
    load_regions,
)
from pyimgano.errors import DataError, UsageError
from pyimgano.models import create_model
from pyimgano.pipelines import run_benchmark
from pyimgano.pipelines.mvtec_visa import evaluate_split, load_benchmark_split
from tests.conftest import picture, save, spot_mask

ENTRY = (
    '{"defect_name": "a", "pixel_value": 255, "saturation_threshold": 9, '
    '"relative_saturation": false}'
)


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
    """The raw form: JPG in capitals, masks of 0 to k, tables for all categories.

    The two-class splits also train on defective images.
    """
    root = tmp_path / "VisA_20220922"
    tables: dict[str, list[tuple[str, ...]]] = {"1cls": [], "2cls_fewshot": []}
    for category in ("candle", "pcb1"):
        data = root / category / "Data"
        for i in range(6):
            name = f"{category}/Data/Images/Normal/{i:04d}.JPG"
            save(root / name, picture(i), quality=95)
            split = "train" if i < 4 else "test"
            for rows in tables.values():
                rows.append((category, split, "normal", name, ""))
        for i in range(2):
            name = f"{category}/Data/Images/Anomaly/{i:03d}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{i:03d}.png"
            save(root / name, picture(90 + i, spot=True), quality=95)
            save(root / mask, (spot_mask() > 0).astype(np.uint8) * (i + 1))
            tables["1cls"].append((category, "test", "anomaly", name, mask))
            split = "train" if i == 0 else "test"
            tables["2cls_fewshot"].append((category, split, "anomaly", name, mask))
        (data / "image_anno.csv").touch()
    (root / "split_csv").mkdir()
    for split, rows in tables.items():
        with (root / "split_csv" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("object", "split", "label", "image", "mask"))
            writer.writerows(rows)
    return root


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    """Several mask files an image, one value each; two that overlap."""
    root = tmp_path / "mvtec_loco_anomaly_detection"
    (root / "license.txt").parent.mkdir()
    (root / "license.txt").touch()
    corner, spot = np.zeros((64, 64), np.uint8), spot_mask()
    corner[40:50, 40:50] = 1
    for category in ("breakfast_box", "screw_bag"):
        folder = root / category
        for i in range(5):
            save(folder / "train/good" / f"{i:03d}.png", picture(i))
        for i in range(3):
            save(folder / "validation/good" / f"{i:03d}.png", picture(20 + i))
            save(folder / "test/good" / f"{i:03d}.png", picture(50 + i))
        for kind, seed in (("logical_anomalies", 90), ("structural_anomalies", 95)):
            for i in range(2):
                save(folder / "test" / kind / f"{i:03d}.png", picture(seed + i, spot=True))
                masks = folder / "ground_truth" / kind / f"{i:03d}"
                save(masks / "000.png", np.where(spot > 0, 255, 0).astype(np.uint8))
                if kind == "logical_anomalies":
                    save(masks / "001.png", corner * np.uint8(254))
        entries = [
            {
                "defect_name": "missing_almonds",
                "pixel_value": 255,
                "saturation_threshold": 20,
                "relative_saturation": False,
            },
            {
                "defect_name": "compartments_swapped",
                "pixel_value": 254,
                "saturation_threshold": 0.5,
                "relative_saturation": True,
            },
        ]
        (folder / "defects_config.json").write_text(json.dumps(entries, indent=4))
    return root


@pytest.fixture
def ad2(tmp_path: Path) -> Path:
    """Lighting in the names, and two private test sets without labels."""
    root = tmp_path / "mvtec_ad_2"
    for category in ("can", "fruit_jelly"):
        folder = root / category
        for i in range(5):
            save(folder / "train/good" / f"{i:03d}_regular.png", picture(i))
        for i in range(3):
            save(folder / "validation/good" / f"{i:03d}_regular.png", picture(20 + i))
        for i, light in enumerate(("regular", "overexposed")):
            public = folder / "test_public"
            save(public / "good" / f"{i:03d}_{light}.png", picture(50 + i))
            save(public / "bad" / f"{i:03d}_{light}.png", picture(90 + i, spot=True))
            save(public / "ground_truth/bad" / f"{i:03d}_{light}_mask.png", spot_mask())
            wide = np.concatenate([picture(60 + i), picture(61 + i, spot=True)], axis=1)
            save(folder / "test_private" / f"{i:03d}_{light}.png", wide)
            save(folder / "test_private_mixed" / f"{i:03d}_mixed.png", picture(70 + i))
    return root


def check(root: Path, dataset: str, categories: list[str]) -> dict[str, Any]:
    """The one-click command runs over all categories and measures pixels too."""
    report = run_benchmark(
        dataset=dataset, root=root, category="all", resize=(64, 64), save_run=False
    )
    assert report["status"] == "complete" and report["categories"] == categories
    for category in report["per_category"].values():
        assert category["problems"] == [] and category["results"]["auroc"] == 1.0
        assert category["results"]["pixel_metrics"]["pixel_auroc"] > (
            0.7 if dataset == "mvtec_loco" else 0.9
        )
    return report


def test_btad(btad: Path) -> None:
    check(btad, "btad", ["01", "02", "03"])
    dataset = load_dataset("btad", btad, "01")
    assert dataset.get_info()["defects"] == {"ko": 2}
    assert [Path(p).suffix for p in dataset.get_test_paths()[0]] == [".bmp"] * 4


def test_visa_raw(visa: Path) -> None:
    check(visa, "visa", ["candle", "pcb1"])
    info = load_dataset("visa", visa, "pcb1").get_info()
    assert info["n_train"] == 4 and info["n_test_good"] == 2 and info["n_masks"] == 2


def test_visa_two_classes(visa: Path) -> None:
    report = run_benchmark(
        dataset="visa",
        root=visa,
        category="all",
        split="2cls_fewshot",
        resize=(64, 64),
        save_run=False,
    )
    assert report["split"] == "2cls_fewshot" and report["status"] == "complete"
    candle = report["per_category"]["candle"]
    assert candle["counts"]["train"] == 4 and candle["counts"]["test_defective"] == 1
    assert candle["notes"] == ["1 defective training images of the split are not used"]
    with pytest.raises(UsageError, match="unknown split '2cls_fewshots'; did you mean 2cls_few"):
        load_dataset("visa", visa, split="2cls_fewshots")
    with pytest.raises(UsageError, match="dataset 'mvtec' has no splits, got '1cls'"):
        load_dataset("mvtec", visa, split="1cls")
    with pytest.raises(DataError, match=r"2cls_highshot\.csv: cannot be read"):
        load_dataset("visa", visa, split="2cls_highshot")


def test_visa_converted(tmp_path: Path) -> None:
    root = tmp_path / "1cls"
    for i in range(4):
        save(root / "candle/train/good" / f"{i:04d}.JPG", picture(i), quality=95)
    for i in range(2):
        save(root / "candle/test/good" / f"{i:04d}.JPG", picture(50 + i), quality=95)
        save(root / "candle/test/bad" / f"{i:03d}.JPG", picture(90 + i, spot=True), quality=95)
        save(root / "candle/ground_truth/bad" / f"{i:03d}.png", spot_mask())
    check(root, "visa", ["candle"])
    with pytest.raises(DataError, match="converted form, which has no split '2cls_fewshot'"):
        load_dataset("visa", root, split="2cls_fewshot")


def test_loco(loco: Path) -> None:
    report = check(loco, "mvtec_loco", ["breakfast_box", "screw_bag"])
    assert report["own_metrics"] == ["auroc", "spro"]
    for category in report["per_category"].values():
        results = category["results"]
        assert results["pixel_aupro_limit"] == 0.05
        assert 0 < results["pixel_metrics"]["spro"] <= 1 and "spro" not in results["undefined"]
        kinds = results["per_defect"]
        assert list(kinds) == ["logical_anomalies", "structural_anomalies"]
        for metric in ("auroc", "recall"):
            both = [kinds[kind][metric] for kind in kinds]
            assert results["mean_over_defects"][metric] == pytest.approx(sum(both) / 2)
        spro = [kinds[kind]["pixel_metrics"]["spro"] for kind in kinds]
        # the corner that only logical anomalies have a mask for is not found
        assert spro[0] < spro[1]
        assert results["mean_over_defects"]["spro"] == pytest.approx(sum(spro) / 2)
        assert results["pixel_metrics"]["spro"] not in spro
        assert category["counts"]["validation"] == 3
        assert category["counts"]["validation_used"] == 0
    for name in ("auroc", "spro"):
        for kind in ("logical_anomalies", "structural_anomalies", "mean_over_defects"):
            assert report["metric_categories"][f"{name}/{kind}"] == 2
    info = load_dataset("mvtec_loco", loco, "screw_bag").get_info()
    assert info["n_validation"] == 3 and info["own_metrics"] == ["auroc", "spro"]
    masks = load_dataset("mvtec_loco", loco, resize=(64, 64)).get_test_paths()[2]
    assert masks is not None and masks[3][45, 45] and masks[3][35, 35]  # united
    assert not masks[5][45, 45]


def test_loco_regions_are_kept_apart_at_the_size_of_the_map(loco: Path) -> None:
    sample = load_dataset("mvtec_loco", loco).samples.test[3]
    rules = get_layout("mvtec_loco").load(loco, "breakfast_box").saturation
    assert rules is not None and len(sample.mask_paths) == 2
    spot, corner = load_regions(sample.mask_paths, (64, 64), (32, 32), rules)
    assert spot.saturation == 20 / 4  # 20 pixels of the file are 5 of the map
    assert corner.mask.sum() == 25 and corner.saturation == 12.5
    large, _ = load_regions(sample.mask_paths, None, (128, 128), rules)
    assert large.saturation == 80 and spot.mask.sum() >= 5
    tiny, _ = load_regions(sample.mask_paths, None, (4, 4), rules)
    assert tiny.saturation == 20 * 16 / 4096  # one pixel is more than enough
    whole = {255: Saturation(1e6, False), 254: Saturation(1.0, True)}
    for region in load_regions(sample.mask_paths, None, (32, 32), whole):
        assert region.saturation == region.mask.sum() > 0  # at most the region
    gone = load_regions(sample.mask_paths, None, (1, 1), rules)
    assert [region.saturation for region in gone] in ([0.0, 0.0], [20 / 4096, 0.0])
    with pytest.raises(MaskError, match="no defect has the pixel value 254; known: 255"):
        load_regions(sample.mask_paths, None, (64, 64), {255: rules[255]})


def test_loco_calibrated_on_validation_images(loco: Path, tmp_path: Path) -> None:
    keywords = {"root": loco, "category": "screw_bag", "resize": (64, 64), "save_run": False}
    report = run_benchmark(dataset="mvtec_loco", calibration="validation", **keywords)
    block = report["calibration"]
    assert block["method"] == "held-out-images" and block["n_scores"] == 3
    assert block["promised_false_alarm_rate"] == pytest.approx(1 / 4)
    assert report["score_threshold_strategy"] == "held-out-images-quantile"
    assert report["pixel_calibration"]["n_images"] == 3
    assert report["counts"]["validation_used"] == 3
    detector = create_model("vision_patchcore", resize=(64, 64), device="cpu")
    samples = get_layout("mvtec_loco").load(loco, "screw_bag")
    detector.fit([s.path for s in samples.train])
    scores = detector.decision_function([s.path for s in samples.validation])
    assert report["threshold"] == np.nextafter(scores.max(), np.inf)

    broken = loco / "screw_bag/validation/good/001.png"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"001\.png: the file is empty"):
        run_benchmark(dataset="mvtec_loco", calibration="validation", **keywords)
    report = run_benchmark(
        dataset="mvtec_loco", calibration="validation", on_error="skip", **keywords
    )
    assert report["calibration"]["n_scores"] == 2 and report["counts"]["train_skipped"] == 0
    assert [p["kind"] for p in report["problems"]] == ["unreadable_calibration_image"]
    shutil.rmtree(loco / "screw_bag/validation")
    with pytest.raises(DataError, match="category 'screw_bag' has no validation images"):
        run_benchmark(dataset="mvtec_loco", calibration="validation", **keywords)
    with pytest.raises(UsageError, match="calibration: dataset 'btad' has no validation images"):
        run_benchmark(dataset="btad", root=loco, calibration="validation")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "EOF"),
        ("{}", "should be a valid"),
        ("[]", "lists no defect"),
        ('[{"defect_name": "a"}]', r"0\.pixel_value: Field required"),
        (
            "[{}]".format(
                ENTRY.replace('"relative_saturation": false', '"relative_saturation": true')
            ),
            r"'a': a relative saturation_threshold must lie in .0, 1., got 9",
        ),
        (f"[{ENTRY}, {ENTRY}]", "pixel_value 255 stands there twice"),
        ("[{}]".format(ENTRY.replace("255", "0")), "greater than or equal to 1"),
        ("[{}]".format(ENTRY.replace("9", "NaN")), "defects_config"),
    ],
)
def test_a_defects_config_that_will_not_do(loco: Path, text: str, said: str) -> None:
    (loco / "screw_bag/defects_config.json").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        load_dataset("mvtec_loco", loco, "screw_bag")
    assert "defects_config.json: " in str(error.value) and "\n" not in str(error.value)


def test_loco_without_its_config_or_with_a_strange_mask(loco: Path) -> None:
    config = loco / "screw_bag/defects_config.json"
    keywords = {"root": loco, "category": "screw_bag", "resize": (64, 64), "save_run": False}
    config.write_text(f"[{ENTRY}]")
    report = run_benchmark(dataset="mvtec_loco", **keywords)
    assert {p["kind"] for p in report["problems"]} == {"mask_value"}
    results = report["results"]
    assert results["pixel_metrics"]["spro"] is None and results["pixel_metrics"]["aupro"] > 0
    assert "no defect has the pixel value 254" in results["undefined"]["spro"]
    config.unlink()
    report = run_benchmark(dataset="mvtec_loco", **keywords)
    assert "no such file, so no sPRO" in report["notes"][0]
    assert report["results"]["pixel_metrics"]["spro"] is None
    assert "saturate" in report["results"]["undefined"]["spro"]


def test_ad2_public(ad2: Path) -> None:
    report = check(ad2, "mvtec_ad2", ["can", "fruit_jelly"])
    assert report["split"] == "test_public" and report["own_metrics"] == ["aupro", "segf1"]
    category = report["per_category"]["can"]
    results = category["results"]
    assert results["pixel_aupro_limit"] == 0.05 and "spro" not in results["pixel_metrics"]
    block = category["pixel_calibration"]
    assert block["value"] == block["mean"] + 3 * block["std"] == results["pixel_threshold"]
    assert block["method"] == "leave-one-image-out" and block["n_images"] == 5
    # as its paper has it: mean and deviation over all pixels of the validation images' maps
    report = run_benchmark(
        dataset="mvtec_ad2",
        root=ad2,
        category="can",
        calibration="validation",
        resize=(64, 64),
        save_run=False,
    )
    split = load_dataset("mvtec_ad2", ad2, "can", resize=(64, 64))
    detector = create_model("vision_patchcore", resize=(64, 64), device="cpu")
    detector.fit(split.get_train_paths())
    maps = detector.predict_anomaly_map(split.get_validation_paths()).astype(np.float64)
    threshold = report["results"]["pixel_threshold"]
    assert threshold == pytest.approx(maps.mean() + 3 * maps.std(), rel=1e-9)
    paths, _, masks = split.get_test_paths()
    found = detector.predict_anomaly_map(paths) >= threshold
    assert masks is not None
    truth = masks > 0
    f1 = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert report["results"]["pixel_metrics"]["segf1"] == pytest.approx(f1, rel=1e-12)


@pytest.mark.parametrize("split", ["test_private", "test_private_mixed", "private"])
def test_ad2_private(ad2: Path, tmp_path: Path, split: str) -> None:
    import tifffile

    report = run_benchmark(
        dataset="mvtec_ad2",
        root=ad2,
        category="all",
        split=split,
        resize=(64, 64),
        runs_dir=tmp_path / "runs",
    )
    assert report["status"] == "complete" and report["split"] == split
    run = Path(report["run_dir"])
    parts = ["test_private", "test_private_mixed"] if split == "private" else [split]
    wanted = {
        f"{category}/{part}/{image.stem}"
        for category in ("can", "fruit_jelly")
        for part in parts
        for image in (ad2 / category / part).iterdir()
    }
    for folder, suffix in (("anomaly_images", ".tiff"), ("anomaly_images_thresholded", ".png")):
        top = run / "submission" / folder
        files = {p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file()}
        assert files == {name + suffix for name in wanted}
    for name, category in report["per_category"].items():
        results = category["results"]
        assert results["auroc"] is None and results["pixel_metrics"]["aupro"] is None
        assert set(results["undefined"].values()) == {"no test image has a label"}
        assert results["per_defect"] == {} and category["problems"] == []
        assert category["counts"]["test_unlabelled"] == 2 * len(parts)
        count = 2 * len(parts)
        # some private images are of another shape, which is a note of its own
        assert [one for one in category["notes"] if "another kind" not in one] == [
            f"{count} of {count} maps for the evaluation server are under submission in the run "
            "directory"
        ]
        assert category["calibration"]["measured_false_alarm_rate"]["good_images"] == 0
        lines = (run / "categories" / name / "per_image.jsonl").read_text().splitlines()
        assert len(lines) == 2 * len(parts)
        for record in map(json.loads, lines):
            assert record["y_true"] is None and record["defect"] == "unlabelled"
            assert record["pred"] == int(record["score"] >= category["threshold"])
            scores = tifffile.imread(run / record["map"])
            image = Image.open(record["input"])
            assert scores.dtype == np.float16 and scores.shape == image.size[::-1]
            place = record["map"].replace("anomaly_images", "anomaly_images_thresholded")
            mask = np.asarray(Image.open(run / place.replace(".tiff", ".png")))
            assert mask.shape == scores.shape and set(np.unique(mask)) <= {0, 255}
            sure = np.abs(scores / category["pixel_calibration"]["value"] - 1) > 1e-3
            expected = scores >= category["pixel_calibration"]["value"]
            np.testing.assert_array_equal((mask > 0)[sure], expected[sure])
            if scores.shape[1] == 128:  # the spot is in the right half
                assert np.unravel_index(scores.argmax(), scores.shape)[1] >= 64


def test_ad2_private_without_the_folder_or_a_run(ad2: Path) -> None:
    labels = load_dataset("mvtec_ad2", ad2, "can", split="test_private").get_test_paths()
    assert labels[1].tolist() == [-1, -1] and labels[2] is None
    keywords = {"dataset": "mvtec_ad2", "root": ad2, "category": "can", "save_run": False}
    report = run_benchmark(split="test_private", resize=(64, 64), **keywords)
    assert report["status"] == "complete"
    assert report["notes"][-1] == "the run is not saved, and so no maps for the evaluation server"
    shutil.rmtree(ad2 / "can/test_private")
    with pytest.raises(DataError, match="test_private: no such folder"):
        run_benchmark(split="test_private", **keywords)


def test_ad2_private_images_that_would_share_a_map(ad2: Path) -> None:
    save(ad2 / "can/test_private/000_regular.bmp", picture(1))
    with pytest.raises(DataError, match=r"000_regular\.png: has the stem of 000_regular\.bmp"):
        run_benchmark(
            dataset="mvtec_ad2", root=ad2, category="can", split="private", save_run=False
        )


def test_ad2_private_images_that_cannot_be_read(ad2: Path, tmp_path: Path) -> None:
    (ad2 / "can/test_private/000_regular.png").write_bytes(b"")
    report = run_benchmark(
        dataset="mvtec_ad2",
        root=ad2,
        category="can",
        split="test_private",
        resize=(64, 64),
        runs_dir=tmp_path,
    )
    assert report["notes"][-1].startswith("1 of 2 maps")
    assert set(report["results"]["undefined"].values()) == {"no test image has a label"}


def test_loco_kinds_of_which_no_image_was_scored(loco: Path) -> None:
    for path in (loco / "screw_bag/test/logical_anomalies").iterdir():
        path.write_bytes(b"")
    report = run_benchmark(
        dataset="mvtec_loco", root=loco, category="screw_bag", resize=(64, 64), save_run=False
    )
    results = report["results"]
    logical = results["per_defect"]["logical_anomalies"]
    assert logical["count"] == 0 and logical["auroc"] is None
    assert logical["pixel_metrics"]["spro"] is None
    assert results["mean_over_defects"]["auroc"] is None
    assert results["undefined"]["mean_over_defects/spro"] == (
        "logical_anomalies: no image of this kind was scored"
    )
    assert results["per_defect"]["structural_anomalies"]["auroc"] == 1.0


def test_loco_regions_that_vanish_are_named(loco: Path) -> None:
    dot = np.zeros((64, 64), np.uint8)
    dot[3, 3] = 254
    masks = loco / "screw_bag/ground_truth/logical_anomalies/000"
    save(masks / "001.png", dot)
    report = run_benchmark(
        dataset="mvtec_loco", root=loco, category="screw_bag", resize=(16, 16), save_run=False
    )
    assert [(p["kind"], p["path"]) for p in report["problems"]] == [
        ("mask_vanishes", str(masks / "001.png"))
    ]


def test_loco_where_every_category_fails(
    loco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for path in loco.rglob("train/good/*.png"):
        path.write_bytes(b"")
    monkeypatch.setattr("pyimgano.cli.console.on_terminal", lambda: True)
    with pytest.raises(SystemExit) as done:
        benchmark(
            ["--dataset", "mvtec_loco", "--root", str(loco), "--runs-dir", str(tmp_path / "r")]
        )
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert done.value.code == 1 and report["mean_metrics"]["spro"] is None
    assert "sPRO" in err and "Traceback" not in err


def test_step_by_step_with_images_without_a_label(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.png", picture(i, spot=i == 4))
    rows = ["path,split,label", *(f"{i}.png,train," for i in range(3))]
    rows += ["3.png,test,0", "4.png,test,1", "5.png,test,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    split = load_benchmark_split(
        dataset="custom", root=tmp_path / "list.csv", category="list", resize=(64, 64)
    )
    assert split.test_labels.tolist() == [0, 1, -1] and split.test_masks is None
    detector = create_model("vision_patchcore", resize=(64, 64), device="cpu")
    found = evaluate_split(detector, split)
    assert found["auroc"] == 1.0 and found["metrics"]["tn"] + found["metrics"]["fp"] == 1


def test_a_category_given_as_root_is_said(loco: Path, ad2: Path, btad: Path, visa: Path) -> None:
    roots = {"mvtec_loco": loco, "mvtec_ad2": ad2, "btad": btad, "visa": visa}
    for dataset, root in roots.items():
        category = load_dataset(dataset, root).category
        with pytest.raises(DataError, match="is itself a category; the root is its parent"):
            load_dataset(dataset, root / category)


def test_masks_that_nothing_asks_for(visa: Path, loco: Path) -> None:
    save(visa / "candle/Data/Masks/Anomaly/9.png", spot_mask())
    (candle, _) = check_dataset("visa", visa).categories
    assert [(f.kind, Path(f.path).name) for f in candle.findings] == [
        ("mask_without_image", "9.png")
    ]
    for split in ("1cls", "2cls_fewshot"):  # also where its image is left out
        assert check_dataset("visa", visa, category="pcb1", split=split).errors == 0
    save(loco / "screw_bag/ground_truth/logical_anomalies/001.png", spot_mask())
    save(loco / "screw_bag/ground_truth/structural_anomalies/007/000.png", spot_mask())
    (_, bag) = check_dataset("mvtec_loco", loco).categories
    assert sorted((f.kind, Path(f.path).name) for f in bag.findings) == [
        ("mask_without_image", "000.png"),
        ("mask_without_image", "001.png"),
    ]


def test_every_layout_passes_the_check(visa: Path, loco: Path, ad2: Path, btad: Path) -> None:
    for dataset, root in (("visa", visa), ("mvtec_loco", loco), ("mvtec_ad2", ad2), ("btad", btad)):
        assert check_dataset(dataset, root).errors == 0
    assert check_dataset("mvtec_ad2", ad2, split="private").categories[0].unlabelled == 4


def test_a_mask_that_the_table_names_but_is_not_there(visa: Path) -> None:
    (visa / "candle/Data/Masks/Anomaly/001.png").unlink()
    with pytest.warns(UserWarning, match=r"001\.png: no such file"):
        assert load_dataset("visa", visa, "candle").get_test_paths()[2] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("candle,train,normal,../../etc/passwd,", "line 2: .* leads out of the dataset's folder"),
        ("candle,train,normal,/etc/passwd,", "leads out"),
        ("candle,train,good,candle/x.JPG,", "line 2: label must be normal or anomaly, got 'good'"),
        ("candle,valid,normal,candle/x.JPG,", "split must be train or test, got 'valid'"),
        ("candle,train,normal", "names no image"),
        ("candle,test,normal,candle/x.JPG,", "lists no good training image of category 'candle'"),
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
