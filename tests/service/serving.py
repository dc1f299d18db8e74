"""Services of the quick detector `darkness`, in this process and in one of their own."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pyimgano.inference import infer
from pyimgano.models import create_model
from pyimgano.service import Settings, batching, create_app
from pyimgano.service.detectors import DetectorSource
from tests.pixel_detector import plain

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD = plain(201), plain(201)
BAD[10:20, 30:50] = 60
PREDICT = "/v1/models/nut/predict"
_PATIENCE = 60.0
# A process in which the quick detector is known, and the command's own words follow.
_SERVE = (
    "import sys; from tests.stubs import register; register(); "
    "from pyimgano.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
)


def png(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Return the image as the content of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def save_detector(folder: Path, least: int = 195, **keywords: Any) -> Path:
    """Save a detector that calls images with a pixel darker than `least` defective."""
    detector = create_model("darkness", **keywords).fit([plain(220), plain(least)])
    detector.save(folder, overwrite=folder.exists())
    return folder


@contextmanager
def served(*folders: Path, **settings: Any) -> Iterator[TestClient]:
    """A service in this process that is ready: `nut`, and `bolt` if there is a second folder."""
    names = ["nut", "bolt"]
    sources = [DetectorSource(name, folder) for name, folder in zip(names, folders)]
    app = create_app(sources, Settings(**settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def until(reached: Callable[[], bool]) -> None:
    """Wait for something that comes by itself."""
    end = time.monotonic() + _PATIENCE
    while not reached():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def metric(client: TestClient | httpx.Client, line: str) -> float:
    """Return the value of a metric, whose line begins so; 0 where it has none yet."""
    for one in client.get("/metrics").text.splitlines():
        if one.startswith(line + " "):
            return float(one.rpartition(" ")[2])
    return 0.0


class Gate:
    """Lets no image be scored until it is opened; `batches` are the sizes that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Semaphore(0)
        self.batches: list[int] = []
        monkeypatch.setattr(batching, "infer", self._infer)

    def _infer(self, detector: Any, images: list[Any], **keywords: Any) -> Any:
        self.batches.append(len(images))
        self.reached.release()
        assert self.opened.wait(_PATIENCE)
        return infer(detector, images, **keywords)


class Process:
    """`pyimgano serve` in a process of its own, on a free port.

    Attributes
    ----------
    address
        `http://127.0.0.1:PORT`.
    said
        Lines on stderr so far.
    """

    def __init__(self, *words: str | Path, **environment: str) -> None:
        self.said: list[str] = []
        self.address = ""
        self._environment = environment
        self._words = [str(word) for word in words]

    def __enter__(self) -> Process:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *self._words, "--port", "0"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
                **self._environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        until(lambda: any(line.startswith("ready: ") for line in self.said) or self.ended)
        found = re.search(r"listening on (http://\S+)", "\n".join(self.said))
        self.address = found[1] if found else ""
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended:
            self.process.kill()
        self.process.wait(_PATIENCE)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def end_by(self, number: int) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(_PATIENCE)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.said.append(line.rstrip("\n"))
