"""Time and memory of backbones with random weights: the network, and scoring on it.

    python benchmarks/backbones.py [--names resnet18@256 dinov2_vits14@448 ...] [--train 40]

A name is `BACKBONE@SIDE`. Each runs in a process of its own, on drawn images of SIDE x SIDE pixels
that need no decoding, with `vision_patchcore` and its defaults. One line each, as a row of a
table: milliseconds of the network alone in float32 and in bfloat16 (median of 20 images), of
scoring an image with its map, seconds of the fit, and the largest memory of the process in MiB.
What the machine does meanwhile is measured before and after: decoding a JPEG of 1024 x 1024 pixels,
and the rate of a product of matrices of 2,048 x 2,048 float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch

from pyimgano.backbones import create_backbone
from pyimgano.models import create_model
from pyimgano.threads import thread_count

NAMES = (
    "efficientnet_lite0@256",
    "resnet18@256",
    "wide_resnet50_2@256",
    "dinov2_vits14@224",
    "dinov2_vits14@448",
    "dinov2_vitb14@448",
)


def milliseconds(run: Callable[[], object], calls: int = 20) -> float:
    """The median time of a call, after three that are not counted."""
    taken = []
    for call in range(calls + 3):
        began = time.perf_counter()
        run()
        if call >= 3:
            taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def machine() -> str:
    """What the machine does now: milliseconds to decode an image, and the rate of products."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    done, jpeg = cv2.imencode(".jpg", cv2.resize(noise, (1024, 1024)))
    assert done
    decoded = milliseconds(partial(cv2.imdecode, jpeg, cv2.IMREAD_COLOR))
    a = torch.from_numpy(np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32))
    product = milliseconds(partial(torch.mm, a, a))
    rate = 2 * 2048**3 / product / 1e6
    return f"decoding {decoded:.1f} ms, products {rate:.0f} GFLOP/s"


def measured(name: str, train: int) -> dict[str, float]:
    """The figures of one backbone, in this process."""
    backbone, _, side = name.partition("@")
    size = (int(side), int(side))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(train)]
    pretrained = backbone.startswith("efficientnet")
    figures = {}
    for precision in ("float32", "bfloat16"):
        network = create_backbone(
            backbone, pretrained=pretrained, device="cpu", precision=precision, patches="fine"
        )
        figures[network.precision] = milliseconds(partial(network.features, images[:1]))
    detector = create_model(
        "vision_patchcore", backbone=backbone, pretrained=pretrained, device="cpu", resize=size
    )
    began = time.perf_counter()
    detector.fit(images)
    figures["fit, s"] = time.perf_counter() - began
    figures["score"] = milliseconds(partial(detector.get_anomaly_map, images[0]))
    figures["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(NAMES))
    parser.add_argument("--train", type=int, default=40, help="images to fit on")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.train)))
        return
    print(f"{platform.machine()}, {thread_count()} threads, {arguments.train} images to fit on")
    print(f"before: {machine()}")
    columns = ("float32", "bfloat16", "score", "fit, s", "MiB")
    print("| backbone | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name in arguments.names:
        words = [sys.executable, __file__, "--one", name, "--train", str(arguments.train)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        cells = (f"{figures[key]:.1f}" if key in figures else "" for key in columns)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"after: {machine()}")


if __name__ == "__main__":
    main()
