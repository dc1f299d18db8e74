"""Decisions on images one after another: from a list, or from a camera that never ends."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..calibration import ScoreScale
from ..errors import UsageError
from ..images import ImageSource, as_sources, comes_one_by_one
from ..images.image_format import ImageFormat, parse_image_format, to_rgb_u8
from ..images.map_scale import MapScale
from ..models import Detector, ImageScore
from ..models.adapted import adapt
from ..models.many_products import ManyProducts, Naming
from ..models.product_recognition import KnownBy
from ..models.tiled import TiledDetector
from .regions import Region, at_size, context_share, deciding_regions, map_scale, region_of

#: What can score: a fitted detector, one that works by tiles, or one of many products.
#: A detector of one product, with one threshold.
OneProduct: TypeAlias = Detector | TiledDetector
Scorer: TypeAlias = OneProduct | ManyProducts
#: What maps may be put through before they are shown: (H, W) float32 to the same.
MapPostprocess: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, repr=False)
class InferenceResult:
    """The decision on one image.

    Attributes
    ----------
    score
        Higher is more anomalous; None if `error` is set.
    label
        1 if score >= threshold, defective; else 0, good. None if `error` is set: an image that
        could not be looked at is never called good. None too where there is no threshold.
    anomaly_map
        (H, W) float32 at the detector's `resize`, of a tiled detector at the image's own size;
        None if `error` is set, if no map was asked for, or if the method has none.
    index
        Position in the input.
    input
        Its path, or `image <index>` for an array.
    threshold
        What the score was compared with; None of a detector of another program without one.
    original_size
        (height, width) of the image before resizing; None if `error` is set.
    error
        Why there is no score.
    remark
        What was left out of the image file, and how it is of another kind than the training
        images, in words; None if neither.
    regions
        Regions of the map at the image's original size, highest peak first; None if they were
        not asked for or `error` is set. An image that is called good has none.
    unlike_training
        How the image is of another kind than all training images, in words: in colour where they
        are grey, or of another shape; part of `remark` too. None if it is not.
    score_ratio
        score / threshold, from 1.0 on defective (`pyimgano.calibration.score_ratio`); None if
        `error` is set, or for a threshold of 0.
    p_value
        (1 + k) / (n + 1), where k of the n normal scores of the calibration are at least as
        large; None if `error` is set, or where the detector had seen the images behind them.
    map_scale
        Which multiples of the threshold the values of the map stand for; the peak has the
        `score_ratio`. None if no map was asked for.
    context_share
        The share of the score that comes from context and that the map does not show, in [0, 1];
        None if no map was asked for, or where scores come from the map alone.
    product, product_known_by, product_p_value
        Of a detector of many products: the product that the image was judged as, None if it is
        unknown; how it is known, `named`, `recognised` or `unknown`; and, unless it was named, the
        share of its good images that are as far from the others of it as this image.
    """

    score: float | None
    label: int | None = None
    anomaly_map: npt.NDArray[np.float32] | None = None
    index: int = 0
    input: str = ""
    threshold: float | None = None
    original_size: tuple[int, int] | None = None
    error: str | None = None
    remark: str | None = None
    regions: tuple[Region, ...] | None = None
    unlike_training: str | None = None
    score_ratio: float | None = None
    p_value: float | None = None
    map_scale: MapScale | None = None
    context_share: float | None = None
    product: str | None = None
    product_known_by: KnownBy | None = None
    product_p_value: float | None = None

    def __repr__(self) -> str:
        from .result_face import short_repr

        return short_repr(self)

    def _repr_html_(self) -> str:
        from .result_face import result_html

        return result_html(self)

    def show(self, image: npt.NDArray[np.uint8] | None = None) -> Any:
        """Return a `matplotlib.figure.Figure` of the image, and beside it its map with regions.

        Parameters
        ----------
        image
            (H, W, 3) uint8 RGB; by default the file that was scored is read again.

        Raises
        ------
        UsageError
            The image cannot be read, or was an array and is not given, or matplotlib is not
            installed.
        """
        from .result_face import show

        return show(self, image)


def infer(
    detector: Any,
    inputs: Iterable[ImageSource],
    *,
    include_maps: bool = False,
    regions: bool = False,
    pixel_threshold: float | None = None,
    min_area: int = 1,
    batch_size: int | None = None,
    input_format: ImageFormat | str | None = None,
    postprocess: MapPostprocess | None = None,
    product: Naming = None,
) -> list[InferenceResult]:
    """Score images and decide on each.

    Parameters
    ----------
    inputs
        What `pyimgano.images.as_sources` takes, finitely many: a folder, paths, arrays (red
        first), PIL images, torch tensors. A file that cannot be read has a result with its
        `error`.
    detector
        As `iter_infer`; or any object with `fit` and `decision_function`, and perhaps
        `predict_anomaly_map` or `get_anomaly_map`. Such an object decides by its attribute
        `threshold_` if it has one; else labels are None.
    include_maps, regions, pixel_threshold, min_area, batch_size, input_format, postprocess, product
        As `iter_infer`; `product` may also be the names of each image's product.

    Returns
    -------
    list of InferenceResult
        One for each input, in order. With `include_maps` all maps are held at once; for many
        images take `iter_infer`.

    Raises
    ------
    NotFittedError, UsageError
        As `iter_infer`.
    """
    converted = inputs if input_format is None else list(in_rgb(inputs, input_format))
    return list(
        iter_infer(
            adapt(detector, fitted=True, own_paths=True),
            as_sources(converted, name="inputs"),
            include_maps=include_maps,
            regions=regions,
            pixel_threshold=pixel_threshold,
            min_area=min_area,
            batch_size=batch_size,
            postprocess=postprocess,
            product=product,
        )
    )


def in_rgb(inputs: Iterable[ImageSource], input_format: ImageFormat | str) -> Iterator[ImageSource]:
    """Yield the inputs with arrays of another format as (H, W, 3) uint8 RGB."""
    parse_image_format(input_format)  # a wrong name is an error also where there is no input
    if isinstance(inputs, (str, os.PathLike)):
        inputs = as_sources(inputs, name="inputs")
    if isinstance(inputs, np.ndarray) and inputs.ndim == 3:
        raise UsageError(
            f"inputs must be a sequence of paths or images, got one image of shape {inputs.shape}"
        )
    for index, one in enumerate(inputs):
        yield to_rgb_u8(one, input_format, name=f"inputs[{index}]")


def iter_infer(
    detector: Scorer,
    inputs: Iterable[ImageSource],
    *,
    include_maps: bool = False,
    regions: bool = False,
    pixel_threshold: float | None = None,
    min_area: int = 1,
    batch_size: int | None = None,
    read_ahead: bool | None = None,
    input_format: ImageFormat | str | None = None,
    postprocess: MapPostprocess | None = None,
    product: Naming = None,
) -> Iterator[InferenceResult]:
    """Score images one after another and decide, in constant memory.

    Parameters
    ----------
    detector
        Fitted, or loaded.
    inputs
        As `infer`; or an iterator of such images, which may never end.
    include_maps
        Whether results carry their `anomaly_map`.
    regions
        Whether they carry `regions`.
    pixel_threshold
        A pixel at or above it belongs to a region, whatever the image is called. By default regions
        explain the decision: they surround the places that reach the threshold, and an image that
        is called good has none (`pyimgano.inference.regions`).
    min_area
        Regions of fewer pixels are left out.
    batch_size
        Images scored together; by default the detector's `batch_size`. With a `TiledDetector`,
        the tiles of one image that are scored together.
    read_ahead
        Whether inputs are taken and decoded while earlier ones are scored: up to 32 MiB of
        resized images, at least four for each core and at most 256, ahead of the result. By
        default True for a sequence, and False for an iterator, which may be slow.
    input_format
        What arrays among the inputs hold (`pyimgano.images.image_format.ImageFormat`, or its
        name): they are converted to (H, W, 3) uint8 RGB. None: they are that already.
    postprocess
        Applied to the `anomaly_map` of each result, such as
        `pyimgano.postprocess.AnomalyMapPostprocess`. Scores, decisions and regions come from
        the map as the detector gives it.
    product
        For a detector of many products (`pyimgano.models.ManyProducts`): the name of the product of
        all images, or a function that returns that of an image. By default, and where the function
        returns None, products are recognised. An image of an unknown product has an `error` that
        says so, and neither score nor label.

    Yields
    ------
    InferenceResult
        In order. Without read-ahead `batch_size` inputs are taken, decoded side by side and
        scored, and their results yielded before the next input is asked for; so a result waits
        for the rest of its batch and no longer, and with `batch_size=1` for nothing.

    Raises
    ------
    NotFittedError
        The detector was not fitted, or is being fitted by another thread. One that is fitted
        anew later changes nothing: all images are decided on as of this call.
    UsageError
        A value out of range, regions of a method without maps, or an input that is neither a
        path nor such an array. The latter, as any error of the iterator itself, is raised after
        the results of the inputs before it.
    """
    detector = detector.as_fitted()
    if isinstance(detector, ManyProducts):
        if product is not None and not isinstance(product, str) and not callable(product):
            inputs = as_sources(inputs, name="inputs")
            product = _in_turn(product, len(inputs))
        detector = detector.naming(product)
    elif product is not None:
        raise UsageError("product: the detector is of one product, and knows no names of products")
    for name, value in (("batch_size", batch_size), ("min_area", min_area)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
            raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    limit = pixel_threshold_of(detector, pixel_threshold) if regions else None
    view = detector if batch_size is None else _with_batches_of(detector, int(batch_size))
    whole = not comes_one_by_one(inputs)
    if whole and input_format is None:
        inputs = as_sources(inputs, name="inputs")
    if input_format is not None:
        inputs = in_rgb(inputs, input_format)
    maps = include_maps or regions
    scored = (
        _ahead(view, inputs, maps)
        if (whole if read_ahead is None else read_ahead)
        else _batch_by_batch(view, inputs, maps)
    )
    return _decide(detector, scored, include_maps, regions, limit, int(min_area), postprocess)


def _in_turn(names: Sequence[str | None], images: int) -> Callable[[ImageSource], str | None]:
    """Return what names the images in their order."""
    if len(names) != images:
        raise UsageError(f"product has {len(names)} names for {images} images; give one for each")
    left = iter(list(names))
    return lambda _: next(left)


def pixel_threshold_of(detector: Scorer, given: float | None) -> float | None:
    """Return the threshold for the pixels of every image; None where the decision gives it.

    It is `given`, or that of the detector's calibration where it has no threshold for scores.

    Raises
    ------
    UsageError
        The method has no maps, `given` is not finite, or there is no threshold at all.
    """
    require_maps(detector)
    if given is not None:
        if not math.isfinite(given):
            raise UsageError(f"pixel_threshold must be finite, got {given!r}")
        return float(given)
    if isinstance(detector, ManyProducts):  # each product has a threshold
        return None
    threshold: float | None = detector.threshold_  # None of a detector of another program
    if threshold is not None:
        return None
    if detector.pixel_calibration_ is None:
        raise UsageError("the detector has no threshold for pixels; give pixel_threshold")
    return detector.pixel_calibration_.threshold


def judge_of(detector: Scorer, product: str | None) -> Detector | TiledDetector | None:
    """Return the detector that judges images of a product; None where no product is known.

    A detector of one product judges all.
    """
    if not isinstance(detector, ManyProducts):
        return detector
    return None if product is None else detector.product(product)


def require_maps(detector: Scorer) -> None:
    """Raise `UsageError` if the method has no maps."""
    if not detector.has_maps:
        raise UsageError("the method scores whole images and has no anomaly maps")


def _with_batches_of(detector: Any, batch_size: int) -> Any:
    """Return the same detector, sharing all that it learned, with another batch size."""
    view = copy.copy(detector)
    if isinstance(view, TiledDetector):
        view.detector = _with_batches_of(view.detector, batch_size)
    else:
        vars(view)["batch_size"] = batch_size
    return view


_Named: TypeAlias = tuple[str, ImageScore]


def _ahead(detector: Scorer, inputs: Iterable[ImageSource], maps: bool) -> Iterator[_Named]:
    names: dict[int, str] = {}
    failures: list[Exception] = []

    def noted() -> Iterator[ImageSource]:
        try:
            for index, item in enumerate(inputs):
                image = _checked(index, item)
                names[index] = _name(index, image)
                yield image
        except Exception as error:  # of the iterator: what it gave before is scored first
            failures.append(error)

    for result in detector.score_images(noted(), maps=maps, on_error="record"):
        yield names.pop(result.index), result
    if failures:
        raise failures[0]


def _batch_by_batch(
    detector: Scorer, inputs: Iterable[ImageSource], maps: bool
) -> Iterator[_Named]:
    # a tiled detector makes its batches from one image
    size = 1 if isinstance(detector, TiledDetector) else detector.batch_size
    iterator = iter(inputs)
    start = 0
    while True:
        batch: list[ImageSource] = []
        failure: Exception | None = None
        try:
            for item in islice(iterator, size):
                batch.append(_checked(start + len(batch), item))
        except Exception as error:  # of the iterator: what it gave before is scored first
            failure = error
        for result in detector.score_images(batch, maps=maps, on_error="record"):
            index = start + result.index
            yield _name(index, batch[result.index]), replace(result, index=index)
        if failure is not None:
            raise failure
        if len(batch) < size:
            return
        start += size


def _name(index: int, item: ImageSource) -> str:
    return f"image {index}" if isinstance(item, np.ndarray) else str(item)


def _checked(index: int, item: ImageSource) -> ImageSource:
    try:
        return as_sources([item], name="inputs")[0]
    except UsageError as error:
        raise UsageError(str(error).replace("inputs[0]", f"inputs[{index}]", 1)) from None


def _decide(
    detector: Scorer,
    scored: Iterator[_Named],
    include_maps: bool,
    include_regions: bool,
    limit: float | None,
    min_area: int,
    postprocess: MapPostprocess | None,
) -> Iterator[InferenceResult]:
    scales: dict[int, ScoreScale | None] = {}
    for name, result in scored:
        judge = judge_of(detector, None if result.product is None else result.product.name)
        threshold: float | None = None if judge is None else judge.threshold_
        known: dict[str, Any] = {}
        if result.product is not None:
            known = {
                "product": result.product.name,
                "product_known_by": result.product.known_by,
                "product_p_value": result.product.p_value,
            }
        if result.error is not None:
            yield InferenceResult(
                None,
                index=result.index,
                input=name,
                threshold=threshold,
                error=result.error.reason,
                **known,
            )
            continue
        assert judge is not None
        if id(judge) not in scales:
            scales[id(judge)] = None if threshold is None else judge.score_scale()
        scale, roi = scales[id(judge)], region_of(judge)
        assert result.score is not None and result.original_size is not None
        found = explained = share = None
        if result.anomaly_map is not None and (threshold is not None or include_regions):
            full = result.anomaly_map
            if include_regions:
                full = at_size(full, result.original_size, roi)
            explained = map_scale(judge, full, result.score, limit)
            share = context_share(judge, result.score, result.anomaly_map)
            if include_regions:
                listed, _ = deciding_regions(
                    full, explained, pixel_threshold=limit, min_area=min_area, roi=roi
                )
                found = tuple(listed)
            del full
        shown = result.anomaly_map if include_maps else None
        if shown is not None and postprocess is not None:
            shown = postprocess(shown)
        yield InferenceResult(
            score=result.score,
            label=None if threshold is None else int(result.score >= threshold),
            anomaly_map=shown,
            index=result.index,
            input=name,
            threshold=threshold,
            original_size=result.original_size,
            remark="; ".join(said for said in (result.remark, result.unlike_training) if said)
            or None,
            regions=found,
            unlike_training=result.unlike_training,
            score_ratio=None if scale is None else scale.ratio(result.score),
            p_value=None if scale is None else scale.p_value(result.score),
            map_scale=explained,
            context_share=share,
            **known,
        )
        del shown, result  # and its map, before the next is made
