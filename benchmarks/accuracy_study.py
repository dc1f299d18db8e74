"""Recipes of a memory bank on a small backbone, on real defects and on pasted ones.

    python benchmarks/accuracy_study.py ROOT [--sets magnetic_tile bottle moved fabric washer]
        [--recipes paper default ...] [--seeds 5] [--kwargs JSON] [--shots N]

ROOT holds `bottle` and `magnetic_tile` in MVTec layout. Half of a category's good training images
are learned from; the others, and the good test images, are good test images, and defects of six
kinds are pasted into copies of them at places that are known. `moved` is bottle, each image
turned and shifted by chance; `fabric` and `washer` are the demo's. A recipe is the product's own
detector with other keywords or constants. For each set, recipe and seed one line: false alarms at
the threshold that promises 5 %; then of real defects and of pasted ones AUROC, AUROC to a
false-positive rate of 0.1 (McClish's scale, 0.5 is chance), recall at that threshold, and the least
AUROC of one kind (chosen with that kind left out, a recipe must not lose it); and AUPRO to 0.05 of
the pasted ones. Then mean and spread over the seeds.

`--kwargs` are keywords that every recipe gets: a backbone and its weights, such as
'{"backbone": "dinov2_vits14_reg", "weights": "dinov2_vits14_reg4_pretrain.pth"}'. `--shots` learns
from the first N images alone. Recipes whose names begin with `transformer` want such a backbone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from pyimgano.datasets import load_dataset
from pyimgano.evaluation import compute_aupro
from pyimgano.images import read_image
from pyimgano.models import create_model
from pyimgano.models.registry import preset_keywords

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
DEMO = ("fabric", "washer")
KINDS = ("texture", "scratch", "stain", "missing", "deform", "dots")
MAP = (128, 128)  # pixels of the maps that are measured


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
    """Of a category, of `moved`, or of one of the demo's categories, drawn on the spot."""
    category = "bottle" if name == "moved" else name
    drawn_here = name in DEMO
    data = load_dataset("demo" if drawn_here else "mvtec", None if drawn_here else root, category)
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
    """Keywords of `vision_patchcore`, and constants of its modules that are changed."""

    keywords: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)


NEAR = ("blocks.4", "blocks.10")
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "paper": {"recipe": "paper"},
    "paper, cosine": {"recipe": "paper", "layers": ("0.5.normed.unit", "0.75.normed.unit")},
    "paper, last block": {"recipe": "paper", "layers": ("1.0.normed",)},
    "whitened": {"recipe": "whitened"},
    "anomalydino": {"model": "vision_anomalydino"},
    "subspace": {"model": "vision_subspace"},
    "rad": {"model": "vision_rad"},
    "dinomaly": {"model": "vision_dinomaly", "resize": (392, 392)},
}
RECIPES = {
    "paper": Recipe({"recipe": "paper"}),
    "default": Recipe(),
    "no context": Recipe({"layers": NEAR}),
    "context at 0.25": Recipe({}, {"power_means.CONTEXT_WEIGHT": 0.25}),
    "context at 1": Recipe({}, {"power_means.CONTEXT_WEIGHT": 1.0}),
    "deepest block as context": Recipe({"layers": (*NEAR, "blocks.15")}),
    "no scale": Recipe({}, {"neighbors.patch_memory._POWER": 0.0}),
    "scale at 1": Recipe({}, {"neighbors.patch_memory._POWER": 1.0}),
    "no border": Recipe({}, {"neighbors.patch_memory._BORDER": 0}),
    "neither": Recipe(
        {}, {"neighbors.patch_memory._POWER": 0.0, "neighbors.patch_memory._BORDER": 0}
    ),
    "fine grid": Recipe({"patch_grid": "fine"}),
    "bank of 20,000": Recipe({"max_bank_size": 20_000}),
    "pool of twice the bank": Recipe({}, {"neighbors.patch_memory.POOL": 2}),
    "256 pixels, fine grid": Recipe(
        {"resize": (256, 256), "patch_grid": "fine", "max_bank_size": 4096}
    ),
    "320 pixels, small bank": Recipe({"resize": (320, 320), "max_bank_size": 4096}),
    **{
        f"{size} pixels": Recipe({"resize": (size, size)})
        for size in (192, 256, 320, 384, 512, 640)
    },
    "fast": Recipe(preset_keywords("vision_patchcore", "industrial-fast")),
    "accurate": Recipe(preset_keywords("vision_patchcore", "industrial-accurate")),
    **{
        name.removeprefix("vision_"): Recipe({"model": name})
        for name in ("vision_padim", "vision_dfm", "vision_softpatch")
    },
    **{
        f"transformer {name}": Recipe({"resize": (448, 448), **keywords})
        for name, keywords in TRANSFORMERS.items()
    },
}


@contextmanager
def changed(constants: dict[str, float]) -> Iterator[None]:
    """Constants `module.NAME` below `pyimgano.models`, for a while."""
    before = []
    for path, value in constants.items():
        module_name, _, name = path.rpartition(".")
        module = import_module(f"pyimgano.models.{module_name}")
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def measured(
    pictures: list[Example], recipe: Recipe, seed: int, shared: dict[str, Any], shots: int | None
) -> dict[str, float]:
    """The figures of one line: of the product itself, fitted on the examples to learn from."""
    what = np.array([one.what for one in pictures])
    keywords = {"model": "vision_patchcore", "calibration_quantile": 0.95, **shared}
    keywords |= recipe.keywords
    with changed(recipe.constants):
        detector = create_model(keywords.pop("model"), random_seed=seed, **keywords)
        detector.fit([one.image for one in pictures if one.what == "train"][:shots])
        tested = np.flatnonzero(what != "train")
        scores = np.zeros(len(pictures))
        maps = np.zeros((len(pictures), *MAP), np.float32)
        for result in detector.score_images([pictures[i].image for i in tested]):
            assert result.score is not None and result.anomaly_map is not None
            scores[tested[result.index]] = result.score
            maps[tested[result.index]] = cv2.resize(
                result.anomaly_map, MAP[::-1], interpolation=cv2.INTER_AREA
            )
    good = np.flatnonzero(what == "good")
    figures = {"alarms at 5 %": float((scores[good] >= detector.threshold_).mean())}
    for kind in ("real", "pasted"):
        bad = np.flatnonzero(np.char.startswith(what, kind + ":"))
        if len(bad) == 0:
            continue
        truth, found = np.repeat([0, 1], [len(good), len(bad)]), scores[np.r_[good, bad]]
        figures[kind] = float(roc_auc_score(truth, found))
        figures[kind + " to 0.1"] = float(roc_auc_score(truth, found, max_fpr=0.1))
        figures[kind + " recall"] = float((scores[bad] >= detector.threshold_).mean())
        each = []
        for one in np.unique(what[bad]):
            some = np.flatnonzero(what == one)
            truth = np.repeat([0, 1], [len(good), len(some)])
            each.append(roc_auc_score(truth, scores[np.r_[good, some]]))
        figures[kind + " least kind"] = float(min(each))
        if kind == "pasted":
            where = [cv2.resize(pictures[i].mask.astype(np.float32), MAP[::-1]) > 0.2 for i in bad]
            masks = np.concatenate([np.zeros((len(good), *MAP), bool), np.stack(where)])
            aupro = compute_aupro(masks, maps[np.r_[good, bad]], 0.05)
            figures["AUPRO 0.05"] = float("nan") if aupro is None else aupro
    return figures


def line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", "bottle", "moved", *DEMO])
    usual = [name for name in RECIPES if not name.startswith("transformer")]
    parser.add_argument("--recipes", nargs="+", default=usual, choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--shots", type=int, metavar="N")
    arguments = parser.parse_args()
    for name in arguments.sets:
        pictures = list(examples(arguments.root, name))
        print(f"{name}: {len(pictures)} images", flush=True)
        for recipe_name in arguments.recipes:
            recipe = RECIPES[recipe_name]
            found = [
                measured(pictures, recipe, seed, arguments.kwargs, arguments.shots)
                for seed in range(arguments.seeds)
            ]
            for seed, figures in enumerate(found):
                print(f"  {recipe_name}, seed {seed}: {line(figures)}", flush=True)
            each = {key: np.array([one[key] for one in found]) for key in found[0]}
            print(f"  {recipe_name}, mean: {line({k: float(v.mean()) for k, v in each.items()})}")
            print(
                f"  {recipe_name}, spread: {line({k: float(np.ptp(v)) for k, v in each.items()})}"
            )


if __name__ == "__main__":
    main()
