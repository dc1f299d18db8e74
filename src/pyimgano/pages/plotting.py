"""Plots of a report as SVG: drawn by matplotlib, in the colours of the page around them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from ..calibration import clopper_pearson
from ..runs import OperatingPointReport

Floats = npt.NDArray[np.float64]

# Colours that stand for variables of the page's style sheet, so that one plot serves the light
# theme, the dark one and paper. No other colour is drawn.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_TRAIN, _GOOD, _BAD, _ACCENT = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    _TRAIN: "--train",
    _GOOD: "--good",
    _BAD: "--bad",
    _ACCENT: "--accent",
}
#: Points of a curve that are drawn; more cannot be told apart.
MOST_POINTS = 200
_BARS = 48
# Scores from so many times the threshold on share the last bar of the histogram; where one is below
# the least, the scale is not logarithmic.
_LARGEST_MULTIPLE = 20.0
_LEAST_MULTIPLE = 0.02
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """Import matplotlib if need be, and give it with settings of its own defaults."""
    if "matplotlib.font_manager" not in sys.modules:
        _import_quietly()
    import matplotlib.backends.backend_svg
    import matplotlib.figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "font.size": 9.0,
                "text.color": _INK,
                "axes.edgecolor": _MUTED,
                "axes.labelcolor": _INK,
                "axes.titlecolor": _INK,
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.8,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": _GRID,
                "grid.linewidth": 0.8,
                "xtick.color": _MUTED,
                "ytick.color": _MUTED,
                "xtick.labelcolor": _INK,
                "ytick.labelcolor": _INK,
                "lines.linewidth": 1.8,
            }
        )
        yield matplotlib


def _import_quietly() -> None:
    """Import matplotlib such that it starts no process and leaves no file outside of our cache.

    As it is imported it lists the fonts of the system by means of another process, and keeps the
    list in a folder of its own. These plots need none of these fonts, since their text stays text.
    So it is told to look for none, which versions before 3.11 do not understand: there it finds no
    program that would list them. Its folder is one in our cache, since a list without the system's
    fonts must not come into a folder of the user's.
    """
    from platformdirs import user_cache_path

    told = {
        "MPLCONFIGDIR": str(user_cache_path("pyimgano") / "matplotlib"),
        "MPL_IGNORE_SYSTEM_FONTS": "1",
    }
    before = {name: os.environ.get(name) for name in told}
    check_output, here = subprocess.check_output, threading.get_ident()

    def no_program(*command: Any, **how: Any) -> Any:
        if threading.get_ident() != here:
            return check_output(*command, **how)
        raise FileNotFoundError("no program is started while matplotlib is imported")

    os.environ.update(told)
    subprocess.check_output = no_program
    try:
        import matplotlib.backends.backend_svg  # noqa: F401
    finally:
        subprocess.check_output = check_output
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _svg(matplotlib: Any, figure: Any, name: str, description: str) -> Markup:
    """Return the figure as an SVG element whose identifiers no other figure of the page has."""
    matplotlib.rcParams["svg.hashsalt"] = name
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.patch.set_visible(False)
    # drawn once; `savefig` draws everything twice
    matplotlib.backends.backend_svg.FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)  # nothing refers to these
    drawn = re.sub(r"<style\b.*?</style>", "", drawn, flags=re.DOTALL)  # is for the whole page
    drawn = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 sans-serif", drawn)
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawn)
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, f"var({variable})")
    size = re.search(r'viewBox="([^"]*)"', drawn)
    assert size is not None
    first = drawn.index(">") + 1
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{size[1]}" role="img" '
        f'aria-label="{escape(description)}">'
    )
    return Markup(head + drawn[first:])


def _place(figure: Any, *, left: float, right: float, bottom: float, top: float) -> None:
    """Leave so many inches for labels; to measure them would take longer than to draw."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width,
        right=1.0 - right / width,
        bottom=bottom / height,
        top=1.0 - top / height,
    )


def thin(points: int, most: int = MOST_POINTS) -> npt.NDArray[np.intp]:
    """Return at most `most` positions among so many points, evenly spread, both ends included."""
    return np.unique(np.linspace(0, points - 1, min(points, most)).round().astype(np.intp))


def histogram(
    name: str,
    groups: Sequence[tuple[str, str, Floats]],
    *,
    threshold: float | None,
    unit: str,
) -> Markup:
    """Draw the scores of several groups of images below one another, and the threshold.

    Parameters
    ----------
    name
        Another one for each plot of a page.
    groups
        For each its title, its kind (`train`, `good`, `bad` or `other`), and (N,) scores.
    threshold
        Marked in all of them, in the same unit as the scores.
    unit
        What the scores are, for the axis.
    """
    shown = [group for group in groups if len(group[2])]
    every = np.concatenate([scores for _, _, scores in shown])
    if threshold is not None:
        every = np.append(every, threshold)
    edges, said = _bars(every, unit, multiples=threshold == 1.0)
    colours = {"train": _TRAIN, "good": _GOOD, "bad": _BAD}
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(5.4, 0.8 + 0.86 * len(shown)))
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for (title, kind, scores), ax in zip(shown, axes, strict=True):
            counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
            ax.bar(
                edges[:-1],
                counts,
                np.diff(edges),
                align="edge",
                color=colours.get(kind, _MUTED),
                linewidth=0,
            )
            ax.set_ylim(0, max(1.0, 1.12 * counts.max()))
            ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(2, integer=True))
            ax.grid(visible=False, axis="x")
            ax.text(0.0, 1.03, title, transform=ax.transAxes, va="bottom", color=_INK)
            if threshold is not None:
                ax.axvline(threshold, color=_ACCENT, linewidth=1.4, dashes=(4, 2))
        if threshold is not None:
            axes[0].annotate(
                "threshold",
                (threshold, 1.0),
                (0, 16),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=_ACCENT,
                ha="center",
                va="bottom",
            )
        last = axes[-1]
        if edges[0] > 0 and not np.allclose(np.diff(edges), edges[1] - edges[0]):
            last.set_xscale("log")
            ticks = [tick for tick in _TICKS if edges[0] <= tick <= edges[-1]]
            last.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            last.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        last.set_xlim(edges[0], edges[-1])
        last.set_xlabel(said)
        _place(figure, left=0.5, right=0.12, bottom=0.5, top=0.48)
        figure.subplots_adjust(hspace=0.62)
        parts = [f"{len(scores)} {title}" for title, _, scores in shown]
        described = f"Histogram of the scores: {'; '.join(parts)}."
        return _svg(matplotlib, figure, name, described)


def _bars(every: Floats, unit: str, *, multiples: bool) -> tuple[Floats, str]:
    """Return the edges of the bars, and what the axis says.

    Multiples of the threshold are drawn on a scale on which doubling takes as much room
    everywhere, so that the many scores near the threshold have it beside a few that are far above.
    """
    low, high = float(every.min()), float(every.max())
    if multiples and low >= _LEAST_MULTIPLE:
        said = unit
        if high > _LARGEST_MULTIPLE:
            high = _LARGEST_MULTIPLE
            said += f"; the last bar holds {high:g} and more"
        room = (high / low) ** 0.03 if high > low else 1.1
        return np.geomspace(low / room, high * room, _BARS + 1), said
    room = 0.03 * (high - low) or 0.5
    return np.linspace(low - room, high + room, _BARS + 1), unit


class Decisions:
    """Counts at every threshold, from labelled scores.

    Parameters
    ----------
    good, bad
        (G,) and (B,) scores of good and of defective images, neither empty.

    Attributes
    ----------
    false_alarms, found
        (K + 1,) good and defective images at or above each distinct score, from the highest on;
        the first are 0.
    """

    def __init__(self, good: Floats, bad: Floats) -> None:
        self.good, self.bad = len(good), len(bad)
        steps = np.unique(np.concatenate([good, bad]))[::-1]
        self.false_alarms = self._at_or_above(good, steps)
        self.found = self._at_or_above(bad, steps)

    @staticmethod
    def _at_or_above(scores: Floats, steps: Floats) -> npt.NDArray[np.int64]:
        below = np.searchsorted(np.sort(scores), steps, side="left")
        return np.concatenate([[0], len(scores) - below])


def trade_off(
    name: str,
    decisions: Decisions,
    points: Sequence[OperatingPointReport],
    now: tuple[int, int],
    promised: float | None,
) -> Markup:
    """Draw recall against false alarms, where a user looks for another threshold.

    Parameters
    ----------
    name
        Another one for each plot of a page.
    decisions
        Of the test images.
    points
        Lines of the table of promises; each becomes a point with its intervals.
    now
        False alarms and defects found at the calibrated threshold.
    promised
        The false-alarm rate that it promises.
    """
    good, bad = decisions.good, decisions.bad
    at, recall = clopper_pearson(now[0], good), clopper_pearson(now[1], bad)
    assert at.rate is not None and at.high is not None and recall.rate is not None
    rates = decisions.false_alarms / good
    end = min(1.0, max(0.2, 1.3 * at.rate, 0.02 + at.high))
    keep = _corners(rates, decisions.found, end)
    rates, found = rates[keep], decisions.found[keep]
    bounds = [clopper_pearson(int(count), bad) for count in found]
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(5.4, 3.4))
        ax = figure.subplots()
        x = 100 * rates
        ax.fill_between(
            x,
            [100 * (one.low or 0.0) for one in bounds],
            [100 * (one.high or 0.0) for one in bounds],
            step="post",
            color=_BAD,
            alpha=0.14,
            linewidth=0,
        )
        ax.step(x, 100 * found / bad, where="post", color=_BAD)
        others = [
            p for p in points if p.false_alarms.rate is not None and p.recall.rate is not None
        ]
        for one in others:
            _cross(ax, one.false_alarms, one.recall, _MUTED, "o", 4)
        _cross(ax, at, recall, _ACCENT, "D", 7)
        said = f"{now[1]} of {bad} defects, {now[0]} of {good} false alarms"
        ax.text(1.0, 1.02, said, transform=ax.transAxes, ha="right", va="bottom", color=_ACCENT)
        if promised is not None and promised <= end:
            ax.axvline(100 * promised, color=_MUTED, linewidth=1.0, dashes=(2, 2))
            ax.text(
                100 * promised,
                1.0,
                " promised",
                transform=ax.get_xaxis_transform(),
                va="bottom",
                color=_MUTED,
            )
        ax.set_xlim(-1.5 * end, 100 * end)
        ax.set_ylim(-2, 104)
        ax.set_xlabel("false alarms: good test images called defective, %")
        ax.set_ylabel("recall: defects found, %")
        _place(figure, left=0.6, right=0.15, bottom=0.5, top=0.28)
        described = (
            f"Recall against false alarms on {good} good and {bad} defective test images. {said}."
        )
        return _svg(matplotlib, figure, name, described)


def _cross(ax: Any, x: Any, y: Any, colour: str, marker: str, size: float) -> None:
    """Draw a point of two rates with the intervals of both."""
    ax.errorbar(
        100 * x.rate,
        100 * y.rate,
        xerr=[[100 * (x.rate - x.low)], [100 * (x.high - x.rate)]],
        yerr=[[100 * (y.rate - y.low)], [100 * (y.high - y.rate)]],
        color=colour,
        marker=marker,
        markersize=size,
        elinewidth=1.0,
        capsize=2.0,
        linewidth=0,
        markeredgewidth=0,
        clip_on=True,
    )


def _corners(x: Floats, y: npt.NDArray[np.int64], end: float) -> npt.NDArray[np.intp]:
    """Return positions of a rising staircase that are enough to draw it up to x = `end`."""
    inside = max(2, int(np.searchsorted(x, end, side="right")) + 1)
    x, y = x[:inside], y[:inside]
    # of the points above one another only the highest is seen; of a level only its ends
    last = np.append(np.diff(x) > 0, True)
    level = np.append(True, np.diff(y) > 0) | np.append(np.diff(y) > 0, True)
    kept = np.flatnonzero(last & level)
    kept = kept[thin(len(kept), 2 * MOST_POINTS)]
    return np.unique(np.concatenate([[0], kept]))


def roc(name: str, decisions: Decisions, auroc: float | None) -> Markup:
    """Draw the ROC curve of the images."""
    x, y = decisions.false_alarms / decisions.good, decisions.found / decisions.bad
    kept = thin(len(x))
    said = "ROC of images" + ("" if auroc is None else f", AUROC {100 * auroc:.1f} %")
    return _square(name, x[kept], y[kept], said, "false-alarm rate, %", "recall, %", diagonal=True)


def precision_recall(name: str, decisions: Decisions, ap: float | None) -> Markup:
    """Draw precision against recall of the images, with the steps that average precision sums."""
    found, alarms = decisions.found[1:], decisions.false_alarms[1:]
    precision = found / (found + alarms)
    kept = thin(len(found))
    x = np.concatenate([[0.0], (found / decisions.bad)[kept]])
    y = np.concatenate([precision[:1], precision[kept]])
    said = "Precision and recall" + ("" if ap is None else f", AP {100 * ap:.1f} %")
    share = decisions.bad / (decisions.bad + decisions.good)
    return _square(name, x, y, said, "recall, %", "precision, %", level=share)


def pro(
    name: str, rates: Sequence[float], overlap: Sequence[float], limit: float, aupro: float | None
) -> Markup:
    """Draw the per-region overlap of the pixels, up to the limit that it is integrated to."""
    said = "PRO of pixels" + ("" if aupro is None else f", AUPRO {100 * aupro:.1f} %")
    x, y = np.asarray(rates, np.float64), np.asarray(overlap, np.float64)
    return _square(
        name,
        x,
        y,
        said,
        "false-positive rate of pixels, %",
        "mean overlap of regions, %",
        end=limit,
    )


def _square(
    name: str,
    x: Floats,
    y: Floats,
    title: str,
    along: str,
    up: str,
    *,
    end: float = 1.0,
    diagonal: bool = False,
    level: float | None = None,
) -> Markup:
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(3.4, 3.1))
        ax = figure.subplots()
        if diagonal:
            ax.plot([0, 100], [0, 100], color=_MUTED, linewidth=0.8, dashes=(2, 2))
        if level is not None:
            ax.axhline(100 * level, color=_MUTED, linewidth=0.8, dashes=(2, 2))
        ax.fill_between(100 * x, 0, 100 * y, color=_TRAIN, alpha=0.12, linewidth=0)
        ax.plot(100 * x, 100 * y, color=_TRAIN)
        ax.set_xlim(-1.5 * end, 101.5 * end)
        ax.set_ylim(-1.5, 103)
        ax.set_title(title, fontsize=9.0, loc="left")
        ax.set_xlabel(along)
        ax.set_ylabel(up)
        _place(figure, left=0.62, right=0.15, bottom=0.5, top=0.32)
        return _svg(matplotlib, figure, name, f"{title}.")


def drift(
    name: str, lines: Sequence[tuple[str, Sequence[tuple[int, float | None]]]], title: str
) -> Markup:
    """Draw one metric against the severity of each corruption; severity 0 is the clean images."""
    dashes = ((None, None), (5, 2), (2, 2), (6, 2, 2, 2), (1, 1))
    markers = "osD^v"
    with _matplotlib() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(3.4, 3.1))
        ax = figure.subplots()
        colours = (_TRAIN, _BAD, _GOOD, _ACCENT, _MUTED)
        for number, (label, values) in enumerate(lines):
            known = [(x, 100 * y) for x, y in values if y is not None]
            ax.plot(
                *zip(*known, strict=True) if known else ((), ()),
                color=colours[number % len(colours)],
                dashes=dashes[(number + number // len(colours)) % len(dashes)],
                marker=markers[number % len(markers)],
                markersize=4,
                markeredgewidth=0,
                label=label,
            )
        ax.set_ylim(-2, 102)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        ax.set_xlabel("severity; 0 is clean")
        ax.set_ylabel("%")
        ax.set_title(title, fontsize=9.0, loc="left")
        ax.legend(fontsize=7.5, frameon=False, labelcolor=_INK)
        _place(figure, left=0.62, right=0.15, bottom=0.5, top=0.32)
        return _svg(matplotlib, figure, name, f"{title}, by corruption and severity.")
