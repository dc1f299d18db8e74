"""Several models or seeds of `run_benchmark`: they become a sweep.

Sweeps run cells through `run_benchmark`, so this module imports nothing of theirs; it calls
`run_sweep` by its public name, as any user does.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..datasets import get_layout, open_root
from ..errors import UsageError
from ..models.registry import create_model, list_models
from ..threads import limited_threads
from .config import BenchmarkConfig

#: What a grid is not asked for by `run_benchmark`, with what is to be done instead.
_NOT_OF_A_GRID = {
    "resume": "a grid goes on by run_sweep(resume=...), or pyimgano sweep --resume",
    "force": "a grid goes on by run_sweep(resume=...), or pyimgano sweep --resume",
    "fail_fast": "the cells of a grid do not wait for one another",
}
_OF_CELLS = ("dataset", "root", "split", "category", "model", "model_kwargs", "preset", "seed")
_OF_THE_SWEEP = ("num_threads", "save_run")


def is_grid(model: Any, seed: Any) -> bool:
    """Return whether there are several models or seeds: a list, or names with commas."""
    return not isinstance(model, str) or _is_list(model) or isinstance(seed, (list, tuple, range))


def run_grid(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a cell for each category, model and seed, one after another in this process.

    Parameters
    ----------
    given
        The arguments of `run_benchmark` by name.

    Returns
    -------
    dict
        A `pyimgano.sweep.SweepReport`.

    Raises
    ------
    UsageError
        An option that a grid has no use for, or as `run_sweep`.
    """
    import pyimgano

    for name, why in _NOT_OF_A_GRID.items():
        if given[name]:
            raise UsageError(f"{name} is not for several models or seeds; {why}")
    how = {"cell_listener": given["listener"]}
    if given["create"] is not create_model:
        how["create"] = given["create"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(limited_threads(given["num_threads"]))
        place = {"output_dir": given["output_dir"], "runs_dir": given["runs_dir"]}
        if not given["save_run"]:  # a sweep needs a place all the same, while it runs
            place = {"output_dir": stack.enter_context(tempfile.TemporaryDirectory())}
        report = pyimgano.run_sweep(_sweep_of(given), executor="in-process", **place, **how)
        return report if given["save_run"] else report.without_places()


def _sweep_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a sweep file that asks for the same."""
    models, seeds = given["model"], given["seed"]
    names = models.split(",") if isinstance(models, str) else list(models)
    fields = BenchmarkConfig.model_fields
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if name in fields
        and name not in (*_OF_CELLS, *_OF_THE_SWEEP)
        and value != fields[name].default
    }
    dataset = {
        "dataset": given["dataset"],
        "root": None if given["root"] is None else str(Path(given["root"]).absolute()),
        "categories": _categories(given),
        "split": given["split"],
    }
    entry = {"preset": given["preset"], "model_kwargs": given["model_kwargs"] or {}}
    return {
        "datasets": [dataset],
        "models": [{"model": str(name).strip(), **entry} for name in names],
        "seeds": [seeds] if isinstance(seeds, int) else list(seeds),
        "options": options,
    }


def _categories(given: Mapping[str, Any]) -> str | list[str]:
    """Return the categories as a sweep file has them: `all`, or their names."""
    wanted = given["category"]
    if not isinstance(wanted, str):
        return list(wanted)
    if wanted == "all":
        return wanted
    layout = get_layout(
        given["dataset"], split=given["split"], allow_outside=given["allow_outside"]
    )
    if wanted in layout.list_categories(open_root(layout, given["root"])):
        return [wanted]  # also one with a comma in its name
    return [name.strip() for name in wanted.split(",")]


def _is_list(model: str) -> bool:
    return "," in model and model not in list_models()
