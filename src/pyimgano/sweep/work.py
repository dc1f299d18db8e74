"""What a sweep would do: its cells, and the images that they would learn from and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets import get_layout, limit_category, load_category, open_root
from ..runs.sweep_schema import PlannedCell
from .folder import SweepFolder


@dataclass(frozen=True)
class Work:
    """What the cells of one category come to.

    Attributes
    ----------
    dataset, category
        As tables call them.
    cells
        How many there are.
    complete
        How many of them are complete already.
    train, test
        Images of one cell.
    """

    dataset: str
    category: str
    cells: int
    complete: int
    train: int
    test: int

    @property
    def images(self) -> int:
        """Return how many images the cells that are left would learn from and score."""
        return (self.cells - self.complete) * (self.train + self.test)

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**vars(self), "images": self.images}


def expected_work(cells: Sequence[PlannedCell], folder: SweepFolder | None = None) -> list[Work]:
    """Return the work of each category; no image is opened.

    Parameters
    ----------
    cells
        Of the sweep.
    folder
        Where the sweep lies, if it has begun.

    Raises
    ------
    DataError
        A dataset or a category cannot be listed.
    """
    found = []
    for dataset, category in dict.fromkeys((one.dataset, one.category) for one in cells):
        own = [one for one in cells if (one.dataset, one.category) == (dataset, category)]
        counts = {}  # by what decides how many images there are
        for one in own:
            options = one.options
            limits = options.get("limit_train"), options.get("limit_test")
            if limits not in counts:
                layout = get_layout(
                    options["dataset"],
                    split=options.get("split"),
                    allow_outside=options.get("allow_outside", False),
                )
                whole = load_category(layout, open_root(layout, options.get("root")), category)
                counts[limits] = limit_category(whole, *limits, one.seed)
        most = max(counts.values(), key=lambda one: len(one.train) + len(one.test))
        done = sum(folder is not None and folder.is_complete(one.name) for one in own)
        found.append(Work(dataset, category, len(own), done, len(most.train), len(most.test)))
    return found
