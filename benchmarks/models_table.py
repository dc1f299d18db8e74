"""Every registered model by the one-click command, as a table.

    python benchmarks/models_table.py ROOT [--models NAME ...] [--preset PRESET]
        [--categories bottle magnetic_tile] [--kwargs JSON]

Each model runs at its defaults in a process of its own, `pyimgano-benchmark --category ...`, and a
row is printed as soon as it is done: image AUROC, pixel AUROC, AUPRO to 0.30, recall and false
alarms at the calibrated threshold, seconds of the fit, milliseconds an image to decode and score;
of a network that is trained also the first and last loss, and whether it was still falling.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyimgano.models import list_models
from pyimgano.threads import thread_count

HEAD = (
    "| model | category | image AUROC | pixel AUROC | AUPRO | recall | false alarms | fit s "
    "| ms an image | loss |"
)


def in_words(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def row(report: dict[str, Any]) -> str:
    """A line of the table from a category's report."""
    results, alarms = report["results"], report["calibration"]["measured_false_alarm_rate"]
    pixels = results.get("pixel_metrics") or {}
    timing, training = report["timings"], report["detector"].get("training")
    cells = [
        report["model"],
        report["category"],
        in_words(results["auroc"]),
        in_words(pixels.get("pixel_auroc")),
        in_words(pixels.get("aupro")),
        in_words(results["metrics"]["recall"]),
        f"{alarms['false_alarms']} of {alarms['good_images']}",
        f"{timing['fit_seconds']:.1f}",
        f"{timing['milliseconds_per_image']:.1f}",
        "" if training is None else json.dumps(training),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--models", nargs="+", default=None)
    parser.add_argument("--categories", nargs="+", default=["bottle", "magnetic_tile"])
    parser.add_argument("--preset")
    parser.add_argument("--kwargs", help="keywords of the models, JSON")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {thread_count()} threads")
    print(HEAD)
    print("|" + "---|" * (HEAD.count("|") - 1), flush=True)
    for model in arguments.models or list_models():
        for category in arguments.categories:
            command = [sys.executable, "-m", "pyimgano", "benchmark", "--dataset", "mvtec"]
            command += ["--root", str(arguments.root), "--category", category]
            command += ["--model", model, "--no-save-run", "--json"]
            if arguments.preset is not None:
                command += ["--preset", arguments.preset]
            if arguments.kwargs is not None:
                command += ["--model-kwargs", arguments.kwargs]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                print(f"| {model} | {category} | failed: {last} |", flush=True)
                continue
            print(row(json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
