"""The commands by the module names, flags and behaviours that older scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyimgano.infer_cli
import pyimgano.robust_cli
from pyimgano.cli import main
from pyimgano.models import list_models, model_info
from pyimgano.models.built_in import BUILT_IN
from pyimgano.models.tiled import TiledDetector
from pyimgano.pipelines.schemas import json_schemas

from .. import stubs
from ..conftest import MakeDataset, copy_registry, picture, save
from ..pixel_detector import Darkness, fitted, plain

Run = Any
_RUNS_ON_TINY = ("vision_ecod", "vision_knn", "vision_patchcore")


@pytest.fixture(autouse=True)
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    stubs.register()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A custom dataset of three images of 16 x 16 pixels."""
    root = tmp_path / "parts"
    save(root / "train" / "normal" / "0.png", picture(0, 16))
    save(root / "test" / "normal" / "0.png", picture(1, 16))
    save(root / "test" / "anomaly" / "0.png", picture(2, 16, spot=True))
    return root


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command by its function; gives status, stdout and stderr."""

    def run(*words: object, by: Any = main) -> tuple[int, str, str]:
        status = by([str(one) for one in words])
        said = capsys.readouterr()
        assert isinstance(status, int)
        return status, said.out, said.err

    return run


class Foreign:
    """A detector of somebody else's: how dark the darkest pixel of a file is."""

    threshold_: float

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.trained: list[Any] = []

    def fit(self, X: Any) -> None:
        self.trained = list(X)
        self.threshold_ = 150.0

    def decision_function(self, X: Any) -> list[float]:
        return [255.0 - self._pixels(one).min() for one in X]

    def get_anomaly_map(self, item: Any) -> np.ndarray:
        return 255.0 - self._pixels(item).min(axis=2).astype(np.float32)

    def _pixels(self, one: Any) -> np.ndarray:
        from PIL import Image

        return one if isinstance(one, np.ndarray) else np.asarray(Image.open(one).convert("RGB"))


# ---- main


def test_flags_go_straight_to_the_benchmark(call: Run, tiny: Path, tmp_path: Path) -> None:
    words = ["--dataset", "custom", "--root", tiny, "--model", "darkness"]
    status, out, err = call(*words, "--output-dir", tmp_path / "a")
    assert status == 0 and json.loads(out)["run_dir"] == str(tmp_path / "a")
    again, second, _ = call("benchmark", *words, "--output-dir", tmp_path / "b")
    assert again == 0 and json.loads(second)["results"] == json.loads(out)["results"]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--dataset", "nonsense"], 2, "unknown dataset 'nonsense'"),
        (["--no-such-flag"], 2, "No such option"),
        (["--dataset", "custom", "--root", "/nowhere", "--no-save-run"], 1, "no such folder"),
        (["no-such-command"], 2, "unknown command 'no-such-command'"),
        (["infer", "--model-dir", "/nowhere", "--watch", "/"], 1, "/nowhere"),
        (["datasets", "check", "--dataset", "custom", "--root", "/nowhere"], 1, "no such folder"),
    ],
)
def test_statuses_are_returned(call: Run, words: list[str], status: int, said: str) -> None:
    got, out, err = call(*words)
    assert got == status and out == ""
    assert err.count("\n") == 1 and said in err and err.startswith("pyimgano: error: ")


def test_help_lists_and_version(call: Run) -> None:
    assert call("--help")[0] == 0
    assert "pyimgano" in call("--version")[1]
    status, out, _ = call("--list-models", "--json")
    assert status == 0 and json.loads(out) == list_models()
    assert "--pixel-postprocess" in call("benchmark", "--help")[1]
    assert "--output-dir" in call("--dataset", "x", "--help")[1]


def test_as_a_process(tiny: Path, tmp_path: Path) -> None:
    """The exit status and the words of the process arrive where none are given."""
    words = ["--dataset", "custom", "--root", str(tiny), "--no-save-run", "--model", "vision_nope"]
    done = subprocess.run(
        [sys.executable, "-m", "pyimgano", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "vision_nope" in done.stderr


def test_a_reader_that_went_away_ends_the_command_and_not_the_caller(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pyimgano.cli import main; r, w = os.pipe(); os.close(r); "
        "os.dup2(w, 1); status = main(['--list-models', '--json']); "
        "print('still here', status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "still here 1\n"


def test_nothing_heavy_is_imported_by_what_forwards() -> None:
    code = (
        "import sys, pyimgano.cli, pyimgano.infer_cli, pyimgano.robust_cli; "
        "heavy = {'numpy', 'torch', 'cv2', 'pydantic', 'scipy', 'sklearn', 'openvino', 'rich'}; "
        "print(sorted(heavy & set(sys.modules))); "
        "import pyimgano.pipelines.run_benchmark, pyimgano.pipelines.mvtec_visa; "
        "print(sorted({'torch', 'sklearn', 'openvino', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


# ---- the run


@pytest.mark.parametrize("model", _RUNS_ON_TINY)
def test_three_tiny_images(call: Run, tiny: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    words = ["--dataset", "custom", "--root", tiny, "--model", model, "--no-pretrained"]
    limits = ["--limit-train", 1, "--limit-test", 2, "--output-dir", out]
    status, printed, _ = call(*words, *limits)
    assert status == 0
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(printed) and report["category"] == "custom"
    assert json.loads((out / "config.json").read_text())["category"] == "custom"
    category = out / "categories" / "custom"
    assert json.loads((category / "report.json").read_text())["category"] == "custom"
    assert len((category / "per_image.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("model", sorted(set(BUILT_IN) - set(_RUNS_ON_TINY)))
def test_any_model_runs_on_three_tiny_images(call: Run, tiny: Path, model: str) -> None:
    """Those that train only take a step: how long they take is not what is asked here."""
    words = ["--dataset", "custom", "--root", tiny, "--limit-train", 1, "--limit-test", 2]
    known = model_info(model)["parameters"]
    keywords: dict[str, Any] = {name: 1 for name in ("steps", "teacher_steps") if name in known}
    if "engine" in known:
        keywords["engine"] = "torch"  # which compiles nothing
    small = ["--resize", 64, 64, "--no-save-run", "--no-pixel", "--model", model]
    if "pretrained" in known:
        small.append("--no-pretrained")
    status, out, err = call(*words, *small, "--model-kwargs", json.dumps(keywords))
    assert status == 0, err
    assert json.loads(out)["status"] == "complete"


def test_all_of_one_category(call: Run, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",), train=2, good=1, bad=1)
    words = ["--dataset", "mvtec", "--root", root, "--category", "all", "--model", "darkness"]
    status, out, _ = call(*words, "--output-dir", tmp_path / "out")
    report = json.loads(out)
    assert status == 0 and report["category"] == "all" and report["categories"] == ["nut"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["category"] == "all"


def test_a_custom_dataset_without_categories_is_resumed(
    call: Run, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--dataset", "custom", "--root", tiny, "--model", "darkness", "--output-dir", out]
    assert call(*words)[0] == 0
    (out / "report.json").write_text('{"status": "interrupted"}')
    status, printed, _ = call("--resume", out)
    assert status == 0 and json.loads(printed)["category"] == "custom"


# ---- flags of the benchmark


def test_pixel_flags(call: Run, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",), train=5, good=2, bad=2)
    words = ["--dataset", "mvtec", "--root", root, "--category", "nut", "--model", "darkness"]
    plain_run = call(*words, "--no-save-run", "--pixel-aupro-thresholds", 50)[1]
    metrics = json.loads(plain_run)["results"]["pixel_metrics"]
    assert set(metrics) == {"pixel_auroc", "pixel_average_precision", "aupro", "segf1"}
    own = json.loads(call(*words, "--no-save-run", "--pixel-segf1")[1])
    assert own["results"]["pixel_metrics"]["pixel_threshold"] == own["pixel_calibration"]["value"]
    strategy = ["--pixel-threshold-strategy", "normal_pixel_quantile"]
    strategy += ["--pixel-normal-quantile", 0.99, "--pixel-calibration-fraction", 0.4]
    strategy += ["--pixel-calibration-seed", 1, "--output-dir", tmp_path / "out"]
    status, out, err = call(*words, "--pixel-segf1", *strategy)
    report = json.loads(out)
    found = report["results"]["pixel_metrics"]
    assert status == 0 and found["pixel_segf1"] > 0.8 and 0 < found["bg_fpr"] < 0.1
    assert report["results"]["pixel_threshold"] == found["pixel_threshold"]
    assert report["counts"]["train_used"] == 3  # two of five are held out
    note = "pixel threshold: the 0.99 quantile of the pixels of 2 good training images held out"
    assert any(one.startswith(note) for one in report["notes"]) and note in err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pixel_normal_quantile"] == 0.99
    assert call("--resume", tmp_path / "out", "--pixel-normal-quantile", 0.5)[0] == 2
    assert call("--resume", tmp_path / "out", *strategy[2:4], "--pixel-segf1")[0] == 0


def test_the_metrics_of_several_categories(
    call: Run, make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(("bolt", "nut"), train=3, good=2, bad=2)
    words = ["--dataset", "mvtec", "--root", root, "--model", "darkness", "--no-save-run"]
    mean = json.loads(call(*words, "--pixel-segf1")[1])["mean_metrics"]
    assert "bg_fpr" in mean and "pixel_segf1" in mean and "pixel_threshold" not in mean


def test_post_processing(call: Run, make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",), train=3, good=2, bad=2)
    words = ["--dataset", "mvtec", "--root", root, "--category", "nut", "--model", "darkness"]
    plain_run = json.loads(call(*words, "--no-save-run")[1])
    more = ["--pixel-postprocess", "--pixel-post-norm", "percentile"]
    more += ["--pixel-post-percentiles", 5, 95, "--pixel-post-gaussian-sigma", 2]
    more += ["--pixel-post-open-ksize", 3, "--pixel-post-close-ksize", 3]
    more += ["--pixel-post-component-threshold", 0.5, "--pixel-post-min-component-area", 4]
    status, out, _ = call(*words, *more, "--output-dir", tmp_path / "out")
    done = json.loads(out)
    assert status == 0
    assert done["results"]["auroc"] == plain_run["results"]["auroc"]
    assert done["threshold"] == plain_run["threshold"]
    before, after = (one["results"]["pixel_metrics"] for one in (plain_run, done))
    assert before["pixel_auroc"] != after["pixel_auroc"]
    # the detector's own threshold is one for maps as they are
    assert after["segf1"] is None and "post-processed" in done["results"]["undefined"]["segf1"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pixel_postprocess"] == {
        "normalize": True,
        "normalize_method": "percentile",
        "percentile_range": [5.0, 95.0],
        "gaussian_sigma": 2.0,
        "morph_open_ksize": 3,
        "morph_close_ksize": 3,
        "component_threshold": 0.5,
        "min_component_area": 4,
    }
    (tmp_path / "out" / "report.json").unlink()
    assert call("--resume", tmp_path / "out")[0] == 0
    with_threshold = ["--pixel-threshold-strategy", "normal_pixel_quantile"]
    found = json.loads(call(*words, *more[:1], *with_threshold, "--no-save-run")[1])
    assert 0 < found["results"]["pixel_metrics"]["pixel_threshold"] <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pixel-post-norm", "minmax"], "--pixel-post-norm has no effect without"),
        (["--pixel-post-open-ksize", "3"], "--pixel-post-open-ksize has no effect without"),
        (["--pixel-normal-quantile", "1"], "pixel_normal_quantile"),
        (["--pixel-calibration-fraction", "0"], "pixel_calibration_fraction"),
        (["--pixel-threshold-strategy", "best"], "--pixel-threshold-strategy"),
        (["--pixel-postprocess", "--pixel-post-percentiles", "9", "3"], "percentile_range"),
    ],
)
def test_pixel_flags_that_are_wrong(call: Run, tiny: Path, more: list[str], said: str) -> None:
    words = ["--dataset", "custom", "--root", tiny, "--model", "darkness", "--no-save-run"]
    status, out, err = call(*words, *more)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_checkpoint_of_the_benchmark_is_weights(call: Run, tiny: Path, tmp_path: Path) -> None:
    words = ["--dataset", "custom", "--root", tiny, "--no-save-run"]
    missing = tmp_path / "missing.safetensors"
    status, _, err = call(*words, "--checkpoint-path", missing)
    assert status in (1, 2) and str(missing) in err  # it is where the weights are looked for
    status, _, err = call(*words, "--checkpoint-path", tmp_path)
    assert status == 2 and "is a folder, as a saved model is" in err
    twice = ["--model-kwargs", '{"weights": "x"}', "--checkpoint-path", missing]
    status, _, err = call(*words, *twice)
    assert status == 2 and "weights stand in --model-kwargs too" in err


# ---- infer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A good image and a bad one to score, and two good ones to learn from."""
    for name, value in (("new/a", 200), ("new/b", 40), ("good/0", 200), ("good/1", 190)):
        save(tmp_path / f"{name}.png", plain(value, 16, 16))
    return tmp_path


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_infer_by_its_module(call: Run, images: Path) -> None:
    words = ["--model", "darkness", "--train-dir", images / "good", "--input", images / "new"]
    more = ["--include-maps", "--save-maps", images / "maps", "--save-jsonl", images / "r.jsonl"]
    status, out, _ = call(*words, *more, by=pyimgano.infer_cli.main)
    found = records(out)
    assert status == 0 and [one["label"] for one in found] == [0, 1]
    assert [one["label"] for one in found] == [one["pred"] for one in found]
    assert found == records((images / "r.jsonl").read_text())
    for one, value in zip(found, (200, 40)):
        about = one["anomaly_map"]
        assert set(about) == {"path", "shape", "dtype"}
        kept = np.load(about["path"])
        assert list(kept.shape) == about["shape"] == [16, 16] and str(kept.dtype) == about["dtype"]
        assert (kept == 255 - value).all()
    import jsonschema

    schema = json.loads(json_schemas()["inference.schema.json"])
    for one in found:
        jsonschema.validate(one, schema)


def test_maps_of_the_command_are_tiff(call: Run, images: Path) -> None:
    words = ["--model", "darkness", "--train-dir", images / "good", "--input", images / "new"]
    (first, _) = records(call("infer", *words, "--save-maps", images / "maps")[1])
    assert first["anomaly_map"]["path"].endswith(".tiff")
    assert first["anomaly_map"]["dtype"] == "float16"
    (bare, _) = records(call("infer", *words)[1])
    assert "anomaly_map" not in bare and bare["label"] == 0


def test_a_detector_that_a_script_puts_in_place(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Foreign] = []

    def create(name: str, **given: Any) -> Foreign:
        made.append(Foreign(name=name, **given))
        return made[-1]

    monkeypatch.setattr(pyimgano.infer_cli, "create_model", create)
    words = ["--model", "anything", "--input", images / "new", "--include-maps"]
    fit = ["--train-dir", images / "good", "--model-kwargs", '{"depth": 3}']
    checkpoint = ["--checkpoint-path", images / "net.pt"]
    status, out, _ = call(*words, *fit, *checkpoint, by=pyimgano.infer_cli.main)
    found = records(out)
    assert status == 0 and [one["label"] for one in found] == [0, 1]
    assert [one["score"] for one in found] == [55.0, 215.0] and found[0]["threshold"] == 150.0
    assert found[0]["calibration"] == "own-threshold" and len(made[0].trained) == 2
    assert made[0].given["depth"] == 3 and made[0].given["name"] == "anything"
    assert made[0].given["checkpoint_path"] == str(images / "net.pt")
    # one that is taken as it is, without a threshold: no image is called good, nor bad
    status, out, err = call(*words, by=pyimgano.infer_cli.main)
    found = records(out)
    assert status == 0 and [one["score"] for one in found] == [55.0, 215.0]
    assert [one["label"] for one in found] == [None, None] and found[0]["threshold"] is None
    assert "has no threshold" in err
    # the threshold that the user asks for beats its own
    more = ["--train-dir", images / "good", "--calibration-quantile", 0.5]
    found = records(call(*words, *more, by=pyimgano.infer_cli.main)[1])
    assert found[0]["calibration"] == "in-sample" and found[0]["threshold"] < 70
    # and an image that cannot be read has no score, whatever the detector makes of it
    (images / "new" / "c.png").write_bytes(b"broken")
    status, out, _ = call(*words, *fit, by=pyimgano.infer_cli.main)
    assert status == 1 and records(out)[2]["score"] is None and records(out)[2]["label"] is None


def test_a_detector_of_ours_by_a_script(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = fitted(resize=(16, 16))
    monkeypatch.setattr(pyimgano.infer_cli, "create_model", lambda name, **given: ready)
    status, out, _ = call("--model", "x", "--input", images / "new", by=pyimgano.infer_cli.main)
    assert status == 0 and [one["label"] for one in records(out)] == [0, 1]
    monkeypatch.setattr(pyimgano.infer_cli, "create_model", lambda name, **given: Darkness())
    status, _, err = call("--model", "x", "--input", images / "new", by=pyimgano.infer_cli.main)
    assert status != 0 and "is not fitted yet" in err


def test_without_a_script_a_model_needs_training_images(call: Run, images: Path) -> None:
    words = ["--model", "darkness", "--input", images / "new"]
    status, _, err = call(*words, by=pyimgano.infer_cli.main)
    assert status == 2 and "exactly one of --from-run, --model-dir and --train-dir" in err


def test_a_checkpoint_of_infer_is_a_saved_model_or_weights(call: Run, images: Path) -> None:
    saved = images / "saved"
    words = ["--model", "vision_knn", "--train-dir", images / "good", "--save-model", saved]
    words += ["--resize", 32, 32, "--model-kwargs", '{"pretrained": false, "engine": "torch"}']
    first = call("infer", *words, "--input", images / "new")[1]
    status, out, err = call("infer", "--checkpoint-path", saved, "--input", images / "new")
    assert status == 0, err
    assert [one["score"] for one in records(out)] == [one["score"] for one in records(first)]
    given = ["--checkpoint-path", saved, "--model-dir", saved, "--input", images / "new"]
    assert call("infer", *given)[0] == 2
    status, _, err = call("infer", "--checkpoint-path", images / "x.pt", "--input", "y")
    assert status == 2 and "a file is weights of the backbone" in err
    fit = ["--train-dir", images / "good", "--checkpoint-path", images / "x.pt"]
    status, _, err = call("infer", *fit, "--input", images / "new")
    assert status != 0 and "x.pt" in err


def test_maps_are_scaled_by_themselves(call: Run, images: Path) -> None:
    save(images / "new" / "spot.png", picture(0, 16, spot=True))
    words = ["--model", "darkness", "--train-dir", images / "good", "--input", images / "new"]
    maps = ["--save-maps", images / "maps", "--postprocess"]
    scaled = records(call(*words, *maps, by=pyimgano.infer_cli.main)[1])
    plain_run = records(call(*words, "--include-maps", by=pyimgano.infer_cli.main)[1])
    assert [one["score"] for one in scaled] == [one["score"] for one in plain_run]
    spot = np.load(scaled[2]["anomaly_map"]["path"])
    assert spot.min() == 0.0 and spot.max() == 1.0
    assert plain_run[2]["map"]["peak"] > 1
    status, _, err = call(*words, "--postprocess", by=pyimgano.infer_cli.main)
    assert status == 2 and "--postprocess has no effect without" in err


# ---- tiles


def test_rules_of_tiles(call: Run, images: Path) -> None:
    image = plain(200, 64, 64)
    image[:8, :8] = 40  # in one of four tiles
    path = save(images / "large.png", image)
    words = ["--model", "darkness", "--train-dir", images / "good", "--input", path]
    tiles = ["--tile-size", 32, "--tile-stride", 32, "--include-maps"]

    def scored(*more: object) -> dict[str, Any]:
        status, out, _ = call("infer", *words, *tiles, *more)
        assert status == 0
        return records(out)[0]

    assert scored()["score"] == 215.0 == scored("--tile-score-reduce", "max")["score"]
    assert scored("--tile-score-reduce", "mean")["score"] == pytest.approx((215 + 3 * 55) / 4)
    half = ["--tile-score-reduce", "topk_mean", "--tile-score-topk", 0.5]
    assert scored(*half)["score"] == pytest.approx((215 + 55) / 2)
    for rule in ("triangle", "hann", "gaussian", "mean", "max"):
        assert scored("--tile-map-reduce", rule)["map"]["peak"] == pytest.approx(215.0, rel=1e-5)
    for wrong in (["--tile-score-topk", 0.5], [*half[:3], 2], ["--tile-score-reduce", "min"]):
        assert call("infer", *words, *tiles, *wrong)[0] == 2
    assert call("infer", *words, "--tile-map-reduce", "max")[0] == 2  # without tiles


@pytest.mark.parametrize("rule", ["triangle", "mean", "hann", "gaussian", "max"])
def test_maps_of_tiles_that_overlap(rule: str) -> None:
    """A map of one value stays as it is under every rule, and max is the largest of two."""
    tiled = TiledDetector(fitted(), tile_size=32, tile_stride=20, map_reduce=rule)
    flat = tiled.get_anomaly_map(plain(100, 70, 90))
    assert flat.shape == (70, 90) and np.allclose(flat, 155.0, rtol=1e-5)


def test_rules_of_tiles_are_saved(tmp_path: Path, images: Path) -> None:
    from pyimgano import load_model
    from pyimgano.models import create_model

    paths = sorted(map(str, (images / "good").glob("*.png")))
    rules = {"score_reduce": "topk_mean", "score_topk": 0.5, "map_reduce": "max"}
    tiled = TiledDetector(create_model("darkness"), tile_size=16, **rules).fit(paths)
    tiled.save(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert {name: loaded.get_params()[name] for name in rules} == rules
    # those that were saved before there were rules have the ones that there were
    document = json.loads((tmp_path / "saved" / "detector.json").read_text())
    for name in rules:
        del document["tiles"][name]
    (tmp_path / "saved" / "detector.json").write_text(json.dumps(document))
    assert load_model(tmp_path / "saved").get_params()["score_reduce"] == "max"


# ---- robust


def test_robust_by_its_module(call: Run, tiny: Path, tmp_path: Path) -> None:
    words = ["--dataset", "custom", "--root", tiny, "--model", "darkness", "--severities", "1,3"]
    words += ["--corruptions", "blur,lighting", "--output-dir", tmp_path / "out"]
    status, out, _ = call(*words, "--input-mode", "numpy", by=pyimgano.robust_cli.main)
    report = json.loads(out)
    found = report["robustness"]
    assert status == 0 and found["clean"] == report["clean"]["metrics"]
    assert list(found["corruptions"]) == ["blur", "lighting"]
    for name, one in found["corruptions"].items():
        assert list(one) == ["severity_1", "severity_3"]
        measured = report["corruptions"][name]["severities"]
        assert list(one.values()) == [each["metrics"] for each in measured]


def test_robust_over_several_categories(call: Run, make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("bolt", "nut"), train=2, good=1, bad=1)
    words = ["--dataset", "mvtec", "--root", root, "--model", "darkness", "--no-save-run"]
    more = ["--corruptions", "blur", "--severities", 2]
    status, out, _ = call(*words, *more, by=pyimgano.robust_cli.main)
    report = json.loads(out)
    assert status == 0 and report["robustness"]["clean"] == report["mean_clean"]
    only = report["mean_corruptions"]["blur"]["severities"][0]["metrics"]
    assert report["robustness"]["corruptions"] == {"blur": {"severity_2": only}}


def test_robust_without_segf1(call: Run, make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("nut",), train=3, good=1, bad=1)
    words = ["--dataset", "mvtec", "--root", root, "--category", "nut", "--model", "darkness"]
    more = ["--corruptions", "blur", "--severities", 1, "--no-save-run"]
    with_it = json.loads(call(*words, *more, by=pyimgano.robust_cli.main)[1])["clean"]
    assert with_it["metrics"]["segf1"] is not None or "segf1" in with_it["undefined"]
    out = call(*words, *more, "--no-pixel-segf1", by=pyimgano.robust_cli.main)[1]
    clean = json.loads(out)["clean"]
    assert clean["metrics"]["segf1"] is None
    assert clean["undefined"]["segf1"] == "SegF1 was not asked for"
    assert clean["metrics"]["aupro"] == with_it["metrics"]["aupro"]


@pytest.mark.parametrize("mode", [None, "numpy", "paths"])
def test_robust_with_a_script_s_own_detector(
    call: Run, make_mvtec: MakeDataset, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    root = make_mvtec(("nut",), train=2, good=2, bad=2)
    seen: list[type] = []

    class Watching(Foreign):
        def decision_function(self, X: Any) -> list[float]:
            seen.extend(type(one) for one in X)
            return super().decision_function(X)

    monkeypatch.setattr(pyimgano.robust_cli, "create_model", lambda name, **given: Watching())
    words = ["--dataset", "mvtec", "--root", root, "--category", "nut", "--model", "my_own"]
    more = ["--corruptions", "blur", "--severities", 1, "--no-save-run", "--resize", 64, 64]
    more += [] if mode is None else ["--input-mode", mode]
    status, out, err = call(*words, *more, by=pyimgano.robust_cli.main)
    report = json.loads(out)
    assert status == 0, err
    assert report["model"] == "my_own" and report["threshold"] == 150.0
    assert report["robustness"]["clean"]["auroc"] == 1.0
    assert report["robustness"]["clean"]["pixel_auroc"] > 0.99
    assert report["detector"]["adapted"].endswith("Watching")
    assert set(seen) == ({str} if mode == "paths" else {np.ndarray} if mode else {str, np.ndarray})
