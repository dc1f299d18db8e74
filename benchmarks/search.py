"""The search of a memory bank, against comparing all in float32 products, in one process.

    python benchmarks/search.py ROOT CATEGORY [--kwargs JSON] [--train N] [--queries N]

Fits `vision_patchcore` and then looks for the nearest row of patches of the test images, as it does
for a score, both ways in turn. The plain way is |q|^2 + |m|^2 - 2qm, a block of queries at a time.
Prints seconds and their ratio, and how many of the rows are the same; the plain way rounds, so
that where rows are nearly equally far it may name another.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pyimgano.datasets import load_dataset
from pyimgano.models import create_model
from pyimgano.models.neighbors import MemoryBank
from pyimgano.threads import thread_count

_BLOCK = 1024


def plain(bank: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """(Q,) the nearest row of each."""
    norms = bank.square().sum(dim=1)
    blocks = queries.split(_BLOCK)
    return torch.cat([torch.addmm(norms, q, bank.T, alpha=-2.0).argmin(dim=1) for q in blocks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("category")
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--train", type=int, help="training images, all by default")
    parser.add_argument("--queries", type=int, default=20_000, help="at most")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    dataset = load_dataset("mvtec", arguments.root, arguments.category, load_masks=False)
    detector = create_model("vision_patchcore", **arguments.kwargs)
    detector.fit(dataset.get_train_paths()[: arguments.train])
    asked: list[tuple[MemoryBank, torch.Tensor]] = []
    search = MemoryBank.search

    def noting(self: MemoryBank, queries: torch.Tensor, *given: Any) -> Any:
        asked.append((self, queries.clone()))
        return search(self, queries, *given)

    with patch.object(MemoryBank, "search", noting):
        for _ in detector.score_images(dataset.get_test_paths()[0]):
            pass
    print(f"{platform.machine()}, {thread_count()} threads, {arguments.kwargs}")
    for bank in dict.fromkeys(one for one, _ in asked):
        queries = torch.cat([some for one, some in asked if one is bank])[: arguments.queries]
        seconds: tuple[list[float], list[float]] = [], []
        with torch.inference_mode():
            for _ in range(arguments.rounds):
                began = time.perf_counter()
                usual = plain(bank.features, queries)
                between = time.perf_counter()
                _, rows = bank.search(queries)
                seconds[0].append(between - began)
                seconds[1].append(time.perf_counter() - between)
        usually, ours = (statistics.median(some) for some in seconds)
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        same = float((usual == rows).double().mean())
        rows_, width = bank.features.shape
        print(
            f"{len(queries)} queries, {rows_} x {width}: {usually:.2f} s, ours {ours:.2f} s, "
            f"{ratio:.1f} times faster; the same row for {same:.2%}"
        )


if __name__ == "__main__":
    main()
