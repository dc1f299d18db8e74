"""`run_benchmark`: the whole story of a run, to be read from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..calibration import ScoreScale
from ..datasets import Sample, get_layout, open_root
from ..models import ImageScore
from ..models.registry import create_model
from ..runs import MODEL_FOLDER, CategoryReport, RunReport
from .benchmark_documents import BenchmarkDocuments
from .opened_run import MakeDetector
from .resuming import given_besides, require_same, run_or_resume
from .run_documents import write_page_facts
from .submission import Submission
from .suite import Listener, load_task
from .trial import run_trial


def run_benchmark(
    *,
    dataset: str | None = None,
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
    calibration_tail: Literal["exponential", "conformal"] | None = None,
    exclude_suspects: bool = False,
    exclude: str | Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
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
    resume: str | Path | None = None,
    force: bool = False,
    fail_fast: bool = False,
    listener: Listener | None = None,
    create: MakeDetector = create_model,
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
        Whether links, and paths in a manifest, may lead out of the dataset's folder.
    model, preset, model_kwargs
        A name of `pyimgano.models.list_models()`, a preset of it, and further keywords.
        What is given here beats the preset, and the preset beats the defaults.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    pretrained
        False for random weights.
    contamination, calibration, calibration_quantile, calibration_tail
        Of the threshold: see `pyimgano.calibration`. `validation` takes it from the
        dataset's good images for that purpose instead of the training images.
    exclude_suspects
        Whether to fit a second time without the training images whose scores decide the
        threshold or stand apart in the first fit. The report says what this does to the promise.
    exclude
        A text file of training images to leave out, one path a line, absolute or from the root.
    resize
        (height, width) that images, maps and masks are brought to; by default the model's, which
        is (256, 256) or by the size of the training images. Reports have what it came to.
    limit_train, limit_test
        At most so many images a category: evenly spread, every kind of defect kept.
    seed
        Of the detector, and of the samples that the limits take.
    pixel, pixel_aupro_limit
        Whether pixel metrics are computed where masks exist, and the limit of AUPRO and
        sPRO, by default that of the dataset's authors.
    pixel_segf1
        Whether pixel metrics also have `pixel_threshold`, `pixel_segf1` and `bg_fpr`, the share
        of normal pixels above it.
    pixel_threshold_strategy
        None for the detector's own threshold of pixels. `normal_pixel_quantile`: the quantile
        `pixel_normal_quantile` of all pixels of training images that are held out for it,
        `pixel_calibration_fraction` of them, chosen by `pixel_calibration_seed`.
    pixel_postprocess
        Keywords of `pyimgano.postprocess.anomaly_map.AnomalyMapPostprocess`, which is applied to
        every map before pixels are measured, and to nothing else.
    on_error
        `error`: an unreadable training image fails its category. `skip`: it is left out.
        An unreadable test image never has a score, either way.
    save_run, per_image_jsonl
        Whether a run directory is written, and whether it holds per_image.jsonl files.
    output_dir
        The run directory itself: a folder that is empty, or is made.
    runs_dir
        Without `output_dir`, the folder in which the run directory is made as
        `<timestamp>_<dataset>_<model>`; by default `runs`.
    cache_dir
        A folder to keep features of images in: another run on the same images with the same
        backbone decodes and extracts nothing. It is bounded to 20 GiB.
    num_threads
        Threads to use meanwhile; by default those of the environment variable
        OMP_NUM_THREADS, else as many as the process may use cores, and never more than these.
        Results do not depend on it.
    max_pixels
        Images and masks whose header declares more pixels, height times width, are refused
        before anything is decoded; by default the limit in force
        (`pyimgano.images.set_max_pixels`), 2^28 unless it was set.
    save_model
        Whether each category's fitted detector is kept in the run directory, under
        `categories/<category>/model`, for `pyimgano.load_model`.
    roi
        Region of interest: a mask image or a .json file of polygons (see
        `pyimgano.images.read_roi`). Polygons themselves can stand in `model_kwargs`. What is
        outside counts neither for scores nor in pixel metrics; an image's label stays.
    bit_depth
        How many bits the camera has, 9 to 16, where images have 16 bits a sample; by default what
        each file declares, and else all 16.
    html
        Whether the run gets a page to look at, `report.html`, when it is done. For it the maps of
        a few images of each category are kept in the run.
    resume
        The directory of a run that stopped: it goes on with its own configuration. What is
        complete is kept as it is, the rest is done again. Beside it `num_threads`, `fail_fast`,
        `force` and `listener` may be given; another argument must be that of the run. A run that
        is complete is left alone, and its report returned.
    force
        Go on also where the dataset, the configuration or the program is not what it was when
        the run began; environment.json then says what was not.
    fail_fast
        Stop at the first category that fails; the others are `not_begun`.
    listener
        Object whose methods are called as the run advances.
    create
        Makes a detector from the model's name and keywords, where it is not to be one of ours.

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
        others run. Also a `resume` that is no run, that another process writes, or that is not
        what it was.
    """
    asked = {
        "dataset": dataset,
        "category": category if isinstance(category, str) else list(category),
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
        "pixel_threshold_strategy": pixel_threshold_strategy,
        "pixel_normal_quantile": pixel_normal_quantile,
        "pixel_calibration_fraction": pixel_calibration_fraction,
        "pixel_calibration_seed": pixel_calibration_seed,
        "pixel_postprocess": None if pixel_postprocess is None else dict(pixel_postprocess),
        "on_error": on_error,
        "save_run": save_run,
        "per_image_jsonl": per_image_jsonl,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "num_threads": num_threads,
        "max_pixels": max_pixels,
        "save_model": save_model,
        "roi": None if roi is None else str(roi),
        "bit_depth": bit_depth,
        "html": html,
    }
    if resume is not None:
        places = {"root": root, "output_dir": output_dir, "runs_dir": runs_dir}
        given = given_besides(run_benchmark, {**asked, **places})
        require_same(BenchmarkDocuments, resume, given)
    report = run_or_resume(
        BenchmarkDocuments,
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
    return RunReport(report)


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


def _measure(
    run: BenchmarkDocuments, name: str, *, listener: Listener | None, create: MakeDetector
) -> CategoryReport:
    task = load_task(run, name)
    category = task.category
    detector = create(run.config.model, **run.keywords)
    submission = Submission(run.layout, run.root, run.directory, category.test, detector)
    scales: list[ScoreScale] = []  # of the detector, once it is fitted
    page = run.page_facts(name)
    with ExitStack() as stack:
        records = stack.enter_context(writer) if (writer := run.record_writer(name)) else None

        def record(sample: Sample, result: ImageScore) -> None:
            saved = submission.save(detector, sample, result)
            if page is not None:
                page.add(sample.label, result.index, result.score, result.anomaly_map)
            if records is not None:
                records.write(
                    run.record(name, sample, result, detector.threshold_, saved, scales[-1])
                )

        model_folder: Path | None = None
        if run.directory is not None and run.config.save_model:
            model_folder = run.directory.category(name) / MODEL_FOLDER

        def keep() -> None:
            scales.append(detector.score_scale())
            if model_folder is not None:
                detector.save(model_folder)

        trial = run_trial(
            detector,
            task.train,
            category.test,
            calibration_images=task.calibration_images,
            protocol=task.protocol,
            on_error=run.config.on_error,
            exclude_suspects=run.config.exclude_suspects,
            keep_maps=submission.wanted or page is not None,
            on_fitted=keep,
            on_score=record,
            progress=None if listener is None else listener.stage,
        )
        submission.flush()
    if page is not None:
        write_page_facts(page, detector, trial, task.calibration_images is not None)
    notes = [*category.notes, *trial.notes, *submission.notes()]
    if not category.test:
        notes.append("there are no test images: the threshold is calibrated, nothing is measured")
    return run.finished(category, detector, trial, notes, model_folder, task.excluded)
