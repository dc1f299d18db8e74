"""Greedy coreset selection against the textbook loop, in one process, on the same points.

    python benchmarks/coreset.py [--points 163856] [--dim 128] [--ratio 0.1] [--features F.npy]

The textbook loop (one distance per pick over all points) is timed over its first picks and
extrapolated; the indices that it picks are compared. Without `--features` the points are
drawn from clusters on a curved surface, which is what patch features look like.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import torch

from pyimgano.models.neighbors import greedy_coreset


def textbook(points: torch.Tensor, count: int) -> tuple[list[int], float]:
    """Picks, and seconds for each."""
    began = time.perf_counter()
    nearest = torch.full((len(points),), torch.inf)
    picked = [0]
    while len(picked) < count:
        away = (points - points[picked[-1]]).square().sum(dim=1)
        nearest = torch.minimum(nearest, away)
        picked.append(int(nearest.argmax()))
    return picked, (time.perf_counter() - began) / count


def synthetic(points: int, dim: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (40, 12))
    inner = centres[rng.integers(0, 40, points)] + rng.normal(0, 1, (points, 12))
    surface = np.tanh(inner @ rng.normal(0, 0.3, (12, dim)))
    return torch.from_numpy((surface + rng.normal(0, 0.05, (points, dim))).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=163_856)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--features", help="an (N, D) float32 .npy file instead")
    parser.add_argument("--first", type=int, default=300, help="picks of the textbook loop")
    arguments = parser.parse_args()
    if arguments.features:
        points = torch.from_numpy(np.load(arguments.features))
    else:
        points = synthetic(arguments.points, arguments.dim)
    count = round(len(points) * arguments.ratio)
    first = min(arguments.first, count)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{tuple(points.shape)} to {count}")
    reference, per_pick = textbook(points, first)
    began = time.perf_counter()
    found = greedy_coreset(points, count)
    ours = time.perf_counter() - began
    print(f"textbook: {1e3 * per_pick:.1f} ms a pick, {per_pick * count:.0f} s in all")
    print(f"ours:     {ours:.2f} s, {per_pick * count / ours:.0f} times faster")
    print(f"first {first} picks the same: {found[:first].tolist() == reference}")


if __name__ == "__main__":
    main()
