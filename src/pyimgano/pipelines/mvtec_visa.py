"""The step-by-step way of the benchmark: load a split, make a detector, evaluate it.

For notebooks. `run_benchmark` does the same, leaves a run directory, and measures besides what a
dataset's authors report: kinds of defects, sPRO, their limit of integration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import Sample, load_dataset
from ..errors import UsageError
from ..models import Detector, create_model
from ..models.adapted import adapt
from ..models.registry import default_keywords
from .measure import EvaluationProtocol, NormalPixelQuantile, Task, fit, measure

#: Label and kind of defect, by what stands in `test_labels`.
_KNOWN: dict[int, tuple[int | None, str]] = {
    0: (0, "good"),
    1: (1, "anomaly"),
    -1: (None, "unlabelled"),
}


@dataclass(frozen=True)
class BenchmarkSplit:
    """One category, ready to evaluate on.

    Attributes
    ----------
    train_paths, test_paths
        Paths of the good training images and of the test images.
    test_labels
        (N,) 0 good, 1 defective, -1 not known: such an image counts in no metric.
    test_masks
        (N, H, W) uint8 of 0 and 1, or None.
    """

    train_paths: Sequence[str]
    test_paths: Sequence[str]
    test_labels: npt.NDArray[np.int64]
    test_masks: npt.NDArray[np.uint8] | None = None


def load_benchmark_split(
    *,
    dataset: str,
    root: str | Path | None,
    category: str,
    resize: tuple[int, int] = (256, 256),
    load_masks: bool = True,
    split: str | None = None,
) -> BenchmarkSplit:
    """Paths, labels and masks of one category.

    Parameters
    ----------
    dataset, root, category, split
        As `pyimgano.datasets.load_dataset`.
    resize
        (height, width) of the masks; the detector's `resize` must be the same.
    load_masks
        False leaves `test_masks` None.

    Raises
    ------
    UsageError, DataError, ImageReadError
        As `load_dataset` and `Dataset.get_test_paths`.
    """
    loaded = load_dataset(
        dataset, root, category, resize=resize, load_masks=load_masks, split=split
    )
    paths, labels, masks = loaded.get_test_paths()
    return BenchmarkSplit(loaded.get_train_paths(), paths, labels, masks)


def build_default_detector(
    *,
    model: str = "vision_patchcore",
    device: str = "cpu",
    contamination: float | None = None,
    pretrained: bool = True,
    **kwargs: Any,
) -> Detector:
    """Return a detector with the arguments of the benchmark; `kwargs` are the model's keywords.

    Raises
    ------
    UsageError
        An unknown model or keyword, or a value out of range.
    """
    given = {"device": device, "contamination": contamination, "pretrained": pretrained}
    accepted = default_keywords(model)
    known = {name: value for name, value in given.items() if name in accepted}
    return create_model(model, **{**known, **kwargs})


def evaluate_split(
    detector: Any,
    split: BenchmarkSplit,
    pixel_scores: Any = None,
    *,
    compute_pixel_scores: bool = True,
    postprocess: Callable[[npt.NDArray[np.float32]], Any] | None = None,
    pro_integration_limit: float = 0.3,
    pro_num_thresholds: int = 200,
    pixel_segf1: bool = False,
    pixel_threshold_strategy: str | None = None,
    pixel_normal_quantile: float = 0.999,
    calibration_fraction: float = 0.2,
    calibration_seed: int = 0,
) -> dict[str, Any]:
    """Fit on the split's training images, score its test images once, measure.

    Parameters
    ----------
    detector
        One of ours; or any object with `fit(X)` and `decision_function(X)`, and for maps
        `predict_anomaly_map(X)` or `get_anomaly_map(item)`. It is fitted here, also if it was
        before; where the `resize` of one of ours is None, at the masks' size. Another detector
        is given the list of paths, and if it cannot take that one (N, H, W, 3) uint8 array. Its
        `threshold_` decides; without one there are no metrics of decisions.
    split
        Of `load_benchmark_split`, or made by hand.
    pixel_scores
        (N, H, W) maps of the test images, to be measured instead of the detector's.
    compute_pixel_scores
        Whether the detector's maps are measured; they need `split.test_masks`. Maps of another
        size than the masks are resized to theirs.
    postprocess
        What is done to each map (H, W) float32 at the masks' size before it is measured, such as
        `pyimgano.postprocess.anomaly_map.AnomalyMapPostprocess`. Scores are not touched.
    pro_integration_limit
        Of AUPRO, in (0, 1].
    pro_num_thresholds
        Accepted and not used: AUPRO is exact, at every threshold there is.
    pixel_segf1
        Whether the pixel metrics also have `pixel_threshold`, `pixel_segf1` and `bg_fpr`.
    pixel_threshold_strategy
        None for the detector's own threshold of pixels, if it has one. `normal_pixel_quantile`:
        the quantile `pixel_normal_quantile` of the pixels of training images that are held out
        for it; the pixel metrics then have those three.
    calibration_fraction, calibration_seed
        Of the training images that are held out for that strategy, in (0, 1), and of their
        choice. A single training image is fitted on and serves for the threshold too.

    Returns
    -------
    dict
        As `results` of a category's report, and `problems`: a list of
        `{kind, path, message}`, one for each unreadable image. Without maps or masks it has no
        `pixel_metrics`.

    Raises
    ------
    UsageError
        Lengths differ, labels are none, or an argument is out of range.
    ImageReadError
        An unreadable training image.
    """
    masks, maps = _checked(split, pixel_scores)
    if pixel_threshold_strategy not in (None, "normal_pixel_quantile"):
        raise UsageError(
            "pixel_threshold_strategy must be None or 'normal_pixel_quantile', got "
            f"{pixel_threshold_strategy!r}"
        )
    for name, value in (
        ("pixel_normal_quantile", pixel_normal_quantile),
        ("calibration_fraction", calibration_fraction),
    ):
        if not 0 < value < 1:
            raise UsageError(f"{name} must lie in (0, 1), got {value!r}")
    # what is not a file, and what is no threshold of it, is another detector's own affair
    ours = adapt(detector, calibrates=False, own_paths=True)
    if masks is not None and ours.get_params().get("resize", ()) is None:
        ours.set_params(resize=tuple(masks.shape[1:]))
    pixels = masks is not None and (maps is not None or (compute_pixel_scores and ours.has_maps))
    strategy = None
    if pixel_threshold_strategy is not None:
        strategy = NormalPixelQuantile(
            pixel_normal_quantile, calibration_fraction, calibration_seed
        )
    samples = [
        Sample(Path(path), *_KNOWN[int(label)])
        for path, label in zip(split.test_paths, split.test_labels, strict=True)
    ]
    task = Task(
        list(split.train_paths),
        samples,
        masks=masks,
        protocol=EvaluationProtocol(
            pixels,
            pro_integration_limit,
            background=pixels and (pixel_segf1 or strategy is not None),
            pixel_quantile=strategy,
            postprocess=postprocess,
        ),
        no_pixel_reason="the split carries no masks" if masks is None else None,
        maps=maps,
    )
    fitted = fit(ours, task)
    measured = measure(ours, task, fitted)
    problems = [*fitted.problems, *measured.problems]
    results = {**measured.results, "problems": [one.model_dump() for one in problems]}
    if not pixels:
        del results["pixel_metrics"]
    return results


def _checked(
    split: BenchmarkSplit, pixel_scores: Any
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.float32] | None]:
    """Return the split's masks and the maps that were given, with shapes that go together."""
    count = len(split.test_paths)
    if len(split.test_labels) != count:
        raise UsageError(f"{count} test paths, but {len(split.test_labels)} test labels")
    if not np.isin(np.asarray(split.test_labels), (-1, 0, 1)).all():
        raise UsageError("test_labels must hold 0 (good), 1 (defective) and -1 (not known) only")
    masks = None
    if split.test_masks is not None:
        masks = (np.asarray(split.test_masks) > 0).astype(np.uint8)
        if masks.ndim != 3 or len(masks) != count:
            raise UsageError(
                f"test_masks has shape {masks.shape}, wanted ({count}, H, W): one mask a test image"
            )
    maps = None
    if pixel_scores is not None:
        maps = np.asarray(pixel_scores, np.float32)
        if maps.ndim != 3 or len(maps) != count or not np.isfinite(maps).all():
            raise UsageError(
                f"pixel_scores has shape {maps.shape}, wanted ({count}, H, W), all finite: one "
                "map a test image"
            )
    return masks, maps
