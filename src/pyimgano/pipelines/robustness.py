"""`run_robust_benchmark`: what drift on the line does to a detector that was fitted without it.

A detector is fitted once a category, on clean training images, and its thresholds are those of
that fit. Then the test images are scored as they are, and once more under each corruption at each
severity.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from ..datasets import Sample
from ..models import ImageScore
from ..models.registry import create_model
from ..runs import ConditionResults, Problem, RobustnessCategoryReport, RobustnessTimings
from .conditions import Condition, TimedScorer, scored_under
from .opened_run import MakeDetector
from .resuming import given_besides, require_same, run_or_resume
from .robustness_documents import RobustnessDocuments
from .robustness_results import clean_results, condition_results
from .run_documents import write_page_facts
from .suite import Listener, load_task
from .trial import Measurement, fit_detector, measure_detector


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
    resume: str | Path | None = None,
    force: bool = False,
    fail_fast: bool = False,
    listener: Listener | None = None,
    create: MakeDetector = create_model,
) -> dict[str, Any]:
    """Fit on clean images, then measure on clean and on corrupted ones, at the same threshold.

    Parameters
    ----------
    dataset, root, category, split, allow_outside
        As `run_benchmark`.
    model, preset, model_kwargs, device, pretrained, contamination, resize, calibration,
    calibration_quantile, calibration_tail, exclude_suspects, exclude
        As `run_benchmark`.
    limit_train, limit_test, pixel, pixel_aupro_limit, on_error, save_run, output_dir, runs_dir,
    per_image_jsonl, num_threads, max_pixels, resume, force, fail_fast, listener
        As `run_benchmark`. Corruptions change test images alone.
    corruptions
        Names of `pyimgano.images.CORRUPTIONS`, in a sequence or separated by commas; by default
        all of them.
    severities
        Of 1 (drift that goes unnoticed) to 5 (severe).
    pixel_segf1
        Whether the pixel metrics have `segf1`.
    seed
        Of the detector, of the samples that the limits take, and of the corruptions' draws,
        which depend on it, on the corruption and on an image's path from the root alone.
    cache_dir
        As `run_benchmark`, for the training images; test images are not cached.
    roi
        As `run_benchmark`; it stays where it is in the frame, whatever moves in it.
    create
        Makes a detector from the model's name and keywords, where it is not to be one of ours.
    bit_depth, html
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
    asked = {
        "dataset": dataset,
        "category": category if isinstance(category, str) else list(category),
        "corruptions": corruptions,
        "severities": severities,
        "split": split,
        "allow_outside": allow_outside,
        "model": model,
        "device": device,
        "preset": preset,
        "pretrained": pretrained,
        "contamination": contamination,
        "resize": resize,
        "model_kwargs": model_kwargs,
        "calibration": calibration,
        "calibration_quantile": calibration_quantile,
        "calibration_tail": calibration_tail,
        "exclude_suspects": exclude_suspects,
        "exclude": None if exclude is None else str(exclude),
        "limit_train": limit_train,
        "limit_test": limit_test,
        "seed": seed,
        "pixel": pixel,
        "pixel_aupro_limit": pixel_aupro_limit,
        "pixel_segf1": pixel_segf1,
        "on_error": on_error,
        "save_run": save_run,
        "per_image_jsonl": per_image_jsonl,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "num_threads": num_threads,
        "max_pixels": max_pixels,
        "save_model": False,
        "roi": None if roi is None else str(roi),
        "bit_depth": bit_depth,
        "html": html,
    }
    if resume is not None:
        ours = {name: value for name, value in asked.items() if name != "save_model"}
        places = {"root": root, "output_dir": output_dir, "runs_dir": runs_dir}
        given = given_besides(run_robust_benchmark, {**ours, **places})
        require_same(RobustnessDocuments, resume, given)
    return run_or_resume(
        RobustnessDocuments,
        partial(_measure, listener=listener, create=create),
        asked,
        root=root,
        output_dir=output_dir,
        runs_dir=runs_dir,
        resume=resume,
        force=force,
        fail_fast=fail_fast,
        listener=listener,
        create=create,
    )


def _measure(
    run: RobustnessDocuments, name: str, *, listener: Listener | None, create: MakeDetector
) -> RobustnessCategoryReport:
    config = run.config
    task = load_task(run, name)
    test = task.category.test
    progress = None if listener is None else listener.stage
    detector = create(config.model, **run.keywords)
    began = perf_counter()
    problems = fit_detector(
        detector,
        task.train,
        calibration_images=task.calibration_images,
        on_error=config.on_error,
        exclude_suspects=config.exclude_suspects,
        progress=progress,
    )
    fit_seconds = perf_counter() - began
    scale = detector.score_scale()
    page = run.page_facts(name)
    scorer = TimedScorer(detector, test)
    total = 1 + len(config.corruptions) * len(config.severities)
    with ExitStack() as stack:
        records = stack.enter_context(writer) if (writer := run.record_writer(name)) else None

        def record(condition: Condition, sample: Sample, result: ImageScore) -> None:
            if page is not None and condition.corruption is None:
                page.add(sample.label, result.index, result.score, result.anomaly_map)
            if records is not None:
                records.write(run.line(condition, name, sample, result, detector.threshold_, scale))

        def measured_under(condition: Condition, number: int) -> Measurement:
            return measure_detector(
                detector,
                test,
                scored=scored_under(condition, scorer, test),
                move=condition.move,
                protocol=task.protocol,
                on_score=partial(record, condition),
                progress=progress,
                stage=f"{condition} ({number}/{total})",
            )

        measured = measured_under(Condition(None, 0, config.seed, run.root), 1)
        clean = clean_results(measured)
        if page is not None:
            write_page_facts(page, detector, measured, task.calibration_images is not None)
        problems += measured.problems
        timings = RobustnessTimings(
            fit_seconds=fit_seconds,
            clean_milliseconds=scorer.take_milliseconds(),
            milliseconds={},
            evaluate_seconds=measured.score_seconds,
        )
        report = run.begun(
            task.category, detector, measured, clean, problems, timings, task.excluded
        )
        run.keep(report)
        number = 1
        for corruption in config.corruptions:
            done: list[ConditionResults] = []
            for severity in config.severities:
                number += 1
                condition = Condition(corruption, severity, config.seed, run.root)
                measured = measured_under(condition, number)
                done.append(condition_results(condition, measured, clean))
                problems += _further(measured.problems, problems, condition)
                timings = _timed(timings, condition, scorer.take_milliseconds(), measured)
                report = run.added(report, corruption, done, problems, timings)
                run.keep(report)  # what is done is not lost, whatever comes
    return run.finished(report)


def _further(found: list[Problem], known: list[Problem], condition: Condition) -> list[Problem]:
    """Problems that clean images, and milder severities, do not have."""
    files = {(one.kind, one.path) for one in known}
    return [
        one.model_copy(update={"message": f"under {condition}: {one.message}"})
        for one in found
        if (one.kind, one.path) not in files
    ]


def _timed(
    timings: RobustnessTimings,
    condition: Condition,
    milliseconds: float | None,
    measured: Measurement,
) -> RobustnessTimings:
    """The timings with those of one more condition."""
    assert condition.corruption is not None
    one = {
        **timings.milliseconds.get(condition.corruption, {}),
        str(condition.severity): milliseconds,
    }
    return timings.model_copy(
        update={
            "milliseconds": {**timings.milliseconds, condition.corruption: one},
            "evaluate_seconds": timings.evaluate_seconds + measured.score_seconds,
        }
    )
