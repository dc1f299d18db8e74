"""Sentences that a plant engineer understands, from the reports of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..runs import (
    CategoryReport,
    FittedReport,
    MeasuredRate,
    Problem,
    RobustnessCategoryReport,
    RobustnessSuiteReport,
    SuiteReport,
)
from .run_files import AnyCategory, TopReport

Level = Literal["failed", "warning", "note"]

# What a problem of a file means, for one and for several.
_PROBLEMS = {
    "unreadable_train_image": (
        "training image could not be read and was left out",
        "training images could not be read and were left out",
    ),
    "unreadable_calibration_image": (
        "image to calibrate on could not be read and was left out",
        "images to calibrate on could not be read and were left out",
    ),
    "unreadable_test_image": (
        "test image could not be read and has no score",
        "test images could not be read and have no score",
    ),
    "mask_missing": ("defective image has no mask", "defective images have no mask"),
    "mask_unreadable": ("mask could not be read", "masks could not be read"),
    "mask_size": (
        "mask has another size than its image",
        "masks have another size than their images",
    ),
    "mask_empty": ("mask of a defective image is empty", "masks of defective images are empty"),
    "mask_vanishes": (
        "mask has no pixel left at the size that pixels are measured at",
        "masks have no pixel left at the size that pixels are measured at",
    ),
    "mask_value": (
        "mask holds a value that has no meaning",
        "masks hold values that have no meaning",
    ),
    "mask_outside_roi": (
        "mask lies outside the region of interest",
        "masks lie outside the region of interest",
    ),
    "several_pages": (
        "file has several pages, of which the first is used",
        "files have several pages, of which the first is used",
    ),
}
_UNREADABLE = ("unreadable_train_image", "unreadable_calibration_image", "unreadable_test_image")


@dataclass(frozen=True)
class Wrong:
    """Something that a reader has to know before the results.

    Attributes
    ----------
    level
        `failed`: there is no result. `warning`: the results mean less than they seem to.
    category
        That it is about; None for the whole run.
    text
        A sentence.
    details
        Lines that are folded away: one for each file.
    """

    level: Level
    category: str | None
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """How many test images were decided rightly, and how many there were.

    Attributes
    ----------
    defects, found
        Defective test images with a score, and those of them called defective.
    good, alarms
        Good ones, and those of them called defective.
    """

    defects: int = 0
    found: int = 0
    good: int = 0
    alarms: int = 0

    def __add__(self, other: Found) -> Found:
        return Found(
            self.defects + other.defects,
            self.found + other.found,
            self.good + other.good,
            self.alarms + other.alarms,
        )


def found_in(report: AnyCategory) -> Found:
    """Return the counts of a category; all 0 where nothing was measured."""
    if isinstance(report, RobustnessCategoryReport):
        if report.clean is None:
            return Found()
        missed, alarms = report.clean.missed_defects, report.clean.false_alarms
        found = missed.defective_images - missed.missed
        return Found(missed.defective_images, found, alarms.good_images, alarms.false_alarms)
    if report.results is None:
        return Found()
    counts = report.results.metrics
    tp, fn, tn, fp = (value or 0 for value in (counts.tp, counts.fn, counts.tn, counts.fp))
    return Found(tp + fn, tp, tn + fp, fp)


def headline(report: TopReport, categories: Sequence[AnyCategory]) -> str:
    """Return what came out of a run, in a sentence or two."""
    complete = [one for one in categories if one.status == "complete"]
    if not complete:
        if report.status == "failed":
            return "There is no result: the run failed."
        return "There is no result yet."
    said = _decided(sum((found_in(one) for one in complete), Found()))
    if said is None:
        tested = sum(one.counts.test for one in complete if one.counts is not None)
        said = f"The detector is fitted; none of {tested} test images has a label to measure by"
        if tested == 0:
            said = "The detector is fitted; there are no test images to measure it on"
    elif isinstance(report, (SuiteReport, RobustnessSuiteReport)) and len(categories) > 1:
        said = f"In {plural(len(complete), 'category', 'categories')} it {said}"
    else:
        said = said[0].upper() + said[1:]
    deciding = [
        report.category
        for report in complete
        for one in report.training_suspects
        if decides(one.reasons)
    ]
    if len(deciding) == 1:
        said += "; one training image decides the threshold"
        said += f" of {deciding[0]}" if len(complete) > 1 else ""
    elif deciding:
        said += f"; {len(deciding)} training images decide thresholds"
    failed = sum(one.status == "failed" for one in categories)
    if failed:
        said += f". {plural(failed, 'category', 'categories')} failed"
    worst = getattr(report, "summary", None)
    if worst is not None and worst.hurts_most is not None:
        said += f". The corruption that hurts most is {worst.hurts_most}"
    return said + "."


def _decided(found: Found) -> str | None:
    parts = []
    if found.defects:
        parts.append(f"finds {found.found} of {plural(found.defects, 'defect')}")
    if found.good:
        alarms = "none" if found.alarms == 0 else str(found.alarms)
        parts.append(f"calls {alarms} of {plural(found.good, 'good part')} defective")
    return " and ".join(parts) or None


def category_sentence(report: AnyCategory) -> str:
    """Return what came out of a category."""
    if report.failure is not None:
        return f"This category failed: {report.failure.message}"
    if report.status != "complete":
        return f"This category is not complete: {report.status}."
    said = _decided(found_in(report))
    if said is None:
        return "Nothing could be measured here, as no test image has a label."
    return said[0].upper() + said[1:] + "."


def wrongs(report: TopReport, categories: Sequence[AnyCategory]) -> list[Wrong]:
    """Return what is wrong with a run, the worst first."""
    found: list[Wrong] = []
    if report.status in ("interrupted", "running"):
        state = "was interrupted" if report.status == "interrupted" else "is not finished"
        found.append(Wrong("failed", None, f"The run {state}; only what was complete is here."))
    failure = getattr(report, "failure", None)
    named = {one.category for one in categories if one.failure is not None}
    if failure is not None and not named:
        found.append(Wrong("failed", None, f"The run failed: {failure.message}"))
    for one in categories:
        if one.failure is not None:
            stage = f" ({one.failure.stage})" if one.failure.stage else ""
            found.append(Wrong("failed", one.category, f"It failed{stage}: {one.failure.message}"))
    not_begun = getattr(report, "not_begun", [])
    if not_begun:
        names = tuple(not_begun)
        text = f"{plural(len(names), 'category was', 'categories were')} not begun."
        found.append(Wrong("failed", None, text, names))
    for one in categories:
        found += _of_category(one)
    return sorted(found, key=lambda one: ("failed", "warning", "note").index(one.level))


def _of_category(report: AnyCategory) -> list[Wrong]:
    name = report.category
    found = []
    promise = broken_promise(report)
    if promise is not None:
        found.append(Wrong("warning", name, promise))
    by_kind: dict[str, list[Problem]] = {}
    for one in report.problems:
        by_kind.setdefault(one.kind, []).append(one)
    for kind, problems in by_kind.items():
        words = _PROBLEMS[kind][len(problems) > 1]
        lines = tuple(f"{one.path}: {one.message}" for one in problems)
        level: Level = "warning" if kind in _UNREADABLE else "note"
        found.append(Wrong(level, name, f"{len(problems)} {words}.", lines))
    for suspect in report.training_suspects:
        if decides(suspect.reasons):
            text = f"One training image decides the threshold: {suspect.reasons[0]}."
            found.append(Wrong("warning", name, text, (suspect.path,)))
    unlike = report.likeness is not None and report.likeness.unlike
    for note in report.notes:
        if not (unlike and note.startswith("the good test images are not like")):  # said above
            found.append(Wrong("note", name, note[:1].upper() + note[1:] + "."))
    return found


def decides(reasons: Iterable[str]) -> bool:
    """Return whether a suspect is one because the threshold depends on it."""
    return any(one.startswith("without it") for one in reasons)


def broken_promise(report: FittedReport) -> str | None:
    """Return how the promise of false alarms was broken; None if nothing speaks against it."""
    like, calibration = report.likeness, report.calibration
    if calibration is None:
        return None
    measured: MeasuredRate = calibration.measured_false_alarm_rate
    promised = calibration.promised_false_alarm_rate
    counted = f"{measured.false_alarms} of {plural(measured.good_images, 'good test image')}"
    if like is not None and like.unlike:
        return (
            f"The promise of false alarms does not hold: {counted} were called defective"
            + ("" if promised is None else f", where {percent(promised, 2)} were promised")
            + f". The good test images are not like the training images (p = {like.p_value:.2g}); "
            "calibrate on good images like these."
        )
    if promised is not None and measured.low is not None and measured.low > promised:
        return (
            f"More false alarms than promised: {counted} "
            f"({percent(measured.rate)}, at least {percent(measured.low)}), where "
            f"{percent(promised, 2)} were promised."
        )
    return None


def problem_counts(report: CategoryReport) -> Counter[str]:
    """Return how many files have each kind of problem."""
    return Counter(one.kind for one in report.problems)


def plural(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in percent; a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.{digits}f} %"


def multiple(ratio: float | None) -> str:
    """Return a score as a multiple of the threshold, never rounded across it."""
    if ratio is None:
        return "\N{EN DASH}"
    text = f"{ratio:.2f}"
    if (float(text) >= 1.0) != (ratio >= 1.0):
        return "1.00" if ratio >= 1.0 else "0.99"
    return text


def context_note(share: float | None) -> str | None:
    """Return how much of a score its map does not show; None where it shows all of it."""
    if share is None or share < 0.005:
        return None
    return f"{percent(share, 0)} of the score is context, which the map does not show"


def seconds(value: float | None) -> str:
    """Return a time for people."""
    if value is None:
        return "\N{EN DASH}"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min"
