"""Nothing is sent, no process is started, and no file is made outside documented places.

The programs run where no variable says that this is a test: `CI`, for one, switches the telemetry
of OpenVINO off. Connections and processes are refused and recorded (`watched.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"

DEMO = """
from pathlib import Path
from pyimgano import cli
from pyimgano.datasets import demo

demo._TRAIN, demo._TEST_GOOD, demo._TEST_EACH_DEFECT = 6, 2, 1  # quick to draw

def call(command, *arguments):
    try:
        assert not command(list(arguments))
    except SystemExit as end:
        assert not end.code, end.code

small = ["--resize", "64", "64"]
call(cli.benchmark, "--dataset", "demo", "--category", "washer", "--limit-train", "6",
     "--limit-test", "6", *small, "--output-dir", "runs", "--save-model")
(model,) = map(str, Path("runs").rglob("categories/*/model"))
images = "part.png"
call(cli.infer, "--model-dir", model, "--input", images, "--save-maps", "maps")
call(cli.export, "--model-dir", model, "--output", "exported", "--check", images)
"""

ONNX = """
import numpy as np
import pyimgano
from pyimgano.pipelines.export import export_detector

images = list(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8))
detector = pyimgano.create_model("vision_patchcore", image_size=64, device="cpu")
export_detector(detector.fit(images), "onnx", format="onnx", check_images=images[:2])
"""

HEADS = """
import numpy as np
import pyimgano

rng = np.random.default_rng(0)
images = list(rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8))
for name in ("vision_knn", "vision_lof", "vision_ocsvm", "vision_iforest", "vision_pca",
             "vision_kde", "vision_gmm", "vision_ecod", "vision_copod", "vision_hbos"):
    detector = pyimgano.create_model(name, image_size=32, device="cpu", layers=["blocks.2"])
    detector.fit(images).save(f"saved/{name}")
    pyimgano.load_model(f"saved/{name}").predict(images[:1])
"""

LATE = """
import sys
import types

# as if the program had imported OpenVINO, with its telemetry, before pyimgano
telemetry = types.ModuleType("openvino_telemetry")
telemetry.sent = []
class Telemetry:
    def __init__(self, *given, **named): pass
    def send_event(self, *given, **named): telemetry.sent.append(given)
    start_session = end_session = send_error = send_stack_trace = force_shutdown = send_event
telemetry.Telemetry = Telemetry
backend = types.ModuleType("openvino_telemetry.backend")
backend.backend_ga4 = None
sys.modules.update({"openvino_telemetry": telemetry, "openvino_telemetry.backend": backend})
import openvino
before = len(telemetry.sent)
assert before > 0  # or else this test would find nothing

import numpy as np
import pyimgano
images = [np.full((32, 32, 3), 9 * i, np.uint8) for i in range(4)]
pyimgano.create_model("vision_knn", image_size=32, device="cpu", engine="openvino").fit(images)
assert sys.modules["openvino_telemetry"] is telemetry  # others who use it keep it
assert len(telemetry.sent) == before, telemetry.sent[before:]
"""

CAUGHT = """
import multiprocessing, os, pathlib, socket, subprocess, sys, urllib.request

def refused(function, *given):
    try:
        function(*given)
    except OSError:
        return
    raise SystemExit(f"{function} was not refused")

refused(urllib.request.urlopen, "http://127.0.0.1:9/")
refused(socket.create_connection, ("127.0.0.1", 9))
refused(socket.getaddrinfo, "localhost", 9)
refused(subprocess.run, [sys.executable, "-c", ""])
refused(os.fork)
for method in ("fork", "spawn"):
    refused(multiprocessing.get_context(method).Process(target=print).start)
pathlib.Path.home().joinpath("left").write_text("")
"""


class Watched:
    """Runs programs in one fresh home, and holds what they tried."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work, self.temporary = (folder / name for name in ("home", "work", "tmp"))
        for made in (self.home, self.work, self.temporary):
            made.mkdir()
        self.log = folder / "log"
        # nothing of this process's surroundings but where programs are
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.home),
            "USERPROFILE": str(self.home),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, program: Path | str, *arguments: str) -> None:
        if isinstance(program, str):
            text, program = program, self.log.with_name("program.py")
            program.write_text(text)
        done = subprocess.run(
            [sys.executable, str(HERE / "watched.py"), str(self.log), str(program), *arguments],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def tried(self) -> list[list[str]]:
        """The connections and processes."""
        return [one for one in self._recorded() if one[0] != "write"]

    def written_elsewhere(self) -> set[str]:
        """What was written outside the work folder and pyimgano's cache."""
        cache = Path(".cache/pyimgano") if sys.platform == "linux" else None
        if cache is None:
            pytest.skip("the place of the cache is another on this system")
        allowed = (self.work, self.home / cache)
        written = {Path(one[1]) for one in self._recorded() if one[0] == "write"}
        for folder in (self.home, self.temporary):  # what machine code has left, too
            written |= {path for path in folder.rglob("*") if path.is_file()}
        written -= {self.home / ".cache", Path(os.devnull)}
        return {
            str(path)
            for path in written
            if not any(path == one or one in path.parents for one in allowed)
        }

    def _recorded(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_what_is_tried_is_recorded(watched: Watched) -> None:
    watched.run(CAUGHT)
    kinds = [kind for kind, *_ in watched.tried()]
    assert kinds.count("connect") >= 3 and kinds.count("process") >= 4
    assert watched.written_elsewhere() == {str(watched.home / "left")}


def test_a_run_scores_and_an_export_leave_nothing_behind(watched: Watched) -> None:
    from .conftest import picture, save

    save(watched.work / "part.png", picture(1))
    watched.run(DEMO)
    watched.run(watched.work / "exported" / "example.py", "part.png")
    assert (watched.work / "anomaly_map.npy").exists()
    assert watched.tried() == []
    assert watched.written_elsewhere() == set()


@pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxruntime")),
    reason="onnx and onnxruntime are not installed",
)
def test_onnxruntime_keeps_no_identifier(watched: Watched) -> None:
    from .conftest import picture, save

    save(watched.work / "part.png", picture(1, 32))
    watched.run(ONNX)
    watched.run(watched.work / "onnx" / "example.py", "part.png")
    assert watched.tried() == []
    assert watched.written_elsewhere() == set()


def test_the_heads_over_other_libraries_leave_nothing_behind(watched: Watched) -> None:
    watched.run(HEADS)
    assert watched.tried() == []
    assert watched.written_elsewhere() == set()


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_that_was_imported_before_sends_nothing_more(watched: Watched) -> None:
    watched.run(LATE)
    assert watched.tried() == []


def test_every_import_of_what_reports_goes_one_way() -> None:
    """So that none is forgotten; the examples switch the telemetry off in front of theirs."""
    off = {
        "openvino": 'sys.modules["openvino_telemetry"] = None',
        "timm": "not in the examples",
        "mlflow": "not in the examples",
        "wandb": "not in the examples",
        "onnxruntime": 'os.environ["ORT_DISABLE_TELEMETRY"] = "1"',
    }
    root = SOURCE.parent
    for folder in (SOURCE, root / "benchmarks"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            lines = [line.strip() for line in text.splitlines()]
            for module, switch in off.items():
                imports = (f"import {module}", f"from {module}")
                found = [i for i, line in enumerate(lines) if line.startswith(imports)]
                if "examples" in path.parts:
                    assert all(switch in "\n".join(lines[:i]) for i in found), path
                else:
                    assert not found, path
