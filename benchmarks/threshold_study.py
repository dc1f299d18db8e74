"""Estimates of the threshold compared: false alarms and recall, on real scores and drawn ones.

    python benchmarks/threshold_study.py --root FOLDER --dataset mvtec [--model M] [--scores FOLDER]
    python benchmarks/threshold_study.py --scores FOLDER      # of scores that were kept
    python benchmarks/threshold_study.py --drawn              # distributions whose tail is known

Each category is fitted once; the scores of its training images and test images are kept in
--scores as <category>.<model>.npz. Estimates are compared in two ways: on the test images, and by
calibrating on two thirds of the training scores, drawn many times, and counting the rest. The
promise is 0.5 % throughout. docs/threshold.md has the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from pyimgano.calibration import calibrate, clopper_pearson

Scores = npt.NDArray[np.float64]
RATE = 0.005
SPLITS = 200


def shipped(tail: str) -> Callable[[Scores], float]:
    """The threshold of `calibrate` with this tail."""
    return lambda scores: calibrate(scores, 1 - RATE, method="study", tail=tail).threshold


def empirical(scores: Scores) -> float:
    """The interpolated quantile, as numpy has it."""
    return float(np.quantile(scores, 1 - RATE))


def plain_exponential(scores: Scores) -> float:
    """Mean excess above the 85 % quantile without the largest twentieth, not corrected."""
    begin = np.quantile(scores, 0.85)
    excesses = np.sort(scores[scores > begin] - begin)
    kept = excesses[: max(1, len(excesses) - int(np.ceil(len(excesses) / 20)))]
    return float(begin + kept.mean() * np.log(0.15 / RATE))


def gumbel(scores: Scores) -> float:
    """A Gumbel distribution through the median and the 90 % quantile."""
    median, high = np.quantile(scores, [0.5, 0.9])
    scale = (high - median) / (stats.gumbel_r.ppf(0.9) - stats.gumbel_r.ppf(0.5))
    return float(median + scale * (stats.gumbel_r.ppf(1 - RATE) - stats.gumbel_r.ppf(0.5)))


ESTIMATES: dict[str, Callable[[Scores], float]] = {
    "conformal": shipped("conformal"),
    "exponential": shipped("exponential"),
    "empirical": empirical,
    "plain exponential": plain_exponential,
    "gumbel": gumbel,
}

DRAWN: dict[str, Callable[[np.random.Generator, int], Scores]] = {
    "normal": lambda random, n: random.normal(size=n),
    "gamma 4": lambda random, n: random.gamma(4.0, size=n),
    "exponential": lambda random, n: random.exponential(size=n),
    "lognormal 0.5": lambda random, n: np.exp(0.5 * random.normal(size=n)),
    "Student t 5": lambda random, n: random.standard_t(5, size=n),
}


def fit(root: Path, dataset: str, model: str, preset: dict[str, str], keep: Path) -> None:
    """Fit every category of a dataset once, and keep its scores."""
    from pyimgano import create_model, load_dataset
    from pyimgano.pipelines import list_dataset_categories

    keep.mkdir(parents=True, exist_ok=True)
    for category in list_dataset_categories(dataset=dataset, root=root):
        target = keep / f"{category}.{model}.npz"
        if target.exists():
            continue
        loaded = load_dataset(dataset, root, category, load_masks=False)
        paths, labels, _ = loaded.get_test_paths()
        detector = create_model(model, **preset).fit(loaded.get_train_paths())
        np.savez(
            target,
            train=detector.decision_scores_,
            test=detector.decision_function(paths),
            label=np.asarray(labels),
        )
        print(f"{category}: {detector.n_train_} images", flush=True)


def real(folder: Path) -> None:
    """Tables of all scores that were kept."""
    files = sorted(folder.glob("*.npz"))
    alarms = dict.fromkeys(ESTIMATES, 0)
    recalls: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    good_images = 0
    for path in files:
        found = np.load(path)
        train, test, label = found["train"], found["test"], found["label"]
        good, bad = test[label == 0], test[label == 1]
        good_images += len(good)
        print(f"\n{path.stem}: {len(train)} scores, {len(good)} good, {len(bad)} defective")
        for name, estimate in ESTIMATES.items():
            threshold = estimate(train)
            count = int((good >= threshold).sum())
            alarms[name] += count
            recalls[name].append(float((bad >= threshold).mean()))
            print(
                f"  {name:18} threshold {threshold:8.4g}  false alarms {count:2d}"
                f"  recall {100 * recalls[name][-1]:3.0f} %"
                f"  left out {100 * _left_out(train, estimate):.2f} %"
            )
    print(f"\nall {len(files)} together, {good_images} good test images")
    for name in ESTIMATES:
        rate = clopper_pearson(alarms[name], good_images)
        assert rate.rate is not None and rate.low is not None and rate.high is not None
        print(
            f"  {name:18} false alarms {100 * rate.rate:.2f} % "
            f"({100 * rate.low:.2f} to {100 * rate.high:.2f}), "
            f"mean recall {100 * np.mean(recalls[name]):.1f} %"
        )


def _left_out(train: Scores, estimate: Callable[[Scores], float]) -> float:
    """Share of a third of the scores above the threshold that the other two thirds lead to."""
    random = np.random.default_rng(0)
    cut = 2 * len(train) // 3
    shares = []
    for _ in range(SPLITS):
        mixed = random.permutation(train)
        shares.append((mixed[cut:] >= estimate(mixed[:cut])).mean())
    return float(np.mean(shares))


def drawn(trials: int = 400) -> None:
    """Mean false-alarm rate of new clean scores, with and without odd training images."""
    print("n    distribution    odd  " + "  ".join(ESTIMATES))
    for n, name, odd in _cases():
        random = np.random.default_rng(0)
        new = np.sort(DRAWN[name](random, 200_000))
        rates: dict[str, list[float]] = {one: [] for one in ESTIMATES}
        for _ in range(trials):
            scores = DRAWN[name](random, n)
            is_odd = random.random(n) < odd
            scores[is_odd] += stats.iqr(scores) * random.uniform(2, 6, int(is_odd.sum()))
            for one, estimate in ESTIMATES.items():
                above = 1 - np.searchsorted(new, estimate(scores)) / len(new)
                rates[one].append(above)
        cells = "  ".join(f"{100 * np.mean(rates[one]):{len(one)}.2f}" for one in ESTIMATES)
        print(f"{n:4d} {name:14}  {100 * odd:3.1f}  {cells}", flush=True)


def _cases() -> Iterator[tuple[int, str, float]]:
    for n in (60, 160, 267, 441):
        for name in DRAWN:
            for odd in (0.0, 0.015):
                yield n, name, odd


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--dataset", default="mvtec")
    parser.add_argument("--model", default="vision_patchcore")
    parser.add_argument("--recipe", help="of vision_patchcore")
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--drawn", action="store_true")
    given = parser.parse_args()
    if given.drawn:
        drawn()
    if given.root is not None:
        if given.scores is None:
            parser.error("--root needs --scores, a folder to keep the scores in")
        preset = {} if given.recipe is None else {"recipe": given.recipe}
        fit(given.root, given.dataset, given.model, preset, given.scores)
    if given.scores is not None:
        real(given.scores)


if __name__ == "__main__":
    main()
