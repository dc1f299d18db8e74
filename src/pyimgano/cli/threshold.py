"""`pyimgano threshold`: move the operating point of a saved detector, without a refit."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..threads import limited_threads
from .console import ALLOW_WEIGHTS, Bar, images_in, print_error, print_facts
from .options import (
    calibration_tail_option,
    json_option,
    max_pixels_option,
    num_threads_option,
)

if TYPE_CHECKING:
    from ..inference.scoring import OneProduct

_FOLDER = click.Path(path_type=Path, file_okay=False)
_COSTS = ("cost_miss", "cost_false_alarm", "defect_share")


class _Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A share in (0, 1), or in percent."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"\s*(\d*\.?\d+(?:[eE]-?\d+)?)\s*(%?)\s*", str(value))
        number = float(found[1]) / (100 if found[2] else 1) if found else 0.0
        if not 0 < number < 1:
            self.fail(f"give a share between 0 and 1, or in percent, got {value!r}")
        return number


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("where", type=_FOLDER, metavar="RUN|MODEL")
@click.option("--category", metavar="C", help="Category of the run, where it has several.")
@click.option("--value", type=float, help="Set the threshold to this value.")
@click.option(
    "--quantile",
    type=_Share(),
    help="Quantile of the good images' scores; 0.98 promises 2 % false alarms.",
)
@calibration_tail_option
@click.option(
    "--good",
    type=_FOLDER,
    help="Calibrate on these good images, which the detector was not fitted on: their scores "
    "replace those of the calibration.",
)
@click.option("--bad", type=_FOLDER, help="Images of defects, for --miss-rate or for costs.")
@click.option(
    "--miss-rate",
    type=_Share(),
    metavar="RATE",
    help="Miss at most this share of defects, such as 2% or 0.02.",
)
@click.option(
    "--confidence",
    type=_Share(),
    help="Confidence with which --miss-rate holds. Default 95%.",
)
@click.option("--on-average", is_flag=True, help="Let --miss-rate hold only on average.")
@click.option("--cost-miss", type=float, help="Cost of a defect that is missed.")
@click.option("--cost-false-alarm", type=float, help="Cost of a good part that is rejected.")
@click.option(
    "--defect-share",
    type=_Share(),
    help="Share of the parts that are defective, for costs. Default 50%.",
)
@click.option(
    "--save-model",
    type=_FOLDER,
    help="Save the detector with the new threshold in this folder, and leave the old one as it is.",
)
@click.option("--dry-run", is_flag=True, help="Print the result, and write nothing.")
@click.option("--device", help="Run on auto, cpu, cuda or cuda:N. Default the device of the fit.")
@click.option("--allow-outside", is_flag=True, help=ALLOW_WEIGHTS)
@num_threads_option
@max_pixels_option
@json_option
def command(**given: Any) -> int:
    """Move the threshold of a saved detector, and write down where it comes from.

    \b
      pyimgano threshold models/lid --quantile 0.98
      pyimgano threshold models/lid --bad photos/bad --miss-rate 2%

    The detector is the folder of a saved detector, or a run that kept one. Without an option that
    chooses a threshold the present one is printed. The result is a table on a terminal, and else
    one JSON document on stdout.

    Exit status: 0 done; 1 it cannot be done; 2 usage.
    """
    choosing = _check(given)
    from ..errors import UsageError
    from ..images import limited_pixels
    from ..models import ManyProducts, load_model

    folder, run = _model_folder(given)
    with limited_threads(given["num_threads"]), limited_pixels(given["max_pixels"]):
        detector = load_model(folder, device=given["device"], allow_outside=given["allow_outside"])
        if isinstance(detector, ManyProducts):
            raise click.UsageError(
                f"{folder}: is a detector of many products, each with a threshold of its own; move "
                "that of one in Python: load_model(...).products_[NAME].recalibrate(...)"
            )
        before = asdict(detector.calibration_)
        with Bar() as bar:
            try:
                _choose(detector, given, run, bar)
            except UsageError as error:
                raise click.UsageError(str(error)) from None
        saved = None
        if choosing and not given["dry_run"]:
            target = given["save_model"]
            saved = detector.save(folder if target is None else target, overwrite=target is None)
    print_facts(
        {
            "model": str(folder),
            "saved": None if saved is None else str(saved),
            "threshold": detector.threshold_,
            "calibration": asdict(detector.calibration_),
            "before": before,
        },
        given["as_json"],
    )
    for note in detector.calibration_.notes:
        print_error(f"threshold: {note}")
    if saved is not None and run is not None and given["save_model"] is None:
        print_error(f"{run}: its report still has what was measured at the threshold before")
    return 0


def _check(given: dict[str, Any]) -> bool:
    """See that the options say one thing; gives whether they choose a threshold."""
    costs = given["cost_miss"] is not None or given["cost_false_alarm"] is not None
    ways = {
        "--value": given["value"] is not None,
        "--quantile": given["quantile"] is not None,
        "--miss-rate": given["miss_rate"] is not None,
        "--cost-miss and --cost-false-alarm": costs,
    }
    chosen = [name for name, is_given in ways.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)}: give only one way to choose a threshold")
    if costs and (given["cost_miss"] is None or given["cost_false_alarm"] is None):
        raise click.UsageError("--cost-miss and --cost-false-alarm go together")
    if given["miss_rate"] is None and (given["confidence"] is not None or given["on_average"]):
        raise click.UsageError("--confidence and --on-average have no effect without --miss-rate")
    if given["confidence"] is not None and given["on_average"]:
        raise click.UsageError("--confidence and --on-average: give one of them")
    if given["defect_share"] is not None and not costs:
        raise click.UsageError("--defect-share has no effect without costs")
    if given["bad"] is not None and not costs and given["miss_rate"] is None:
        raise click.UsageError("--bad has no effect without --miss-rate or costs")
    if given["value"] is not None and given["calibration_tail"] is not None:
        raise click.UsageError("--calibration-tail has no effect with --value")
    choosing = bool(chosen or given["good"] is not None or given["calibration_tail"] is not None)
    if not choosing and (given["save_model"] is not None or given["dry_run"]):
        raise click.UsageError("nothing chooses a threshold: give --quantile, --good or the like")
    return choosing


def _model_folder(given: dict[str, Any]) -> tuple[Path, Path | None]:
    """Return the folder of the saved detector, and the run that it belongs to."""
    from ..runs import find_model

    where: Path = given["where"]
    if (where / "detector.json").is_file():
        if given["category"] is not None:
            raise click.UsageError("--category does not apply to a saved model")
        return where, None
    return find_model(where, category=given["category"]), where


def _choose(detector: OneProduct, given: dict[str, Any], run: Path | None, bar: Bar) -> None:
    from ..calibration import (
        CONFIDENCE,
        threshold_for_costs,
        threshold_for_misses,
    )
    from ..inference import calibrate_threshold

    tail = given["calibration_tail"]
    if given["good"] is not None:
        now = detector.calibration_
        calibrate_threshold(
            detector,
            images_in(given["good"], "good images", good_for="--good"),
            quantile=given["quantile"] or now.quantile_asked,
            tail=tail or now.tail_asked,
            progress=bar.show,
        )
    elif given["quantile"] is not None or tail is not None:
        detector.recalibrate(quantile=given["quantile"], tail=tail)
    if given["value"] is not None:
        detector.set_threshold(given["value"], origin="a value that was given")
    if given["miss_rate"] is not None:
        level = CONFIDENCE if given["confidence"] is None else given["confidence"]
        chosen = threshold_for_misses(
            _defect_scores(detector, given, run),
            given["miss_rate"],
            confidence=None if given["on_average"] else level,
        )
    elif given["cost_miss"] is not None:
        chosen = threshold_for_costs(
            detector.decision_scores_,
            _defect_scores(detector, given, run),
            cost_miss=given["cost_miss"],
            cost_false_alarm=given["cost_false_alarm"],
            defect_share=0.5 if given["defect_share"] is None else given["defect_share"],
        )
    else:
        return
    detector.set_threshold(chosen.threshold, origin=chosen.origin)


def _defect_scores(detector: OneProduct, given: dict[str, Any], run: Path | None) -> list[float]:
    """Return scores of the images in --bad, or of the defective test images of the run."""
    from ..errors import DataError
    from ..runs import read_scores

    if given["bad"] is not None:
        images = images_in(given["bad"], "images of defects")
        return [float(one) for one in detector.decision_function(images)]
    if run is None:
        raise click.UsageError("--bad is missing: a folder of images of defects")
    folder = _model_folder(given)[0].parent
    scores = [score for label, score in read_scores(folder / "per_image.jsonl") if label == 1]
    if not scores:
        raise DataError(f"{folder}: the run has scored no defective image; give --bad")
    return scores
