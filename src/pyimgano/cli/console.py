"""What a person sees on stderr: a progress bar and a table where it is a terminal, and,
always, what went wrong."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..errors import DataError, PyimganoError
from ..foreign import parse_json, quoted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from typing_extensions import Self

    from ..pipelines.run import Run
    from ..runs import FittedReport
    from .interruption import Interruption

#: The same for all commands that load detectors.
ALLOW_WEIGHTS = "Read the weights file that the saved detector names even outside its folder."

# Of a table in a file of messages.
_LOG_WIDTH = 160
#: Problems listed by name at the end; all of them stand in the report.
_LISTED = 20
# Characters of a line on stderr; text from an untrusted file may have millions.
_LONGEST_LINE = 4000


class Bar:
    """A progress bar; silent unless stderr is a terminal, or if it is to be."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if on_terminal() and not self._silent:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                Elapsed(),
                console=RichConsole(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` of what is being done now."""
        if self._progress is None:
            return
        what = plain(what)  # rich passes escape sequences on
        if self._task is None:
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)


class Console(Bar):
    """Progress of a run, and its summary."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self._title = ""
        self._interruption = interruption

    def run_begins(self, run: Run[Any, Any]) -> None:
        self._interruption.run = run

    def category_started(self, name: str, number: int, total: int) -> None:
        self._title = name if total == 1 else f"{name} ({number}/{total})"
        self.show(self._title, 0, None)

    def stage(self, stage: str, done: int, total: int) -> None:
        self.show(f"{self._title}: {stage}", done, total)

    def category_finished(self, report: FittedReport) -> None:
        if report.failure is not None:
            complain(f"{report.category}: {report.failure.message}")

    def table(self, report: dict[str, Any]) -> None:
        """The summary as a table, if stderr is a terminal."""
        if not on_terminal():
            return
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(plain(f"{report['model']} on {report['dataset']}")))
        metrics = [m for m in _METRICS if m not in _SPECIAL or m in report["own_metrics"]]
        for column in ("category", *(_METRICS[m] for m in metrics), *_DECISIONS):
            table.add_column(column, justify="left" if column == "category" else "right")
        for name, category in _categories(report).items():
            table.add_row(*(Text(plain(cell)) for cell in _row(name, category, metrics)))
        if "per_category" in report:
            mean = report["mean_metrics"]
            table.add_section()
            cells = [percent(mean[m]) for m in metrics]
            cells += [percent(mean["recall"]), percent(mean["false_alarm_rate"]), ""]
            table.add_row("mean", *cells)
        console = RichConsole(stderr=True)
        console.print(table)
        categories = _categories(report)
        if len(categories) == 1:
            (one,) = categories.values()
            if one.get("operating_points"):
                console.print(_trade_off(one))
        if report["run_dir"]:
            console.print(Text(plain(f"run: {report['run_dir']}")))


#: Metrics by name, and the columns they stand in.
_METRICS = {
    "auroc": "image AUROC",
    "average_precision": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_average_precision": "pixel AP",
    "aupro": "AUPRO",
    "spro": "sPRO",
    "segf1": "SegF1",
}
#: Those that are shown where the dataset's authors report them.
_SPECIAL = ("spro", "segf1")
_DECISIONS = ("recall", "false alarms", "promised")


def on_terminal() -> bool:
    """Whether somebody looks at stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def for_people(as_json: bool) -> bool:
    """Return whether stdout shows a table to a person instead of JSON to a program."""
    return not as_json and sys.stdout is not None and sys.stdout.isatty()


def print_for_people(parts: Iterable[Table | str], *, on_stdout: bool) -> None:
    """Print tables and lines where a person looks, and into a file of messages too.

    Parameters
    ----------
    parts
        Tables of rich, and lines without control characters.
    on_stdout
        Whether stdout is the terminal they are for. They go to stderr as well where that is
        another thing, such as a log file; there they are plain lines, as wide as they have to be.
    """
    from rich.console import Console as RichConsole
    from rich.text import Text

    consoles = []
    if on_stdout:
        consoles.append(RichConsole(file=sys.stdout))
    if sys.stderr is not None and not (on_stdout and on_terminal()):
        width = None if on_terminal() else _LOG_WIDTH
        consoles.append(RichConsole(stderr=True, width=width, color_system="auto"))
    shown = [
        Text(one, no_wrap=True, overflow="ignore") if isinstance(one, str) else one for one in parts
    ]
    for console in consoles:
        for part in shown:
            console.print(part)


def plain(message: str) -> str:
    """One line; control characters in a file's name are shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def complain(message: str) -> None:
    """One line on stderr, cut where it is longer than anybody reads."""
    if sys.stderr is not None:  # None if the caller closed it
        line = plain(message)
        if len(line) > _LONGEST_LINE:
            line = f"{line[:_LONGEST_LINE]}... ({len(line)} characters)"
        print(line, file=sys.stderr, flush=True)


def warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """For `warnings.showwarning`: one line too, since untrusted names may be in it."""
    complain(f"warning: {message}")


def print_document(document: Any) -> None:
    """JSON on stdout."""
    print_text(json.dumps(document, indent=2))


def print_summary(report: dict[str, Any], output: Path | None) -> None:
    """A run's summary on stdout, and in the file `output` too; each also where the other fails.

    Raises
    ------
    DataError
        One of them cannot be written.
    """
    from ..runs import write_text

    try:
        if output is not None:
            write_text(output, json.dumps(report, indent=2) + "\n")
    finally:
        print_document(report)


def require_report(run: Callable[[], dict[str, Any]], output: Path | None) -> dict[str, Any]:
    """The report of a run; where it ends early, what it has measured is printed all the same."""
    try:
        return run()
    except PyimganoError as error:
        if error.report is not None:
            with contextlib.suppress(DataError):  # the run's own error is the one to tell
                print_summary(error.report, output)
        raise


def print_text(text: str) -> None:
    """A result on stdout.

    Raises
    ------
    DataError
        It cannot be written; a reader that went away raises `BrokenPipeError`.
    """
    if sys.stdout is None:  # closed by the caller
        raise DataError("stdout is closed; the result could not be printed")
    try:
        try:
            sys.stdout.write(text + "\n")
        except UnicodeEncodeError:  # a console of few characters; JSON is UTF-8 in any case
            sys.stdout.flush()
            sys.stdout.buffer.write((text + "\n").encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"stdout: cannot be written ({error.strerror})") from error


def images_in(
    folder: Path,
    what: str,
    *,
    good_for: str | None = None,
    leave_out: Sequence[Path] = (),
) -> list[str]:
    """Return the images of a folder, which is to hold `what`.

    `good_for` is the option or argument that wants good parts alone. Images in the folders
    `leave_out` are not among them.

    Raises
    ------
    DataError
        There is no such folder, it holds no image, or it holds bad parts where good ones are
        wanted.
    """
    from ..datasets import require_good_parts
    from ..inference.inputs import list_input

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it has to hold {what}")
    listing = list_input(str(folder), leave_out=leave_out)
    if listing.problems:
        raise DataError(listing.problems[0])
    if good_for is not None:
        require_good_parts(folder, listing.paths, option=good_for)
    for note in listing.notes:
        complain(note)
    return listing.paths


def parse_keywords(text: str | None) -> dict[str, Any]:
    """The object that `--model-kwargs` gives; raises `click.UsageError` where it is none."""
    if text is None:
        return {}
    try:
        keywords = parse_json(text)
    except ValueError as error:
        shown = quoted(text, 200)
        raise click.UsageError(f"--model-kwargs is not JSON ({error}): {shown}") from None
    if not isinstance(keywords, dict):
        raise click.UsageError(f"--model-kwargs must be a JSON object, got {quoted(text, 200)}")
    return keywords


def complain_of_problems(report: dict[str, Any], *, skip: bool) -> int:
    """List what was wrong with files, and return the exit status."""
    failed = unreadable = 0
    for name, category in _categories(report).items():
        failed += category["status"] == "failed"
        problems = category["problems"]
        unreadable += sum(p["kind"] == "unreadable_test_image" for p in problems)
        for problem in problems[:_LISTED]:
            complain(f"{name}: {problem['kind']}: {problem['path']}: {problem['message']}")
        if len(problems) > _LISTED:
            complain(f"{name}: and {len(problems) - _LISTED} more problems, all in the report")
        for note in category["notes"]:
            complain(f"{name}: {note}")
        if category["calibration"]:
            for note in category["calibration"]["notes"]:
                complain(f"{name}: threshold: {note}")
    if report.get("not_begun"):
        complain(f"not begun: {', '.join(report['not_begun'])}")
    if unreadable:
        plural = "s" if unreadable > 1 else ""
        complain(f"{unreadable} test image{plural} could not be read and got no score")
    return 1 if failed or (unreadable and not skip) else 0


def _categories(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if "per_category" in report:
        found: dict[str, dict[str, Any]] = report["per_category"]
        return found
    return {report["category"]: report}


def _row(name: str, report: dict[str, Any], metrics: list[str]) -> list[str]:
    if not report["results"]:
        return [name, report["status"], *[""] * (len(metrics) + len(_DECISIONS) - 1)]
    results = report["results"]
    values = {**results, **results["pixel_metrics"]}
    measured = report["calibration"]["measured_false_alarm_rate"]
    alarms = "-"
    if measured["rate"] is not None:
        alarms = (
            f"{percent(measured['rate'])} [{percent(measured['low'])}, {percent(measured['high'])}]"
        )
    return [
        name,
        *(percent(values[metric]) for metric in metrics),
        percent(results["metrics"]["recall"]),
        alarms,
        percent(report["calibration"]["promised_false_alarm_rate"]),
    ]


def _trade_off(report: dict[str, Any]) -> Table:
    """What each promise leads to, as a table for a terminal."""
    from rich.table import Table

    table = Table(title="promised false alarms, and what they lead to (95 % intervals)")
    for column in ("asked", "promised", "at most", "threshold", "false alarms", "recall"):
        table.add_column(column, justify="right")
    for point in report["operating_points"]:
        table.add_row(
            percent(point["asked_false_alarm_rate"], 1),
            percent(point["promised_false_alarm_rate"]),
            percent(point["false_alarm_rate_bound"]),
            f"{point['threshold']:.4g}",
            *(_with_interval(point[name], 1) for name in ("false_alarms", "recall")),
        )
    return table


def _with_interval(share: dict[str, Any], digits: int) -> str:
    if share["rate"] is None:
        return "-"
    low, high = percent(share["low"], digits), percent(share["high"], digits)
    return f"{percent(share['rate'], digits)} [{low}, {high}]"


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
