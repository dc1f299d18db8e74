"""Whether two versions of the program give the same results, but for times.

    git worktree add /tmp/before REVISION
    python benchmarks/same_results.py /tmp/before/src src --root ROOT [--categories bottle ...]
        [--models vision_patchcore vision_padim ...]

Each version runs the demo, and the categories of ROOT (MVTec layout), with every model named, keeps
the detectors, and exports the first of them. Then every file that both left is compared: JSON
documents value by value, arrays bit by bit. What tells of time, place or version is left out. The
exit status is 0 where nothing differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

#: Keys of documents that may differ between two runs of one version.
MAY_DIFFER = {
    "started_at", "finished_at", "resumed_at", "resumed", "at", "timings", "run_dir", "root",
    "command_line", "pyimgano_version", "cpu", "host", "output_dir", "path", "input", "folder",
    "saved_at", "created_at", "elapsed_seconds", "source", "sha256", "schema_version",
    "arguments", "modified", "environment",
}  # fmt: skip


def run(
    source: Path, out: Path, root: Path | None, categories: list[str], models: list[str]
) -> None:
    """Leave the runs of one version, whose packages lie in `source`, below `out`."""
    environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
    jobs: list[tuple[str, Path | None, str, str]] = [("demo", None, "all", one) for one in models]
    if root is not None:
        jobs += [("mvtec", root, name, model) for name in categories for model in models]
    for number, (dataset, where, category, model) in enumerate(jobs):
        runs = out / f"{dataset}_{category}_{model}"
        call = [
            sys.executable, "-m", "pyimgano", "benchmark", "--dataset", dataset,
            "--category", category, "--model", model, "--save-model", "--output-dir", str(runs),
        ]  # fmt: skip
        if where is not None:
            call += ["--root", str(where)]
        done = subprocess.run(call, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{source}: {' '.join(call)}\n{done.stderr[-2000:]}")
        if number == 0:
            model_folder = next(runs.rglob("detector.json")).parent
            export = [
                sys.executable, "-m", "pyimgano", "export", "--model-dir", str(model_folder),
                "--format", "torch", "--output", str(out / "export"),
            ]  # fmt: skip
            subprocess.run(export, env=environment, check=True, capture_output=True)


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield where two JSON values differ, and how."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after} - MAY_DIFFER):
            if key not in before or key not in after:
                yield f"{where}/{key}: only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after)):
            yield from differences(*pair, f"{where}[{number}]")
    elif before != after:
        yield f"{where}: {before!r} was {str(after)[:80]!r}"[:200]


def documents(path: Path) -> Any:
    """Return what a .json or .jsonl file holds."""
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def compare(before: Path, after: Path) -> list[str]:
    """Return in words how the files below two folders differ."""
    found: list[str] = []
    ours, theirs = (_files(folder) for folder in (before, after))
    found += [f"{name}: only before" for name in sorted(ours.keys() - theirs.keys())]
    found += [f"{name}: only after" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a.suffix in (".json", ".jsonl"):
            found += [f"{name}{one}" for one in differences(documents(a), documents(b))]
        elif a.suffix == ".safetensors":
            found += [f"{name}: {one}" for one in _arrays(a, b)]
    return found


def _files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder, by their path without the names that hold a time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts = [
                "RUN" if part[:8].isdigit() else part for part in path.relative_to(folder).parts
            ]
            found["/".join(parts)] = path
    return found


def _arrays(before: Path, after: Path) -> Iterator[str]:
    try:
        ours, theirs = load_file(before), load_file(after)
    except SafetensorError as error:
        yield f"cannot be read ({error})"
        return
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            yield f"array {name}: only {'after' if name in theirs else 'before'}"
        elif not np.array_equal(ours[name], theirs[name]):
            yield f"array {name} differs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="src folder of one version")
    parser.add_argument("after", type=Path, help="src folder of the other")
    parser.add_argument("--root", type=Path, help="a folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", default=["bottle", "magnetic_tile"])
    parser.add_argument("--models", nargs="+", default=["vision_patchcore"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / name for name in ("before", "after")]
        for source, out in zip((arguments.before, arguments.after), sides):
            run(source, out, arguments.root, arguments.categories, arguments.models)
        found = compare(*sides)
    print("\n".join(found) or "no difference but for times")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
