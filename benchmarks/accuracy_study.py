"""Recipes of a memory bank on a small backbone, on real defects and on pasted ones.

    python benchmarks/accuracy_study.py ROOT [--sets magnetic_tile bottle moved demo] [--seeds 5]
        [--recipes plain whitened default ...]

ROOT holds `bottle` and `magnetic_tile` in MVTec layout. Half of a category's good training images
are learned from; the others, and the good test images, are good test images, and defects of six
kinds are pasted into copies of them at places that are known. `moved` is bottle, each image
turned and shifted by chance. For each set, recipe and seed of the bank one line: the real defects
and the pasted ones, each with AUROC, AUROC to a false-positive rate of 0.1 (McClish's scale, 0.5 is
chance), recall and false alarms at a threshold of 5 % on the bank's own training images; the least
AUROC of one real kind (chosen with that kind left out, a recipe must not lose it); AUPRO to 0.05
of the pasted defects. Then mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from pyimgano.backbones import create_backbone
from pyimgano.datasets import load_dataset
from pyimgano.evaluation import compute_aupro
from pyimgano.images import read_image, resize_image
from pyimgano.models.anomaly_map import smooth_maps
from pyimgano.models.bank import MemoryBank, Moments, Whitening
from pyimgano.models.bank.coreset import greedy_coreset
from pyimgano.threads import thread_count

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
KINDS = ("texture", "scratch", "stain", "missing", "deform", "dots")
MAP = (128, 128)  # pixels of the maps that are measured
NEAR, FAR = ("blocks.4", "blocks.10"), "blocks.14"


# ---- pasted defects


def place(image: Image, rng: np.random.Generator) -> tuple[int, int]:
    """(row, column) on the part: off the border, off a white background."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 5)
    inside = grey < 235
    margin = int(0.06 * min(grey.shape))
    inside[:margin] = inside[-margin:] = False
    inside[:, :margin] = inside[:, -margin:] = False
    rows, columns = np.nonzero(inside)
    if len(rows) == 0:
        return grey.shape[0] // 2, grey.shape[1] // 2
    i = rng.integers(len(rows))
    return int(rows[i]), int(columns[i])


def blob(shape: tuple[int, int], y: int, x: int, r: float, rng: np.random.Generator) -> Mask:
    """(H, W): an irregular closed shape of radius about r."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1.0 + sum(
        rng.uniform(0, 0.45) / k * np.cos(k * t + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    flat, turn = rng.uniform(0.5, 1), rng.uniform(0, np.pi)
    u, v = r * radius * np.cos(t), r * radius * flat * np.sin(t)
    outline = np.stack(
        [x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1
    )
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask.astype(bool)


def drawn(
    shape: tuple[int, int], y: int, x: int, kind: str, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """(H, W) in 0 to 1: a thin bent line, or a few dots."""
    side, mask = float(np.sqrt(shape[0] * shape[1])), np.zeros(shape, np.float32)
    if kind == "scratch":
        turn, step = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.05, 0.18) / 12
        points = [np.array([x, y], float)]
        for _ in range(12):
            turn += rng.normal(0, 0.25)
            points.append(points[-1] + step * np.array([np.cos(turn), np.sin(turn)]))
        width = max(1, int(side * rng.uniform(0.002, 0.005)))
        line = np.round(np.array(points) * 16).astype(np.int32)
        cv2.polylines(mask, [line], False, 1.0, width, cv2.LINE_AA, 4)
    else:
        for _ in range(rng.integers(2, 6)):
            cy, cx = y + rng.normal(0, side * 0.02), x + rng.normal(0, side * 0.02)
            r = int(16 * side * rng.uniform(0.003, 0.008))
            cv2.circle(mask, (int(cx * 16), int(cy * 16)), r, 1.0, -1, cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.6), np.float32)


def paste(image: Image, other: Image, kind: str, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A copy with a small defect of that kind, and where it is."""
    height, width = image.shape[:2]
    side = float(np.sqrt(height * width))
    y, x = place(image, rng)
    out: Any = image.astype(np.float32)
    if kind in ("scratch", "dots"):
        line = drawn((height, width), y, x, kind, rng)
        out += line[..., None] * rng.choice([-1, 1]) * rng.uniform(25, 80)
        return np.clip(np.round(out), 0, 255).astype(np.uint8), line > 0.3
    r = side * rng.uniform(0.02, 0.06)
    mask = blob((height, width), y, x, r, rng)
    edge = 0.35 * r if kind == "stain" else max(0.7, side * 0.0015)
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), edge)[..., None]
    if kind == "texture":  # of another place of another image
        oy, ox = place(other, rng)
        shift = np.array([[1, 0, x - ox], [0, 1, y - oy]], np.float32)
        moved = cv2.warpAffine(other, shift, (width, height), borderMode=cv2.BORDER_REFLECT)
        out = out * (1 - share) + moved * share
    elif kind == "stain":
        out += share * (rng.choice([-1, 1]) * rng.uniform(12, 28) + rng.normal(0, 5, 3))
    elif kind == "missing":
        filled = cv2.inpaint(image, mask.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        blurred = cv2.GaussianBlur(filled.astype(np.float32), (0, 0), max(1.0, 0.3 * r))
        out = out * (1 - share) + blurred * share
    else:  # a swirl
        yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
        away = np.hypot(yy - y, xx - x)
        turn = (
            np.clip(1 - away / (1.6 * r), 0, 1) ** 2 * rng.choice([-1, 1]) * rng.uniform(0.6, 1.2)
        )
        cos, sin = np.cos(turn), np.sin(turn)
        from_x = (x + (xx - x) * cos - (yy - y) * sin).astype(np.float32)
        from_y = (y + (xx - x) * sin + (yy - y) * cos).astype(np.float32)
        swirled = cv2.remap(image, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        out = np.asarray(swirled)
        mask = away < 1.28 * r
    return np.clip(np.round(out), 0, 255).astype(np.uint8), mask


def turned(image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Turned and shifted on white, at 0.62 of its size."""
    height, width = mask.shape
    how: Any = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), 0.62)
    how[:, 2] += rng.uniform(-0.14, 0.14, 2) * (width, height)
    moved: Any = cv2.warpAffine(
        image, how, (width, height), flags=cv2.INTER_AREA, borderValue=(252, 252, 252)
    )
    where: Any = cv2.warpAffine(
        mask.astype(np.uint8), how, (width, height), flags=cv2.INTER_NEAREST
    )
    return moved, where > 0


# ---- sets of images


@dataclass(frozen=True)
class Example:
    """An image, where its pasted defect is, and train, good, real:KIND or pasted:KIND."""

    image: Image
    mask: Mask
    what: str


def examples(root: Path, name: str) -> Iterator[Example]:
    """Of a category, of `moved`, or of the category `demo` that is drawn on the spot."""
    category = "bottle" if name == "moved" else name
    data = (
        load_dataset("demo", None, "all")
        if name == "demo"
        else load_dataset("mvtec", root, category)
    )
    rng = np.random.default_rng(7)
    train = [data.get_train_paths()[i] for i in rng.permutation(len(data.get_train_paths()))]
    half = len(train) // 2
    test = data.samples.test
    paths, labels = [str(one.path) for one in test], [one.label for one in test]
    kinds = [Path(str(path)).parent.name for path in paths]
    good = [*train[half:], *(path for path, bad in zip(paths, labels) if not bad)]
    number = 0

    def example(image: Image, mask: Mask | None, what: str) -> Example:
        nonlocal number
        number += 1
        where = np.zeros(image.shape[:2], bool) if mask is None else mask
        if name == "moved":
            image, where = turned(image, where, np.random.default_rng(50_000 + number))
        return Example(image, where, what)

    for path in train[:half]:
        yield example(read_image(path), None, "train")
    for path in good:
        yield example(read_image(path), None, "good")
    for i, (path, bad) in enumerate(zip(paths, labels)):
        if bad:
            yield example(read_image(path), None, f"real:{kinds[i]}")
    for i, path in enumerate(good):
        mine = np.random.default_rng(1000 + i)
        other = read_image(good[mine.integers(len(good))])
        kind = KINDS[i % len(KINDS)]
        yield example(*paste(read_image(path), other, kind, mine), f"pasted:{kind}")


# ---- recipes


@dataclass(frozen=True)
class Recipe:
    """Of patch features, bank and score; what it starts with is the plain memory bank."""

    size: int | None = 256
    layers: tuple[str, ...] = NEAR
    far_weight: float | None = None  # of layers of stride 32; None: whitened with the others
    shrinkage: float | None = None  # None: not whitened
    pooling: int = 3
    stride: int = 8  # of the grid of patches
    coreset: bool = True
    bank: int = 10_000
    unit: bool = False  # features of length one
    position: float = 0.0  # weight of a patch's place
    peak: bool = False  # the map's largest value, not the largest patch's


PLAIN = Recipe()
WHITENED = replace(PLAIN, shrinkage=0.01)
COARSE = replace(WHITENED, stride=16)
DEFAULT = replace(COARSE, layers=(*NEAR, FAR), far_weight=0.4, size=None, peak=True)
RECIPES = {
    "plain": PLAIN,
    "whitened": WHITENED,
    "whitened, random bank": replace(WHITENED, coreset=False),
    "whitened, shrinkage 0.001": replace(WHITENED, shrinkage=0.001),
    "whitened, shrinkage 0.1": replace(WHITENED, shrinkage=0.1),
    "whitened, no pooling": replace(WHITENED, pooling=1),
    "whitened, pooling 5": replace(WHITENED, pooling=5),
    "whitened, unit length": replace(WHITENED, unit=True),
    "whitened, position": replace(WHITENED, position=0.3),
    "whitened, stride 16": COARSE,
    **{f"stride 16, {size} pixels": replace(COARSE, size=size) for size in (192, 320, 384, 512)},
    "stride 16, bank 20,000": replace(COARSE, bank=20_000),
    "deepest, jointly": replace(COARSE, layers=(*NEAR, FAR)),
    "deepest at 1": replace(COARSE, layers=(*NEAR, FAR), far_weight=1.0),
    "deepest at 0.7": replace(COARSE, layers=(*NEAR, FAR), far_weight=0.7),
    "deepest at 0.5": replace(COARSE, layers=(*NEAR, FAR), far_weight=0.5),
    "default": DEFAULT,
    "default, largest patch": replace(DEFAULT, peak=False),
}


def features(pictures: list[Example], recipe: Recipe, size: int) -> torch.Tensor:
    """(N, h, w, D) float32, the layers side by side on a grid of the recipe's stride."""
    backbone = create_backbone(device="cpu", layers=recipe.layers)
    cells, batches = size // recipe.stride, []
    for first in range(0, len(pictures), 8):
        batch = [resize_image(one.image, (size, size)) for one in pictures[first : first + 8]]
        joined = []
        for layer in backbone.features(batch):
            found = functional.avg_pool2d(
                layer, recipe.pooling, 1, recipe.pooling // 2, count_include_pad=False
            )
            if found.shape[-1] > cells:
                found = functional.avg_pool2d(found, found.shape[-1] // cells)
            joined.append(functional.interpolate(found, (cells, cells), mode="bilinear"))
        batches.append(torch.cat(joined, dim=1).permute(0, 2, 3, 1))
    return torch.cat(batches)


def whitening(pool: torch.Tensor, recipe: Recipe, far: int) -> Whitening:
    """Of patches (P, D), of which the last `far` columns see widest."""
    assert recipe.shrinkage is not None
    width, groups = pool.shape[1], None
    if recipe.far_weight is not None:
        columns = np.arange(width)
        groups = [(columns[: width - far], 1.0), (columns[width - far :], recipe.far_weight)]
    return Whitening.of(Moments.of(pool), pool, groups, recipe.shrinkage)


def prepared(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(N, h, w, D) with unit length or position, if the recipe has them."""
    scale = float(np.sqrt(x.shape[-1]))
    if recipe.unit:
        x = functional.normalize(x, dim=-1) * scale
    if recipe.position:
        across = torch.linspace(-1, 1, x.shape[1])
        where = torch.stack(torch.meshgrid(across, across, indexing="ij"), dim=-1)
        where = where.expand(len(x), -1, -1, -1) * recipe.position * scale
        x = torch.cat([x, where], dim=-1)
    return x.contiguous()


def measured(
    pictures: list[Example], x: torch.Tensor, recipe: Recipe, seed: int
) -> dict[str, float]:
    """The figures of one line."""
    what = np.array([one.what for one in pictures])
    learned = np.flatnonzero(what == "train")
    n, h, w = len(learned), *x.shape[1:3]
    generator = torch.Generator().manual_seed(seed)
    rows = x[learned].flatten(0, 2)
    pool = torch.randperm(len(rows), generator=generator)[:60_000]
    if recipe.shrinkage is not None:
        far = 192 if FAR in recipe.layers else 0
        learner = whitening(rows[pool], recipe, far)
        x = learner(x)
    x = prepared(x, recipe)
    rows, owner = x[learned].flatten(0, 2), torch.arange(n).repeat_interleave(h * w)
    count = min(recipe.bank, len(pool))
    picked = (
        pool[greedy_coreset(rows[pool].contiguous(), count)] if recipe.coreset else pool[:count]
    )
    bank = MemoryBank(rows[picked].contiguous(), owner[picked])

    def maps_of(some: npt.NDArray[np.intp], own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        mine = torch.arange(len(some)).repeat_interleave(h * w) if own else None
        distances, _ = bank.search(x[some].flatten(0, 2).contiguous(), mine)
        grid = distances.view(-1, h, w)
        found = smooth_maps(grid, MAP, 4.0 * MAP[0] / 256)
        return (found if recipe.peak else grid).flatten(1).max(dim=1).values, found

    few = learned[: min(n, 40)]
    trained = np.sort(maps_of(few, own=True)[0].numpy())
    threshold = trained[min(int(np.ceil(0.95 * (len(few) + 1))), len(few)) - 1]
    good, good_maps = maps_of(np.flatnonzero(what == "good"))
    figures = {"alarms": float((good.numpy() >= threshold).mean())}
    for kind in ("real", "pasted"):
        chosen = np.flatnonzero(np.char.startswith(what, kind + ":"))
        if len(chosen) == 0:
            continue
        bad, bad_maps = maps_of(chosen)
        scores = np.concatenate([good.numpy(), bad.numpy()])
        truth = np.repeat([0, 1], [len(good), len(bad)])
        figures[kind] = float(roc_auc_score(truth, scores))
        figures[kind + " to 0.1"] = float(roc_auc_score(truth, scores, max_fpr=0.1))
        figures[kind + " recall"] = float((bad.numpy() >= threshold).mean())
        each = [
            roc_auc_score(
                np.repeat([0, 1], [len(good), int((what[chosen] == one).sum())]),
                np.concatenate([good.numpy(), bad.numpy()[what[chosen] == one]]),
            )
            for one in np.unique(what[chosen])
        ]
        figures[kind + " least kind"] = float(min(each))
        if kind == "pasted":
            where = [cv2.resize(pictures[i].mask.astype(np.float32), MAP) > 0.2 for i in chosen]
            masks = np.concatenate([np.zeros(good_maps.shape, bool), np.stack(where)])
            every = torch.cat([good_maps, bad_maps]).numpy()
            figures["AUPRO 0.05"] = compute_aupro(masks, every, 0.05) or float("nan")
    return figures


def side_of(pictures: list[Example]) -> int:
    """What the product looks at these images at."""
    from pyimgano.models.working_size import working_size

    return working_size([one.image for one in pictures])[0]


def line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", "bottle", "moved", "demo"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(thread_count())
    for name in arguments.sets:
        pictures = list(examples(arguments.root, name))
        print(f"{name}: {len(pictures)} images", flush=True)
        for recipe_name in arguments.recipes:
            recipe = RECIPES[recipe_name]
            x = features(pictures, recipe, recipe.size or side_of(pictures))
            found = [measured(pictures, x, recipe, seed) for seed in range(arguments.seeds)]
            for seed, figures in enumerate(found):
                print(f"  {recipe_name}, seed {seed}: {line(figures)}", flush=True)
            each = {key: np.array([one[key] for one in found]) for key in found[0]}
            print(f"  {recipe_name}, mean: {line({k: float(v.mean()) for k, v in each.items()})}")
            print(
                f"  {recipe_name}, spread: {line({k: float(np.ptp(v)) for k, v in each.items()})}"
            )


if __name__ == "__main__":
    main()
