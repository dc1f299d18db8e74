"""One category, whole process, against decoding the same files with the same threads.

    python benchmarks/one_category.py ROOT CATEGORY [options of pyimgano-benchmark]

Each round decodes all images of the category and then runs the whole command, so that both
see the same machine. Prints each round's seconds and their ratio, the processor time of the
command, and the medians. The command writes a run, so that with --no-html it tells what the page
of a run costs.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
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
        *[sys.executable, "-m", "pyimgano", "benchmark", "--dataset", "mvtec"],
        *["--root", str(arguments.root), "--category", arguments.category, *options],
    ]
    rounds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        for _ in stream_images(paths, None):
            pass
        decoded = time.perf_counter()
        before = processor_seconds()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*command, "--output-dir", folder],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        whole = time.perf_counter() - decoded
        rounds.append((decoded - began, whole, processor_seconds() - before))
        print(
            f"decode {rounds[-1][0]:.2f} s, whole command {whole:.2f} s, "
            f"ratio {whole / rounds[-1][0]:.1f}, processor {rounds[-1][2]:.2f} s"
        )
    decode = statistics.median(r[0] for r in rounds)
    whole = statistics.median(r[1] for r in rounds)
    processor = statistics.median(r[2] for r in rounds)
    print(
        f"median: decode {decode:.2f} s, whole command {whole:.2f} s, ratio {whole / decode:.1f}, "
        f"processor {processor:.2f} s"
    )


def processor_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
