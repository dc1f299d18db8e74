"""Goes through every name that scripts and notebooks call, on small images that it makes itself.

Run it with `python tests/compat/notebook.py`. It needs neither pytest nor a network, writes into a
temporary folder alone, and ends with the number of cells that ran.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

cells: list[Callable[[Path], None]] = []


def cell(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Note a function as a cell of the notebook; it is called with a folder of its own."""
    cells.append(function)
    return function


# ---- images


def picture(seed: int, *, spot: bool = False, side: int = 32) -> np.ndarray:
    """Return (side, side, 3) uint8 of grey grain, with a bright spot if asked."""
    image = np.random.default_rng(seed).integers(90, 110, (side, side, 3)).astype(np.uint8)
    if spot:
        image[8:16, 8:16] = 255
    return image


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask() -> np.ndarray:
    found = np.zeros((32, 32), np.uint8)
    found[8:16, 8:16] = 255
    return found


def mvtec(root: Path, category: str = "bottle") -> Path:
    """Write one category of MVTec AD below `root`."""
    for i in range(6):
        save(root / category / f"train/good/{i:03d}.png", picture(i))
    for i in range(2):
        save(root / category / f"test/good/{i:03d}.png", picture(10 + i))
        save(root / category / f"test/crack/{i:03d}.png", picture(20 + i, spot=True))
        save(root / category / f"ground_truth/crack/{i:03d}_mask.png", mask())
    return root


class Own:
    """A detector of somebody's own, which takes arrays in one batch alone."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords

    def fit(self, X: Any) -> None:
        assert isinstance(X, np.ndarray) and X.ndim == 4
        self.mean = float(X.mean())

    def decision_function(self, X: Any) -> np.ndarray:
        return np.asarray(self.predict_anomaly_map(X).max(axis=(1, 2)))

    def predict_anomaly_map(self, X: Any) -> np.ndarray:
        assert isinstance(X, np.ndarray) and X.ndim == 4
        return np.abs(X.astype(np.float32) - self.mean).mean(axis=3)


def run(main: Callable[[list[str]], int], *words: object, status: int = 0) -> str:
    """Run a command by its function, and return what it wrote to stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = main([str(one) for one in words])
    assert got == status, f"{words}: {got}\n{err.getvalue()}"
    if status:
        assert err.getvalue().count("\n") == 1, err.getvalue()
    return out.getvalue()


# ---- the commands by their functions


@cell
def one_click_run(folder: Path) -> None:
    from pyimgano.cli import main

    root = folder / "parts"
    for name, spot in (("train/normal", False), ("test/normal", False), ("test/anomaly", True)):
        save(root / name / "0.png", picture(len(name), spot=spot, side=16)[:16, :16])
    words: list[object] = ["--dataset", "custom", "--root", root, "--model", "vision_ecod"]
    words += ["--no-pretrained", "--limit-train", 1, "--limit-test", 2]
    report = json.loads(run(main, *words, "--output-dir", folder / "out"))
    assert report["category"] == "custom" and report["run_dir"] == str(folder / "out")
    for name in ("report.json", "config.json"):
        assert json.loads((folder / "out" / name).read_text())
    below = folder / "out" / "categories" / "custom"
    assert json.loads((below / "report.json").read_text())["category"] == "custom"
    lines = (below / "per_image.jsonl").read_text().splitlines()
    wanted = {"index", "dataset", "category", "input", "y_true", "score", "threshold", "pred"}
    assert len(lines) == 2 and wanted <= set(json.loads(lines[0]))


@cell
def all_categories_and_every_pixel_flag(folder: Path) -> None:
    from pyimgano.cli import main

    words: list[object] = ["--dataset", "mvtec", "--root", mvtec(folder), "--category", "all"]
    words += ["--model", "vision_padim", "--no-pretrained", "--resize", 32, 32, "--pixel-segf1"]
    words += ["--pixel-aupro-thresholds", 50, "--pixel-calibration-seed", 1]
    words += ["--pixel-threshold-strategy", "normal_pixel_quantile", "--pixel-normal-quantile", 0.9]
    words += ["--pixel-calibration-fraction", 0.4, "--pixel-postprocess"]
    words += ["--pixel-post-norm", "percentile", "--pixel-post-percentiles", 1, 99]
    words += ["--pixel-post-gaussian-sigma", 1, "--pixel-post-open-ksize", 3]
    words += ["--pixel-post-close-ksize", 3, "--pixel-post-component-threshold", 0.5]
    words += ["--pixel-post-min-component-area", 2, "--output-dir", folder / "out"]
    report = json.loads(run(main, *words))
    assert report["category"] == "all" and report["categories"] == ["bottle"]
    pixels = report["per_category"]["bottle"]["results"]["pixel_metrics"]
    assert {"pixel_threshold", "pixel_segf1", "bg_fpr", "aupro"} <= set(pixels)
    missing = folder / "none.safetensors"
    run(main, *words[:4], "--no-save-run", "--checkpoint-path", missing, status=1)


@cell
def lists_and_usage(folder: Path) -> None:
    from pyimgano.cli import main

    assert "vision_ecod" in json.loads(run(main, "--list-models", "--json"))
    assert "Signature" in run(main, "--model-info", "vision_ecod")
    info = json.loads(run(main, "--model-info", "vision_ecod", "--json"))
    assert info["name"] == "vision_ecod" and info["signature"]
    run(main, "--list-models", "--model-info", "vision_ecod", status=2)
    run(main, "--dataset", "nonsense", status=2)
    words = ["--dataset", "mvtec", "--root", mvtec(folder), "--list-categories"]
    assert run(main, *words) == "bottle\n"


@cell
def infer_by_its_module(folder: Path) -> None:
    from pyimgano import infer_cli

    mvtec(folder)
    words: list[object] = ["--model", "own", "--train-dir", folder / "bottle/train/good"]
    words += ["--input", folder / "bottle/test/crack", "--include-maps", "--postprocess"]
    words += ["--save-maps", folder / "maps", "--save-jsonl", folder / "records.jsonl"]
    ours = infer_cli.create_model
    infer_cli.create_model = lambda name, **keywords: Own(**keywords)  # type: ignore[assignment]
    try:
        printed = run(infer_cli.main, *words, "--checkpoint-path", folder / "net.pt")
        tiles = ["--tile-size", 16, "--tile-score-reduce", "topk_mean", "--tile-score-topk", 0.5]
        run(infer_cli.main, *words, *tiles, "--tile-map-reduce", "hann")
    finally:
        infer_cli.create_model = ours
    records = [json.loads(line) for line in printed.splitlines()]
    assert [one["label"] for one in records] == [1, 1]
    for one in records:
        assert set(one["anomaly_map"]) == {"path", "shape", "dtype"}
    words[1] = "vision_ecod"
    scale = words.index("--postprocess")
    del words[scale : scale + 3], words[words.index("--include-maps")]
    run(infer_cli.main, *words, "--no-pretrained", "--resize", 32, 32)


@cell
def robustness_by_its_module(folder: Path) -> None:
    from pyimgano import robust_cli

    words: list[object] = ["--dataset", "mvtec", "--root", mvtec(folder), "--category", "bottle"]
    words += ["--model", "own", "--corruptions", "blur,jpeg", "--severities", "1,3"]
    words += ["--no-save-run", "--no-pixel-segf1", "--input-mode", "numpy", "--resize", 32, 32]
    ours = robust_cli.create_model
    robust_cli.create_model = lambda name, **keywords: Own(**keywords)  # type: ignore[assignment]
    try:
        found = json.loads(run(robust_cli.main, *words))["robustness"]
    finally:
        robust_cli.create_model = ours
    assert set(found) == {"clean", "corruptions"}
    assert set(found["corruptions"]["jpeg"]) == {"severity_1", "severity_3"}


# ---- pipelines


@cell
def run_benchmark_is_a_function_and_a_module(folder: Path) -> None:
    from pyimgano.pipelines import run_benchmark
    from pyimgano.pipelines.run_benchmark import list_dataset_categories
    from pyimgano.pipelines.run_benchmark import run_benchmark as same

    asked: dict[str, Any] = {
        "dataset": "mvtec",
        "root": str(mvtec(folder)),
        "category": "bottle",
        "model": "vision_copod",
        "pretrained": False,
        "resize": (32, 32),
        "save_run": False,
    }
    first, second = run_benchmark(**asked), same(**asked)
    assert first["results"] == second["results"] and json.dumps(first)
    assert list_dataset_categories(dataset="mvtec", root=str(folder)) == ["bottle"]


@cell
def step_by_step(folder: Path) -> None:
    from pyimgano.pipelines.mvtec_visa import (
        BenchmarkSplit,
        build_default_detector,
        evaluate_split,
        load_benchmark_split,
    )
    from pyimgano.postprocess.anomaly_map import AnomalyMapPostprocess

    split = load_benchmark_split(
        dataset="mvtec", root=str(mvtec(folder)), category="bottle", resize=(32, 32)
    )
    assert isinstance(split, BenchmarkSplit) and split.test_masks is not None
    padim = build_default_detector(
        model="vision_padim", device="cpu", contamination=0.1, pretrained=False, d_reduced=8
    )
    assert evaluate_split(padim, split)["pixel_metrics"]["aupro"] is not None
    found = evaluate_split(
        Own(),
        split,
        postprocess=AnomalyMapPostprocess(normalize=False, gaussian_sigma=0.5),
        pro_num_thresholds=50,
        pixel_segf1=True,
        pixel_threshold_strategy="normal_pixel_quantile",
        pixel_normal_quantile=0.99,
        calibration_fraction=0.3,
        calibration_seed=1,
    )
    assert found["auroc"] == 1.0
    assert {"pixel_threshold", "pixel_segf1", "bg_fpr"} <= set(found["pixel_metrics"])
    assert "pixel_metrics" not in evaluate_split(Own(), split, compute_pixel_scores=False)
    given = evaluate_split(Own(), split, split.test_masks.astype(np.float32))
    assert given["pixel_metrics"]["pixel_auroc"] == 1.0


# ---- datasets


@cell
def every_layout(folder: Path) -> None:
    from pyimgano.utils import datasets

    mvtec(folder / "mvtec")
    box = folder / "loco/pushpins"
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        save(box / name / "good/0.png", picture(seed))
    save(box / "test/logical_anomalies/000/bad_0.png", picture(3, spot=True))
    save(box / "ground_truth/logical_anomalies/000/bad_0.png", mask())
    can = folder / "ad2/can"
    save(can / "train/good/0.png", picture(0))
    save(can / "test_public/good/0.png", picture(1))
    save(can / "test_public/bad/1.png", picture(2, spot=True))
    save(can / "test_public/ground_truth/bad/1_mask.png", mask())
    candle = folder / "visa/visa_pytorch/candle"
    save(candle / "train/good/0.JPG", picture(0))
    save(candle / "test/good/0.JPG", picture(1))
    save(candle / "test/bad/1.JPG", picture(2, spot=True))
    save(candle / "ground_truth/bad/1.png", mask())
    for name, seed in (("train/ok/0", 0), ("test/ok/0", 1), ("test/ko/1", 2)):
        save(folder / f"btad/01/{name}.bmp", picture(seed, spot=seed == 2))
    save(folder / "btad/01/ground_truth/ko/1.png", mask())
    for name, seed in (("train/normal", 0), ("test/normal", 1), ("test/anomaly", 2)):
        save(folder / "custom" / name / "0.png", picture(seed, spot=seed == 2))
    save(folder / "custom/ground_truth/anomaly/0_mask.png", mask())
    opened = {
        "mvtec": datasets.MVTecDataset(folder / "mvtec", "bottle", resize=(16, 16)),
        "mvtec_loco": datasets.MVTecLOCODataset(
            folder / "loco", "pushpins", resize=(16, 16), include_validation_in_train=True
        ),
        "mvtec_ad2": datasets.MVTecAD2Dataset(folder / "ad2", "can", split="test_public"),
        "visa": datasets.VisADataset(folder / "visa", "candle", load_masks=True),
        "btad": datasets.BTADDataset(str(folder / "btad"), "01", (16, 16)),
        "custom": datasets.CustomDataset(folder / "custom", load_masks=False),
    }
    for name, dataset in opened.items():
        paths, labels, masks = dataset.get_test_paths()
        assert set(labels.tolist()) == {0, 1} and len(paths) == len(labels)
        assert (masks is None) == (name == "custom")
        assert len(dataset.get_train_data()) == len(dataset.get_train_paths()) > 0
        assert len(dataset.get_test_data()[0]) == len(paths)
        info = dataset.get_info()
        assert isinstance(info, datasets.DatasetInfo)
        assert info.category in dataset.list_categories() and info.name == name
        assert datasets.load_dataset(name, dataset.root, info.category).get_test_paths()[0] == paths
    assert len(opened["mvtec_loco"].get_train_paths()) == 2


@cell
def splits(folder: Path) -> None:
    from pyimgano.utils.splits import split_train_calibration

    paths = [f"{i}.png" for i in range(10)]
    train, calibration = split_train_calibration(paths, calibration_fraction=0.2, seed=3)
    assert not set(train) & set(calibration) and len(calibration) == 2
    assert (train, calibration) == split_train_calibration(paths, 0.2, 3)


# ---- metrics


@cell
def metrics(folder: Path) -> None:
    from pyimgano import evaluation as e

    y, s = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert e.compute_auroc(y, s) == e.compute_average_precision(y, s) == 1.0
    assert math.isnan(e.compute_auroc([0, 0], [1.0, 2.0]))
    for name in ("f1", "youden", "precision", "recall"):
        threshold, value = e.find_optimal_threshold(y, s, metric=name)  # type: ignore[arg-type]
        assert 0.2 < threshold <= 0.9 and value == 1.0
    try:
        e.find_optimal_threshold(y, s, metric="area")  # type: ignore[arg-type]
    except ValueError as error:
        assert "Unsupported metric" in str(error)
    else:
        raise AssertionError("an unknown metric was taken")
    assert e.compute_classification_metrics(y, np.zeros(4, int))["f1"] == 0.0
    masks = np.stack([mask(), mask() * 0]) > 0
    maps = masks + np.random.default_rng(0).random(masks.shape) / 2
    for metric in (e.compute_pixel_auroc, e.compute_pixel_average_precision, e.compute_aupro):
        assert metric(masks, maps) == 1.0
    assert e.compute_pro_score(masks, maps, integration_limit=1.0, num_thresholds=200) == 1.0
    assert e.compute_pixel_segf1(masks, maps, threshold=0.75) == 1.0
    assert e.compute_bg_fpr(masks, maps, threshold=0.75) == 0.0
    found = e.evaluate_detector(
        [0, 1],
        [0.1, 0.9],
        threshold=None,
        find_best_threshold=True,
        pixel_labels=masks,
        pixel_scores=maps,
        pixel_threshold=0.75,
        pro_integration_limit=0.3,
        pro_num_thresholds=200,
    )
    assert found["auroc"] == found["metrics"]["f1"] == found["pixel_metrics"]["aupro"] == 1.0
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        e.print_evaluation_summary(found)
    assert "auroc" in out.getvalue()


# ---- inference


@cell
def inference(folder: Path) -> None:
    from pyimgano.inference import api
    from pyimgano.inputs.image_format import ImageFormat
    from pyimgano.postprocess.anomaly_map import AnomalyMapPostprocess

    own = Own()
    own.fit(np.stack([picture(i) for i in range(4)]))
    images = [picture(9), picture(9, spot=True)]
    threshold = api.calibrate_threshold(own, [picture(i) for i in range(4, 8)], quantile=0.9)
    found = api.infer(own, images, include_maps=True, postprocess=AnomalyMapPostprocess())
    assert isinstance(found[0], api.InferenceResult) and own.threshold_ == threshold  # type: ignore[attr-defined]
    assert [one.label for one in found] == [0, 1]
    assert found[1].anomaly_map is not None and found[1].anomaly_map.max() == 1.0
    for named, given in (
        (ImageFormat.RGB_U8_HWC, images),
        (ImageFormat.BGR_U8_HWC, [one[:, :, ::-1] for one in images]),
        ("rgb_f32_chw", [one.transpose(2, 0, 1).astype(np.float32) / 255 for one in images]),
    ):
        again = api.infer(own, given, input_format=named)
        assert [one.score for one in again] == [one.score for one in found]
    plain = [api.result_to_jsonable(found[0]), *api.results_to_jsonable(found)]
    assert json.loads(json.dumps(plain))[2]["label"] == 1


@cell
def maps_and_their_threshold(folder: Path) -> None:
    from pyimgano.calibration.pixel_threshold import calibrate_normal_pixel_quantile_threshold
    from pyimgano.postprocess.anomaly_map import AnomalyMapPostprocess

    process = AnomalyMapPostprocess(
        normalize=True,
        normalize_method="percentile",
        percentile_range=(1, 99),
        gaussian_sigma=1.0,
        morph_open_ksize=3,
        morph_close_ksize=3,
        component_threshold=0.5,
        min_component_area=4,
    )
    one = process(np.random.default_rng(0).random((16, 16)))
    assert one.shape == (16, 16) and 0 <= one.min() <= one.max() <= 1
    scores = np.arange(100.0).reshape(1, 10, 10)
    assert calibrate_normal_pixel_quantile_threshold(scores, scores >= 50, q=0.5) == 24.5
    assert calibrate_normal_pixel_quantile_threshold([scores[0]]) > 98


# ---- robustness, reports, models


@cell
def robustness(folder: Path) -> None:
    from pyimgano.robustness import corruptions
    from pyimgano.robustness.benchmark import run_robustness_benchmark

    for name in ("lighting", "jpeg", "blur", "glare", "geo_jitter"):
        apply = getattr(corruptions, f"apply_{name}")
        image, moved = apply(picture(0), mask(), 3, np.random.default_rng(1))
        again, _ = apply(picture(0), None, severity=3, rng=np.random.default_rng(1))
        assert (image == again).all() and moved.shape == (32, 32)
    found = run_robustness_benchmark(
        Own(),
        train_images=[picture(i) for i in range(5)],
        test_images=[picture(9), picture(9, spot=True)],
        test_labels=[0, 1],
        test_masks=np.stack([mask() * 0, mask()]),
        corruptions=["blur"],
        severities=[1],
        seed=0,
        input_mode="numpy",
        resize=(32, 32),
    )
    assert found["clean"]["auroc"] == found["corruptions"]["blur"]["severity_1"]["auroc"] == 1.0


@cell
def reports(folder: Path) -> None:
    from pyimgano.reporting.report import save_jsonl_records, save_run_report

    save_run_report(folder / "new/report.json", {1: np.float32(0.5), "a": np.eye(2), "p": folder})
    found = json.loads((folder / "new/report.json").read_text())
    assert found == {"1": 0.5, "a": [[1.0, 0.0], [0.0, 1.0]], "p": str(folder)}
    save_jsonl_records(folder / "records.jsonl", [{"score": np.float64(i)} for i in range(2)])
    assert len((folder / "records.jsonl").read_text().splitlines()) == 2


@cell
def models(folder: Path) -> None:
    from pyimgano.models import create_model, list_models, model_info

    images = [picture(i) for i in range(5)]
    for name in ("vision_ecod", "vision_copod", "vision_hbos"):
        assert {"vision", "deep", "numpy"} <= set(model_info(name)["tags"])
        made = create_model(name, image_size=32, contamination=0.2, pretrained=False).fit(images)
        shares = made.predict_proba(images)
        assert shares.shape == (5, 2) and ((shares >= 0) & (shares <= 1)).all()
    assert "vision_ecod" in list_models(tags=["vision", "numpy"])
    for kind in (KeyError, ValueError):
        try:
            create_model("vision_nope")
        except kind:
            continue
        raise AssertionError("an unknown model was made")


def main() -> None:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="notebook-") as place:
        os.chdir(place)
        try:
            for number, one in enumerate(cells):
                folder = Path(place).resolve() / f"{number:02d}"
                folder.mkdir()
                one(folder)
        finally:
            os.chdir(before)
    print(f"{len(cells)} cells ran on Python {platform.python_version()}")


if __name__ == "__main__":
    main()
