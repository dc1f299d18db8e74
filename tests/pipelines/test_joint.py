"""A joint run: reports as those of single runs, one detector, and what it recognises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano import load_model, run_benchmark
from pyimgano.cli import main
from pyimgano.errors import DataError, UsageError
from pyimgano.models import ManyProducts
from pyimgano.runs import find_model
from tests.conftest import picture, save

NAMES = ("lid", "nut", "pin")
KEYWORDS = {"backbone": "resnet18", "engine": "torch"}


def part(name: str, seed: int, *, spot: bool = False) -> np.ndarray:
    image = picture(seed, spot=spot)
    if name == "nut":
        image = 255 - image
    if name == "pin":
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("products")
    for number, name in enumerate(NAMES):
        for i in range(10):
            save(folder / name / "train/good" / f"{i}.png", part(name, 100 * number + i))
        for i in range(3):
            save(folder / name / "test/good" / f"{i}.png", part(name, 50 + 100 * number + i))
            bad = part(name, 60 + 100 * number + i, spot=True)
            save(folder / name / "test/spot" / f"{i}.png", bad)
    return folder


def run(root: Path, **more: Any) -> dict[str, Any]:
    return run_benchmark(
        dataset="mvtec",
        root=root,
        category=list(NAMES),
        model="vision_padim",
        pretrained=False,
        resize=(64, 64),
        model_kwargs=KEYWORDS,
        pixel=False,
        html=False,
        **more,
    )


@pytest.fixture(scope="module")
def report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("runs") / "joint"
    return run(root, joint=True, save_model=True, output_dir=out)


def test_categories_are_measured_as_without(root: Path, report: dict[str, Any]) -> None:
    plain = run(root, save_run=False)
    assert plain["joint"] is None
    for name in NAMES:
        one, two = report["per_category"][name], plain["per_category"][name]
        assert one["threshold"] == two["threshold"]
        assert one["results"] == two["results"]
        assert one["saved_model"] is None


def test_the_report_says_what_is_recognised(report: dict[str, Any]) -> None:
    joint = report["joint"]
    assert joint["products"] == list(NAMES)
    assert joint["accuracy"]["images"] == 18 and joint["unreadable"] == 0
    for one in joint["per_product"].values():
        assert one["recognised_by"] == 10
        assert one["good"]["right"]["images"] == one["defective"]["right"]["images"] == 3
        assert one["promised_unknown_rate"] == pytest.approx(1 / 11)
        for kind in ("good", "defective"):
            counts = [one[kind][what]["events"] for what in ("right", "wrong", "unknown")]
            assert sum(counts) == 3
    right = sum(
        one[kind]["right"]["events"]
        for one in joint["per_product"].values()
        for kind in ("good", "defective")
    )
    assert joint["accuracy"]["events"] == right
    run_dir = Path(report["run_dir"])
    assert json.loads((run_dir / "config.json").read_text())["joint"] is True
    assert json.loads((run_dir / "report.json").read_text())["joint"] == joint


def test_the_detector_is_kept_as_one(root: Path, report: dict[str, Any]) -> None:
    run_dir = Path(report["run_dir"])
    assert report["joint"]["saved_model"] == "model"
    assert not list(run_dir.glob("categories/*/model"))
    many = load_model(find_model(run_dir))
    assert isinstance(many, ManyProducts) and list(many.products_) == list(NAMES)
    lines = (run_dir / "categories/nut/per_image.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    scores = many.decision_function([one["input"] for one in records], product="nut")
    np.testing.assert_array_equal(scores, [one["score"] for one in records])
    with pytest.raises(UsageError, match="--product"):
        find_model(run_dir, "nut")


def test_what_cannot_be_joined(root: Path, report: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least two, got 1"):
        run_benchmark(dataset="mvtec", root=root, category="lid", joint=True, save_run=False)
    with pytest.raises(UsageError, match="trains a network of its own"):
        run_benchmark(dataset="mvtec", root=root, model="vision_stfpm", joint=True, save_run=False)
    path = Path(report["run_dir"]) / "report.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "status": "interrupted"}))
    try:
        with pytest.raises(DataError, match="a joint run cannot go on"):
            run_benchmark(resume=report["run_dir"])
    finally:
        path.write_text(whole)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_infer_names_and_recognises(
    root: Path, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = report["run_dir"]
    images = [str(root / name / "train/good/0.png") for name in NAMES]
    blocks = np.kron(
        np.random.default_rng(0).integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))
    ).astype(np.uint8)
    odd = str(save(tmp_path / "odd.png", blocks))
    assert main(["infer", "--from-run", run_dir, *images, odd, "--json"]) == 0
    *found, last = lines_of(capsys)
    assert [one["product"] for one in found] == list(NAMES)
    assert {one["product_known_by"] for one in found} == {"recognised"}
    assert last["product"] is None and last["product_known_by"] == "unknown"
    assert last["pred"] is None and last["score"] is None and "unknown product" in last["error"]

    assert main(["infer", "--from-run", run_dir, "--product", "nut", images[0], "--json"]) == 0
    (one,) = lines_of(capsys)
    assert (one["product"], one["product_known_by"]) == ("nut", "named")

    named = [str(save(tmp_path / name / "x.png", part(name, 7))) for name in ("pin", "bolt")]
    masks = tmp_path / "masks"
    flags = ["--product-from-folder", "--regions", "--save-masks", str(masks), "--json"]
    assert main(["infer", "--from-run", run_dir, *flags, *named]) == 0
    first, second = lines_of(capsys)
    assert first["product"] == "pin" and first["regions"] is not None
    assert second["product"] is None and "'bolt' is none of those known" in second["error"]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["infer", "--product", "bolt", "x.png"], "unknown product 'bolt'"),
        (["infer", "--threshold", "1", "x.png"], "name one with --product"),
        (["infer", "--tile-size", "64", "x.png"], "does not work by tiles"),
        (["threshold"], "name one with --product: lid, nut, pin"),
        (["export", "--check", "x.png", "--output", "out"], "one product at a time"),
    ],
)
def test_a_product_has_to_be_named(
    root: Path,
    report: dict[str, Any],
    flags: list[str],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.png", part("lid", 0))
    run_dir = report["run_dir"]
    where = [run_dir] if flags[0] == "threshold" else ["--from-run", run_dir]
    assert main([flags[0], *where, *flags[1:]]) == 2
    assert wanted in capsys.readouterr().err


def test_the_threshold_of_one_product_is_moved(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "moved")
    flags = ["--product", "nut", "--value", "7.5", "--save-model", out, "--json"]
    assert main(["threshold", report["run_dir"], *flags]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 7.5
    many = load_model(out)
    assert many.product("nut").threshold_ == 7.5
    assert many.product("lid").threshold_ == report["per_category"]["lid"]["threshold"]
