"""`run_robust_benchmark`: what drift on the line does to a detector that was fitted without it.

A detector is fitted once a category, on clean training images, and its thresholds are those of
that fit. Then the test images are scored as they are, and once more under each corruption at each
severity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..models.registry import create_model
from .conditions import TestUnder, TimedScorer
from .config import Execution, RobustnessConfig, describes
from .measure import fit, measure
from .open_run import MakeDetector, open_run
from .robustness_report import RobustnessRun
from .run import Listener


@describes(RobustnessConfig, Execution)
def run_robust_benchmark(
    *,
    dataset: str | None = None,
    root: str | Path | None = None,
    category: str | Sequence[str] = "all",
    corruptions: str | Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    split: str | None = None,
    allow_outside: bool = False,
    model: str = "vision_patchcore",
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
    seed: int = 0,
    pixel: bool = True,
    pixel_aupro_limit: float | None = None,
    pixel_segf1: bool = True,
    on_error: Literal["error", "skip"] = "error",
    save_run: bool = True,
    per_image_jsonl: bool = True,
    output_dir: str | Path | None = None,
    runs_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    num_threads: int | None = None,
    max_pixels: int | None = None,
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
    """Fit on clean images, then measure on clean and on corrupted ones, at the same threshold.

    Corruptions change test images alone, and what they draw depends on the seed, on the corruption
    and on an image's path from the root. A region of interest stays where it is in the frame.

    Parameters
    ----------
    {options}
    listener, create
        As `run_benchmark`.

    Returns
    -------
    dict
        The top-level report (plain JSON values). That of one category has `clean`,
        `corruptions` (by name: each severity's `metrics`, `delta` against clean, false alarms
        and missed defects with their intervals, and the mean over the severities), and
        `summary` (the mean over the corruptions, and `hurts_most`). That of several has
        `per_category`, and the same as means over the categories. `timings` alone differ from
        run to run.

    Raises
    ------
    UsageError, DataError
        As `run_benchmark`; also for an unknown corruption, or a severity other than 1 to 5.
    """
    given = dict(locals())  # the arguments by name, before anything else has a name
    with open_run(RobustnessRun, run_robust_benchmark, given) as run:
        conditions = run.conditions()  # the clean images first
        for name in run.pending():
            with run.reporting(name) as report:
                task = report.load()
                detector = report.create_detector()
                fitted = fit(detector, task, run.progress)
                report.fitted(fitted)
                scorer = TimedScorer(detector, task.test)
                for number, condition in enumerate(conditions, start=1):
                    report.condition = condition
                    measured = measure(
                        detector,
                        task,
                        fitted,
                        altered=TestUnder(condition, scorer, task.test),
                        keep_maps=report.wants_maps,
                        on_score=report.record,
                        progress=run.progress,
                        stage=f"{condition} ({number}/{len(conditions)})",
                    )
                    report.add(measured, scorer.take_milliseconds())
                report.complete()
    return run.summary()
