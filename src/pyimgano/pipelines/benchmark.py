"""`run_benchmark`: the whole story of a run, to be read from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

from ..datasets import Layout, Sample, get_layout, limit_category, open_root
from ..errors import DataError, PyimganoError, UsageError
from ..models import ImageScore
from ..models.registry import create_model
from ..runs import CategoryReport, Failure, RecordWriter
from .config import BenchmarkConfig
from .results import EvaluationProtocol
from .run_documents import RunDocuments
from .submission import Submission
from .trial import run_trial

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Told how a run goes on; what the command line's progress bar is."""

    def category_started(self, name: str, number: int, total: int) -> None: ...

    def stage(self, stage: str, done: int, total: int) -> None: ...

    def category_finished(self, report: CategoryReport) -> None: ...


def run_benchmark(
    *,
    dataset: str,
    root: str | Path | None = None,
    category: str | Sequence[str] = "all",
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
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    pixel: bool = True,
    pixel_aupro_limit: float | None = None,
    on_error: Literal["error", "skip"] = "error",
    save_run: bool = True,
    per_image_jsonl: bool = True,
    output_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Run a detector over one category of a dataset, some, or all.

    Parameters
    ----------
    dataset, root
        A name of `pyimgano.datasets.list_datasets()`, and the folder it lies in; the demo
        needs none.
    category
        A name, several (a sequence, or separated by commas), or `all`.
    split
        One that the dataset's authors defined, such as `2cls_fewshot` of VisA or
        `test_private` of MVTec AD 2; by default their usual one. Images of a split without
        labels are scored; for an evaluation server their maps are saved under `submission`
        in the run directory.
    allow_outside
        Whether paths in a manifest may lead out of its folder.
    model, preset, model_kwargs
        A name of `pyimgano.models.list_models()`, a preset of it, and further keywords.
        What is given here beats the preset, and the preset beats the defaults.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    pretrained
        False for random weights.
    contamination, calibration, calibration_quantile
        Of the threshold: see `pyimgano.calibration`. `validation` takes it from the
        dataset's good images for that purpose instead of the training images.
    resize
        (height, width) that images, maps and masks are brought to; by default (256, 256).
    limit_train, limit_test
        At most so many images a category: evenly spread, every kind of defect kept.
    seed
        Of the detector, and of the samples that the limits take.
    pixel, pixel_aupro_limit
        Whether pixel metrics are computed where masks exist, and the limit of AUPRO and
        sPRO, by default that of the dataset's authors.
    on_error
        `error`: an unreadable training image fails its category. `skip`: it is left out.
        An unreadable test image never has a score, either way.
    save_run, output_dir, per_image_jsonl
        Whether a run directory is written, the folder it is made in (`runs`), and whether
        it holds per_image.jsonl files.
    cache_dir
        A folder to keep features of images in: another run on the same images with the same
        backbone decodes and extracts nothing. It is bounded to 20 GiB.
    listener
        Told of progress.

    Returns
    -------
    dict
        The top-level report (plain JSON values): that of the category, or of several, with
        `per_category`, `mean_metrics` and `std_metrics`. `run_dir` says where the run is.

    Raises
    ------
    UsageError
        An unknown name, or a value out of range.
    DataError
        A missing root, an unknown category. Where one category is asked for, also what is
        wrong with it; where several are, a failed one is a result that says so, and the
        others run.
    """
    config = BenchmarkConfig.check(
        dataset=dataset,
        category=category if isinstance(category, str) else list(category),
        split=split,
        allow_outside=allow_outside,
        model=model,
        device=device,
        preset=preset,
        pretrained=pretrained,
        contamination=contamination,
        resize=resize,
        model_kwargs=model_kwargs,
        calibration=calibration,
        calibration_quantile=calibration_quantile,
        limit_train=limit_train,
        limit_test=limit_test,
        seed=seed,
        pixel=pixel,
        pixel_aupro_limit=pixel_aupro_limit,
        on_error=on_error,
        save_run=save_run,
        per_image_jsonl=per_image_jsonl,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    detector = create_model(model, **config.detector_keywords())
    layout = get_layout(dataset, split=config.split, allow_outside=config.allow_outside)
    if config.calibration == "validation" and not layout.has_validation:
        raise UsageError(f"calibration: dataset {layout.name!r} has no validation images")
    folder = open_root(layout, root)
    names = _choose_categories(layout, folder, config.category)
    detector.prepare()  # a device or weights that are not there fail here, not in each category
    run = RunDocuments(config, detector, layout, folder, names, output_dir)
    run.write("running")
    try:
        for number, name in enumerate(names, start=1):
            if listener is not None:
                listener.category_started(name, number, len(names))
            report = _one_category(run, name, listener)
            if listener is not None:
                listener.category_finished(report)
        return run.write("complete" if not run.failed else "failed")
    except KeyboardInterrupt:
        run.write("interrupted")
        raise
    except Exception as error:
        run.write("failed", _failure(error))
        raise


def list_dataset_categories(
    *,
    dataset: str,
    root: str | Path | None = None,
    split: str | None = None,
    allow_outside: bool = False,
) -> list[str]:
    """Names of a dataset's categories, sorted; the arguments are those of `run_benchmark`.

    Raises
    ------
    UsageError
        An unknown dataset, or no root where one is needed.
    DataError
        A missing root, or one without categories.
    """
    layout = get_layout(dataset, split=split, allow_outside=allow_outside)
    return layout.list_categories(open_root(layout, root))


def _choose_categories(layout: Layout, root: Path, wanted: str | list[str]) -> list[str]:
    if wanted == "all":
        return layout.list_categories(root)
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


def _one_category(run: RunDocuments, name: str, listener: Listener | None) -> CategoryReport:
    """Run it and write its report; of several, a failed one is a report that says so."""
    try:
        run.keep(run.category_report(name, status="running"))
        report = _measure(run, name, listener)
    except Exception as error:  # whatever it is, it costs this category alone
        report = run.category_report(name, status="failed", failure=_failure(error))
        run.failed.append(name)
        if len(run.names) == 1:
            run.keep(report)
            raise
        if not isinstance(error, PyimganoError):  # a bug of ours, or of what we stand on
            _log.exception("category %s failed", name)
    except KeyboardInterrupt:
        run.keep(run.category_report(name, status="interrupted"))
        raise
    run.keep(report)
    run.write("running")
    return report


def _measure(run: RunDocuments, name: str, listener: Listener | None) -> CategoryReport:
    config = run.config
    whole = run.layout.load(run.root, name)
    category = limit_category(whole, config.limit_train, config.limit_test, config.seed)
    held_out = config.calibration == "validation"
    if held_out and not category.validation:
        raise DataError(f"{run.root}: category {name!r} has no validation images")
    detector = create_model(config.model, **run.keywords)
    submission = Submission(run.layout, run.root, run.directory, category.test, detector)
    with ExitStack() as stack:
        records: RecordWriter | None = None
        if run.directory is not None and config.per_image_jsonl:
            path = run.directory.category(name) / "per_image.jsonl"
            records = stack.enter_context(RecordWriter(path))

        def record(sample: Sample, result: ImageScore) -> None:
            saved = submission.save(detector, sample, result)
            if records is not None:
                records.write(run.record(name, sample, result, detector.threshold_, saved))

        trial = run_trial(
            detector,
            [str(sample.path) for sample in category.train],
            category.test,
            calibration_images=[str(sample.path) for sample in category.validation]
            if held_out
            else None,
            protocol=EvaluationProtocol(
                pixel=config.pixel,
                pro_integration_limit=run.aupro_limit,
                spro="spro" in run.layout.own_metrics,
                saturation=category.saturation,
                kinds=tuple(sorted({sample.defect for sample in whole.test if sample.label})),
                kinds_apart=run.layout.kinds_apart,
            ),
            on_error=config.on_error,
            keep_maps=submission.wanted,
            on_score=record,
            progress=None if listener is None else listener.stage,
        )
    notes = [*category.notes, *submission.notes()]
    if not category.test:
        notes.append("there are no test images: the threshold is calibrated, nothing is measured")
    return run.finished(category, detector, trial, notes)


def _failure(error: Exception) -> Failure:
    return Failure(kind=type(error).__name__, message=str(error) or type(error).__name__)
