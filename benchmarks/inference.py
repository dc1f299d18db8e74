"""One image, and a folder of images, from file to score and map.

    python benchmarks/inference.py ROOT CATEGORY [--preset PRESET] [--kwargs JSON] [--train N]

Fits on the category's training images, then prints the median time of a single image (decoded,
scored, mapped; one call each), and images a second on all test images in one call, beside
decoding the same files with the same threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from pyimgano.datasets import load_dataset
from pyimgano.images import stream_images
from pyimgano.models import create_model
from pyimgano.models.registry import preset_keywords
from pyimgano.threads import thread_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--preset")
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--train", type=int, help="training images, all by default")
    parser.add_argument("--calls", type=int, default=100, help="of a single image")
    parser.add_argument("--rounds", type=int, default=5, help="over the folder")
    arguments = parser.parse_args()
    dataset = load_dataset("mvtec", arguments.root, arguments.category, load_masks=False)
    train, test = dataset.get_train_paths()[: arguments.train], dataset.get_test_paths()[0]
    keywords = {**preset_keywords("vision_patchcore", arguments.preset), **arguments.kwargs}
    detector = create_model("vision_patchcore", **keywords)
    detector.fit(train)
    bank = detector.describe()["memory_bank"]
    print(
        f"{platform.machine()}, {thread_count()} threads, bank of {bank['size']} x "
        f"{bank['dimension']}, {keywords}"
    )
    singles = []
    for call in range(arguments.calls + 3):
        began = time.perf_counter()
        (result,) = detector.score_images([test[call % len(test)]])
        assert result.anomaly_map is not None
        singles.append(1e3 * (time.perf_counter() - began))
    singles = singles[3:]
    print(f"one image: median {statistics.median(singles):.1f} ms, least {min(singles):.1f} ms")
    rounds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        for _ in stream_images(test, None):
            pass
        decoded = time.perf_counter()
        for _ in detector.score_images(test):
            pass
        rounds.append((decoded - began, time.perf_counter() - decoded))
    decode = statistics.median(r[0] for r in rounds)
    score = statistics.median(r[1] for r in rounds)
    ratio = statistics.median(r[1] / r[0] for r in rounds)
    print(
        f"folder of {len(test)}: {len(test) / score:.1f} images a second, decoding alone "
        f"{len(test) / decode:.1f}; {ratio:.2f} times the decoding"
    )


if __name__ == "__main__":
    main()
