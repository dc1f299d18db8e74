"""How the time and memory of fitting grow with the number of training images.

    python benchmarks/growth.py [--images 250 1000 5000] [--preset PRESET] [--size 256]
    python benchmarks/growth.py --simulate 100000

Draws textures with a few stains, writes them as JPEG to a temporary folder, and fits
`vision_patchcore` on so many of them, each number in a process of its own. Prints seconds,
peak memory, the memory bank, and the exponent of n that the time grew with.

With `--simulate` no image is made: the default recipe's memories learn from features of so many
images of 256 x 256, as a cache would give them (those of 256 images, with one of 256 kinds of
noise), from the first to the calibrated distances.
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


def simulate(count: int) -> None:
    """Print seconds, peak memory and banks of learning from so many images' features."""
    import torch

    from pyimgano.models.evenly_spread import EvenlySpread
    from pyimgano.models.near_and_context import CONTEXT_SHARE
    from pyimgano.models.neighbors import PatchMemoryLearner

    generator = torch.Generator().manual_seed(0)
    grids, widths, bounds = [(16, 16), (8, 8)], [152, 192], [10_000, int(CONTEXT_SHARE * 10_000)]
    base = [
        torch.randn((256, h * w, width), generator=generator)
        for (h, w), width in zip(grids, widths, strict=True)
    ]
    noise = [0.3 * torch.randn(one.shape, generator=generator) for one in base]
    spread = EvenlySpread.of_images(count, sum(one[0].nbytes for one in base))
    learners = [
        PatchMemoryLearner(
            grid=grid,
            size=(256, 256),
            cells=None,
            spread=spread,
            like=one[0],
            images=count,
            ratio=0.1,
            max_rows=bound,
            projection_dim=128,
            seed=0,
            progress=None,
        )
        for grid, one, bound in zip(grids, base, bounds, strict=True)
    ]
    began = time.perf_counter()
    for first in range(0, count, 8):
        n = min(8, count - first)
        some, other = torch.randint(0, 256, (2, n), generator=generator)
        for learner, one, away in zip(learners, base, noise, strict=True):
            learner.add(one[some] + away[other])
    seen = time.perf_counter() - began
    memories = [learner.finish() for learner in learners]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = " and ".join(str(len(memory.bank)) for memory in memories)
    print(
        f"{count} images of features: {seconds:.1f} s, of which {seen:.1f} s to take them in; "
        f"{peak:.2f} GiB, banks of {sizes}, {len(learners[0].unseen)} images scored"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[250, 1000, 5000])
    parser.add_argument("--preset")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--simulate", type=int, metavar="N")
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit is not None:
        fit(arguments.folder, arguments.fit, arguments.preset)
        return
    print(f"{platform.machine()}, {thread_count()} threads")
    if arguments.simulate is not None:
        simulate(arguments.simulate)
        return
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
