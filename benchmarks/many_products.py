"""What one detector of many products takes, in memory and time, against as many single ones.

    python benchmarks/many_products.py --root DATA/mvtec --categories bottle,magnetic_tile

The detectors are those of one process: the single ones are loaded each with a network of its own,
as separate processes or machines would have it, and the joint one with the network that its
products share. Memory is how much the resident set of a fresh process grows by loading; times are
medians of interleaved rounds on the same images, of which ratios hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyimgano import load_model
from pyimgano.datasets import get_layout, load_category
from pyimgano.images import read_image
from pyimgano.models import ManyProducts


def resident() -> int:
    """Return the resident set of this process, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("VmRSS is missing: memory is measured on Linux alone")


def growth(folders: Sequence[str], warm: Sequence[str]) -> int:
    """Return by how much a process grows that loads these detectors and scores an image each."""
    from pyimgano.backbones import backbone

    load_model(folders[0]).decision_function(warm[0])  # what is imported counts for nobody
    backbone._create.cache_clear()
    began = resident()
    kept = []
    for folder, image in zip(folders, warm):
        backbone._create.cache_clear()  # each has a network of its own
        detector = load_model(folder)
        detector.decision_function(image)
        kept.append(detector)
    return resident() - began


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Fit, save, load and time; prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mvtec")
    parser.add_argument("--root", action="append", required=True, help="repeatable")
    parser.add_argument("--categories", required=True, help="separated by commas")
    parser.add_argument("--model", default="vision_patchcore")
    parser.add_argument("--model-kwargs", default="{}", metavar="JSON")
    parser.add_argument("--resize", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--limit-train", type=int, default=100)
    parser.add_argument("--images", type=int, default=16, help="test images of each product")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    layout = get_layout(given.dataset)
    train, test = {}, {}
    for name in given.categories.split(","):
        root = next(Path(one) for one in given.root if (Path(one) / name).is_dir())
        category = load_category(layout, root, name)
        train[name] = [str(one.path) for one in category.train][: given.limit_train]
        test[name] = [str(one.path) for one in category.test][: given.images]
    keywords = {"resize": tuple(given.resize), **json.loads(given.model_kwargs)}
    many = ManyProducts(given.model, **keywords).fit(train)
    with tempfile.TemporaryDirectory() as place:
        joint = str(many.save(Path(place) / "joint"))
        single = [str(one.save(Path(place) / name)) for name, one in many.products_.items()]
        first = [paths[0] for paths in test.values()]
        # every product's detector of the joint one scores too, since the images are of all
        memory = {
            "joint": apart(growth_of_joint, joint, list(test.items())),
            "single": apart(growth, single, first),
        }
        disk = {
            "joint": sum(one.stat().st_size for one in Path(joint).iterdir()),
            "single": sum(one.stat().st_size for each in single for one in Path(each).iterdir()),
        }
    decoded = {name: [read_image(path) for path in paths] for name, paths in test.items()}
    mixed = [image for images in zip(*decoded.values()) for image in images]
    names = [name for images in zip(*decoded.values()) for name in decoded]

    def by_single() -> None:
        for name, images in decoded.items():
            many.product(name).decision_function(images)

    ways: dict[str, Callable[[], Any]] = {
        "single": by_single,
        "named": lambda: [many.decision_function(x, product=n) for n, x in decoded.items()],
        "named_mixed": lambda: many.decision_function(mixed, product=names),
        "recognised": lambda: many.decision_function(mixed),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for function in ways.values():
        function()
    for _ in range(given.rounds):
        for name, function in ways.items():
            began = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - began) / len(mixed))
    medians = {name: statistics.median(some) for name, some in times.items()}
    print(
        json.dumps(
            {
                "products": {name: len(images) for name, images in train.items()},
                "model": given.model,
                "keywords": keywords,
                "memory_bytes": memory,
                "memory_ratio": memory["joint"] / memory["single"],
                "disk_bytes": disk,
                "milliseconds_per_image": {n: 1e3 * value for n, value in medians.items()},
                "time_ratio": {n: value / medians["single"] for n, value in medians.items()},
            },
            indent=2,
        )
    )


def growth_of_joint(folder: str, test: Sequence[tuple[str, Sequence[str]]]) -> int:
    """Return by how much a process grows that loads the joint detector and scores an image each."""
    from pyimgano.backbones import backbone

    load_model(folder).decision_function(test[0][1][0], product=test[0][0])  # type: ignore[call-arg]
    backbone._create.cache_clear()
    began = resident()
    many = load_model(folder)
    assert isinstance(many, ManyProducts)
    for name, paths in test:
        many.decision_function(paths[0], product=name)
    return resident() - began


if __name__ == "__main__":
    main()
