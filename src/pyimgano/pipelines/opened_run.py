"""What a run needs, found out before it begins: detector, dataset, categories."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets import Layout, get_layout, open_root, outside_of_categories
from ..errors import DataError, UsageError
from ..foreign import quoted
from ..models import Detector
from ..models.registry import create_model
from ..models.saving import require_saveable
from ..runs import shown
from .config import BenchmarkConfig, Options

#: Makes a detector from a model's name and its keywords.
MakeDetector = Callable[..., Any]


@dataclass(frozen=True)
class OpenedRun:
    """What a run needs, looked at before any image is read.

    Attributes
    ----------
    detector
        Not fitted; each category gets one of its own with the same `keywords`.
    keywords
        That it was made with.
    layout, root
        Of the dataset.
    names
        The categories asked for, which are there.
    category
        What was asked for, as reports say it: a name, several with commas, or `all`. A custom
        dataset without categories is always `custom`.
    ours
        Whether the detector is one of pyimgano's.
    backbone
        What the detectors' `prepare` gave, None if they have none.
    roi_sha256
        Of the region of interest; None without one.
    """

    detector: Detector
    keywords: dict[str, Any]
    layout: Layout
    root: Path
    names: list[str]
    category: str
    ours: bool
    backbone: Any = None
    roi_sha256: str | None = None


def open_run(
    config: Options, create: MakeDetector = create_model, categories: list[str] | None = None
) -> OpenedRun:
    """Find out what can be found out before a run begins.

    `create` makes the detector from the model's name and keywords; `categories` are those of a run
    that goes on, unless it is over all.

    Raises
    ------
    UsageError
        An unknown name, or a value out of range.
    DataError
        A missing root or category.
    WeightsError
        No weights for the detector.
    """
    keywords = config.detector_keywords(ours=create is create_model)
    detector = create(config.model, **keywords)
    if create is create_model:
        keywords = detector.get_params()
    layout = get_layout(config.dataset, split=config.split, allow_outside=config.allow_outside)
    if config.calibration == "validation" and not layout.has_validation:
        raise UsageError(f"calibration: dataset {layout.name!r} has no validation images")
    # whatever folder a run is begun or resumed in, its documents say the same
    folder = open_root(layout, config.root).absolute()
    names = _choose_categories(layout, folder, categories or config.category)
    asked = config.category if isinstance(config.category, str) else ",".join(config.category)
    if asked == "all" and layout.name == "custom" and names == ["custom"]:
        asked = "custom"
    _require_distinct(folder, names)
    if isinstance(config, BenchmarkConfig) and config.save_model:
        require_saveable(detector)
    region = detector.region_of_interest()
    # a device or weights that are not there fail here, not in each category
    backbone = detector.prepare()
    sha256 = None if region is None else region.sha256
    ours = create is create_model
    return OpenedRun(detector, keywords, layout, folder, names, asked, ours, backbone, sha256)


def _choose_categories(layout: Layout, root: Path, wanted: str | list[str]) -> list[str]:
    if wanted == "all":
        names = layout.list_categories(root)
        outside = outside_of_categories(layout, root, names)
        if outside is not None:
            warnings.warn(outside, stacklevel=4)
        return names
    if isinstance(wanted, list):
        names = wanted
    elif wanted in layout.list_categories(root):  # also one with a comma in its name
        names = [wanted]
    else:
        names = [name.strip() for name in wanted.split(",")]
    if not names or not all(names):
        raise UsageError(
            f"category must be a name, several separated by commas, or 'all': {wanted!r}"
        )
    for name in names:
        layout.require_category(root, name)
    return list(dict.fromkeys(names))


def _require_distinct(root: Path, names: list[str]) -> None:
    """Of two names that reports cannot tell apart one would be written over the other."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(shown(name), name)
        if other != name:
            raise DataError(
                f"{root}: categories {quoted(other)} and {quoted(name)} are written alike, "
                "since one of them is no text; rename it"
            )
