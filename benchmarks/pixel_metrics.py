"""Pixel metrics on maps of full size: seconds and peak memory.

    python benchmarks/pixel_metrics.py [--images 83] [--size 900]

Pixel AUROC, average precision and AUPRO to 0.30 and 0.05, all exact, on smooth random maps
with a few defects an image. The ratio is to one sorting of all pixels, which any exact method
that sorts has to do.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time

import cv2
import numpy as np

from pyimgano.evaluation.pixel_level import PixelScores
from pyimgano.threads import thread_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=83)
    parser.add_argument("--size", type=int, default=900)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    side = arguments.size
    maps = np.empty((arguments.images, side, side), np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for index in range(arguments.images):
        grid = rng.random((32, 32), dtype=np.float32)
        maps[index] = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        for _ in range(index % 4):
            top, left = rng.integers(0, side - side // 10, 2)
            masks[index, top : top + side // 12, left : left + side // 15] = True
            maps[index, top : top + side // 12, left : left + side // 15] += 0.5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{platform.machine()}, {thread_count()} threads, {maps.shape} maps")
    began = time.perf_counter()
    scores = PixelScores.of(masks, maps)
    values = [scores.auroc(), scores.average_precision(), scores.aupro(0.3), scores.aupro(0.05)]
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    np.sort(maps, axis=None)
    sorting = time.perf_counter() - began
    names = ("pixel AUROC", "average precision", "AUPRO 0.30", "AUPRO 0.05")
    print(", ".join(f"{name} {value:.6f}" for name, value in zip(names, values, strict=True)))
    print(f"{took:.2f} s, {took / sorting:.1f} times one sorting of all pixels ({sorting:.2f} s)")
    print(f"peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} GiB before")


if __name__ == "__main__":
    main()
