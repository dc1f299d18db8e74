"""The report that `run_benchmark` returns: a dict, with a face in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError, unknown_name
from ..metric_names import some_names
from ..untrusted_files import parse_json, read_regular, reason_of_failure
from .directory import category_folder

# Of the table that a notebook shows.
_METRICS = some_names(
    "auroc", "average_precision", "recall", "false_alarm_rate", "pixel_auroc", "aupro"
)


class RunReport(dict[str, Any]):
    """The top-level report of a run, plain values by name, as `json.dumps` takes it.

    Figures and frames of images come from the per_image.jsonl of the run directory that `run_dir`
    names.
    """

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        """Return the reports of the categories, by name."""
        if "per_category" in self:
            return dict(self["per_category"])
        return {self["category"]: self}

    def __missing__(self, key: str) -> Any:
        if key == "per_category":  # so that a loop over it works for one category too
            return self.categories
        raise KeyError(key)

    def __repr__(self) -> str:
        said = [f"{self.get('model')} on {self.get('dataset')}, {self.get('category')}"]
        said.append(str(self.get("status")))
        auroc = _mean(self, "auroc")
        if auroc is not None:
            said.append(f"image AUROC {100 * auroc:.2f} %")
        if self.get("run_dir"):
            said.append(str(self["run_dir"]))
        return f"<RunReport: {'; '.join(said)}>"

    def _repr_html_(self) -> str:
        from ..notebook import table

        rows = [
            [name, one.get("status"), *(_percent(_metric(one, metric)) for metric in _METRICS)]
            for name, one in self.categories.items()
        ]
        if len(rows) > 1:
            rows.append(["mean", "", *(_percent(_mean(self, metric)) for metric in _METRICS)])
        title = f"{self.get('model')} on {self.get('dataset')}"
        return table(title, rows, ["category", "status", *_METRICS.values()])

    def to_frame(self) -> Any:
        """Return the metrics as a `pandas.DataFrame`, one row for each category.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from ..notebook import to_frame

        rows = []
        for name, one in self.categories.items():
            results = one.get("results") or {}
            row = {"category": name, "status": one.get("status"), "threshold": one.get("threshold")}
            row |= {name: value for name, value in results.items() if _is_number(value)}
            row |= results.get("metrics") or {}
            row |= results.get("pixel_metrics") or {}
            row["false_alarm_rate"] = _metric(one, "false_alarm_rate")
            row |= one.get("timings") or {}
            rows.append(row)
        return to_frame(rows, "category")

    def images_to_frame(self, category: str | None = None) -> Any:
        """Return the test images as a `pandas.DataFrame`, one row for each record.

        Raises
        ------
        UsageError
            pandas is not installed; or as `plot_scores`.
        DataError
            As `plot_scores`.
        """
        from ..notebook import to_frame

        return to_frame(self._records(category), "index")

    def plot_scores(self, category: str | None = None) -> Any:
        """Return a figure of the scores of good and defective test images, and the threshold.

        Parameters
        ----------
        category
            Of a run over several; may be left out where there is one.

        Raises
        ------
        UsageError
            Which category is wanted is not clear, the run was not saved or has no records of
            images, or matplotlib is not installed.
        DataError
            The records cannot be read.
        """
        from ..notebook import show_scores

        records, name = self._records(category), self._name(category)
        groups = []
        for label, word in ((0, "good"), (1, "defective")):
            known = [one["score"] for one in records if one["y_true"] == label]
            groups.append((word, np.array([s for s in known if s is not None], np.float64)))
        return show_scores(groups, self.categories[name].get("threshold"), f"{name}: scores")

    def plot_roc(self, category: str | None = None) -> Any:
        """Return a figure of the ROC curve of a category; errors as `plot_scores`."""
        from ..notebook import show_square

        labels, scores, name = self._labelled(category)
        true, false = _counts(labels, scores)
        good, bad = max(1, int((~labels).sum())), max(1, int(labels.sum()))
        curve = _percent_label("AUROC", _metric(self.categories[name], "auroc"))
        return show_square(
            [(curve, false / good, true / bad)],
            "false alarm rate",
            "recall",
            f"{name}: ROC",
            self._point(name, ("false_alarm_rate", "recall")),
        )

    def plot_precision_recall(self, category: str | None = None) -> Any:
        """Return a figure of precision against recall of a category; errors as `plot_scores`."""
        from ..notebook import show_square

        labels, scores, name = self._labelled(category)
        true, false = _counts(labels, scores)
        precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
        curve = _percent_label("AP", _metric(self.categories[name], "average_precision"))
        return show_square(
            [(curve, true / max(1, int(labels.sum())), precision)],
            "recall",
            "precision",
            f"{name}: precision and recall",
            self._point(name, ("recall", "precision")),
        )

    def _point(self, name: str, metrics: tuple[str, str]) -> tuple[float, float] | None:
        across, up = (_metric(self.categories[name], metric) for metric in metrics)
        return None if across is None or up is None else (across, up)

    def _name(self, category: str | None) -> str:
        known = self.categories
        if category is None:
            if len(known) != 1:
                raise UsageError(f"category is missing; the run has {', '.join(known)}")
            return next(iter(known))
        if category not in known:
            raise UsageError(unknown_name("category", category, known))
        return category

    def _records(self, category: str | None) -> list[dict[str, Any]]:
        name = self._name(category)
        if not self.get("run_dir"):
            raise UsageError("the run was not saved, and its report does not hold the images")
        path = category_folder(Path(self["run_dir"]), name) / "per_image.jsonl"
        try:
            found = [parse_json(line) for line in read_regular(path).splitlines() if line]
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; the run has no records of images") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
        return [one for one in found if isinstance(one, dict) and one.get("corruption") is None]

    def _labelled(
        self, category: str | None
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], str]:
        known = [
            (one["y_true"] == 1, one["score"])
            for one in self._records(category)
            if one["y_true"] is not None and one["score"] is not None
        ]
        labels = np.array([label for label, _ in known], bool)
        return labels, np.array([score for _, score in known], np.float64), self._name(category)


def _counts(
    labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return defects found and false alarms at every threshold, from none called to all."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.ones(len(ordered), np.bool_)  # of scores that are equal, which are called together
    last[:-1] = ordered[1:] != ordered[:-1]
    ends = np.flatnonzero(last)
    true = np.cumsum(labels[order]).astype(np.float64)
    false = np.cumsum(~labels[order]).astype(np.float64)
    return np.r_[0.0, true[ends]], np.r_[0.0, false[ends]]


def _metric(report: dict[str, Any], name: str) -> float | None:
    results = report.get("results") or {}
    if name == "false_alarm_rate":
        calibration = report.get("calibration") or {}
        value = (calibration.get("measured_false_alarm_rate") or {}).get("rate")
    else:
        parts = (results, results.get("metrics") or {}, results.get("pixel_metrics") or {})
        value = next((part[name] for part in parts if name in part), None)
    return float(value) if value is not None and _is_number(value) else None


def _mean(report: RunReport, name: str) -> float | None:
    if "mean_metrics" in report:
        value = report["mean_metrics"].get(name)
        return float(value) if _is_number(value) else None
    return _metric(report, name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{100 * value:.2f} %"


def _percent_label(name: str, value: float | None) -> str:
    return f"{name} {_percent(value)}"
