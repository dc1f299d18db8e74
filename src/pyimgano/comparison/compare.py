"""Two or more runs side by side: metrics with their differences, and decisions that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .bootstrap import CONFIDENCE, IMAGE_METRICS, RESAMPLES, Floats, interval, replicates
from .run_facts import (
    METRICS,
    CategoryFacts,
    ImageFacts,
    RunFacts,
    read_run_facts,
    settings_that_differ,
)

#: Raised when a field changes its meaning or goes away; additions leave it alone.
SCHEMA_VERSION = 1
#: What a run cost, by name, with what tables call it.
COSTS = {
    "fit_seconds": "fitting, s",
    "milliseconds_per_image": "an image, ms",
    "peak_memory_bytes": "most memory, MB",
    "bank_rows": "patches kept",
}
# What stands for all categories together.
MEAN = "mean"


@dataclass(frozen=True)
class Change:
    """An image that runs decide differently about.

    Attributes
    ----------
    category
        Of the image.
    image
        Its path below the dataset's root.
    defect
        Its kind.
    label
        1 defective, 0 good, None without a label.
    scores, ratios, decisions
        Of each run: the score, its multiple of the threshold, and 1 defective or 0 good.
    what
        In words, what the last run does that the first does not, as far as these two differ.
    """

    category: str
    image: str
    defect: str
    label: int | None
    scores: list[float | None]
    ratios: list[float | None]
    decisions: list[int | None]
    what: str


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; the differences are against the first.

    Attributes
    ----------
    runs
        In the order they were given.
    labels
        What each is called: as short as tells them apart.
    settings
        Those that differ, by name: the value of each run.
    notes
        What a reader has to know first: runs that are not finished, data that differ.
    rows
        For every category, and the mean where there are several: `category`, `metric`, the `values`
        of each run, the `differences` from the first, and their `intervals` where the images that
        both have scored allow one.
    costs
        For every category: `category`, `cost` and `values`.
    changes
        Images about which runs decide differently; those that a run could not read are not among
        them.
    images
        By category, how many images all runs have scored.
    """

    runs: list[RunFacts]
    labels: list[str]
    settings: dict[str, list[Any]]
    notes: list[str]
    rows: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    changes: list[Change]
    images: dict[str, int]

    def document(self) -> dict[str, Any]:
        """Return everything as plain values that `json.dumps` takes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "comparison",
            "runs": [
                {
                    "path": str(run.path),
                    "label": label,
                    "dataset": run.dataset,
                    "model": run.model,
                    "status": run.status,
                }
                for run, label in zip(self.runs, self.labels, strict=True)
            ],
            "notes": self.notes,
            "settings": self.settings,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "images": self.images,
            "metrics": self.rows,
            "costs": self.costs,
            "changes": [asdict(one) for one in self.changes],
        }


def compare_runs(paths: Sequence[str | Path], *, seed: int = 0) -> Comparison:
    """Compare runs with the first of them.

    Parameters
    ----------
    paths
        Run directories, at least two; of any version, finished or not.
    seed
        Of the random numbers that the intervals are made with.

    Raises
    ------
    UsageError
        Fewer than two runs, or one is named twice.
    DataError
        One of them is not a run directory.
    """
    if len(paths) < 2:
        raise UsageError("give at least two run directories to compare")
    if len({Path(one).resolve() for one in paths}) < len(paths):
        raise UsageError("a run is named twice; there is nothing to compare it with")
    runs = [read_run_facts(one) for one in paths]
    labels = short_labels(runs)
    notes = [
        f"{label}: {note}" for run, label in zip(runs, labels, strict=True) for note in run.notes
    ]
    notes += _different_data(runs, labels)
    categories = list(dict.fromkeys(name for run in runs for name in run.categories))
    rows: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    changes: list[Change] = []
    images: dict[str, int] = {}
    drawn: list[list[dict[str, Floats]]] = []
    for number, name in enumerate(categories):
        each = [run.categories.get(name) for run in runs]
        shared = _shared(each)
        images[name] = len(shared)
        scored = [_scored(one) for one in each if one is not None]
        if shared and max(scored) > len(shared):
            notes.append(
                f"{name}: intervals and changed decisions are over the {len(shared)} of up to "
                f"{max(scored)} test images that every run has scored"
            )
        samples = _samples(shared, seed + number)
        drawn.append(samples)
        rows += _rows(name, [{} if one is None else one.metrics for one in each], samples)
        costs += _costs(name, each)
        changes += _changes(name, shared)
    if len(categories) > 1:
        rows += _mean_rows(runs, categories, drawn, notes, labels)
    return Comparison(runs, labels, _different_settings(runs), notes, rows, costs, changes, images)


def short_labels(runs: Sequence[RunFacts]) -> list[str]:
    """Return names that tell runs apart: of the folder, or as much of the path as that takes."""
    parts = [run.path.resolve().parts for run in runs]
    for count in range(1, max(len(one) for one in parts) + 1):
        labels = ["/".join(one[-count:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(run.path) for run in runs]


def _different_settings(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    if any(run.model != runs[0].model for run in runs):
        found["model"] = [run.model for run in runs]
    for name in settings_that_differ(runs):
        found[name] = [run.settings.get(name) for run in runs]
    return found


def _different_data(runs: Sequence[RunFacts], labels: Sequence[str]) -> list[str]:
    """Say where runs were not measured on the same data, each against the first."""
    first, said = runs[0], []
    for run, label in zip(runs[1:], labels[1:], strict=True):
        where = f"{label} and {labels[0]}"
        if run.dataset != first.dataset:
            said.append(f"{where}: the datasets differ, {run.dataset} and {first.dataset}")
        elif run.split != first.split:
            said.append(f"{where}: the splits differ, {run.split} and {first.split}")
        if run.kind != first.kind:
            said.append(f"{where}: one is a robustness run, of which the clean images are compared")
        for name, one in run.categories.items():
            other = first.categories.get(name)
            if other is None:
                said.append(f"{name}: only {label} has this category, not {labels[0]}")
                continue
            said += [f"{name}: {where}: {what}" for what in _different_files(one, other)]
        said += [
            f"{name}: only {labels[0]} has this category, not {label}"
            for name in first.categories
            if name not in run.categories
        ]
    return said


def _different_files(one: CategoryFacts, other: CategoryFacts) -> list[str]:
    if one.files is not None and other.files is not None:
        said = []
        kinds = {
            "training images": "train",
            "images to calibrate on": "validation",
            "test images": "test",
            "masks": "mask",
        }
        for words, use in kinds.items():
            mine = {key: sha for key, sha in one.files.items() if key[0].split(" ")[0] == use}
            others = {key: sha for key, sha in other.files.items() if key[0].split(" ")[0] == use}
            added, missing = len(mine.keys() - others.keys()), len(others.keys() - mine.keys())
            changed = sum(mine[key] != others[key] for key in mine.keys() & others.keys())
            counts = {"only in the first": added, "only in the second": missing}
            counts["with another content"] = changed
            parts = [f"{count} {text}" for text, count in counts.items() if count]
            if parts:
                said.append(f"the {words} differ: {', '.join(parts)}")
        return said
    if one.images and other.images and one.images.keys() != other.images.keys():
        return [f"the test images differ: {len(one.images)} and {len(other.images)}"]
    if one.metrics and other.metrics and not (one.images and other.images):
        return ["it is not known whether the images are the same, for a run does not list them"]
    return []


def _scored(category: CategoryFacts) -> int:
    return sum(one.score is not None for one in category.images.values())


def _shared(each: Sequence[CategoryFacts | None]) -> list[tuple[str, list[ImageFacts]]]:
    """Return the images that every run has scored, with what each says of them.

    An image whose label or content differs between runs is another image.
    """
    if any(one is None or not one.images for one in each):
        return []
    known = [one for one in each if one is not None]
    tested = [
        {path: sha for (use, path), sha in (one.files or {}).items() if use.startswith("test")}
        for one in known
    ]
    found = []
    for key in known[0].images:
        facts = [one.images[key] for one in known if key in one.images]
        contents = {files[key] for files in tested if files.get(key) is not None}
        if (
            len(facts) == len(known)
            and len(contents) <= 1
            and len({one.label for one in facts}) == 1
            and all(one.score is not None and one.pred is not None for one in facts)
        ):
            found.append((key, facts))
    return found


def _samples(shared: Sequence[tuple[str, list[ImageFacts]]], seed: int) -> list[dict[str, Floats]]:
    labelled = [facts for _, facts in shared if facts[0].label is not None]
    if not labelled:
        return []
    labels = np.array([facts[0].label == 1 for facts in labelled])
    count = len(labelled[0])
    each = [
        (
            np.array([facts[run].score for facts in labelled], np.float64),
            np.array([facts[run].pred == 1 for facts in labelled]),
        )
        for run in range(count)
    ]
    return replicates(labels, each, seed=seed)


def _rows(
    category: str,
    metrics: Sequence[dict[str, float | None]],
    samples: Sequence[dict[str, Floats]],
) -> list[dict[str, Any]]:
    rows = []
    for name in METRICS:
        values = [one.get(name) for one in metrics]
        if all(value is None for value in values):
            continue
        differences = [_difference(value, values[0]) for value in values[1:]]
        intervals: list[list[float] | None] = [None] * len(differences)
        if samples and name in IMAGE_METRICS and name in samples[0]:
            intervals = [
                None if one is None else [*interval(other[name] - samples[0][name])]
                for one, other in zip(differences, samples[1:], strict=True)
            ]
        rows.append(
            {
                "category": category,
                "metric": name,
                "values": values,
                "differences": differences,
                "intervals": intervals,
            }
        )
    return rows


def _mean_rows(
    runs: Sequence[RunFacts],
    categories: Sequence[str],
    drawn: Sequence[list[dict[str, Floats]]],
    notes: list[str],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the rows of the means over the categories that every run has measured."""
    both = [name for name in categories if all(name in run.measured for run in runs)]
    if not both:
        notes.append("no category was measured by every run, so there are no means")
        return []
    left = [name for name in categories if name not in both]
    if left:
        notes.append(
            f"means are over {len(both)} of {len(categories)} categories, those that every run has "
            f"measured: without {', '.join(left)}"
        )
    rows = []
    for name in METRICS:
        known = [
            one
            for one in both
            if all(run.categories[one].metrics[name] is not None for run in runs)
        ]
        if not known:
            continue
        table = np.array([[run.categories[one].metrics[name] for one in known] for run in runs])
        values = [float(value) for value in table.astype(np.float64).mean(axis=1)]
        differences = [_difference(value, values[0]) for value in values[1:]]
        samples = [drawn[categories.index(one)] for one in known]
        intervals: list[list[float] | None] = [None] * len(differences)
        if name in IMAGE_METRICS and all(one and name in one[0] for one in samples):
            for number in range(len(differences)):
                parts = [one[number + 1][name] - one[0][name] for one in samples]
                intervals[number] = [*interval(np.mean(parts, axis=0))]
        rows.append(
            {
                "category": MEAN,
                "metric": name,
                "values": values,
                "differences": differences,
                "intervals": intervals,
            }
        )
    return rows


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _costs(category: str, each: Sequence[CategoryFacts | None]) -> list[dict[str, Any]]:
    rows = []
    for name in COSTS:
        values = [None if one is None else one.costs.get(name) for one in each]
        if any(value is not None for value in values):
            rows.append({"category": category, "cost": name, "values": values})
    return rows


def _changes(category: str, shared: Sequence[tuple[str, list[ImageFacts]]]) -> list[Change]:
    found = []
    for key, facts in shared:
        decisions = [one.pred for one in facts]
        if len(set(decisions)) == 1:
            continue
        label = facts[0].label
        found.append(
            Change(
                category,
                key,
                facts[0].defect,
                label,
                [one.score for one in facts],
                [_ratio(one) for one in facts],
                decisions,
                _words(label, decisions),
            )
        )
    order = list(dict.fromkeys(_WORDS.values()))

    def rank(one: Change) -> tuple[int, float]:
        first, last = one.ratios[0] or 0.0, one.ratios[-1] or 0.0
        return order.index(one.what) if one.what in order else len(order), -abs(last - first)

    return sorted(found, key=rank)


# By the label and the decision of the last run.
_WORDS = {
    (1, 0): "missed now",
    (0, 1): "false alarm now",
    (1, 1): "found now",
    (0, 0): "no false alarm any more",
    (None, 1): "defective now",
    (None, 0): "good now",
}


def _words(label: int | None, decisions: Sequence[int | None]) -> str:
    last = decisions[-1]
    if len(decisions) > 2 or last is None:
        return "decisions differ"
    return _WORDS[label, last]


def _ratio(image: ImageFacts) -> float | None:
    if image.ratio is not None or image.score is None or not image.threshold:
        return image.ratio
    from ..calibration import score_ratio  # records of early versions have no ratio

    return score_ratio(image.score, image.threshold)
