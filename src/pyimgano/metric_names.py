"""What the metrics of a report are called in tables, pages and figures, said once.

A new metric that people are to see gets its line here. This module imports nothing, so that
`--help` stays quick.
"""

from __future__ import annotations

#: Metrics by their names in reports, in the order in which tables show them.
METRIC_NAMES = {
    "auroc": "image AUROC",
    "average_precision": "image AP",
    "recall": "recall",
    "false_alarm_rate": "false alarms",
    "precision": "precision",
    "f1": "F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "missed_defect_rate": "missed defects",
    "pixel_auroc": "pixel AUROC",
    "pixel_average_precision": "pixel AP",
    "aupro": "AUPRO",
    "spro": "sPRO",
    "segf1": "SegF1",
}
#: Those of which less is better.
LOW_IS_GOOD = ("false_alarm_rate", "missed_defect_rate")


def some_names(*metrics: str) -> dict[str, str]:
    """Return the names of these metrics, in the order that is given."""
    return {metric: METRIC_NAMES[metric] for metric in metrics}


#: Those that runs are compared by, and may be ranked by.
COMPARED_METRICS = some_names(
    *("auroc", "average_precision", "recall", "false_alarm_rate"),
    *("pixel_auroc", "pixel_average_precision", "aupro", "spro", "segf1"),
)


def title_of(metric: str) -> str:
    """Return the name of a metric as it begins a heading."""
    name = METRIC_NAMES[metric]
    return name if name == "sPRO" else name[0].upper() + name[1:]
