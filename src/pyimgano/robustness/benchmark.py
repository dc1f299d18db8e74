"""Robustness of any detector in a notebook: fit on clean images, measure on corrupted ones.

`pyimgano.pipelines.run_robust_benchmark` does this for a dataset on disk, and leaves a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..calibration import DEFAULT_QUANTILE, calibrate, calibrate_normal_pixel_quantile_threshold
from ..errors import UsageError
from ..evaluation import evaluate_detector
from ..images import SEVERITIES, ImageSource, corrupt_image, corrupt_mask, get_corruption
from ..models.plain_detector import gives_maps, plain_maps, plain_scores, read_batch
from ..utils.splits import split_train_calibration

#: The corruptions that are run unless others are named.
DEFAULT_CORRUPTIONS = ("lighting", "jpeg", "blur", "glare", "geo_jitter")


def run_robustness_benchmark(
    detector: Any,
    split: Any = None,
    *,
    train_images: Sequence[ImageSource] | None = None,
    test_images: Sequence[ImageSource] | None = None,
    test_labels: Any = None,
    test_masks: Any = None,
    corruptions: Iterable[str] = DEFAULT_CORRUPTIONS,
    severities: Iterable[int] = SEVERITIES,
    seed: int = 0,
    input_mode: Literal["numpy", "paths"] = "numpy",
    resize: tuple[int, int] | None = (256, 256),
    pixel_segf1: bool = True,
    pixel_normal_quantile: float = 0.999,
    calibration_fraction: float = 0.2,
    calibration_quantile: float = DEFAULT_QUANTILE,
    calibration_seed: int = 0,
) -> dict[str, Any]:
    """Fit a detector on clean images and measure it on clean and on corrupted test images.

    Both thresholds, of images and of pixels, come from clean training images and stay.

    Parameters
    ----------
    detector
        Any object with `fit` and `decision_function`, and perhaps `predict_anomaly_map` or
        `get_anomaly_map`. It decides by its own `threshold_` where fitting sets one; else it is
        fitted on a part of the training images and calibrated on the others.
    split
        A `pyimgano.pipelines.mvtec_visa.BenchmarkSplit`; or None, and the four arguments below.
    train_images, test_images
        Paths, or (H, W, 3) uint8 RGB arrays.
    test_labels
        (N,) 0 good, 1 defective.
    test_masks
        (N, H, W) or None.
    corruptions
        Names of `pyimgano.images.CORRUPTIONS`.
    severities
        Of 1 to 5.
    seed
        Of the corruptions' draws; the same seed always draws the same.
    input_mode
        `numpy`: the detector is given arrays throughout. `paths`: clean images are given to it
        as they are, so that it reads its own files; corrupted ones are always arrays.
    resize
        (height, width) that images read here are resized to; None leaves their size.
    pixel_segf1
        Whether SegF1 and the background's false-positive rate are measured, at a threshold for
        pixels from the maps of training images that were held out.
    pixel_normal_quantile
        The quantile of their pixels, in (0, 1).
    calibration_fraction, calibration_quantile, calibration_seed
        How many of the training images are held out, and at which conformal quantile the
        threshold is taken.

    Returns
    -------
    dict
        `threshold`; `clean`, as `pyimgano.evaluation.evaluate_detector` returns it; and
        `corruptions`: by name, then `severity_1` to `severity_5`, the same.

    Raises
    ------
    UsageError
        Images are missing, lengths differ, or a corruption or severity is unknown.
    """
    if split is not None:
        train_images, test_images = split.train_paths, split.test_paths
        test_labels, test_masks = split.test_labels, split.test_masks
    if not train_images or not test_images or test_labels is None:
        raise UsageError("train_images, test_images and test_labels, or a split, are wanted")
    if len(test_labels) != len(test_images):
        raise UsageError(f"{len(test_images)} test images, but {len(test_labels)} labels")
    if input_mode not in ("numpy", "paths"):
        raise UsageError(f"input_mode must be 'numpy' or 'paths', got {input_mode!r}")
    kinds = [get_corruption(name).name for name in corruptions]
    levels = list(severities)
    for level in levels:
        if level not in SEVERITIES:
            raise UsageError(f"severities must lie in 1 to 5, got {level!r}")

    as_arrays = input_mode == "numpy"
    train: Any = read_batch(train_images, resize) if as_arrays else list(train_images)
    test = read_batch(test_images, resize)  # what is corrupted
    maps_wanted = test_masks is not None and gives_maps(detector)
    needs_held_out = (maps_wanted and pixel_segf1) or not _calibrates_itself(detector)
    held_out: list[Any] = []
    if needs_held_out and len(train) > 1:
        kept, apart = split_train_calibration(
            list(range(len(train))), fraction=calibration_fraction, seed=calibration_seed
        )
        held_out = [train[i] for i in apart]
        train = [train[i] for i in kept]
    detector.fit(np.stack(train) if as_arrays and _same_shapes(train) else train)
    threshold = getattr(detector, "threshold_", None)
    if threshold is None and held_out:
        scores = plain_scores(detector, held_out)
        threshold = calibrate(scores, calibration_quantile, method="held-out-images").threshold
    pixel_threshold = None
    if maps_wanted and pixel_segf1 and held_out:
        good = plain_maps(detector, held_out) or []
        pixels = np.concatenate([one.ravel() for one in good])
        pixel_threshold = calibrate_normal_pixel_quantile_threshold(pixels, q=pixel_normal_quantile)

    def measured(images: Sequence[Any], masks: Any) -> dict[str, Any]:
        maps = plain_maps(detector, images) if maps_wanted else None
        return evaluate_detector(
            test_labels,
            plain_scores(detector, images),
            threshold=threshold,
            find_best_threshold=False,
            pixel_labels=None if maps is None else masks,
            pixel_scores=None if maps is None else _at_size(maps, masks),
            pixel_threshold=pixel_threshold,
        )

    clean = measured(test if as_arrays else list(test_images), test_masks)
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        for level in levels:
            draws = {"seed": seed}
            images = [
                corrupt_image(one, kind, level, identity=str(i), **draws)
                for i, one in enumerate(test)
            ]
            masks = test_masks
            if maps_wanted:
                moved = [
                    corrupt_mask(np.asarray(one, np.uint8), kind, level, identity=str(i), **draws)
                    for i, one in enumerate(test_masks)
                ]
                masks = np.stack(moved)
            found.setdefault(kind, {})[f"severity_{level}"] = measured(images, masks)
    return {"threshold": threshold, "clean": clean, "corruptions": found}


def _calibrates_itself(detector: Any) -> bool:
    from ..models import Detector

    return isinstance(detector, Detector)


def _same_shapes(images: Sequence[Any]) -> bool:
    return len({np.shape(one) for one in images}) == 1


def _at_size(maps: Sequence[npt.NDArray[np.float32]], masks: Any) -> npt.NDArray[np.float32]:
    """Return the maps (N, H, W) at the size of the masks."""
    from ..postprocess.anomaly_map import resize_map

    return np.stack([resize_map(one, np.shape(masks)[1:3]) for one in maps])
