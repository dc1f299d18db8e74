"""Bad images among the training images: what becomes of scores and threshold.

    python benchmarks/noisy_training.py ROOT CATEGORY [--share 0.1] [--seed 0] [--preset PRESET]

Replaces a share of the training images by defective test images, which are then left out of the
test, and prints for each detector the image AUROC, the threshold with the false-alarm rate and
recall that it gives, and how many of the images left out of the calibration were bad.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pyimgano.datasets import load_dataset
from pyimgano.evaluation import compute_auroc
from pyimgano.models import create_model

DETECTORS: list[tuple[str, dict[str, Any]]] = [
    ("vision_patchcore", {}),
    ("vision_patchcore", {"contamination": 0.1}),
    ("vision_softpatch", {"outlier_cutoff": None}),
    ("vision_softpatch", {"outlier_cutoff": None, "contamination": 0.1}),
    ("vision_softpatch", {}),
    ("vision_softpatch", {"soft_weights": False}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--share", type=float, default=0.1, help="of bad training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset")
    parser.add_argument("--cache-dir", type=Path, help="keeps features from one fit to the next")
    arguments = parser.parse_args()
    dataset = load_dataset("mvtec", arguments.root, arguments.category, load_masks=False)
    train = dataset.get_train_paths()
    paths, labels, _ = dataset.get_test_paths()
    rng = np.random.default_rng(arguments.seed)
    count = round(arguments.share * len(train))
    bad = set(rng.choice(np.flatnonzero(labels == 1), count, replace=False).tolist())
    mixed = list(train)
    places = rng.choice(len(train), count, replace=False)
    for place, number in zip(places, sorted(bad)):
        mixed[place] = paths[number]
    test = [i for i in range(len(paths)) if i not in bad]
    y = labels[test]
    print(
        f"{arguments.category}: {len(train)} training images, {count} of them bad; test: "
        f"{int((y == 0).sum())} good, {int((y == 1).sum())} bad; preset {arguments.preset}"
    )
    for name, keywords in DETECTORS:
        cache = None if arguments.cache_dir is None else str(arguments.cache_dir)
        detector = create_model(name, preset=arguments.preset, cache_dir=cache, **keywords)
        scores = detector.fit(mixed).decision_function([paths[i] for i in test])
        flagged = scores >= detector.threshold_
        suspects = getattr(detector, "suspects_", np.zeros(0, np.int64))
        found = int(np.isin(suspects, places).sum())
        print(
            f"{name} {keywords}: AUROC {compute_auroc(y, scores):.4f}, threshold "
            f"{detector.threshold_:.2f}, false alarms {flagged[y == 0].mean():.3f}, recall "
            f"{flagged[y == 1].mean():.3f}; left out {len(suspects)}, {found} of them bad",
            flush=True,
        )


if __name__ == "__main__":
    main()
