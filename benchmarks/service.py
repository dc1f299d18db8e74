"""The service over loopback, beside the bare detector; too much load; memory over many requests.

    python benchmarks/service.py [--resize 256] [--requests 200] [--hour 36000]

Fits a detector on images that it makes and serves it by `pyimgano serve` in a process of its own.
Then it prints, for 1, 4 and 16 clients, the median and the 99th percentile of the time of an
image and the images a second, of threads that call `infer` and of clients of the service. Then
it sends twice as many requests a second as the service carried, and counts the answers by status;
and at last `--hour` requests one after another with a small detector, and the memory of the
service after each tenth of them. 36,000 are an hour of ten images a second.
"""

from __future__ import annotations

import argparse
import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from pyimgano import create_model, load_model
from pyimgano.inference import infer
from pyimgano.threads import thread_count

_PREDICT = "/v1/models/part/predict"
_QUEUE = 16
#: Of the load that is too much.
_CLIENTS = 64
_SECONDS = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resize", type=int, default=256, help="side of the images, in pixels")
    parser.add_argument("--requests", type=int, default=200, help="of each measurement")
    parser.add_argument("--hour", type=int, default=36000, help="requests while memory is watched")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _images(folder / "images", given.resize)
        bodies = [path.read_bytes() for path in paths]
        print(f"{thread_count()} threads, images of {given.resize} x {given.resize} pixels")
        model = _fit(folder / "model", paths, given.resize)
        with _served(model) as port:
            carried = _beside_the_bare_detector(model, paths, bodies, port, given.requests)
            _too_much(bodies, port, 2.0 * carried)
        with _served(_fit(folder / "small", paths, 32)) as port:
            _an_hour(bodies, port, given.hour)


def _images(folder: Path, side: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(24)]
    for path in paths:
        coarse = rng.normal(128, 30, (side // 8, side // 8, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return paths


def _fit(folder: Path, paths: list[Path], side: int) -> Path:
    create_model("vision_patchcore", resize=(side, side)).fit(paths[:16]).save(folder)
    return folder


@contextmanager
def _served(model: Path) -> Iterator[int]:
    """Serve a detector, and give the port."""
    words = ["serve", "--model", f"part={model}", "--port", "0", "--queue-size", str(_QUEUE)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pyimgano", *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    port = None
    for line in process.stderr:
        found = re.match(r"ready: \S+:(\d+)", line)
        if found:
            port = int(found[1])
            break
    if port is None:
        raise SystemExit("the service did not start")
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    try:
        yield port
    finally:
        process.terminate()
        process.wait()
        drain.join()


class _Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, body: bytes) -> int:
        """Return the status of the answer."""
        self._connection.request("POST", _PREDICT, body)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def close(self) -> None:
        self._connection.close()


def _timed(clients: int, count: int, make: Callable[[], Callable[[int], None]]) -> list[float]:
    """Let each client make its share of `count` calls; the seconds of each, and of all at last."""

    def work(first: int) -> list[float]:
        call, found = make(), []
        for number in range(first, count, clients):
            began = time.perf_counter()
            call(number)
            found.append(time.perf_counter() - began)
        return found

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [one for some in pool.map(work, range(clients)) for one in some]
    return [*times, time.perf_counter() - began]


def _beside_the_bare_detector(
    model: Path, paths: list[Path], bodies: list[bytes], port: int, count: int
) -> float:
    """Print the times of both, and return the images a second that the service carried."""
    detector = load_model(model)

    def bare() -> Callable[[int], None]:
        def call(number: int) -> None:
            (result,) = infer(detector, [paths[number % len(paths)]], regions=True)
            assert result.label is not None

        return call

    def over_http() -> Callable[[int], None]:
        client = _Client(port)

        def call(number: int) -> None:
            assert client.ask(bodies[number % len(bodies)]) == 200

        return call

    carried = 0.0
    for clients in (1, 4, _QUEUE):
        medians = {}
        for name, make in (("bare detector", bare), ("service", over_http)):
            _timed(clients, 2 * clients, make)
            *times, whole = _timed(clients, count, make)
            p50, p99 = np.percentile(times, [50, 99])
            medians[name] = p50
            print(
                f"{clients:2} clients, {name:13}: p50 {1e3 * p50:7.1f} ms, p99 {1e3 * p99:7.1f} "
                f"ms, {count / whole:6.1f} images/s"
            )
            if name == "service":
                carried = max(carried, count / whole)
        over = 1e3 * (medians["service"] - medians["bare detector"])
        print(f"{clients:2} clients, overhead at p50: {over:+.1f} ms")
    return carried


def _too_much(bodies: list[bytes], port: int, rate: float) -> None:
    """Send `rate` requests a second, whatever becomes of them, and count the answers."""
    statuses: Counter[int | str] = Counter()
    lock, due = threading.Lock(), [time.perf_counter()]
    end = due[0] + _SECONDS

    def work(_: int) -> None:
        client = _Client(port)
        while True:
            with lock:
                due[0] = at = due[0] + 1.0 / rate
            if at > end:
                return client.close()
            time.sleep(max(0.0, at - time.perf_counter()))
            try:
                status: int | str = client.ask(bodies[0])
            except (OSError, http.client.HTTPException) as error:
                status, client = type(error).__name__, _Client(port)
            with lock:
                statuses[status] += 1

    began = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(work, range(_CLIENTS)))
    sent = sum(statuses.values()) / (time.perf_counter() - began)
    print(f"{rate:.0f} requests/s wanted, {sent:.0f} sent: answers by status {dict(statuses)}")


def _an_hour(bodies: list[bytes], port: int, count: int) -> None:
    """Print the memory of the service as requests come."""
    client = _Client(port)
    began = time.perf_counter()
    for number in range(count + 1):
        if number % max(1, count // 10) == 0:
            print(f"{number:6} requests: {_resident(port):.0f} MiB")
        assert client.ask(bodies[number % len(bodies)]) == 200
    client.close()
    print(f"{count / (time.perf_counter() - began):.0f} requests/s")


def _resident(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1]) / 2**20


if __name__ == "__main__":
    main()
