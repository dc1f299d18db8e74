"""How the time and memory of fitting grow with the number of training images.

    python benchmarks/growth.py [--images 250 1000 5000] [--preset PRESET] [--size 256]

Draws textures with a few stains, writes them as JPEG to a temporary folder, and fits
`vision_patchcore` on so many of them, each number in a process of its own. Prints seconds,
peak memory, the memory bank, and the exponent of n that the time grew with.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from pyimgano.threads import thread_count


def draw(folder: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    large = rng.normal(120, 30, (4 * size, 4 * size, 3)).astype(np.float32)
    large = np.asarray(cv2.GaussianBlur(large, (0, 0), 2) * 3 - 240, np.float32)
    for index in range(count):
        top, left = rng.integers(0, 3 * size, 2)
        image = large[top : top + size, left : left + size] + rng.normal(0, 4, (size, size, 3))
        for _ in range(rng.integers(0, 4)):
            at = tuple(int(v) for v in rng.integers(0, size, 2))
            colour = tuple(float(v) for v in rng.integers(60, 200, 3))
            cv2.circle(image, at, int(rng.integers(2, size // 12)), colour, -1)
        cv2.imwrite(str(folder / f"{index:06d}.jpg"), np.clip(image, 0, 255).astype(np.uint8))


def fit(folder: Path, count: int, preset: str | None) -> None:
    """In a process of its own: fit on the first images, print what it took as JSON."""
    from pyimgano.models import create_model
    from pyimgano.models.registry import preset_keywords

    paths = sorted(folder.glob("*.jpg"))[:count]
    detector = create_model("vision_patchcore", **preset_keywords("vision_patchcore", preset))
    detector.fit(paths[:2])  # what is converted and compiled once is not counted
    began = time.perf_counter()
    detector.fit(paths)
    seconds = time.perf_counter() - began
    bank = detector.describe()["memory_bank"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    scored = detector.calibration_.n_scores
    print(json.dumps({"seconds": seconds, "GiB": peak, "scored": scored, **bank}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[250, 1000, 5000])
    parser.add_argument("--preset")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit is not None:
        fit(arguments.folder, arguments.fit, arguments.preset)
        return
    print(f"{platform.machine()}, {thread_count()} threads")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), max(arguments.images), arguments.size)
        before: tuple[int, float] | None = None
        for count in arguments.images:
            command = [sys.executable, __file__, "--folder", folder, "--fit", str(count)]
            if arguments.preset is not None:
                command += ["--preset", arguments.preset]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            took = json.loads(done.stdout)
            line = (
                f"{count:6d} images: {took['seconds']:7.1f} s, {took['GiB']:.2f} GiB, bank of "
                f"{took['size']} in {took['selections']} selections, {took['scored']} scored"
            )
            if before is not None:
                exponent = math.log(took["seconds"] / before[1]) / math.log(count / before[0])
                line += f", time grew as n^{exponent:.2f}"
            print(line, flush=True)
            before = (count, took["seconds"])


if __name__ == "__main__":
    main()
