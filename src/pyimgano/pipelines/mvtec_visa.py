"""The step-by-step way of the benchmark: load a split, make a detector, evaluate it.

For notebooks. `run_benchmark` does the same, leaves a run directory, and measures besides what a
dataset's authors report: kinds of defects, sPRO, their limit of integration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import Sample, load_dataset
from ..errors import UsageError
from ..models import Detector, create_model
from ..models.registry import default_keywords
from .results import EvaluationProtocol
from .trial import run_trial

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
    """A detector with the arguments of the benchmark; `kwargs` are the model's keywords.

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
    detector: Detector,
    split: BenchmarkSplit,
    *,
    compute_pixel_scores: bool = True,
    pro_integration_limit: float = 0.3,
) -> dict[str, Any]:
    """Fit on the split's training images, score its test images once, measure.

    Parameters
    ----------
    detector
        Is fitted here, also if it was before; where its `resize` is None, at the masks' size.
    split
        Of `load_benchmark_split`, or made by hand.
    compute_pixel_scores
        Whether pixel metrics are wanted; they need `split.test_masks`.
    pro_integration_limit
        Of AUPRO, in (0, 1].

    Returns
    -------
    dict
        As `results` of a category's report, and `problems`: a list of
        `{kind, path, message}`, one for each unreadable image.

    Raises
    ------
    UsageError
        Lengths differ, labels are none, or masks are of another size than the detector's
        `resize`.
    ImageReadError
        An unreadable training image.
    """
    if split.test_masks is not None and detector.get_params().get("resize", ()) is None:
        detector.set_params(resize=tuple(split.test_masks.shape[1:]))
    size = detector.validate_params().resize
    count = len(split.test_paths)
    if len(split.test_labels) != count:
        raise UsageError(f"{count} test paths, but {len(split.test_labels)} test labels")
    masks = split.test_masks
    if masks is not None and masks.shape != (count, *size):
        raise UsageError(
            f"test_masks has shape {masks.shape}, wanted {(count, *size)}: one mask a test "
            "image, at the detector's resize"
        )
    if not np.isin(split.test_labels, (-1, 0, 1)).all():
        raise UsageError("test_labels must hold 0 (good), 1 (defective) and -1 (not known) only")
    samples = [
        Sample(Path(path), *_KNOWN[int(label)])
        for path, label in zip(split.test_paths, split.test_labels, strict=True)
    ]
    trial = run_trial(
        detector,
        list(split.train_paths),
        samples,
        masks=masks,
        protocol=EvaluationProtocol(
            compute_pixel_scores and masks is not None, pro_integration_limit
        ),
        no_pixel_reason="the split carries no masks" if masks is None else None,
    )
    return {**trial.results, "problems": [problem.model_dump() for problem in trial.problems]}
