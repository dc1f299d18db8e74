"""Figures by matplotlib, which a notebook shows and a program can change or save.

They are made without `pyplot`: no window opens, and none has to be closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..images.draw import draw_overlay
from ..images.map_scale import MapScale

_COLOURS = ("#23845c", "#c8501e", "#3d6fb6")
_BARS = 40


def new_figure(width: float, height: float) -> Any:
    """Return an empty `matplotlib.figure.Figure`, its sides in inches.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "a figure needs matplotlib, which is not installed; pip install matplotlib"
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_image(
    image: npt.NDArray[np.uint8],
    anomaly_map: npt.NDArray[np.float32] | None,
    scale: MapScale | None,
    outline: npt.NDArray[np.bool_] | None,
    title: str,
) -> Any:
    """Return a figure of an image (H, W, 3), and beside it the same with its map (H, W)."""
    shown = [image]
    if anomaly_map is not None and scale is not None:
        shown.append(draw_overlay(image, anomaly_map, scale, outline=outline, legend=False))
    height, width = image.shape[:2]
    figure = new_figure(4.5 * len(shown), max(2.0, 4.5 * height / width + 0.5))
    for number, one in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        axes.imshow(one)
        axes.set_axis_off()
    figure.suptitle(title.replace("$", r"\$"))
    return figure


def show_scores(
    groups: Sequence[tuple[str, npt.NDArray[np.float64]]], threshold: float | None, title: str
) -> Any:
    """Return a figure of histograms of the scores of groups, and the threshold.

    Groups without scores are left out.
    """
    figure = new_figure(7.0, 3.6)
    axes = figure.add_subplot()
    groups = [(name, scores) for name, scores in groups if len(scores)]
    every = np.concatenate([scores for _, scores in groups]) if groups else np.zeros(0)
    edges = np.histogram_bin_edges(every, _BARS) if len(every) else None
    for (name, scores), colour in zip(groups, _COLOURS, strict=False):
        label = f"{name} ({len(scores)})".replace("$", r"\$")
        axes.hist(scores, bins=edges, alpha=0.6, color=colour, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set_xlabel("score")
    axes.set_ylabel("images")
    axes.set_title(title.replace("$", r"\$"))
    if groups or threshold is not None:
        axes.legend()
    return figure


def show_square(
    curves: Sequence[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    x: str,
    y: str,
    title: str,
    point: tuple[float, float] | None = None,
) -> Any:
    """Return a figure of curves within the unit square; `point` is marked as the threshold's."""
    figure = new_figure(4.6, 4.6)
    axes = figure.add_subplot()
    for name, across, up in curves:
        axes.step(across, up, where="post", label=name.replace("$", r"\$"))
    if point is not None:
        axes.plot(*point, marker="D", color="black", linestyle="none", label="threshold")
    axes.set(xlabel=x, ylabel=y, title=title.replace("$", r"\$"))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if curves or point is not None:
        axes.legend(loc="lower right")
    return figure
