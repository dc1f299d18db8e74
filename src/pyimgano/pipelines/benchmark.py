"""`run_benchmark`: the whole story of a run, to be read from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..datasets import get_layout, open_root
from ..models.registry import create_model
from ..runs import RunReport
from .config import BenchmarkConfig, Execution, describes
from .grid import is_grid, run_grid
from .measure import fit, measure
from .open_run import MakeDetector, open_run
from .report import BenchmarkRun
from .run import Listener


@describes(BenchmarkConfig, Execution)
def run_benchmark(
    *,
    dataset: str | None = None,
    root: str | Path | None = None,
    category: str | Sequence[str] = "all",
    split: str | None = None,
    allow_outside: bool = False,
    model: str | Sequence[str] = "vision_patchcore",
    device: str = "cpu",
    preset: str | None = None,
    pretrained: bool = True,
    contamination: float | None = None,
    resize: tuple[int, int] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    calibration: Literal["out-of-sample", "in-sample", "validation"] = "out-of-sample",
    calibration_quantile: float | None = None,
    calibration_tail: Literal["exponential", "conformal"] | None = None,
    exclude_suspects: bool = False,
    exclude: str | Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int | Sequence[int] = 0,
    pixel: bool = True,
    pixel_aupro_limit: float | None = None,
    pixel_segf1: bool = False,
    pixel_threshold_strategy: Literal["normal_pixel_quantile"] | None = None,
    pixel_normal_quantile: float = 0.999,
    pixel_calibration_fraction: float = 0.2,
    pixel_calibration_seed: int = 0,
    pixel_postprocess: Mapping[str, Any] | None = None,
    on_error: Literal["error", "skip"] = "error",
    save_run: bool = True,
    per_image_jsonl: bool = True,
    output_dir: str | Path | None = None,
    runs_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    num_threads: int | None = None,
    max_pixels: int | None = None,
    save_model: bool = False,
    roi: str | Path | None = None,
    bit_depth: int | None = None,
    html: bool = True,
    track: Literal["mlflow", "tensorboard", "wandb"] | None = None,
    track_dir: str | Path | None = None,
    resume: str | Path | None = None,
    force: bool = False,
    fail_fast: bool = False,
    listener: Listener | None = None,
    create: MakeDetector = create_model,
) -> dict[str, Any]:
    """Run a detector over one category of a dataset, some, or all.

    A run that is resumed goes on with its own options: what is complete is kept as it is, and the
    rest is done again. Only `num_threads`, `fail_fast`, `force` and `listener` may be others
    beside `resume`. A run that is complete is left alone, and its report returned.

    Several models or seeds run a grid, a cell for each category, model and seed; `run_sweep` does
    more of this kind.

    Parameters
    ----------
    {options}
    listener
        Object whose methods are called as the run advances.
    create
        Makes a detector from the model's name and keywords, where it is not to be one of ours.

    Returns
    -------
    dict
        The top-level report (plain JSON values): that of the category, or of several, with
        `per_category`, `mean_metrics` and `std_metrics`. `run_dir` says where the run is. Of a grid
        it is the table of a sweep: `cells`, `methods`, and `sweep_dir`.

    Raises
    ------
    UsageError
        An unknown name, or a value out of range.
    DataError
        A missing root, an unknown category. Where one category is asked for, also what is
        wrong with it; where several are, a failed one is a result that says so, and the
        others run. Also a `resume` that is no run, that another process writes, or that is not
        what it was.
    """
    given = dict(locals())  # the arguments by name, before anything else has a name
    if is_grid(model, seed):
        return run_grid(given)
    with open_run(BenchmarkRun, run_benchmark, given) as run:  # a new one, or one that goes on
        for name in run.pending():
            with run.reporting(name) as report:
                task = report.load()
                detector = report.create_detector()
                fitted = fit(detector, task, run.progress)
                report.fitted(fitted)
                measured = measure(
                    detector,
                    task,
                    fitted,
                    keep_maps=report.wants_maps,
                    on_score=report.record,
                    progress=run.progress,
                )
                report.add(measured)
    return RunReport(run.summary())


def list_dataset_categories(
    *,
    dataset: str,
    root: str | Path | None = None,
    split: str | None = None,
    allow_outside: bool = False,
) -> list[str]:
    """Return the names of a dataset's categories, sorted.

    The arguments are those of `run_benchmark`.

    Raises
    ------
    UsageError
        An unknown dataset, or no root where one is needed.
    DataError
        A missing root, or one without categories.
    """
    layout = get_layout(dataset, split=split, allow_outside=allow_outside)
    return layout.list_categories(open_root(layout, root))
