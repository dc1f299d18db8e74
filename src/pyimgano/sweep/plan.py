"""What a sweep file comes to: its cells, each one model on one category with one seed.

The name of a cell follows from its own options alone, so it stays the same when other cells are
added, and a cell of which an option has changed is another cell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..datasets import get_layout, open_root
from ..errors import DataError, UsageError
from ..models.registry import create_model, default_keywords
from ..pipelines.config import PATH_KEYWORDS, BenchmarkConfig
from ..runs import safe_name
from ..runs.sweep_schema import PlannedCell, SweepCell, SweepFile, SweepModel, SweepResources
from .reading import read_plain

# Options that a cell has from its place in the grid, or that the sweep itself sees to.
_NOT_SHARED = {
    "dataset": "datasets",
    "root": "datasets",
    "split": "datasets",
    "category": "datasets",
    "model": "models",
    "model_kwargs": "models",
    "preset": "presets",
    "seed": "seeds",
    "num_threads": "resources.cpus",
}
_PATH_OPTIONS = ("cache_dir", "roi", "exclude", "track_dir")


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep.

    Attributes
    ----------
    cells
        In the order of the file: dataset, category, model, preset, backbone, seed.
    resources
        What each is given.
    modules
        Python modules that are imported first, since they register models.
    notes
        What a reader has to know of the plan.
    """

    cells: list[PlannedCell]
    resources: SweepResources
    modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def make_plan(
    sweep: str | Path | Mapping[str, Any] | SweepFile, *, modules: Sequence[str] = ()
) -> Plan:
    """Return the cells that a sweep asks for, looked over before any of them runs.

    Parameters
    ----------
    sweep
        The path of a sweep file, or what stands in one. Relative paths start at the file's
        folder, or else at the working directory.
    modules
        Python modules to import first, since they register models.

    Raises
    ------
    UsageError
        Something that the file must not hold, an unknown name, a value out of range, or a cell
        that stands twice; one line that says where.
    DataError
        The file cannot be read, or a dataset or a category is not there.
    """
    import_modules(modules)
    where, folder = "sweep", Path.cwd()
    if isinstance(sweep, (str, Path)):
        where, folder = str(sweep), Path(sweep).absolute().parent
        sweep = read_plain(Path(sweep))
    asked = sweep if isinstance(sweep, SweepFile) else _validated(sweep, where)
    notes: list[str] = []
    try:
        cells = [_planned(one, folder) for one in (*_of_grid(asked, folder, notes), *asked.cells)]
        cells = [_with_options(cell, asked.options, folder) for cell in cells]
        _require_sound(cells)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if not cells:
        raise UsageError(f"{where}: asks for no cell; give datasets and models, or cells")
    return Plan(cells, asked.resources, tuple(modules), tuple(dict.fromkeys(notes)))


def import_modules(modules: Sequence[str]) -> None:
    """Import modules that register models; raises `UsageError` where one cannot be imported."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"module {name!r} cannot be imported ({error})") from error


def _validated(sweep: Any, where: str) -> SweepFile:
    if not isinstance(sweep, Mapping):
        raise UsageError(f"{where}: must be an object with datasets and models, or with cells")
    try:
        return SweepFile.model_validate(dict(sweep))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        got = repr(first["input"])
        got = got if len(got) <= 80 else f"{got[:80]}..."
        quotes = ""
        if first["type"] == "string_type":
            quotes = "; YAML takes 01 for a number and no for false, so put names in quotes"
        raise UsageError(f"{where}: {place}: {first['msg'].lower()}, got {got}{quotes}") from None


def _of_grid(asked: SweepFile, folder: Path, notes: list[str]) -> Iterator[SweepCell]:
    """Yield every combination of the lists, with the cells of the same images together."""
    for lists, what in ((asked.seeds, "seeds"), (asked.presets, "presets")):
        if len(set(lists)) < len(lists):
            raise UsageError(f"{what}: one of {lists} stands twice")
    if bool(asked.datasets) != bool(asked.models):
        missing = "models" if asked.datasets else "datasets"
        raise UsageError(f"{missing} is missing; a grid needs datasets and models")
    for dataset in asked.datasets:
        outside = bool(asked.options.get("allow_outside", False))
        layout = get_layout(dataset.dataset, split=dataset.split, allow_outside=outside)
        root = open_root(layout, _absolute(dataset.root, folder))
        names = dataset.categories
        if isinstance(names, str):
            names = layout.list_categories(root)
        if not names:
            raise UsageError(f"datasets: {dataset.dataset}: categories is empty")
        place = dataset.model_dump(include={"dataset", "name", "root", "split"})
        for category in names:
            layout.require_category(root, category)
            for model in asked.models:
                for variant in _variants(model, asked, notes):
                    for seed in asked.seeds:
                        yield SweepCell(
                            **place, **variant.model_dump(), category=category, seed=seed
                        )


def _variants(model: SweepModel, asked: SweepFile, notes: list[str]) -> Iterator[SweepModel]:
    """Yield a model with each preset and each backbone that applies to it."""
    backbones: list[str | None] = [None]
    if "backbone" not in model.model_kwargs:
        if "backbone" in default_keywords(model.model):
            backbones = asked.backbones
        elif asked.backbones != [None]:
            notes.append(f"{model.model} has no backbone to choose, and runs once for all of them")
    for preset in asked.presets if model.preset is None else [model.preset]:
        for backbone in backbones:
            keywords = dict(model.model_kwargs)
            if backbone is not None:
                keywords["backbone"] = backbone
            yield model.model_copy(update={"preset": preset, "model_kwargs": keywords})


def _planned(one: SweepCell, folder: Path) -> PlannedCell:
    """Return a cell with what its own entry says; its name comes with the shared options."""
    keywords = _absolute_in(one.model_kwargs, PATH_KEYWORDS, folder)
    options: dict[str, Any] = {
        "dataset": one.dataset,
        "root": None if one.root is None else str(_absolute(one.root, folder)),
        "category": one.category,
        "split": one.split,
        "model": one.model,
        "preset": one.preset,
        "model_kwargs": keywords,
        "seed": one.seed,
    }
    _require_shared(one.options, f"models: {one.model}: options")
    own = _absolute_in(one.options, _PATH_OPTIONS, folder)
    settings = [one.preset, keywords.get("backbone")]
    settings += [f"{k}={_short(v)}" for k, v in {**keywords, **own}.items() if k != "backbone"]
    said = ", ".join(str(part) for part in settings if part is not None)
    return PlannedCell(
        name="",
        dataset=one.name or one.dataset,
        category=one.category,
        method=one.label or (f"{one.model} ({said})" if said else one.model),
        model=one.model,
        preset=one.preset,
        backbone=keywords.get("backbone"),
        seed=one.seed,
        options={**{name: v for name, v in options.items() if v not in (None, {})}, **own},
    )


def _with_options(cell: PlannedCell, shared: Mapping[str, Any], folder: Path) -> PlannedCell:
    """Return the cell with the options of all, and the name that follows from them."""
    _require_shared(shared, "options")
    options = {**_absolute_in(shared, _PATH_OPTIONS, folder), **cell.options}
    try:
        known = json.dumps(options, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{cell.method}: an option is no JSON value ({error})") from None
    digest = hashlib.sha256(known.encode()).hexdigest()[:8]
    parts = [cell.dataset, cell.category, cell.model, cell.preset, cell.backbone]
    words = "_".join([*(one for one in parts if one), f"seed{cell.seed}"])
    return cell.model_copy(update={"options": options, "name": safe_name(f"{words}_{digest}")})


def _require_shared(options: Mapping[str, Any], where: str) -> None:
    for name in options:
        if name in _NOT_SHARED:
            raise UsageError(f"{where}: {name} is given by {_NOT_SHARED[name]}, not here")
        if name == "save_run":
            raise UsageError(f"{where}: save_run: a cell of a sweep is always saved")


def _require_sound(cells: Sequence[PlannedCell]) -> None:
    """Raise `UsageError` for options that will not do, and for cells that cannot be told apart."""
    names: dict[str, PlannedCell] = {}
    rows: dict[tuple[str, str, str, int], PlannedCell] = {}
    methods = set()
    for cell in cells:
        if cell.name in names:
            raise UsageError(f"{cell.name}: this cell stands twice")
        names[cell.name] = cell
        other = rows.setdefault((cell.dataset, cell.category, cell.method, cell.seed), cell)
        if other is not cell:
            raise UsageError(
                f"{cell.method} on {cell.dataset}, {cell.category}: two cells with other options "
                "have these names; give a label to the model, or a name to the dataset"
            )
        own = {k: v for k, v in cell.options.items() if k not in ("category", "seed", "root")}
        key = json.dumps(own, sort_keys=True)
        if key in methods:
            continue
        methods.add(key)
        try:  # unknown names and wrong values are found here, not 750 times later
            config = BenchmarkConfig.check(**cell.options)
            create_model(config.model, **config.detector_keywords())
        except (UsageError, DataError) as error:
            raise UsageError(f"{cell.method}: {error}") from None


def _absolute(path: str | None, folder: Path) -> Path | None:
    return None if path is None else folder / Path(path).expanduser()


def _absolute_in(options: Mapping[str, Any], names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return options of which relative paths start at `folder`."""
    found = dict(options)
    for name in names:
        if isinstance(found.get(name), str) and found[name]:
            found[name] = str(folder / Path(found[name]).expanduser())
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
