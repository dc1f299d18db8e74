"""What a notebook shows of a detector."""

from __future__ import annotations

from typing import Any

from ..notebook import table


def detector_html(detector: Any) -> str:
    """Return the keywords of a detector, and where its threshold comes from, as HTML."""
    fitted = getattr(detector, "threshold_", None) is not None
    rows: list[tuple[str, Any]] = [("fitted", "yes" if fitted else "no")]
    calibration = getattr(detector, "calibration_", None)
    if fitted and calibration is not None:
        promised = calibration.promised_false_alarm_rate
        said = f"{calibration.n_scores} scores of good images ({calibration.method})"
        rows.append(("threshold", f"{calibration.threshold:.6g} from {said}"))
        if promised is not None:
            rows.append(("promised false alarms", f"{100 * promised:.2f} %"))
        rows += [("note", note) for note in calibration.notes]
    checked = getattr(detector, "params_", None)
    for name, value in detector.get_params(deep=False).items():
        rows.append((name, value if checked is None else getattr(checked, name, value)))
    return table(type(detector).__name__, rows)
