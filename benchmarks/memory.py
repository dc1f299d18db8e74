"""Whether memory stays flat over the categories of one run.

    python benchmarks/memory.py [--categories 20] [--train 20] [--test 10] [--size 256]
                                [--model vision_patchcore] [--preset PRESET]

Draws so many small categories into a temporary folder, measures them in one process, pixel
metrics and saved detectors included, and prints the resident memory after each, then the slope
over the second half: what a further category costs.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from pyimgano import run_benchmark
from pyimgano.runs import FittedReport
from pyimgano.threads import thread_count


def draw(root: Path, categories: int, train: int, test: int, size: int) -> None:
    """Striped parts, half of the test images with a dark square; another phase a category."""
    for number in range(categories):
        rng = np.random.default_rng(number)
        folder = root / f"part{number:02d}"
        parts = [("train/good", train, False), ("test/good", test // 2, False)]
        for part, count, bad in [*parts, ("test/spot", test - test // 2, True)]:
            (folder / part).mkdir(parents=True)
            for index in range(count):
                columns = np.arange(size)[None, :, None]
                image = 120 + 60 * np.sin(columns / 5 + number) + rng.normal(0, 4, (size, size, 3))
                if bad:
                    image[size // 2 : size // 2 + size // 8, size // 3 : size // 2] = 20
                pixels = np.clip(image, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / part / f"{index:03d}.png"), pixels)
        masks = folder / "ground_truth" / "spot"
        masks.mkdir(parents=True)
        mask = np.zeros((size, size), np.uint8)
        mask[size // 2 : size // 2 + size // 8, size // 3 : size // 2] = 255
        for index in range(test - test // 2):
            cv2.imwrite(str(masks / f"{index:03d}_mask.png"), mask)


def resident() -> float:
    """MiB that the process has in memory now; at most so far where that cannot be found out."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Watch:
    """Prints and keeps the memory after each category."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def category_started(self, name: str, number: int, total: int) -> None:
        pass

    def stage(self, stage: str, done: int, total: int) -> None:
        pass

    def category_finished(self, report: FittedReport) -> None:
        self.seen.append(resident())
        print(f"{len(self.seen):4d} {report.category} {self.seen[-1]:8.1f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", type=int, default=20)
    parser.add_argument("--train", type=int, default=20)
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="vision_patchcore")
    parser.add_argument("--preset")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {thread_count()} threads, {arguments.model}")
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        draw(root, arguments.categories, arguments.train, arguments.test, arguments.size)
        print(f"     before {resident():14.1f} MiB")
        run_benchmark(
            dataset="mvtec",
            root=root,
            model=arguments.model,
            preset=arguments.preset,
            runs_dir=Path(folder) / "runs",
            save_model=True,
            listener=watch,
        )
    half = watch.seen[len(watch.seen) // 2 :]
    if len(half) > 1:
        slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
        print(f"a further category costs {slope:+.2f} MiB (slope over the last {len(half)})")


if __name__ == "__main__":
    main()
