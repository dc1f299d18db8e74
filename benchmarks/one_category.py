"""One category, whole process, against decoding the same files with the same threads.

    python benchmarks/one_category.py ROOT CATEGORY [options of pyimgano-benchmark]

Each round decodes all images of the category and then runs the whole command, so that both
see the same machine. Prints each round's seconds and their ratio, and the medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pyimgano.datasets import load_dataset
from pyimgano.images import stream_images
from pyimgano.threads import thread_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--rounds", type=int, default=3)
    arguments, options = parser.parse_known_args()
    dataset = load_dataset("mvtec", arguments.root, arguments.category, load_masks=False)
    paths = [*dataset.get_train_paths(), *dataset.get_test_paths()[0]]
    print(f"{platform.machine()}, {thread_count()} threads, {len(paths)} images")
    command = [
        *[sys.executable, "-m", "pyimgano", "benchmark", "--dataset", "mvtec", "--no-save-run"],
        *["--root", str(arguments.root), "--category", arguments.category, *options],
    ]
    rounds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        for _ in stream_images(paths, None):
            pass
        decoded = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rounds.append((decoded - began, time.perf_counter() - decoded))
        print(
            f"decode {rounds[-1][0]:.2f} s, whole command {rounds[-1][1]:.2f} s, "
            f"ratio {rounds[-1][1] / rounds[-1][0]:.1f}"
        )
    decode = statistics.median(r[0] for r in rounds)
    whole = statistics.median(r[1] for r in rounds)
    print(f"median: decode {decode:.2f} s, whole command {whole:.2f} s, ratio {whole / decode:.1f}")


if __name__ == "__main__":
    main()
