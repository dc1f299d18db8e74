"""What a notebook shows of a result, and results as a frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError, UsageError
from ..images import read_image
from ..images.draw import draw_overlay
from ..images.map_scale import MapScale
from ..notebook import pictures, show_image, table, thumbnail, to_frame
from .regions import at_size, deciding_regions

if TYPE_CHECKING:
    from .scoring import InferenceResult

_CALLED = {1: "defective", 0: "good", None: "no decision"}


def rounded_ratio(ratio: float) -> str:
    """Return a multiple of the threshold in two decimals, below 1.00 where it is below 1."""
    return f"{min(ratio, 0.99) if ratio < 1 else ratio:.2f}"


def words_of(result: InferenceResult) -> str:
    """Return the decision on an image in one line."""
    if result.product_known_by == "unknown":
        return f"{result.input}: no decision: {result.error}"
    if result.error is not None:
        return f"{result.input}: not read: {result.error}"
    said = [_CALLED[result.label], f"score {result.score:.4g}"]
    if result.score_ratio is not None:
        said.append(f"{rounded_ratio(result.score_ratio)} x the threshold")
    if result.context_share is not None:
        said.append(f"{100 * result.context_share:.0f} % of it context")
    return f"{result.input}: {', '.join(said)}"


def short_repr(result: InferenceResult) -> str:
    """Return what `repr` says of a result, without the values of its map."""
    parts = [words_of(result)]
    if result.anomaly_map is not None:
        parts.append("map of {} x {} pixels".format(*result.anomaly_map.shape))
    if result.regions is not None:
        parts.append(f"{len(result.regions)} regions")
    return f"<InferenceResult {'; '.join(parts)}>"


def result_html(result: InferenceResult) -> str:
    """Return the decision, and the image with its map, as HTML."""
    rows = [
        (name, getattr(result, name))
        for name in ("score", "threshold", "score_ratio", "p_value", "context_share", "remark")
        if getattr(result, name) is not None
    ]
    shown = []
    try:
        image = _image(result)
    except UsageError:  # an array: the numbers are all there is
        return table(words_of(result), rows)
    shown.append((thumbnail(image, 320), "image"))
    full, scale, outline = _explained(result, (image.shape[0], image.shape[1]))
    if full is not None and scale is not None:
        drawn = draw_overlay(image, full, scale, outline=outline, legend=False)
        shown.append((thumbnail(drawn, 320), "map, in multiples of the threshold"))
    return table(words_of(result), rows) + pictures(shown)


def show(result: InferenceResult, image: npt.NDArray[np.uint8] | None) -> Any:
    """Return the figure of `InferenceResult.show`."""
    if image is None:
        image = _image(result)
    full, scale, outline = _explained(result, (image.shape[0], image.shape[1]))
    return show_image(image, full, scale, outline, words_of(result))


def results_to_frame(results: Iterable[InferenceResult]) -> Any:
    """Return results as a `pandas.DataFrame`, one row for each, without maps.

    Raises
    ------
    UsageError
        pandas is not installed.
    """
    rows = []
    for one in results:
        row = {name: value for name, value in vars(one).items() if name not in _LEFT_OUT}
        row["regions"] = None if one.regions is None else len(one.regions)
        rows.append(row)
    return to_frame(rows, "index")


_LEFT_OUT = ("anomaly_map", "map_scale", "regions")


def _explained(
    result: InferenceResult, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32] | None, MapScale | None, npt.NDArray[np.bool_] | None]:
    """Return the map (H, W) at the image's size, its scale, and the mask of its regions."""
    if result.anomaly_map is None or result.map_scale is None or result.score is None:
        return None, None, None
    full, scale = at_size(result.anomaly_map, size), result.map_scale
    if result.threshold is not None:  # the peak at this size is another
        scale = MapScale.of(
            float(full.max()), score=result.score, threshold=result.threshold, normal=scale.normal
        )
    return full, scale, deciding_regions(full, scale)[1]


def _image(result: InferenceResult) -> npt.NDArray[np.uint8]:
    if result.error is not None:
        raise UsageError(f"{result.input}: there is nothing to show: {result.error}")
    try:
        return read_image(result.input)
    except ImageReadError as error:
        raise UsageError(
            f"{result.input}: the image cannot be read ({error.reason}); give it as image="
        ) from None
