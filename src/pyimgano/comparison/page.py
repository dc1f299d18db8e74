"""The pages of a comparison and of a leaderboard: one file each, complete in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, PyimganoError
from ..metric_names import LOW_IS_GOOD
from ..pages.page_facts import map_file
from ..pages.pictures import MapFacts, Picture, scale_of_colours, take_picture
from ..pages.rendering import render
from ..pages.run_files import read_run
from ..pages.words import multiple
from ..runs import category_folder, find_model, read_map
from .compare import COSTS, MEAN, Change, Comparison
from .leaderboard import Leaderboard, best_of, caption
from .run_facts import METRICS, CategoryFacts, RunFacts

#: Images that a page shows; the others stand in the table that it has of all.
MOST_IMAGES = 60
_PICTURE_BYTES = 60_000
_CALLED = {0: "good", 1: "defective", None: "no decision"}


@dataclass(frozen=True)
class _Side:
    """What one run says of an image that another decides differently about."""

    label: str
    picture: Picture
    ratio: str
    called: str


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison as HTML.

    The images are read again from where they lie. Maps come from the run where it has kept them,
    or else from the detector that it has kept, which scores the image again.
    """
    from .. import __version__

    shown = comparison.changes[:MOST_IMAGES]
    return render(
        "comparison.html",
        title=" and ".join(comparison.labels),
        version=__version__,
        headline=_headline(comparison),
        labels=comparison.labels,
        runs=[
            (label, run.model, str(run.path), run.status)
            for run, label in zip(comparison.runs, comparison.labels, strict=True)
        ],
        notes=comparison.notes,
        settings=[
            (name, ["" if value is None else str(value) for value in values])
            for name, values in comparison.settings.items()
        ],
        rows=[_row(one) for one in comparison.rows],
        several=any(one["category"] == MEAN for one in comparison.rows),
        costs=[
            (one["category"], COSTS[one["cost"]], [cost(one["cost"], v) for v in one["values"]])
            for one in comparison.costs
        ],
        changes=[
            (one, [multiple(ratio) for ratio in one.ratios], [_CALLED[v] for v in one.decisions])
            for one in comparison.changes
        ],
        tiles=_tiles(comparison, shown),
        compared=sum(comparison.images.values()),
        scale=scale_of_colours(),
    )


def leaderboard_page(board: Leaderboard) -> str:
    """Return the page of a leaderboard as HTML."""
    from .. import __version__

    return render(
        "leaderboard.html",
        title="Leaderboard",
        version=__version__,
        columns=[METRICS[name] for name in board.metrics],
        metric=METRICS[board.metric],
        tables=[
            {
                "dataset": table.dataset,
                "caption": caption(board, table),
                "categories": table.categories,
                "notes": table.notes,
                "entries": [
                    (
                        one,
                        [
                            (one.means[name], _best(one, name, best), one.deviations.get(name))
                            for name in board.metrics
                        ],
                    )
                    for one in table.entries
                ],
            }
            for table in board.tables
            for best in [best_of(board, table)]
        ],
        unread=board.unread,
    )


def cost(name: str, value: float | None) -> str:
    """Return what a run cost in words; a dash where it is not known."""
    if value is None:
        return "\N{EN DASH}"
    if name == "peak_memory_bytes":
        return f"{value / 1e6:,.0f}"
    return f"{value:,.0f}" if name == "bank_rows" else f"{value:.1f}"


def _best(entry: Any, name: str, best: Mapping[str, float]) -> bool:
    return entry.rank is not None and name in best and entry.means[name] == best[name]


def _headline(comparison: Comparison) -> str:
    count, images = len(comparison.changes), sum(comparison.images.values())
    if not images:
        return "The runs have no images in common that both have scored"
    if not count:
        return f"The runs decide alike about all of {images} images"
    return f"The runs decide differently on {count} of {images} images"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    name = row["metric"]
    sides = []
    for value, difference, interval in zip(
        row["values"][1:], row["differences"], row["intervals"], strict=True
    ):
        better = None
        if interval is not None and not interval[0] <= 0.0 <= interval[1]:
            better = (difference > 0) != (name in LOW_IS_GOOD)
        sides.append(
            {"value": value, "difference": difference, "interval": interval, "better": better}
        )
    return {
        "category": row["category"],
        "metric": name,
        "title": METRICS[name],
        "first": row["values"][0],
        "sides": sides,
    }


def _tiles(
    comparison: Comparison, changes: Sequence[Change]
) -> list[tuple[Change, str | None, list[_Side]]]:
    """Return the pictures of changes: the image, and what each run makes of it."""
    maps = [_Maps(run) for run in comparison.runs]
    for one in maps:
        one.prepare(changes)
    found = []
    for change in changes:
        sides: list[_Side] = []
        for run, label, known in zip(comparison.runs, comparison.labels, maps, strict=True):
            image = run.categories[change.category].images[change.image]
            facts = None
            if image.score is not None and image.threshold is not None:
                normal = run.categories[change.category].normal
                facts = MapFacts(image.score, image.threshold, normal)
            picture = take_picture(
                image.path,
                known.of(change),
                facts,
                known.masks(change),
                most_bytes=_PICTURE_BYTES,
                bit_depth=known.bit_depth,
            )
            at = len(sides)
            sides.append(
                _Side(label, picture, multiple(change.ratios[at]), _CALLED[change.decisions[at]])
            )
        found.append((change, sides[0].picture.missing, sides))
    return found


class _Maps:
    """The maps of one run, from its files or from the detectors that it has kept."""

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._found: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
        self._masks: dict[tuple[str, str], tuple[Path, ...]] = {}
        self.bit_depth: int | None = None
        with suppress(PyimganoError):  # of a run that is damaged or old there is no more to learn
            files = read_run(run.path)
            self.bit_depth = files.bit_depth
            for one in files.categories:
                for path, masks in one.masks.items():
                    self._masks[one.name, path] = masks

    def masks(self, change: Change) -> tuple[Path, ...]:
        """Return the files of an image's ground truth."""
        image = self._category(change.category).images[change.image]
        return self._masks.get((change.category, image.path), ())

    def of(self, change: Change) -> npt.NDArray[np.float32] | None:
        """Return the map (H, W) of an image; None where it cannot be had."""
        return self._found.get((change.category, change.image))

    def prepare(self, changes: Sequence[Change]) -> None:
        """Read or make the maps of these images."""
        wanted: dict[str, list[str]] = {}
        for one in changes:
            found = self._saved(one)
            if found is None:
                wanted.setdefault(one.category, []).append(one.image)
            else:
                self._found[one.category, one.image] = found
        for category, images in wanted.items():
            with suppress(PyimganoError):  # no detector was kept, or none that can be loaded here
                self._score(category, images)

    def _saved(self, change: Change) -> npt.NDArray[np.float32] | None:
        image = self._category(change.category).images[change.image]
        places = [map_file(category_folder(self._run.path, change.category), image.index)]
        if image.map is not None:
            places.append(self._run.path / image.map)
        for place in places:
            with suppress(DataError):
                return read_map(place)
        return None

    def _score(self, category: str, images: Sequence[str]) -> None:
        from ..models import load_model

        folder = find_model(self._run.path, category)
        facts = self._category(category)
        detector = load_model(folder)
        paths = [facts.images[one].path for one in images]
        for image, result in zip(images, detector.score_images(paths, on_error="record")):
            if result.anomaly_map is not None:
                self._found[category, image] = result.anomaly_map

    def _category(self, name: str) -> CategoryFacts:
        return self._run.categories[name]
