"""A smaller sample that still looks like the whole: spread evenly, and over all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .layout import Category, Sample


def limit_category(category: Category, train: int | None, test: int | None, seed: int) -> Category:
    """Limit the training and test images of a category; validation stays whole."""
    return replace(
        category,
        train=limit_samples(category.train, train, seed),
        test=limit_samples(category.test, test, seed),
    )


def limit_samples(samples: Sequence[Sample], limit: int | None, seed: int) -> tuple[Sample, ...]:
    """Take at most `limit` samples, in their order.

    Every kind of defect, and the good images, keep their share: at least one each while the
    limit allows it, the rest by largest remainder. Within a kind the picks are evenly
    spaced, since neighbouring files are often neighbouring shots; the seed sets where the
    spacing begins.
    """
    if limit is None or limit >= len(samples):
        return tuple(samples)
    kinds: dict[tuple[int, str], list[int]] = {}
    for index, sample in enumerate(samples):
        rank = 2 if sample.label is None else sample.label  # the good ones first
        kinds.setdefault((rank, sample.defect), []).append(index)
    ordered = sorted(kinds)
    quotas = _quotas([len(kinds[kind]) for kind in ordered], limit)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for kind, quota in zip(ordered, quotas, strict=True):
        members = kinds[kind]
        start = rng.random()
        chosen += [members[int((i + start) * len(members) / quota)] for i in range(quota)]
    return tuple(samples[index] for index in sorted(chosen))


def _quotas(sizes: list[int], total: int) -> list[int]:
    """Split `total` over kinds of `sizes`, by size, none left out where that is possible."""
    if total < len(sizes):
        # not even one each: the good images and the first kinds, in order
        return [int(i < total) for i in range(len(sizes))]
    # one each, the rest by largest remainder over what is left of each kind
    rest, spare = total - len(sizes), [size - 1 for size in sizes]
    whole = sum(spare)
    exact = [rest * s / whole if whole else 0.0 for s in spare]
    extra = [int(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (extra[i] - exact[i], i))
    for i in by_remainder[: rest - sum(extra)]:
        extra[i] += 1
    return [1 + e for e in extra]
