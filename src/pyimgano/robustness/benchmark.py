"""Robustness of any detector in a notebook: fit on clean images, measure on corrupted ones.

`pyimgano.pipelines.run_robust_benchmark` does this for a dataset on disk, and leaves a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from ..calibration import DEFAULT_QUANTILE, calibrate, calibrate_normal_pixel_quantile_threshold
from ..errors import UsageError
from ..evaluation import evaluate_detector
from ..images import SEVERITIES, ImageSource, corrupt_image, corrupt_mask, get_corruption
from ..models import Detector
from ..models.adapted import InputMode, adapt
from ..models.plain_detector import read_batch
from ..postprocess.anomaly_map import resize_map
from ..utils.splits import split_train_calibration

#: The corruptions that are run unless others are named.
DEFAULT_CORRUPTIONS = ("lighting", "jpeg", "blur", "glare", "geo_jitter")
# What the detector is given in each mode: with `paths`, arrays where an image is corrupted.
_MODES: dict[str, InputMode] = {"numpy": "numpy", "paths": "given"}


def run_robustness_benchmark(
    detector: Any,
    split: Any = None,
    *,
    train_images: Sequence[ImageSource] | None = None,
    test_images: Sequence[ImageSource] | None = None,
    test_labels: Any = None,
    test_masks: Any = None,
    corruptions: Iterable[str] | str = DEFAULT_CORRUPTIONS,
    severities: Iterable[int] | int = SEVERITIES,
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
        Names of `pyimgano.images.CORRUPTIONS`, or one.
    severities
        Of 1 to 5, or one.
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
    if train_images is None or test_images is None or test_labels is None:
        raise UsageError("give train_images, test_images and test_labels, or a split")
    for name, images in (("train_images", train_images), ("test_images", test_images)):
        if len(images) == 0:
            raise UsageError(f"{name} are empty")
    if len(test_labels) != len(test_images):
        raise UsageError(f"{len(test_images)} test images, but {len(test_labels)} labels")
    if input_mode not in ("numpy", "paths"):
        raise UsageError(f"input_mode must be 'numpy' or 'paths', got {input_mode!r}")
    names = [corruptions] if isinstance(corruptions, str) else corruptions
    kinds = [get_corruption(name).name for name in names]
    levels = [severities] if isinstance(severities, int) else list(severities)
    for level in levels:
        if level not in SEVERITIES:
            raise UsageError(f"severities must lie in 1 to 5, got {level!r}")

    own = isinstance(detector, Detector)
    size: dict[str, Any] = {} if resize is None else {"resize": resize}
    ours = adapt(detector, input_mode=_MODES[input_mode], calibrates=False, **size)
    as_arrays = input_mode == "numpy"
    train: Any = read_batch(train_images, resize) if as_arrays else list(train_images)
    test: Any = read_batch(test_images, resize)  # what is corrupted
    maps_wanted = test_masks is not None and ours.has_maps
    held_out: list[Any] = []
    if (not own or (maps_wanted and pixel_segf1)) and len(train) > 1:
        kept, apart = split_train_calibration(
            range(len(train)), calibration_fraction, calibration_seed
        )
        held_out = [train[i] for i in apart]
        train = [train[i] for i in kept]
    ours.fit(list(train))
    threshold = ours.threshold_
    if threshold is None and held_out:
        scores = ours.decision_function(held_out)
        threshold = calibrate(scores, calibration_quantile, method="held-out-images").threshold
    pixel_threshold = None
    if maps_wanted and pixel_segf1 and held_out:
        pixels = np.concatenate([one.ravel() for one in ours.predict_anomaly_map(held_out)])
        pixel_threshold = calibrate_normal_pixel_quantile_threshold(pixels, q=pixel_normal_quantile)

    def measured(images: Sequence[Any], masks: Any) -> dict[str, Any]:
        results = list(ours.score_images(images, maps=maps_wanted))
        maps = None
        if maps_wanted:
            maps = np.stack([resize_map(one.anomaly_map, masks.shape[1:3]) for one in results])
        return evaluate_detector(
            test_labels,
            [one.score for one in results],
            threshold=threshold,
            find_best_threshold=False,
            pixel_labels=None if maps is None else masks,
            pixel_scores=maps,
            pixel_threshold=pixel_threshold,
        )

    truth = None if test_masks is None else np.asarray(test_masks)
    clean = measured(test if as_arrays else list(test_images), truth)
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        for level in levels:
            images = [
                corrupt_image(one, kind, level, seed=seed, identity=str(i))
                for i, one in enumerate(test)
            ]
            masks = truth
            if maps_wanted and truth is not None:
                moved = [
                    corrupt_mask(one.astype(np.uint8), kind, level, seed=seed, identity=str(i))
                    for i, one in enumerate(truth)
                ]
                masks = np.stack(moved)
            found.setdefault(kind, {})[f"severity_{level}"] = measured(images, masks)
    return {"threshold": threshold, "clean": clean, "corruptions": found}
