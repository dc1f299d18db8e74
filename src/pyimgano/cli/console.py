"""What a person sees: progress, tables and what went wrong.

On a terminal progress is a bar, and the table of a result stands on stdout instead of JSON. In a
log file (`2> log`) progress and tables are plain lines.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..errors import DataError, PyimganoError
from ..metric_names import some_names
from ..untrusted_files import parse_json, quoted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from typing_extensions import Self

    from ..pipelines.run import Run
    from ..runs import FittedReport
    from .interruption import Interruption

#: The same for all commands that load detectors.
ALLOW_WEIGHTS = "Read the weights file that the saved detector names even outside its folder."

# Of a table in a log file.
_LOG_WIDTH = 200
# A log has a line of progress so often, and one when something else is begun.
_LOG_SECONDS = 30.0
#: Problems listed by name at the end; all of them stand in the report.
_LISTED = 20
# Characters of a line on stderr; text from an untrusted file may have millions.
_LONGEST_LINE = 4000


class Bar:
    """A progress bar on a terminal; elsewhere a line in the log now and then.

    Parameters
    ----------
    silent
        Whether to show nothing at all.
    clock
        Seconds, from anywhere, never backwards.
    """

    def __init__(
        self, *, silent: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._silent = silent
        self._clock = clock
        self._said = clock()
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
        """Show that `done` of `total` of what is being done now is done."""
        if self._progress is None:
            if (
                not self._silent
                and not on_terminal()
                and self._clock() - self._said >= _LOG_SECONDS
            ):
                self._log(f"{what}: {done}" if total is None else f"{what}: {done} of {total}")
            return
        what = plain(what)  # rich passes escape sequences on
        if self._task is None:
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)

    def _log(self, line: str) -> None:
        self._said = self._clock()
        print_error(line)


class Console(Bar):
    """Progress of a run, and its summary."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self._title = ""
        self._stage = ""
        self._interruption = interruption

    def run_begins(self, run: Run[Any, Any]) -> None:
        """Note the run that a signal is to mark as interrupted."""
        self._interruption.run = run

    def category_started(self, name: str, number: int, total: int) -> None:
        self._title = name if total == 1 else f"{name} ({number}/{total})"
        self._stage = ""
        self.show(self._title, 0, None)

    def stage(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage and not on_terminal():
            self._log(f"{self._title}: {stage}, {total}")
        self._stage = stage
        self.show(f"{self._title}: {stage}", done, total)

    def category_finished(self, report: FittedReport) -> None:
        if report.failure is not None:
            print_error(f"{report.category}: {report.failure.message}")

    def table(self, report: dict[str, Any]) -> None:
        """Print the summary as a table, and where the run and its page are."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(plain(f"{report['model']} on {report['dataset']}")))
        metrics = [m for m in _METRICS if m not in _SPECIAL or m in report["own_metrics"]]
        for column in ("category", *(_METRICS[m] for m in metrics), *_DECISIONS):
            table.add_column(column, justify="left" if column == "category" else "right")
        categories = _categories(report)
        for name, category in categories.items():
            table.add_row(*(Text(plain(cell)) for cell in _row(name, category, metrics)))
        if "per_category" in report:
            mean = report["mean_metrics"]
            table.add_section()
            cells = [percent(mean[m]) for m in metrics]
            cells += [percent(mean["recall"]), percent(mean["false_alarm_rate"]), ""]
            table.add_row("mean", *cells)
        parts: list[Table | str] = [table]
        if len(categories) == 1:
            (one,) = categories.values()
            if one.get("operating_points"):
                parts.append(_trade_off(one))
        print_for_people([*parts, *places_of(report)], on_stdout=for_people())


#: Metrics by name, and the columns they stand in.
_METRICS = some_names(
    "auroc",
    "average_precision",
    "pixel_auroc",
    "pixel_average_precision",
    "aupro",
    "spro",
    "segf1",
)
#: Those that are shown where the dataset's authors report them.
_SPECIAL = ("spro", "segf1")
_DECISIONS = ("recall", "false alarms", "promised")


def on_terminal() -> bool:
    """Return whether somebody looks at stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def for_people(as_json: bool | None = None) -> bool:
    """Return whether stdout shows tables to a person instead of JSON to a program.

    It does where it is a terminal, unless the command was given --json. `as_json` says whether it
    was; by default the command under way is asked.
    """
    if as_json is None:
        context = click.get_current_context(silent=True)
        as_json = context is not None and bool(context.params.get("as_json"))
    return not as_json and sys.stdout is not None and sys.stdout.isatty()


def print_for_people(parts: Iterable[Table | str], *, on_stdout: bool) -> None:
    """Print tables and lines where a person looks, and into a log file too.

    Parameters
    ----------
    parts
        Tables, and lines without control characters.
    on_stdout
        Whether stdout is the terminal that they are for. They go to stderr as well where that is no
        terminal but a log file: there they are plain lines, as wide as they have to be.
    """
    from rich import box
    from rich.console import Console as RichConsole
    from rich.text import Text

    consoles: list[tuple[RichConsole, bool]] = []
    if on_stdout:
        consoles.append((RichConsole(file=sys.stdout), False))
    if sys.stderr is not None and not (on_stdout and on_terminal()):
        log = not on_terminal()
        consoles.append((RichConsole(stderr=True, width=_LOG_WIDTH if log else None), log))
    whole = list(parts)
    for console, log in consoles:
        for part in whole:
            if isinstance(part, str):
                console.print(Text(part), soft_wrap=True)  # a path is copied as a whole
                continue
            if log:
                part.box = box.MARKDOWN
            console.print(part)


def places_of(report: dict[str, Any]) -> list[str]:
    """Return lines that say where a run lies, and its page if it has one."""
    if not report["run_dir"]:
        return []
    lines = [plain(f"run: {report['run_dir']}")]
    page = Path(report["run_dir"]) / "report.html"
    return [*lines, plain(f"page: {page}")] if page.is_file() else lines


def plain(message: str) -> str:
    """Return one line; control characters in a file's name are shown, not obeyed."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def print_error(message: str) -> None:
    """Print one line on stderr, cut where it is longer than anybody reads."""
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
    """Print a warning in one line, in place of `warnings.showwarning`: names may be untrusted."""
    print_error(f"warning: {message}")


def print_document(document: Any) -> None:
    """JSON on stdout."""
    print_text(json.dumps(document, indent=2))


def print_summary(report: dict[str, Any], output: Path | None, *, always: bool = False) -> None:
    """Print a run's summary as JSON, and write it to the file `output`; each where the other fails.

    Where stdout shows tables to a person there is no JSON on it, unless `always`.

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
        if always or not for_people():
            print_document(report)


def print_facts(document: dict[str, Any], as_json: bool) -> None:
    """Print a small result: as a table on a terminal, unless `as_json`, and else as JSON."""
    if not for_people(as_json):
        print_document(document)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in _flat(document):
        table.add_row(Text(plain(name)), Text(plain(value)))
    print_for_people([table], on_stdout=True)


def _flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in document.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def require_report(run: Callable[[], dict[str, Any]], output: Path | None) -> dict[str, Any]:
    """Return the report of a run; where it ends early, print what it has measured all the same."""
    try:
        return run()
    except PyimganoError as error:
        if error.report is not None:
            with contextlib.suppress(DataError):  # the run's own error is the one to tell
                # for it may stand nowhere else
                print_summary(error.report, output, always=True)
        raise


def print_text(text: str) -> None:
    """Print a result on stdout.

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
        print_error(note)
    return listing.paths


def parse_keywords(text: str | None) -> dict[str, Any]:
    """Read the object that `--model-kwargs` gives; raises `click.UsageError` where it is none."""
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


def print_problems(report: dict[str, Any], *, skip: bool) -> int:
    """List what was wrong with files, and return the exit status."""
    failed = unreadable = 0
    for name, category in _categories(report).items():
        failed += category["status"] == "failed"
        problems = category["problems"]
        unreadable += sum(p["kind"] == "unreadable_test_image" for p in problems)
        for problem in problems[:_LISTED]:
            print_error(f"{name}: {problem['kind']}: {problem['path']}: {problem['message']}")
        if len(problems) > _LISTED:
            print_error(f"{name}: and {len(problems) - _LISTED} more problems, all in the report")
        for note in category["notes"]:
            print_error(f"{name}: {note}")
        if category["calibration"]:
            for note in category["calibration"]["notes"]:
                print_error(f"{name}: threshold: {note}")
    if report.get("not_begun"):
        print_error(f"not begun: {', '.join(report['not_begun'])}")
    if unreadable:
        plural = "s" if unreadable > 1 else ""
        print_error(f"{unreadable} test image{plural} could not be read and got no score")
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
    """Return what each promise leads to, as a table for a terminal."""
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
    """Return a share in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
