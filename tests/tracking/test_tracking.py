"""A run is logged to an experiment tracker, and read back from it with the tracker's own library.

Each library is an extra, and a test that needs one is skipped where it is not installed.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pyimgano import run_benchmark, run_robust_benchmark
from pyimgano.cli import main
from pyimgano.errors import DataError, UsageError
from pyimgano.tracking import TRACKERS, read_run_record, require_tracker, track_run
from pyimgano.tracking import trackers as trackers_module
from tests.conftest import MakeDataset


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")


def run(root: Path, to: Path, **keywords: Any) -> dict[str, Any]:
    given = {"dataset": "mvtec", "category": "nut", "resize": (64, 64), **keywords}
    return run_benchmark(root=root, output_dir=to, **given)


def pretend(monkeypatch: pytest.MonkeyPatch, tracker: Any) -> None:
    """Put a tracker in the place of mlflow's, as if its library were there."""
    monkeypatch.setitem(trackers_module.TRACKERS, "mlflow", tracker)
    for module in ("pyimgano.pipelines.open_run", "pyimgano.tracking"):
        monkeypatch.setattr(f"{module}.require_tracker", lambda name: None)


@pytest.fixture
def finished(make_mvtec: MakeDataset, tmp_path: Path) -> Path:
    """A run over one category, on disk."""
    return Path(run(make_mvtec(("nut",)), tmp_path / "part 1")["run_dir"])


def test_names_are_those_of_the_documents(finished: Path) -> None:
    record = read_run_record(finished)
    report = json.loads((finished / "report.json").read_text())
    config = json.loads((finished / "config.json").read_text())
    assert record.name == "part 1" and record.status == "complete"
    assert record.parameters["model"] == config["model"] == "vision_patchcore"
    assert record.parameters["resize"] == [64, 64]
    neighbours = config["detector_parameters"]["n_neighbors"]
    assert record.parameters["detector_parameters/n_neighbors"] == neighbours
    results = report["results"]
    assert record.metrics["mean_metrics/auroc"] == results["auroc"]
    assert record.metrics["per_category/nut/results/auroc"] == results["auroc"]
    assert record.metrics["per_category/nut/threshold"] == report["threshold"]
    assert record.metrics["per_category/nut/results/metrics/tp"] == results["metrics"]["tp"]
    assert not any("parameters" in name or "schema" in name for name in record.metrics)
    assert [path.name for path in record.files] == [
        *("report.json", "report.html", "config.json", "environment.json")
    ]


def test_one_category_has_the_names_of_several(
    make_mvtec: MakeDataset, tmp_path: Path, finished: Path
) -> None:
    both = run(make_mvtec(("nut", "bolt")), tmp_path / "both", category="all")
    one, several = read_run_record(finished), read_run_record(both["run_dir"])
    assert set(one.metrics) < set(several.metrics)
    assert "per_category/bolt/results/auroc" in several.metrics
    assert one.parameters.keys() == several.parameters.keys()


def test_a_robustness_run_has_its_numbers_too(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run_robust_benchmark(
        dataset="mvtec",
        root=make_mvtec(("nut",)),
        category="nut",
        resize=(64, 64),
        corruptions=["blur"],
        severities=[1],
        output_dir=tmp_path / "robust",
    )
    metrics = read_run_record(report["run_dir"]).metrics
    named = [name for name in metrics if name.startswith("per_category/nut/corruptions/")]
    assert named and any(name.endswith("auroc") for name in named)


def test_no_two_names_become_one(finished: Path) -> None:
    path = finished / "config.json"
    config = json.loads(path.read_text())
    config["model_kwargs"] = {"a+": 1, "a#": 2, "ä b": 3, "x" * 300 + "1": 4, "x" * 300 + "2": 5}
    path.write_text(json.dumps(config))
    known = read_run_record(finished).parameters
    found = {name: value for name, value in known.items() if name.startswith("model_kwargs/")}
    assert sorted(found.values()) == [1, 2, 3, 4, 5]
    assert found["model_kwargs/a_"] == 1 and found["model_kwargs/a__2"] == 2
    assert found["model_kwargs/ä b"] == 3 and max(map(len, found)) <= 250


def test_what_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        read_run_record(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"config\.json: is no document of a run"):
        read_run_record(tmp_path)


def test_a_missing_library_is_said_before_the_run(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_mvtec(("nut",))
    monkeypatch.setattr("pyimgano.tracking.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UsageError) as caught:
            run(root, tmp_path / name, track=name)
        assert str(caught.value) == (
            f"track: {name} is not installed; pip install 'pyimgano[{name}]' installs it"
        )
        assert not (tmp_path / name).exists()
    with pytest.raises(UsageError, match="unknown tracker"):
        require_tracker("mlfow")


def test_options_that_do_not_go_together(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut",))
    with pytest.raises(UsageError, match="save_run is False"):
        run_benchmark(dataset="mvtec", root=root, track="wandb", save_run=False)
    with pytest.raises(UsageError, match="track names none"):
        run(root, tmp_path / "run", track_dir=tmp_path)
    with pytest.raises(UsageError, match="track"):
        run(root, tmp_path / "run", track="comet")


def test_a_run_is_logged_once_when_its_page_is_there(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = []

    def tracker(record: Any, folder: Path) -> None:
        logged.append((record, folder))
        assert any(path.name == "report.html" for path in record.files)

    pretend(monkeypatch, tracker)
    root = make_mvtec(("nut", "bolt"))
    run(root, tmp_path / "run", category="all", track="mlflow")
    ((record, folder),) = logged
    assert record.status == "complete" and folder == tmp_path / "run" / "mlflow"
    assert record.parameters["track"] == "mlflow"
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", "mvtec", "--root", str(root), "--category", "nut", "--resize", "64"]
    options += ["64", "--track", "mlflow", "--track-dir", "all", "--output-dir", "other"]
    assert main(["benchmark", *options]) == 0
    assert len(logged) == 2 and logged[1][1] == tmp_path / "all"
    run_benchmark(resume=tmp_path / "run")  # is complete, so nothing is done
    assert len(logged) == 2


def test_a_failed_run_is_logged_as_failed(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = []
    pretend(monkeypatch, lambda record, folder: statuses.append(record.status))
    root = make_mvtec(("nut", "bolt"))
    for path in (root / "bolt" / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    report = run(root, tmp_path / "run", category="all", track="mlflow")
    assert report["failed_categories"] == ["bolt"] and statuses == ["failed"]


def test_a_tracker_that_fails_costs_a_warning(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tracker(record: Any, folder: Path) -> None:
        raise RuntimeError("the store is locked")

    pretend(monkeypatch, tracker)
    with pytest.warns(UserWarning, match=r"could not be logged to mlflow .*the store is locked"):
        report = run(make_mvtec(("nut",)), tmp_path / "run", track="mlflow")
    assert report["status"] == "complete" and (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "complete"


def test_the_extras_are_called_like_the_trackers() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name in TRACKERS:
        assert re.search(rf'^{name} = \["{name}>=', text, re.MULTILINE), name


@needs("mlflow")
def test_mlflow_reads_it_back(finished: Path, tmp_path: Path) -> None:
    record = read_run_record(finished)
    folder = tmp_path / "store"
    track_run(finished, "mlflow", folder)
    track_run(finished, "mlflow", folder)  # a second run, in the same experiment
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pyimgano")
    first, _ = client.search_runs([experiment.experiment_id])
    assert first.info.run_name == "part 1" and first.info.status == "FINISHED"
    assert first.data.metrics == pytest.approx(record.metrics)
    assert first.data.params.keys() == record.parameters.keys()
    assert first.data.params["resize"] == "[64, 64]" and first.data.params["seed"] == "0"
    kept = {one.path for one in client.list_artifacts(first.info.run_id)}
    assert kept == {path.name for path in record.files}
    assert (folder / "artifacts" / first.info.run_id / "artifacts" / "report.html").is_file()


@pytest.mark.real_pages
@needs("tensorboard")
def test_tensorboard_reads_it_back(finished: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    record = read_run_record(finished)
    folder = track_run(finished, "tensorboard", tmp_path / "logs")
    track_run(finished, "tensorboard", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["part 1", "part 1_2"]
    events = EventAccumulator(str(folder / "part 1"), {"images": 0, "tensors": 0})
    events.Reload()
    scalars = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert scalars == pytest.approx(record.metrics, rel=1e-6)
    shown = events.Tags()["images"]
    assert len(shown) == len(list(record.pictures())) > 2
    assert any(name.endswith("spot/000.png: the image") for name in shown)
    assert events.Images(shown[0])[0].encoded_image_string.startswith(b"\x89PNG")
    session = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    parameters = HParamsPluginData.FromString(session).session_start_info.hparams
    assert parameters.keys() == record.parameters.keys()
    assert parameters["seed"].number_value == 0 and parameters["resize"].string_value == "[64, 64]"
    (text,) = events.Tensors("report.json/text_summary")
    assert b'"benchmark-category"' in text.tensor_proto.string_val[0]
    assert (folder / "part 1" / "report.html").read_bytes() == (
        finished / "report.html"
    ).read_bytes()


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: a log of LevelDB behind a header of 7 bytes.

    It has blocks of 32 KiB. A record may go on in the next block, and where no header of a part
    (checksum, length, kind) fits into what is left of a block, that is zeros.
    """
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at < len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@needs("wandb")
def test_wandb_reads_it_back(finished: Path, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    record = read_run_record(finished)
    folder = track_run(finished, "wandb", tmp_path / "offline")
    ((written),) = folder.glob("wandb/offline-run-*/run-*.wandb")
    summary, config, history = {}, {}, {}
    for data in wandb_records(written.read_bytes()):
        one = wandb_internal_pb2.Record.FromString(data)
        for item in one.run.config.update:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in one.history.item:
            history[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in one.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert {name: history[name] for name in record.metrics} == pytest.approx(record.metrics)
    assert {name: config[name] for name in record.parameters} == record.parameters
    assert summary["status"] == "complete"
    assert history["report/_type"] == "html-file"
    files = written.parent / "files"
    assert (files / history["report/path"]).read_bytes() == (finished / "report.html").read_bytes()
    for name in ("report.json", "config.json"):
        assert (files / name).read_bytes() == (finished / name).read_bytes()
        assert not (files / name).is_symlink()


@pytest.mark.parametrize("name", [pytest.param(one, marks=needs(one)) for one in TRACKERS])
def test_nothing_is_sent_and_nothing_written_elsewhere(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """Proxies and servers of the environment are a port that is watched: nobody may call there."""
    import socket

    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        named = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        more = {"MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_MODE": "online"}
        code = f"from pyimgano.tracking import track_run; track_run({str(finished)!r}, {name!r})"
        environment = {k: v for k, v in os.environ.items() if k != "CI" and "XDG" not in k}
        environment |= dict.fromkeys(named, address) | more
        environment |= {
            "HOME": str(home),
            "WANDB_API_KEY": "0" * 40,
            "no_proxy": "",
            "NO_PROXY": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.stdout == "" and done.stderr == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert any((finished / name).iterdir())
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "part 1", "dataset"}
