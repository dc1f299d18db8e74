"""The summary of a robustness run as a table."""

from __future__ import annotations

from typing import Any

from ..metric_names import some_names
from .console import for_people, percent, places_of, plain, print_for_people

#: Metrics by name, and the columns they stand in.
_COLUMNS = some_names(
    *("auroc", "average_precision", "pixel_auroc", "pixel_average_precision", "aupro"),
    *("false_alarm_rate", "missed_defect_rate", "balanced_accuracy"),
)


def print_table(report: dict[str, Any]) -> None:
    """Print one row for each corruption, with means over the severities, and where the run is.

    The last column has the balanced accuracy at each severity, where the drop begins.
    """
    summary = report["summary"]
    if summary is None:
        return
    from rich.table import Table
    from rich.text import Text

    clean, corruptions = _parts(report)
    if clean is None:
        return
    severities = ", ".join(str(one) for one in report["severities"])
    table = Table(
        title=Text(plain(f"{report['model']} on {report['dataset']}, {report['category']}")),
        caption=Text(_caption(report, summary)),
    )
    for column in ("corruption", *_COLUMNS.values(), f"at {severities}"):
        table.add_column(column, justify="left" if column == "corruption" else "right")
    table.add_row("clean", *_cells(clean), "")
    table.add_section()
    for name, one in corruptions.items():
        each = [percent(c["metrics"]["balanced_accuracy"], 0) for c in one["severities"]]
        table.add_row(name, *_cells(one["mean"]), " ".join(each))
    table.add_section()
    table.add_row("mean", *_cells(summary["mean"]), "")
    print_for_people([table, *places_of(report)], on_stdout=for_people())


def _parts(report: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the clean metrics and the corruptions, of one category or the mean over several."""
    if "per_category" in report:
        return report["mean_clean"], report["mean_corruptions"]
    clean = report["clean"]
    return (None if clean is None else clean["metrics"]), report["corruptions"]


def _cells(metrics: dict[str, Any]) -> list[str]:
    return [percent(metrics.get(name)) for name in _COLUMNS]


def _caption(report: dict[str, Any], summary: dict[str, Any]) -> str:
    said = ["percent; means over the severities, at the threshold of the clean training images"]
    for metric, word in (("balanced_accuracy", "hurts most"), ("auroc", "largest AUROC drop")):
        worst = summary["worst"].get(metric)
        if worst is not None:
            change = f"{100 * worst['mean_delta']:+.2f}"
            said.append(f"{word}: {worst['corruption']} ({_COLUMNS[metric]} {change} points)")
    timings = report.get("timings")
    if timings and timings["clean_milliseconds"] is not None:
        said.append(f"scoring a clean image: {timings['clean_milliseconds']:.1f} ms")
    return "\n".join(said)
