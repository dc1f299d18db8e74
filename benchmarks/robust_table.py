"""False alarms and missed defects of two recipes when images drift.

    python benchmarks/robust_table.py ROOT [MORE_ROOT ...] [--sets bottle magnetic_tile ...]
        [--recipes default paper] [--severities 1 2 3] [--corruptions NAME ...] [--limit-test N]

Each ROOT holds categories in MVTec layout; a set is taken from the first that has it, and the
demo's, `washer` and `fabric`, from the demo. A detector is fitted on clean images and measured by
the product's own robustness benchmark, at its default threshold. One row for each set, recipe and
corruption: false alarms among the good test images and defects that were missed, in percent, at
each severity. Then for each set and recipe the corruption with the most false alarms at the
first severity.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyimgano.images import CORRUPTIONS
from pyimgano.pipelines import run_robust_benchmark

DEMO = ("washer", "fabric")
RECIPES: dict[str, dict[str, Any]] = {"default": {}, "paper": {"recipe": "paper"}}


def measured(name: str, roots: list[Path], recipe: str, arguments: argparse.Namespace) -> Any:
    """The robustness report of a set under a recipe."""
    if name in DEMO:
        source: dict[str, Any] = {"dataset": "demo"}
    else:
        source = {"dataset": "mvtec", "root": next(r for r in roots if (r / name).is_dir())}
    return run_robust_benchmark(
        **source,
        category=name,
        corruptions=arguments.corruptions,
        severities=arguments.severities,
        model_kwargs=RECIPES[recipe],
        limit_test=arguments.limit_test,
        pixel=False,
        save_run=False,
        cache_dir=arguments.cache_dir,
    )


def pair(found: dict[str, Any]) -> str:
    """False alarms and missed defects of one condition, in percent."""
    rates = [found["metrics"][key] for key in ("false_alarm_rate", "missed_defect_rate")]
    return " / ".join("-" if rate is None else f"{100 * rate:.0f}" for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument(
        "--sets", nargs="+", default=["bottle", "magnetic_tile", "washer", "solar_mono"]
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS))
    parser.add_argument("--limit-test", type=int, help="test images, at most")
    parser.add_argument("--cache-dir", type=Path, help="keeps features of the training images")
    arguments = parser.parse_args()
    severities = " | ".join(f"severity {one}" for one in arguments.severities)
    print(f"| set | recipe | corruption | {severities} |")
    print("|---|---|---|" + "---|" * len(arguments.severities))
    worst = []
    for name in arguments.sets:
        for recipe in arguments.recipes:
            report = measured(name, arguments.roots, recipe, arguments)
            print(f"| {name} | {recipe} | clean | {pair(report['clean'])} |", flush=True)
            mildest = {}
            for corruption, one in report["corruptions"].items():
                cells = " | ".join(pair(found) for found in one["severities"])
                print(f"| {name} | {recipe} | {corruption} | {cells} |", flush=True)
                mildest[corruption] = one["severities"][0]["metrics"]["false_alarm_rate"] or 0.0
            most = max(mildest, key=lambda key: mildest[key])
            worst.append((name, recipe, most, mildest[most]))
    print(f"\nMost false alarms at severity {arguments.severities[0]}:")
    for name, recipe, corruption, rate in worst:
        print(f"  {name}, {recipe}: {100 * rate:.0f} % ({corruption})")


if __name__ == "__main__":
    main()
